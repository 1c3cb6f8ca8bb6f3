"""Labelled data: what a set of it is, and how one's own is written down (the official ones stand in `downstream.py`).

    folder    a folder for each class, below train/ and val/ or, without those two, split by a hash of the names;
              or films that lie loose, with subtitles beside them: each cue is the caption of its part of the film
    csv       path,label[,start,end][,split] or path,caption[,start,end], paths from where the csv lies, times in seconds

What is listed and not there is counted; what is doubtful becomes a line of `problems`; what cannot be is a ValueError.
"""

import csv
import hashlib
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from engine import errors
from media.captions import MAX_BYTES, Caption, seconds
from sources import index, layouts
from sources.index import Index, Row

SOUNDS = frozenset((".aac", ".ac3", ".aif", ".aiff", ".amr", ".caf", ".flac", ".m4a", ".mka", ".mp3", ".oga", ".ogg", ".opus",
                    ".w64", ".wav", ".wma"))
IMAGES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".webp"))
TYPES = {suffix: kind for kind, suffixes in (("video", layouts.VIDEOS), ("audio", SOUNDS), ("image", IMAGES))
         for suffix in suffixes}
TRAIN, TEST = ("train", "training"), ("val", "valid", "validate", "validation", "test", "testing", "eval")
CAPTIONS = ("caption", "text", "sentence")              # of these columns, the first that is there
SHARE = 5                                               # one file in so many is held out where nothing says which


class Labelled(NamedTuple):
    """A data set: with `classes`, rows have their numbers as labels; without, a caption. `missing`: listed, but not there."""

    name: str                                           # ucf101, .. of the official ones, else that of the folder or csv
    kind: str                                           # what most files are: "video", "audio" or "image"
    classes: list[str]
    multi: bool                                         # whether a row may have several
    train: Index
    test: Index
    missing: list[str]
    listed: tuple[int, int]                             # to train on and to test on, missing ones included


class Files:
    """What lies below a folder: media, and text files to look for lists in, as paths below it; listed when first asked for.

    The indexes of `labelled` are written to train/ and test/ in `out`.
    """

    def __init__(self, root: Path, problems: list[str], out: Path | None = None):
        self.root, self.problems, self.out, self.sums = root, problems, out, layouts.Sums()

    @cached_property
    def media(self) -> list[str]:
        """Films, sounds and images"""
        return self.listing[0]

    @cached_property
    def listing(self) -> tuple[list[str], list[str]]:
        """(media, texts)"""
        media, texts = [], []
        for inside, names in layouts.walk(self.root, self.problems):
            for name in names:
                suffix = os.path.splitext(name)[1].lower()
                if suffix in TYPES:
                    media.append(inside + name)
                elif suffix in (".csv", ".txt", ".json"):
                    texts.append(inside + name)
        return media, texts

    def every(self, pattern: str) -> list[Path]:
        """The text files whose whole name is of that pattern; ValueError for two of one name: all would count twice"""
        fits = re.compile(pattern, re.IGNORECASE).fullmatch
        found = {path.rpartition("/")[2]: path for path in self.listing[1] if fits(path.rpartition("/")[2])}
        for path in self.listing[1]:
            if (other := found.get(path.rpartition("/")[2], path)) != path:
                raise ValueError(f"{self.root} holds two {Path(path).name} ({path}, {other}): keep one of them below it")
        return [self.root / path for path in found.values()]

    def one(self, pattern: str, name: str, where: str) -> Path:
        """The only one of that pattern; ValueError that names it, and where to get it, if there are more or none"""
        found = self.every(pattern)
        if not found:
            raise ValueError(f"{self.root} holds no {name}: get it from {where}")
        if len(found) > 1:
            raise ValueError(f"{self.root} holds more than one {name} ({found[0]}, {found[1]}): keep one of them below it")
        return found[0]

    def by(self, key: Callable[[str], str]) -> dict[str, str]:
        """Media by a key of their path; of two with one key, the first"""
        paths: dict[str, str] = {}
        for path in self.media:
            paths.setdefault(key(path), path)
        return paths

    def labelled(self, classes: list[str], train: Iterable, test: Iterable, multi: bool = False, kind: str = "") -> Labelled:
        """From rows (what is listed, path below the root or None, start, end, its class, its classes or its caption)"""
        sides, counts, missing, seen = [], [], [], Counter()
        for side, rows in (("train", train), ("test", test)):
            before = len(missing)

            def there(rows):
                for listed, path, start, end, target in rows:
                    if path is None:
                        missing.append(listed)
                    else:
                        seen[TYPES.get(os.path.splitext(path)[1].lower(), "")] += 1
                        if classes:
                            yield Row(path, start, end, [], (target,) if isinstance(target, int) else target)
                        else:
                            yield Row(path, start, end, [Caption(start, end, target)])

            shutil.rmtree(self.out / side, ignore_errors=True)
            sides.append(index.write(self.out / side, self.root, there(rows), least=0))
            counts.append(len(sides[-1]) + len(missing) - before)
        self.sums.tell(self.problems, self.root)
        most = max(seen, key=seen.get, default="")
        if not kind and seen[most] < seen.total():
            kinds = ", ".join(f"{n} of {k}" for k, n in seen.items())
            self.problems.append(f"{self.root} holds files of several kinds ({kinds}): all are taken as {most}")
        return Labelled("", kind or most, classes, multi, *sides, missing, tuple(counts))


