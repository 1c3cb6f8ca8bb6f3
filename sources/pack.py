"""`python data.py pack SOURCE OUT`: videos of any layout to shards of clips, cut, resized and encoded as training reads them.

Frames are those that `Media` gives at the training rate, upright and with square pixels, and the audio is in step with
them; every GOP is short, so that a random clip costs little to decode. What is packed, in which order and in which bytes
depends on the source and the flags alone: not on the number of processes, nor on how often the work was killed and resumed.
"""

import argparse
import bisect
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from engine import arguments
from engine.errors import fail, plural, user_errors
from engine.run import lock, write_text
from engine.workers import Failed, map_isolated
from media import Media, Unreadable
from media.captions import Caption, nearest
from media.encode import Encoder
from sources import index, layouts, shards
from sources.check import AUDIO, broken_files, write_broken
from sources.index import SHARD, Index, Place, Row, opened

NEIGHBOURS = 16         # captions kept on either side of a piece: more than a clip in it has nearest ones (Eq. 5)
RECORD = "partial/{:06d}.json"      # which rows a shard holds, [row, begin, end, *place], and which were broken, and why
LOOK, LONG = 8, 600     # videos of a source that `advice` looks at, and seconds
FORM = ("fps", "short", "rate", "seconds", "gop", "crf", "copy", "shard_size", "language")      # what the bytes depend on


def flags(commands) -> None:
    """The command line of `pack`."""
    p = commands.add_parser("pack", help="videos to shards: tar files of clips at the rate and size of training")
    p.add_argument("source", metavar="[KIND=]SOURCE", help="a folder of videos, as --data of pretrain.py takes it")
    p.add_argument("out", type=Path, metavar="OUT", help="folder of the shards; the same command goes on in it")
    for name, kind, default, text in (
        ("fps", arguments.number(float, most=240, above=0), 10.0, "frames per second"),
        ("short", arguments.count, 256, "pixels of the shorter side; smaller videos are not enlarged"),
        ("rate", arguments.count, 48000, "of the audio, which has one channel, Hz"),
        ("gop", arguments.number(int, 1, 10_000), 10, "frames from one that needs no other to the next"),
        ("crf", arguments.number(int, 1, 51), 20, "x264's quality, lower is better"),
        ("shard-size", arguments.positive, 1.0, "of a shard, GB"),
        ("workers", arguments.count, os.cpu_count(), "processes"),
        ("timeout", arguments.positive, 7200.0, "seconds that one video may take"),
    ):
        p.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: %(default)s)")
    p.add_argument("--seconds", type=arguments.positive, help="cut videos into pieces of about so many seconds, each a clip of "
                   "its own (default: a video, or the part of it that a list names, is one clip)")
    p.add_argument("--language", default="", metavar="NAME", help="of captions, where a video has several (en, pt-BR ..)")
    p.add_argument("--skip", type=Path, metavar="CSV", help="leave out the files of this list, as data.py check writes it")
    p.add_argument("--copy", action="store_true", help="put the files into the shards as they are")
    p.set_defaults(command=run)


def run(_, args: argparse.Namespace) -> None:
    """`python data.py pack`: exit code 2 for what the user can mend, 3 where no video could be packed."""
    with user_errors("stopped; the same command goes on"):
        held = begin(args)
        if not (args.out / "index").is_dir():
            source = Index(args.out / "partial" / "source")
            pack_all(source, args)
            conclude(source, args)
        packed, sizes = Index(args.out / "index"), [path.stat().st_size for path in args.out.glob("shard-*.tar")]
        print(f"{args.out}: {plural(len(packed), 'clip')} with {plural(packed.captions, 'caption')}, {sum(sizes) / 1e9:.3f} GB "
              f"in {plural(len(sizes), 'shard')}; train with --data shards={args.out}")
        Path(held.name).unlink(missing_ok=True)


def begin(args: argparse.Namespace):
    """Makes OUT, locks it and lists the source, or finds what was begun there; returns what holds the lock.

    ValueError where OUT holds something else or what was packed otherwise, or where another process packs into it.
    """
    out, card = args.out, args.out / "pack.json"
    begun = card.is_file()
    if out.exists() and not begun and not (out.is_dir() and set(os.listdir(out)) <= {".lock", "partial", "problems.txt"}):
        raise ValueError(f"{out} is there and holds no shards: name another folder")
    kind, root = layouts.parse_source(args.source)
    if kind == "shards":
        raise ValueError(f"{root} is packed already")
    settings = {"source": str(root.absolute()), "kind": kind, **{name: getattr(args, name) for name in FORM}}
    out.mkdir(parents=True, exist_ok=True)
    held = lock(out / ".lock", f"--out {out}")
    if begun:
        before = json.loads(card.read_text(encoding="utf-8"))["settings"]
        if differ := [f"{k} was {before.get(k)} and is {settings[k]}" for k in settings if before.get(k, "") != settings[k]]:
            raise ValueError(f"{out} was packed otherwise ({'; '.join(differ)}): repeat its flags, or name another folder")
    else:
        shutil.rmtree(out / "partial", ignore_errors=True)  # of a start that did not come this far
        layouts.list_files(kind, root, out / "partial" / "source", out / "problems.txt", args.language)
        write_text(card, json.dumps({"settings": settings}, indent=2) + "\n")
    return held


