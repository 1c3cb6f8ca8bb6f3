"""Search: the moments of videos that are nearest to some words (Section A.3.3), as a table, a figure, a page and JSON."""

import base64
import contextlib
import html
import json
import os
import urllib.parse
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch

import vatt
from engine.errors import printable
from engine.run import write_text
from media import Media
from tools import figures
from tools.embed import Reading, Wanted, digest, embed, read
from weights import files

FRAMES = 6  # of a moment, to look at
LITTLE = frozenset(("a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "has", "have", "he", "her", "his", "i",
                    "in", "into", "is", "it", "its", "my", "of", "on", "or", "our", "she", "some", "somebody", "someone",
                    "something", "that", "the", "their", "them", "there", "they", "this", "to", "was", "we", "were", "with",
                    "you", "your"))
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>body {{ font: 15px sans-serif; margin: 2em; max-width: 70em }} img {{ display: block; width: 100%; height: auto }}
figure {{ margin: 1.5em 0 }} a {{ color: inherit }}</style></head>
<body><h1>{title}</h1><p>{note}</p>
{figures}
</body></html>
"""


class Moment(NamedTuple):
    """A part of a video, in seconds, and how near it is"""

    video: str
    start: float
    end: float
    cosine: float


def search(args, how: Reading) -> None:
    """Print the moments of videos that are nearest to the words, draw them to `out`, and write a page of them beside it.

    A moment is as long as a clip of the model; no two of those printed overlap. Their vectors are kept in the run's folder.
    ValueError where the run knows none of the words that say anything, or no video can be read.
    """
    words, source, out = args.words, args.source, args.out
    model = vatt.load(args.run, vatt.Trained).to(how.processes.device)
    asked = model.vocabulary.split(words)
    unknown = [word for word in asked if word not in model.vocabulary.ids]
    telling = [word for word in asked if word not in LITTLE] or asked
    if set(telling) <= set(unknown):
        raise ValueError(f"{args.run} knows no word of {words!r} that says anything: it knows those in its vocabulary.txt")
    if unknown:
        how.processes.print(f"not in the run's vocabulary, and so of no use: {', '.join(unknown)}")
    missing = ", ".join(word for word in unknown if word in telling)
    without = f"  (without: {missing})" if missing else ""
    table = files.folder(args.run) / f"moments-{digest(str(source.resolve()))[:8]}.npz"
    with contextlib.suppress(FileNotFoundError):
        try:
            read(table)
        except ValueError:  # torn: it is made anew
            table.unlink()
    embed(model, Wanted(source, "video", "vt", model.config.frames / model.config.fps, 1), table, how)
    if not how.processes.first:
        return
    found = read(table)
    if not len(found["ids"]):
        raise ValueError(f"no video below {source} can be read: name a folder that holds some")
    cosines = torch.from_numpy(found["vectors"]) @ model.embed_text(words)
    moments = [Moment(str(video), *times, cosine) for video, times, cosine in zip(
        found["ids"], found["times"].tolist(), cosines.tolist(), strict=True)]
    best = best_apart(moments, args.top, args.per_video)
    note = f"the best of {len(moments)} moments in {len(set(found['ids'].tolist()))} videos; their median cosine is " \
           f"{cosines.median():.2f}"
    lines = [f"{m.cosine:.2f}  {printable(m.video)}  {m.start:.1f} - {m.end:.1f} s{without}" for m in best]
    print(f"\n{words!r}: {note}\n\n" + "\n".join(lines))
    root = source.parent if source.is_file() else source
    rows = [(line, frames_of(root / moment.video, moment)) for line, moment in zip(lines, best, strict=True)]
    out.parent.mkdir(parents=True, exist_ok=True)
    links = [f"{urllib.parse.quote(os.path.relpath(root / m.video, out.parent))}#t={m.start:.1f}" for m in best]
    write_text(out.with_suffix(".html"), page(words, note + without, links, rows))
    if args.json:
        each = [{**moment._asdict(), "path": str(root / moment.video)} for moment in best]
        write_text(args.json, json.dumps({"words": words, "unknown": unknown, "moments": each}, indent=2) + "\n")
    drawn = figures.contact_sheet(rows, words + without, out)
    print(f"\n{out.with_suffix('.html')}, {out if drawn else 'and pip install matplotlib draws a figure'}")


def best_apart(moments: list[Moment], top: int, each: int) -> list[Moment]:
    """The `top` best, the best first, none of which overlaps a better one of its video, at most `each` of one video"""
    chosen: list[Moment] = []
    for moment in sorted(moments, key=lambda m: -m.cosine):
        same = [m for m in chosen if m.video == moment.video]
        if len(same) < each and all(moment.start >= m.end or m.start >= moment.end for m in same):
            chosen.append(moment)
        if len(chosen) == top:
            break
    return chosen


def frames_of(path: Path, moment: Moment) -> np.ndarray:
    """A moment, to look at: (FRAMES, h, 180, 3) uint8"""
    with Media(path) as media:
        shape = lambda width, height: (min(max(8, round(180 * height / width)), 360), 180)
        return media.video(moment.start, FRAMES, FRAMES / (moment.end - moment.start), size=shape)


def page(title: str, note: str, links: list[str], rows: list[tuple[str, np.ndarray]]) -> str:
    """A page in HTML that holds what it shows, frames below a line that opens the video at the moment, and runs no script"""
    shown = "\n".join(
        f'<figure><a href="{link}"><img src="data:image/jpeg;base64,{jpeg(frames)}" alt="">{html.escape(line)}</a></figure>'
        for link, (line, frames) in zip(links, rows, strict=True))
    return PAGE.format(title=html.escape(printable(title)), note=html.escape(printable(note)), figures=shown)


def jpeg(frames: np.ndarray) -> str:
    """Frames (N, h, w, 3) side by side, as a JPEG in base64"""
    row = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.concatenate(list(frames), 1)), "rgb24")
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = row.width, row.height, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    encoder.qmin = encoder.qmax = 4
    packets = [*encoder.encode(row.reformat(format="yuvj420p")), *encoder.encode(None)]
    return base64.b64encode(b"".join(map(bytes, packets))).decode()