# ---------------------------------------------------------------------------------------------------------------------
# One's own

def folder(files: Files, part: int = 1) -> Labelled:
    """A folder for each class: train/CLASS/.. and val/CLASS/.., or CLASS/.., one file in five of each held out by a hash.

    The classes are those of train/, in the order of their names. Where films lie loose, their subtitles are captions.
    """
    top = {path.split("/", 1)[0].lower() for path in files.media if "/" in path}
    names = [next((name for name in side if name in top), "") for side in (TRAIN, TEST)]
    parted = all(names)
    rows: list[list[tuple[str, str]]] = [[], []]                    # of each side: path, class
    loose = []
    for path in files.media:
        side, _, inner = path.partition("/") if parted else ("", "", path)
        if "/" not in inner or (parted and side.lower() not in names):
            loose.append(path)
        else:
            rows[parted and side.lower() == names[1]].append((path, inner.split("/", 1)[0]))
    if not any(rows):
        return captioned(files)
    if loose:
        outside = f"outside {names[0]}/CLASS and {names[1]}/CLASS" if parted else "in no folder of a class"
        files.problems.append(f"{files.root}: {len(loose)} files lie {outside} and are left out, first {loose[0]}")
    if not parted:
        rows = apart(rows[0])
    classes = sorted({name for _, name in rows[0]})
    number = {name: i for i, name in enumerate(classes)}
    items = [[(path, path, 0.0, math.inf, known(number, name, f"{files.root / path}", "the folders of training"))
              for path, name in side] for side in rows]
    return files.labelled(classes, *items)


def captioned(files: Files) -> Labelled:
    """Films and the cues of the subtitles beside them; ValueError where there are none"""
    rows = [(row.path, row.path, cue.start, cue.end, cue.text)
            for row in layouts.folder(files.root, files.problems) for cue in row.captions]
    if not rows:
        raise ValueError(f"{files.root} holds no labels: put the files of a class in a folder of its name (train/CLASS and "
                         f"val/CLASS, or CLASS alone), or write labels.csv or captions.csv (path,label or path,caption)")
    return files.labelled([], [], rows, kind="video")


