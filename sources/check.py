"""`python data.py check PATH`: reads every clip of a folder or of shards, and writes which are broken, and why."""

import argparse
import collections
import csv
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine import arguments
from engine.errors import printable, user_errors
from engine.workers import Failed, map_isolated
from media import Media, Unreadable
from sources import layouts
from sources.census import captions
from sources.files import columns
from sources.index import Index, opened, starts
from sources.shards import checksum

FRAMES, FPS, SIZE, RATE = 32, 10.0, (64, 64), 48000     # of the clips that are looked at: those of pre-training, but small
INSIDE = "captions inside"
AUDIO = 60                                              # seconds of it decoded at a time


def flags(commands) -> None:
    """The command line of `check`"""
    p = commands.add_parser("check", help="read every clip and list those that are broken, with reasons")
    p.add_argument("path", metavar="[KIND=]PATH", help="a folder of videos, as --data of pretrain.py takes it, or of shards")
    p.add_argument("--out", type=Path, default=Path("broken.csv"), metavar="CSV", help="the list (default: %(default)s)")
    p.add_argument("--whole", action="store_true", help="decode all of each (default: a clip at its beginning, middle and end)")
    p.add_argument("--workers", type=arguments.count, default=os.cpu_count(), help="processes (default: one a core)")
    p.add_argument("--timeout", type=arguments.positive, default=600, help="seconds that one may take (default: %(default)s)")
    p.set_defaults(command=run)


def run(_, args: argparse.Namespace) -> None:
    """`python data.py check`: exit code 0 where all is well, 3 where anything is broken, 2 for what the user can mend"""
    problems, inside = args.out.with_name(args.out.name + ".problems.txt"), []
    with user_errors(f"stopped; what was found is in {args.out}"), tempfile.TemporaryDirectory() as scratch:
        index = layouts.list_files(*layouts.parse_source(args.path), Path(scratch) / "index", problems)
        tasks = ((index.folder, i, args.whole) for i in range(len(index)))
        pause = 0.5 if sys.stderr.isatty() else 60
        with (closing(map_isolated(examine, tasks, args.workers, args.timeout)) as examined,
              tqdm(examined, total=len(index), unit="clip", mininterval=pause) as bar):
            reasons = write_broken(args.out, broken(index, bar, inside))
    print(f"{len(index)} clips read, {sum(reasons.values())} broken{f': {args.out}' if reasons else ''}")
    print(captions([index]))
    if inside:
        print(f"{len(inside)} of those hold captions inside, first {printable(inside[0])}: ffmpeg -i VIDEO -map 0:s:0 VIDEO.srt"
              " takes them out")
    for reason, count in reasons.most_common():
        print(f"{count:8}  {reason:24} {'#' * max(1, round(40 * count / len(index)))}")
    sys.exit(3 if reasons else 0)


def broken(index: Index, examined: Iterable[tuple], inside: list[str]) -> Iterator[tuple]:
    """(name, start, end, reason) of the clips that cannot be read; those that hold captions inside are added to `inside`."""
    for (_, i, _), found in examined:
        if found == INSIDE:
            inside.append(index.name(i))
        elif found is not None:
            yield index.name(i), *index[i][1:3], found.reason if isinstance(found, Failed) else found


def write_broken(path: Path, rows: Iterable[tuple[str, float, float, str]]) -> collections.Counter:
    """Writes a csv of (path, start, end, reason), a line at a time as they come; returns how many there are by reason."""
    reasons: collections.Counter = collections.Counter()
    with path.open("w", newline="", encoding="utf-8", errors="replace", buffering=1) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "start", "end", "reason"))
        for name, start, end, reason in rows:
            reasons[reason] += 1
            table.writerow((printable(name), start, end, reason))
    return reasons


def broken_files(path: Path | None) -> frozenset[str]:
    """The names in a csv of `write_broken`, for --skip; none where there is no path. ValueError where it is something else."""
    return frozenset(row["path"] for _, row in columns(path, "path")) if path else frozenset()


def examine(task: tuple[Path, int, bool]) -> str | None:
    """(index, row, all of it) -> what is wrong with the clip, if anything, or that captions inside it are not read."""
    folder, number, whole = task
    index = opened(folder)
    row = index[number]
    try:
        path, offset, size, _ = place = index.media(number)
        with Media(*place) as media:
            if row.place and checksum(path, offset, size) != row.place.crc:
                return "wrong checksum"
            first, last = starts(row, media.duration, FRAMES / FPS)
            if whole:
                for _ in media.frames(first, FPS, SIZE):
                    pass
            for start in sorted({first, (first + last) / 2, last}):
                media.video(start, FRAMES, FPS, size=SIZE)
            for start in np.arange(first, last + FRAMES / FPS, AUDIO) if whole else (first,):
                if media.has_audio:
                    media.audio(start, round((AUDIO if whole else FRAMES / FPS) * RATE), RATE)
            return INSIDE if media.has_captions and not row.captions else None
    except Unreadable as e:
        return e.reason
