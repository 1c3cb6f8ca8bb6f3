"""`python data.py pack SOURCE OUT`: films of any layout to shards of clips, cut, resized and encoded as training reads them.

Pictures are those that `decode.Media` shows at the training rate, upright and with square pixels, and the sound is in step
with them; every GOP is short, so that a random clip costs little to decode. What is packed, in which order and in which bytes
depends on the source and the flags alone: not on the number of processes, nor on how often the work was killed and resumed.
"""

import argparse
import collections
import csv
import functools
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from tqdm import tqdm

from engine.errors import fail, printable, user_errors
from engine.run import Run, write_text
from engine.workers import Failed, map_isolated
from media.captions import Caption, nearest
from media.decode import Media, Unreadable
from media.encode import Encoder
from sources import index, layouts
from sources.index import SHARD, Index, Place, Row
from sources.shards import Writer, damaged

NEIGHBOURS = 16         # captions kept on either side of a piece: more than a clip in it has nearest ones (Eq. 5)
SOUND = 60              # seconds of it decoded at a time


class Form(NamedTuple):
    """How clips are packed."""

    fps: float = 10.0
    short: int = 256            # pixels, of the shorter side; smaller films stay as they are
    rate: int = 48000           # Hz, of the sound, one channel
    seconds: float = math.inf   # of a piece
    gop: int = 10               # frames from one that needs no other to the next
    crf: int = 20               # quality of x264
    copy: bool = False          # whole files as they are


def flags(commands) -> None:
    """The command line of `pack`"""
    p = commands.add_parser("pack", help="films to shards: tar files of clips at the rate and size of training")
    form = Form()
    p.add_argument("source", metavar="[KIND=]SOURCE", help="a folder of films, as --data of pretrain.py takes it")
    p.add_argument("out", type=Path, metavar="OUT", help="folder of the shards; the same command goes on in it")
    p.add_argument("--fps", type=float, default=form.fps, help="frames per second (default: %(default)s)")
    p.add_argument("--short", type=int, default=form.short, help="pixels of the shorter side; smaller films are not enlarged "
                   "(default: %(default)s)")
    p.add_argument("--rate", type=int, default=form.rate, help="of the sound, Hz (default: %(default)s)")
    p.add_argument("--seconds", type=float, default=form.seconds, help="cut films into pieces of about this length, each a "
                   "clip of its own (default: a film, or the part of it that a list names, is one clip)")
    p.add_argument("--gop", type=int, default=form.gop, help="frames between key frames (default: %(default)s)")
    p.add_argument("--crf", type=int, default=form.crf, help="x264's quality, lower is better (default: %(default)s)")
    p.add_argument("--copy", action="store_true", help="put the files into the shards as they are")
    p.add_argument("--shard-size", type=float, default=1.0, metavar="GB", help="of a shard (default: %(default)s)")
    p.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    p.add_argument("--timeout", type=float, default=7200, metavar="SECONDS", help="that a film may take (default: %(default)s)")
    p.set_defaults(command=run)


