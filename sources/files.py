"""What lies below a folder, and what stands in its lists: `layouts`, `labelled` and `official` build on it."""

import csv
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from engine import errors
from media.captions import MAX_BYTES

VIDEOS = frozenset((".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".h264", ".h265", ".hevc",
                    ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv",
                    ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv"))
AUDIO = frozenset((".aac", ".ac3", ".aif", ".aiff", ".amr", ".caf", ".flac", ".m4a", ".mka", ".mp3", ".oga", ".ogg", ".opus",
                   ".w64", ".wav", ".wma"))
IMAGES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".webp"))
TYPES = {suffix: kind for kind, suffixes in (("video", VIDEOS), ("audio", AUDIO), ("image", IMAGES)) for suffix in suffixes}
LINKED = "links lead out of it and are followed"
PAUSE = (1, 60)                                         # seconds before a bar is shown, and shown again: terminal, log


class Files:
    """The files below a folder, as paths below it, listed when first asked for; `where`: to get lists from."""

    def __init__(self, root: Path, problems: list[str], where: str = ""):
        self.root, self.problems, self.where, self.sums = root, problems, where, Sums()

    @cached_property
    def every(self) -> list[str]:
        """All paths, folder by folder."""
        folders = counted(walk(self.root, self.problems), f"listing {self.root}", " folders")
        return [inside + name for inside, names in folders for name in names]

    @cached_property
    def media(self) -> list[str]:
        """Paths of videos, audio and images."""
        return [path for path in self.every if suffix(path) in TYPES]

    def by(self, key: Callable[[str], str]) -> dict[str, str]:
        """Media by a key of their path; of two with one key, the first."""
        return {key(path): path for path in reversed(self.media)}

    def lists(self, pattern: str) -> list[Path]:
        """The texts whose whole name is of that pattern; ValueError for two of one name: all would count twice."""
        found: dict[str, str] = {}
        for path in self.every:
            name = os.path.basename(path)
            if suffix(name) in (".csv", ".txt", ".json") and re.fullmatch(pattern, name, re.IGNORECASE):
                if name in found:
                    raise ValueError(f"{self.root} holds two {name} ({found[name]}, {path}): keep one of them below it")
                found[name] = path
        return [self.root / path for path in found.values()]

    def one(self, name: str, pattern: str = "") -> Path:
        """The only list of a name, or of a pattern; ValueError, which says where to get it, if there are more or none."""
        found = self.lists(pattern or re.escape(name))
        if not found:
            raise ValueError(f"{self.root} holds no {name}: get it from {self.where}")
        if len(found) > 1:
            raise ValueError(f"{self.root} holds more than one {name} ({found[0]}, {found[1]}): keep one of them below it")
        return found[0]


def walk(root: Path, problems: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each folder below root once, whatever links there are: ("" or "its/path/", the sorted names of its files).

    What begins with a dot is passed over; a folder that cannot be read is a problem.
    """
    seen, pending, sums = set(), [""], Sums()
    home = os.path.realpath(root) + os.sep
    while pending:
        inside = pending.pop()
        try:
            status = os.stat(Path(root, inside))
            with os.scandir(Path(root, inside)) as listing:
                entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            errors.tell(problems, f"{Path(root, inside)}: cannot be read: {error.strerror}")
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            end = os.path.realpath(entry.path) if entry.is_symlink() else ""
            if os.path.exists(end) and not f"{end}{os.sep}".startswith(home):
                sums.add(LINKED, f"{inside}{entry.name} -> {end}")
        # without following links the kind is known from the listing: no look at each of a million files
        yield inside, [e.name for e in entries if e.is_file(follow_symlinks=False) or os.path.isfile(e.path)]
        folders = [e.name for e in entries if e.is_dir(follow_symlinks=False) or os.path.isdir(e.path)]
        pending.extend(f"{inside}{name}/" for name in reversed(folders))
    sums.tell(problems, root)


class Sums:
    """Counts what is passed over or taken otherwise than it is written, to be told in one line a kind, with an example."""

    def __init__(self):
        self.counts: dict[str, list] = {}

    def add(self, what: str, name: str) -> None:
        """Counts `name` among those of which `what` is true."""
        self.counts.setdefault(what, [0, name])[0] += 1

    def tell(self, problems: list[str], root: Path) -> None:
        """Adds the lines, past the most that `errors.tell` adds, too."""
        for what, (count, first) in self.counts.items():
            problems.append(errors.printable(f"{root}: {count} {what}, first: {first}"))


def counted(items: Iterable, what: str, unit: str, total: int | None = None) -> Iterable:
    """The items, with a bar, or in a log a line now and then, that says how many there were."""
    pause = PAUSE[not sys.stderr.isatty()]
    return tqdm(items, what, total, unit=unit, leave=False, delay=pause, mininterval=pause)


def stem(path: str) -> str:
    """The name of a file without folders and suffix."""
    return os.path.splitext(os.path.basename(path))[0]


def suffix(path: str) -> str:
    """".mp4" of a/B.MP4"""
    return os.path.splitext(path)[1].lower()


# ---------------------------------------------------------------------------------------------------------------------
# Lists

def within(at: str, folder: Path, name: str, outside: bool) -> str:
    """The absolute path of a file that a list in `folder` names; ValueError where it lies elsewhere, unless `outside`."""
    path, folder = os.path.abspath(os.path.join(folder, name)), os.path.abspath(folder)
    if not outside and os.path.relpath(path, folder).split(os.sep)[0] == os.pardir:
        raise ValueError(f"{at}: {name!r} lies outside {folder}: put the list above its files, or give "
                         f"--allow-outside where you trust it")
    return path


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a text file, without blanks at its ends, CR and empty lines."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        yield from ((number, line.strip()) for number, line in enumerate(file, 1) if line.strip())


def columns(path: Path, *names: str, header: bool = True) -> Iterator[tuple[int, dict[str, str]]]:
    """(number, fields by column) of a csv, whose first columns are `names` where it has no header.

    ValueError with the line where it cannot be read, its header lacks one of the names, or a row ends before one of them.
    """
    csv.field_size_limit(MAX_BYTES)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader((line.replace("\0", "") for line in file), None if header else names, skipinitialspace=True)
        try:
            rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
            if lacks := [name for name in names if name not in rows.fieldnames]:
                raise ValueError(f"{path}:1: the header has no {', '.join(lacks)}, but "
                                 f"{', '.join(rows.fieldnames) or 'nothing'}")
            for row in rows:
                if lacks := [name for name in names if row[name] is None]:
                    there = ",".join(filter(None, row.values()))[:80]
                    raise ValueError(f"{path}:{rows.line_num}: ends before its {lacks[0]}: {there}")
                yield rows.line_num, {name: (row[name] or "").strip() for name in rows.fieldnames}
        except csv.Error as error:
            raise ValueError(f"{path}:{rows.line_num}: is no csv ({error})") from None