def pack_all(source: Index, args: argparse.Namespace) -> None:
    """Packs the rows of the source that are in no finished shard yet, in their order; a shard ends past --shard-size."""
    out, row, shard, clips, failed = args.out, 0, 0, 0, 0
    for record in finished(out):
        row = max([row - 1, *(i for i, *_ in record["rows"] + record["broken"])]) + 1
        shard, clips, failed = shard + 1, clips + len(record["rows"]), failed + len(record["broken"])
    for path in out.glob("shard-*.tar*"):
        if path.name not in map(SHARD.format, range(shard)):
            path.unlink()
    live, skip = sys.stderr.isatty(), set(source.among(broken_files(args.skip)))
    bar = tqdm(total=len(source), initial=row, unit="video", mininterval=0.5 if live else 60, disable=None if live else False)
    with (
        tempfile.TemporaryDirectory(dir=out / "partial") as scratch, bar,
        closing(map_isolated(pack_row, ((source.folder, i, args, scratch) for i in range(row, len(source)) if i not in skip),
                             args.workers, args.timeout)) as packed,
    ):
        waiting, broken, size = [], [], 0       # of the next shard: clips (row, begin, end, file, text), broken rows, bytes
        for (_, i, _, _), found in packed:
            bar.set_postfix(clips=clips + len(waiting), broken=failed, refresh=False)
            bar.update()
            if isinstance(found, Failed):
                broken.append([i, found.reason])
                failed += 1
                continue
            new = [(i, begin, end, Path(file), about(source[i], begin, end, args.copy)) for file, begin, end in found]
            sizes = [size for *_, file, text in new for size in (file.stat().st_size, len(text))]
            if waiting and size + sum(sizes) > args.shard_size * 1e9:
                finish(out, shard, clips, waiting, broken, args.copy)
                shard, clips = shard + 1, clips + len(waiting)
                waiting, broken, size = [], [], 0
            waiting += new
            size += sum(map(shards.room, sizes))
        finish(out, shard, clips, waiting, broken, args.copy)


def about(row: Row, begin: float, end: float, copied: bool) -> bytes:
    """What a shard says of a clip: a line of JSON."""
    captions = row.captions if copied else cut(row.captions, begin, end)
    said = {"path": row.path, "start": begin, "end": end if end < math.inf else None, "captions": captions}
    return (json.dumps(said) + "\n").encode()


def finish(out: Path, shard: int, first: int, clips: list[tuple], broken: list[list], copied: bool) -> None:
    """Writes a shard, whose clips are numbered from `first` on, and the record of it; from then on it is not packed again."""
    numbered = ((first + k, file, text) for k, (*_, file, text) in enumerate(clips))
    places = shards.write(out, shard, numbered) if clips else []
    rows = [[*clip[:3], *place] for clip, place in zip(clips, places, strict=True)]
    write_text(out / RECORD.format(shard), json.dumps({"rows": rows, "broken": broken}))
    for *_, file, _ in () if copied else clips:
        file.unlink()


def finished(out: Path) -> Iterator[dict]:
    """The records of the finished shards, up to the first that is missing or not as long as it was."""
    for number in itertools.count():
        try:
            record = json.loads((out / RECORD.format(number)).read_text(encoding="utf-8"))
            if record["rows"] and os.path.getsize(out / SHARD.format(number)) < sum(record["rows"][-1][-2:]):
                return
        except (OSError, ValueError):
            return
        yield record


def rows(source: Index, args: argparse.Namespace) -> Iterator[Row]:
    """The clips as the index names them: times of the captions count from the beginning of the clip."""
    for record in finished(args.out):
        for i, begin, end, *place in record["rows"]:
            row = source[i]._replace(place=Place(*place))
            yield row if args.copy else row._replace(start=0.0, end=math.inf, captions=cut(row.captions, begin, end))


def cut(captions: list[Caption], begin: float, end: float) -> list[Caption]:
    """The captions of a piece, in its own time: those in it, and on either side as many as a clip in it may have nearest."""
    kept = [i for i, caption in enumerate(captions) if caption.end >= begin and caption.start <= end]
    before = [i for i, caption in enumerate(captions) if caption.end < begin]
    after = [i for i, caption in enumerate(captions) if caption.start > end]
    for side, edge in ((before, begin), (after, end)):
        kept += [side[k] for k in nearest([captions[i][:2] for i in side], edge, edge, NEIGHBOURS)]
    shift = lambda time: round(time - begin, 3)
    return [Caption(shift(start), shift(stop), text) for start, stop, text in (captions[i] for i in sorted(kept))]