def run(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """`python data.py pack`: exit code 2 for what the user can mend, 3 where no film could be packed"""
    for name in ("fps", "short", "rate", "seconds", "gop", "crf", "shard_size", "workers", "timeout"):
        if not getattr(args, name) > 0:
            p.error(f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}")
    if args.crf > 51 or args.fps > 240 or args.gop > 10_000:
        p.error("--crf is at most 51, --fps 240, --gop 10000")
    form = Form(*(getattr(args, name) for name in Form._fields))
    with user_errors():
        try:
            begin(args, form)
            finish(args.out, encode_all(args, form))
        except KeyboardInterrupt:
            fail(130, "stopped; the same command goes on")


def begin(args: argparse.Namespace, form: Form) -> None:
    """Makes OUT and lists the source, or finds what was begun there. ValueError where OUT holds something else."""
    out, partial = args.out, args.out / "partial"
    begun = (out / "pack.json").is_file()
    if out.exists() and not begun and not (out.is_dir() and set(os.listdir(out)) <= {".lock", "partial", "problems.txt"}):
        raise ValueError(f"{out} is there and holds no shards: name another folder")
    kind, root = layouts.parse_source(args.source)
    if kind == "shards":
        raise ValueError(f"{root} is packed already")
    settings = {"source": str(root.absolute()), "kind": kind, **form._asdict(), "shard_size": args.shard_size}
    settings["seconds"] = form.seconds if form.seconds < math.inf else None
    out.mkdir(parents=True, exist_ok=True)
    args.lock = Run(out)
    args.lock.hold()
    if begun:
        before = json.loads((out / "pack.json").read_text(encoding="utf-8"))["settings"]
        if differ := [f"{k} was {before.get(k)} and is {settings[k]}" for k in settings if before.get(k) != settings[k]]:
            raise ValueError(f"{out} was packed otherwise ({'; '.join(differ)}): repeat its flags, or name another folder")
    else:
        shutil.rmtree(partial, ignore_errors=True)  # of a start that did not come this far
        layouts.list_films(kind, root, partial / "source", out / "problems.txt")
        write_text(out / "pack.json", json.dumps({"settings": settings}, indent=2) + "\n")


def encode_all(args: argparse.Namespace, form: Form) -> collections.Counter:
    """Packs every row of the source that is not packed yet -> how many are broken, by reason"""
    out, partial, broken = args.out, args.out / "partial", collections.Counter()
    if (out / "index").is_dir():
        return broken
    source, journal = Index(partial / "source"), partial / "rows.jsonl"
    number, clips, shard, end, places = resume(journal, out)
    broken.update(line["reason"] for line in lines(journal) if "reason" in line)
    live = sys.stderr.isatty()
    bar = tqdm(total=len(source), initial=number, unit="film", mininterval=0.5 if live else 60, disable=None if live else False)
    with (
        tempfile.TemporaryDirectory(dir=partial) as scratch, open(journal, "a", encoding="utf-8") as log, bar,
        Writer(out, args.shard_size * 1e9, shard, end) as writer,
        closing(map_isolated(pack_row, ((source.folder, i, form, scratch) for i in range(number, len(source))),
                     args.workers, args.timeout)) as packed,
    ):
        for (_, i, _, _), found in packed:
            line = {"row": i}
            if isinstance(found, Failed | str):
                line["reason"] = found.reason if isinstance(found, Failed) else found
                broken[line["reason"]] += 1
            else:
                line |= {"clips": [], "texts": []}
                for film, begin, stop in found:
                    said = {"path": source.inside(i), "start": begin, "end": stop if stop < math.inf else None,
                            "captions": source[i].captions if form.copy else cut(source[i].captions, begin, stop)}
                    place, text = writer.add(clips, Path(film), said)
                    if place.shard != shard:
                        check(out / SHARD.format(shard), places)
                        shard, places = place.shard, []
                    places += [place, text]
                    line["clips"].append([*place, begin, said["end"]])
                    line["texts"].append(text)
                    clips += 1
                    if not form.copy:
                        os.unlink(film)
            log.write(json.dumps({**line, "end": [writer.shard, writer.end]}) + "\n")
            log.flush()
            bar.set_postfix(clips=clips, broken=sum(broken.values()), refresh=False)
            bar.update()
        if not clips:
            fail(3, f"none of {len(source)} films could be packed ({counted(broken)}): see {listed(out, source, journal)}")
        writer.sync()
        writer.close()
        check(out / SHARD.format(writer.shard), places)
    listed(out, source, journal)
    index.write(out / "index", out, rows(source, journal, form), packed=True)
    return broken


def lines(journal: Path) -> Iterator[dict]:
    """What became of each row of the source, in order"""
    if journal.is_file():
        with journal.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def resume(journal: Path, out: Path) -> tuple[int, int, int, int, list[Place]]:
    """Cuts the journal back to what the shards surely hold -> rows and clips done, shard, where it ends, what is in it"""
    rows = clips = shard = end = byte = 0
    places: list[Place] = []
    journal.touch()
    there = {path.name.removesuffix(".partial"): path for path in sorted(out.glob("shard-*.tar*"))}
    last = max(there, default="")  # of those before it, `check` saw every byte when they were closed
    with journal.open("r+b") as file:
        for text in file:
            try:
                line = json.loads(text)
                found = [Place(*place[:4]) for place in (*line.get("clips", ()), *line.get("texts", ()))]
                number, stop = line["end"]
            except (ValueError, KeyError, TypeError):
                break  # a kill cut it short
            names, places = {SHARD.format(place.shard) for place in found}, places if number == shard else []
            here = [place for place in found if place.shard == number]
            if not names <= there.keys() or (last in names and damaged(there[last], here)):
                break
            rows, clips, byte, shard, end = rows + 1, clips + len(found) // 2, byte + len(text), number, stop
            places += here
        file.truncate(byte)
    return rows, clips, shard, end, places


def check(shard: Path, places: list[Place]) -> None:
    """Reads a closed shard again; ends with exit code 3 where the disk does not give back what was written"""
    if bad := damaged(shard, places):
        fail(3, f"{shard} is not what was written to it, first at byte {bad[0].offset}: check the disk")


def rows(source: Index, journal: Path, form: Form) -> Iterator[Row]:
    """The clips as the index names them: times of the captions count from the beginning of the clip"""
    for line in lines(journal):
        for clip in line.get("clips", ()):
            row, (begin, stop) = source[line["row"]], clip[4:]
            stop = math.inf if stop is None else stop
            place = Place(*clip[:4])
            if form.copy:
                yield row._replace(place=place)
            else:
                yield Row(row.path, 0.0, math.inf, cut(row.captions, begin, stop), row.labels, place)


def cut(cues: list[Caption], begin: float, end: float) -> list[Caption]:
    """The captions of a piece, in its own time: those in it, and on either side as many as a clip in it may have nearest."""
    inside = [i for i, cue in enumerate(cues) if cue.end >= begin and cue.start <= end]
    before = [i for i, cue in enumerate(cues) if cue.end < begin]
    after = [i for i, cue in enumerate(cues) if cue.start > end]
    for side, edge in ((before, begin), (after, end)):
        inside += [side[k] for k in nearest([cues[i][:2] for i in side], edge, edge, NEIGHBOURS)]
    return [Caption(round(cues[i].start - begin, 3), round(cues[i].end - begin, 3), cues[i].text) for i in sorted(inside)]


def listed(out: Path, source: Index, journal: Path) -> Path:
    """Writes broken.csv"""
    with open(out / "broken.csv", "w", newline="", encoding="utf-8", errors="replace") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "start", "end", "reason"))
        for line in lines(journal):
            if "reason" in line:
                row = source[line["row"]]
                table.writerow((printable(row.path), row.start, row.end, line["reason"]))
    return out / "broken.csv"


