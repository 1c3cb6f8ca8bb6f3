"""`python data.py check PATH`: reads every clip of a folder or of shards, and writes which are broken, and why."""

import argparse
import collections
import csv
import functools
import os
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine.errors import fail, printable, user_errors
from engine.workers import Failed, map_isolated
from media.decode import Media, Unreadable
from sources import layouts
from sources.index import Index, starts
from sources.shards import checksum

FRAMES, FPS, SIZE, RATE = 32, 10.0, (64, 64), 48000     # of the clips that are looked at: those of pre-training, but small
SOUND = 60                                              # seconds of it decoded at a time


def flags(commands) -> None:
    """The command line of `check`"""
    p = commands.add_parser("check", help="read every clip and list those that are broken, with reasons")
    p.add_argument("path", metavar="[KIND=]PATH", help="a folder of films, as --data of pretrain.py takes it, or of shards")
    p.add_argument("--out", type=Path, default=Path("broken.csv"), metavar="CSV", help="the list (default: %(default)s)")
    p.add_argument("--whole", action="store_true", help="decode all of each (default: a clip at its beginning, middle and end)")
    p.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    p.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="that one may take (default: %(default)s)")
    p.set_defaults(command=run)


def run(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """`python data.py check`: exit code 0 where all is well, 3 where anything is broken, 2 for what the user can mend"""
    if args.workers < 1 or not args.timeout > 0:
        p.error("--workers must be at least 1, --timeout above 0")
    reasons, live = collections.Counter(), sys.stderr.isatty()
    with user_errors(), tempfile.TemporaryDirectory() as scratch:
        try:
            kind, root = layouts.parse_source(args.path)
            layouts.list_films(kind, root, Path(scratch) / "index", args.out.with_name(args.out.name + ".problems.txt"))
            index = Index(Path(scratch) / "index")
            tasks = ((index.folder, i, args.whole) for i in range(len(index)))
            with (
                open(args.out, "w", newline="", encoding="utf-8", errors="replace") as file,
                closing(map_isolated(examine, tasks, args.workers, args.timeout)) as examined,
                tqdm(examined, total=len(index), unit="clip", mininterval=0.5 if live else 60) as bar,
            ):
                table = csv.writer(file, lineterminator="\n")
                table.writerow(("path", "start", "end", "reason"))
                for (_, i, _), found in bar:
                    if found is not None:
                        reason = found.reason if isinstance(found, Failed) else found
                        reasons[reason] += 1
                        table.writerow((printable(index.name(i)), *index[i][1:3], reason))
                        file.flush()
                        bar.set_postfix(broken=sum(reasons.values()), refresh=False)
        except KeyboardInterrupt:
            fail(130, f"stopped; what was found is in {args.out}")
    print(f"{len(index)} clips read, {sum(reasons.values())} broken{f': {args.out}' if reasons else ''}")
    for reason, count in reasons.most_common():
        print(f"{count:8}  {reason:24} {'#' * max(1, round(40 * count / len(index)))}")
    sys.exit(3 if reasons else 0)


@functools.cache
def opened(folder: Path) -> Index:
    """The index, once in every process"""
    return Index(folder)


def examine(task: tuple[Path, int, bool]) -> str | None:
    """(index, row, all of it) -> what is wrong with the clip, if anything"""
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
                for _ in media.pictures(first, FPS, SIZE):
                    pass
            for start in sorted({first, (first + last) / 2, last}):
                media.video(start, FRAMES, FPS, size=SIZE)
            for start in np.arange(first, last + FRAMES / FPS, SOUND) if whole else (first,):
                if media.has_audio:
                    media.audio(start, round((SOUND if whole else FRAMES / FPS) * RATE), RATE)
    except Unreadable as e:
        return e.reason
    return None