def conclude(source: Index, args: argparse.Namespace) -> None:
    """Merges what the shards hold into one index, lists what is broken, clears up and says what there is."""
    out = args.out
    unpacked = ((*source[i][:3], reason) for record in finished(out) for i, reason in record["broken"])
    reasons = write_broken(out / "broken.csv", unpacked)
    broken = f"{', '.join(f'{reason}: {n}' for reason, n in reasons.most_common())}): see {out / 'broken.csv'}"
    if reasons.total() == len(source):
        fail(3, f"none of {len(source)} videos could be packed ({broken}")
    index.write(out / "index", out, rows(source, args), packed=True)
    shutil.rmtree(out / "partial", ignore_errors=True)
    if reasons:
        print(f"{plural(reasons.total(), 'video')} could not be packed ({broken}")


# ----------------------------------------------------------------------------------------------------------------- one file

def pack_row(task: tuple[Path, int, argparse.Namespace, str]) -> list[tuple[str, float, float]] | Failed:
    """(index, row, flags, folder for files) -> (file, begin, end) of each clip, in seconds of the file; or what is wrong"""
    folder, number, args, scratch = task
    try:
        source = opened(folder)
        row, where = source[number], source.media(number)
        with Media(*where) as media, Media(*where) as audio:
            length = min(row.end, media.duration) - row.start
            if length <= 0:
                return Failed("start past the end")
            scale = min(1.0, args.short / min(media.width, media.height))       # Unreadable where there is no video
            if args.copy:
                return [(str(where[0]), row.start, row.end)]
            size = tuple(max(2, round(side * scale / 2) * 2) for side in (media.height, media.width))
            most = max(1, math.floor((row.end - row.start) * args.fps + 1e-6)) if row.end < math.inf else None
            frames = itertools.islice(media.frames(row.start, args.fps, size), most)
            ends = [round(k * args.seconds * args.fps) for k in range(1, round(length / (args.seconds or math.inf)))]
            clips, done = [], 0
            for k, piece in itertools.groupby(enumerate(frames), lambda numbered: bisect.bisect(ends, numbered[0])):
                file, begin = f"{scratch}/{number}-{k}.mp4", row.start + done / args.fps
                done += encode(file, (frame for _, frame in piece), audio, begin, args)
                clips.append((file, begin, row.start + done / args.fps))
            return clips
    except Unreadable as e:
        return Failed(e.reason)
    except av.FFmpegError as e:
        return Failed(f"cannot be encoded: {type(e).__name__}")


def encode(file: str, frames: Iterator[np.ndarray], source: Media, begin: float, args: argparse.Namespace) -> int:
    """Writes frames (H, W, 3) uint8, and the audio in step with them, to an mp4 -> how many frames there were"""
    x264 = {"preset": "veryfast", "tune": "fastdecode", "crf": str(args.crf), "bf": "0", "g": str(args.gop)}
    step, sample = round(AUDIO * args.fps), lambda i: round(i / args.fps * args.rate)
    with Encoder(file, args.fps, args.rate if source.has_audio else 0, x264=x264, exact=True) as out:
        for i, frame in enumerate(frames):
            if source.has_audio and i % step == 0:
                wave, heard = source.audio(begin + i / args.fps, sample(i + step) - sample(i), args.rate), sample(i)
            out.frame(frame)
            if source.has_audio:
                out.audio(wave[None, sample(i) - heard:sample(i + 1) - heard])
    return out.frames


# ----------------------------------------------------------------------------------------------------------- before training

def advice(indexes: list[Index]) -> str | None:
    """A line on what packing would save, where one of a few videos of each source is long and has no index; else None."""
    tasks = [(rows.folder, i) for rows in indexes if len(rows) and not rows.packed
             for i in np.unique(np.linspace(0, len(rows) - 1, LOOK, dtype=int)).tolist()]
    with closing(map_isolated(cost, tasks, 1, 60)) as found:
        return next((line for _, line in found if isinstance(line, str)), None)


def cost(task: tuple[Path, int]) -> str | None:
    """(index, row) -> what it costs to find a clip in that video, if it is long and has no index"""
    with suppress(Unreadable), Media(*opened(task[0]).media(task[1])) as media:
        if not media.file.has_index and media.duration >= LONG:
            began = time.perf_counter()
            media.video(media.duration / 2, 1, 1.0)
            return (f"{media.path} is {media.duration / 60:.0f} minutes long and has no index: its middle is found in "
                    f"{time.perf_counter() - began:.2f} s; python data.py pack SOURCE OUT --seconds 60 saves that a clip")
    return None