def finish(out: Path, broken: collections.Counter) -> None:
    """Says what there is, and clears up"""
    packed = Index(out / "index")
    size = sum(path.stat().st_size for path in out.glob("shard-*.tar"))
    shutil.rmtree(out / "partial", ignore_errors=True)
    (out / ".lock").unlink(missing_ok=True)
    print(f"{out}: {len(packed)} clips with {packed.captions} captions, {size / 1e9:.3f} GB in "
          f"{len(list(out.glob('shard-*.tar')))} shards; train with --data shards={out}")
    if broken:
        print(f"{sum(broken.values())} films could not be packed ({counted(broken)}): {out / 'broken.csv'}")


def counted(broken: collections.Counter) -> str:
    """not a media file: 3, empty file: 1"""
    return ", ".join(f"{reason}: {n}" for reason, n in broken.most_common())


# ----------------------------------------------------------------------------------------------------------------- one film


@functools.cache
def opened(folder: Path) -> Index:
    """The index of the source, once in every process"""
    return Index(folder)


def pack_row(task: tuple[Path, int, Form, str]) -> list[tuple[str, float, float]] | str:
    """(index, row, form, folder for files) -> (file, begin, end) of each clip, in seconds of the film; or what is wrong"""
    folder, number, form, scratch = task
    try:
        row, where = opened(folder)[number], opened(folder).media(number)
        with Media(*where) as film, Media(*where) as sound:
            length = min(row.end, film.duration) - row.start
            if length <= 0:
                return "start past the end"
            scale = min(1.0, form.short / min(film.width, film.height))
            if form.copy:
                return [(str(where[0]), row.start, row.end)]
            size = tuple(max(2, round(side * scale / 2) * 2) for side in (film.height, film.width))
            most = math.floor((row.end - row.start) * form.fps + 1e-6) if row.end < math.inf else None
            pictures = itertools.islice(film.pictures(row.start, form.fps, size), most and max(1, most))
            pieces, clips, done = max(1, round(length / form.seconds)), [], 0
            for k in range(pieces):
                first = next(pictures, None)
                if first is None:
                    break
                upto = None if k == pieces - 1 else max(1, round((k + 1) * form.seconds * form.fps) - done) - 1
                file, begin = f"{scratch}/{number}-{k}.mp4", row.start + done / form.fps
                piece = itertools.chain([first], itertools.islice(pictures, upto))
                done += encode(file, piece, sound, begin, form)
                clips.append((file, begin, row.start + done / form.fps))
            return clips
    except Unreadable as e:
        return e.reason
    except av.FFmpegError as e:
        return f"cannot be encoded: {type(e).__name__}"


def encode(file: str, frames: Iterator[np.ndarray], source: Media, begin: float, form: Form) -> int:
    """Writes frames (H, W, 3) uint8, and the audio in step with them, to an mp4 -> how many frames there were"""
    x264 = {"preset": "veryfast", "tune": "fastdecode", "crf": str(form.crf), "bf": "0", "g": str(form.gop)}
    step, sample = round(SOUND * form.fps), lambda i: round(i / form.fps * form.rate)
    with Encoder(file, form.fps, form.rate if source.has_audio else 0, x264=x264, exact=True) as out:
        for i, frame in enumerate(frames):
            if source.has_audio and i % step == 0:
                wave, heard = source.audio(begin + i / form.fps, sample(i + step) - sample(i), form.rate), sample(i)
            out.frame(frame)
            if source.has_audio:
                out.audio(wave[None, sample(i) - heard:sample(i + 1) - heard])
    return out.frames