def table(path: Path, column: str, problems: list[str], out: Path, outside: bool = False) -> Labelled:
    """A csv with a header; labels from `column`, else "label", else captions. Without `split`, one file in five is held out."""
    read = list(columns(path, "path"))
    has = list(read[0][1]) if read else []
    label = column.lower() or next((name for name in ("label", *CAPTIONS) if name in has), "")
    if label not in has:
        raise ValueError(f"{path}: the first line names no column {label or 'label'}, but {', '.join(has) or 'nothing'}: "
                         f"write path,label[,start,end][,split], or csv={path}:COLUMN")
    rows: list[list[tuple]] = [[], []]
    there: dict[str, str | None] = {}                   # path below root, by what is listed
    root = path.parent.absolute()
    for at, row in read:
        start = seconds(row.get("start") or 0)
        end = seconds(row.get("end") or math.inf)
        side = row.get("split", "").lower()
        if not (0 <= start < end and row["path"] and row[label]):
            raise ValueError(f"{path}:{at}: {row['path']!r} from {start:g} to {end:g} s is {row[label]!r}: every row needs a "
                             f"path, a label and, if there are times, 0 <= start < end in seconds")
        if "split" in row and side not in TRAIN + TEST:
            raise ValueError(f"{path}:{at}: split is {row['split']!r}: write train or val")
        if (name := row["path"]) not in there:
            place = os.path.normpath(os.path.relpath(root / name, root))
            if place.startswith(os.pardir) and not outside:
                raise ValueError(f"{path}:{at}: {name!r} lies outside {path.parent}: put the list above its files, or give "
                                 f"--allow-outside where you trust it")
            there[name] = place if (root / place).is_file() else None
        rows[side in TEST].append((name, there[name], start, end, row[label]))
    if any(place and place.startswith(os.pardir) for place in there.values()):      # paths of an index lie below its root
        above = Path(os.path.commonpath([root, *(os.path.normpath(root / place) for place in there.values() if place)]))
        rows = [[(row[0], row[1] and os.path.relpath(root / row[1], above), *row[2:]) for row in side] for side in rows]
        root = above
    files = Files(root, problems, out)
    if label in CAPTIONS and not column:
        return files.labelled([], [], rows[1] or rows[0])
    if not rows[1] and "split" not in has:
        held = {name for name, _ in apart([(row[0], row[4]) for row in {row[0]: row for row in rows[0]}.values()])[1]}
        rows = [[row for row in rows[0] if (row[0] in held) == test] for test in (False, True)]
    classes = sorted({row[4] for row in rows[0] or rows[1]})
    number = {name: i for i, name in enumerate(classes)}
    items = [[(*row[:4], known(number, row[4], f"{path}: {row[0]}", "the rows of training")) for row in side] for side in rows]
    return files.labelled(classes, *items)


def apart(rows: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """(path, class) -> those to train on, those held out: of each class the fifth whose paths have the smallest hashes.

    At least one of each is held out, and one is left to train on; no order of folders or machine changes the choice.
    """
    # Ours: for data without parts of their own (the paper's have theirs).
    members: dict[str, list[str]] = {}
    for path, name in rows:
        members.setdefault(name, []).append(path)
    held = set()
    for paths in members.values():
        paths.sort(key=lambda path: hashlib.blake2b(os.fsencode(path), digest_size=8).digest())
        held.update(paths[:min(max(1, round(len(paths) / SHARE)), len(paths) - 1)])
    return [[row for row in rows if row[0] not in held], [row for row in rows if row[0] in held]]


# ---------------------------------------------------------------------------------------------------------------------
# What stands in a list

def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a text file, without blanks at its ends, CR and empty lines"""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.strip()


def fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number, fields) of a csv, whether or not a blank follows its commas; ValueError where it cannot be read"""
    csv.field_size_limit(MAX_BYTES)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader((line.replace("\0", "") for line in file), skipinitialspace=True)
        try:
            for row in filter(None, reader):
                yield reader.line_num, [field.strip() for field in row]
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: is no csv ({error})") from None


def columns(path: Path, *names: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(number, fields by column) of a csv; ValueError if its header lacks one of these names, or a row lacks fields"""
    rows = fields(path)
    header = [name.lower() for name in next(rows, (1, []))[1]]
    if lacks := [name for name in names if name not in header]:
        raise ValueError(f"{path}:1: the header has no {', '.join(lacks)}, but {', '.join(header) or 'nothing'}")
    for number, row in rows:
        if len(row) <= max(map(header.index, names)):
            raise ValueError(f"{path}:{number}: {len(row)} fields, not {len(header)}: {','.join(row)[:80]}")
        yield number, dict(zip(header, row + [""] * (len(header) - len(row)), strict=False))


def known(numbers: dict[str, int], name: str, at: str, where: str) -> int:
    """The number of a class; ValueError where the list of classes does not have it"""
    if name not in numbers:
        raise ValueError(f"{at}: {errors.printable(name)!r} is none of the {len(numbers)} classes of {where}: "
                         f"mend the label, or take lists of one version")
    return numbers[name]


def stem(path: str) -> str:
    """The name of a file without folders and suffix"""
    return os.path.splitext(path.rpartition("/")[2])[0]
