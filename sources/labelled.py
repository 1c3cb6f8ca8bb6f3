"""Labelled data: what a set of it is, and how one's own is written down (the official ones stand in `official.py`).

    folder    a folder for each class, below train/ and val/ or, without those two, split by a hash of the names;
              or videos that lie loose, with captions beside them: each is the caption of its part of the video
    csv       path,label[,start,end][,split] or path,caption[,start,end], paths from where the csv lies, times in seconds;
              or lines "path label" without a header; in one list, or in train.csv and val.csv

What is listed and not there is counted; what is doubtful becomes a line of `problems`; what cannot be is a ValueError.
"""

import functools
import hashlib
import itertools
import math
import os
import re
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine import errors
from media.captions import Caption, seconds
from sources import index, layouts
from sources.files import LINKED, TYPES, Files, columns, counted, lines, suffix, within
from sources.index import Index, Row

TRAIN, TEST = ("train", "training"), ("val", "valid", "validate", "validation", "test", "testing", "eval")
CAPTIONS = ("caption", "text", "sentence")              # of these columns, the first that is there
OWN = ("labels.csv", "captions.csv")                    # in a folder, they say what it is
WHOLE = 0.0, math.inf                                   # of a file, in seconds
PLAIN = re.compile(r"(.*\S)[\s,;]+(\S+)")               # a path and a label
MOST = 100_000                                          # classes
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
    digest: str                                         # of all rows and the sizes of their files


class Found(NamedTuple):
    """What a data set's function finds. Rows: (what is listed, path below the root or None, start, end, target).

    The target is the number of a class, a tuple of those, or a caption where there are no `classes`.
    """

    classes: list[str]
    train: Iterable[tuple]
    test: Iterable[tuple]


def write(found: Found, files: Files, out: Path, name: str, kind: str = "", multi: bool = False) -> Labelled:
    """Writes the rows to the indexes train/ and test/ in `out`; the kind, if not given, is that of most files."""
    sides, counts, missing, seen, digest = [], [], [], Counter(), hashlib.sha256()

    def there(rows: Iterable[tuple]) -> Iterator[Row]:
        for listed, path, start, end, target in rows:
            if path is None:
                missing.append(listed)
                continue
            seen[TYPES.get(suffix(path), "")] += 1
            labels = () if not found.classes else (target,) if isinstance(target, int) else target
            row = Row(path, start, end, [] if found.classes else [Caption(start, end, target)], labels)
            digest.update(repr((row, os.path.getsize(os.path.join(files.root, path)))).encode("utf-8", "backslashreplace"))
            yield row

    for side, rows in (("train", found.train), ("test", found.test)):
        before = len(missing)
        shutil.rmtree(out / side, ignore_errors=True)
        sides.append(index.write(out / side, files.root, counted(there(rows), f"reading {files.root}", " rows"), least=0))
        counts.append(len(sides[-1]) + len(missing) - before)
    files.sums.tell(files.problems, files.root)
    most = max(seen, key=seen.get, default="")
    if not kind and seen[most] < seen.total():
        kinds = ", ".join(f"{n} of {k}" for k, n in seen.items())
        files.problems.append(f"{files.root} holds files of several kinds ({kinds}): all are taken as {most}")
    return Labelled(name, kind or most, found.classes, multi, *sides, missing, tuple(counts), digest.hexdigest())


# ---------------------------------------------------------------------------------------------------------------------
# One's own

def folder(files: Files, part: int = 1) -> Found:
    """A folder for each class: train/CLASS/.. and val/CLASS/.., or CLASS/.., one file in five of each held out by a hash.

    The classes are those of train/, in the order of their names. Where videos lie loose, the captions beside them count.
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
        keys = np.array([key(path) for path, _ in rows[0]], np.uint64)
        held = np.isin(keys, fifth(keys, np.unique([name for _, name in rows[0]], return_inverse=True)[1]))
        rows = [[row for row, test in zip(rows[0], held, strict=True) if test == side] for side in (False, True)]
    if plain := [name for name in files.every if "/" not in name and suffix(name) in (".csv", ".txt")
                 and names_media(files.root / name)]:
        files.problems.append(f"{files.root}: {len(plain)} lists in it are not read, first {plain[0]} (--data "
                              f"csv={files.root / plain[0]} reads it)")
    classes = sorted({name for _, name in rows[0]})
    number = {name: i for i, name in enumerate(classes)}
    return Found(classes, *([(path, path, *WHOLE, known(number, name, files.root / path, "the folders of training"))
                             for path, name in side] for side in rows))


def captioned(files: Files) -> Found:
    """Videos and the captions beside them, a row each; ValueError where there are none."""
    rows = [(row.path, row.path, *caption) for row in layouts.folder(files.root, files.problems) for caption in row.captions]
    if not rows:
        raise ValueError(f"{files.root} holds no labels: put the files of a class in a folder of its name (train/CLASS and "
                         f"val/CLASS, or CLASS alone), or write labels.csv or captions.csv (path,label or path,caption)")
    return Found([], [], rows)


def fifth(keys: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The keys of files to hold out: of each class the fifth of its files with the smallest, at least one, never all.

    keys (N,) of the files' paths, classes (N,). No order of files or machine changes the choice.
    """
    # Ours: for data without parts of their own (the paper's have theirs).
    keys, first = np.unique(keys[::-1], return_index=True)                  # a file with several rows: by its last one
    order = np.lexsort((keys, classes := classes[::-1][first]))
    _, begin, counts = np.unique(classes[order], return_index=True, return_counts=True)
    few = [keys[order[i : i + min(max(1, round(n / SHARE)), n - 1)]] for i, n in zip(begin, counts, strict=True)]
    return np.concatenate([np.empty(0, np.uint64), *few])


def key(*things) -> int:
    """A number of 64 bits that stands for a path, or for a path and times."""
    text = "\0".join(map(str, things)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


# ---------------------------------------------------------------------------------------------------------------------
# One's own lists

def lists(root: Path) -> list[Path]:
    """One's own lists in a folder: labels.csv or captions.csv, or one to train on and one to test on, if there are any."""
    for name in OWN:
        if (root / name).is_file():
            return [root / name]
    found = [[root / name for word in side for name in sorted(os.listdir(root))
              if re.fullmatch(rf"{word}([-_ ]?(list|set|split|labels))?\.(csv|txt)", name, re.IGNORECASE)
              and names_media(root / name)]
             for side in (TRAIN, TEST)]
    return [side[0] for side in found] if all(found) else []


def names_media(path: Path) -> bool:
    """Whether one of a file's first lines names a video, audio or an image."""
    words = (word for _, line in itertools.islice(lines(path), 5) for word in re.split(r'[\s,;"]+', line))
    return path.is_file() and any(suffix(word) in TYPES for word in words)


def entries(path: Path, label: str) -> Iterator[tuple[int, str, float, float, str, str]]:
    """(line, path, start, end, label, side) of a list; `label`: its column, "" where there is no header."""
    if not label:
        for at, line in lines(path):
            if not (found := PLAIN.fullmatch(line)):
                raise ValueError(f"{path}:{at}: {line[:80]!r} is no path and label: write path,label")
            yield at, found[1].strip('"'), 0.0, math.inf, found[2].strip('"'), ""
        return
    for at, row in columns(path, "path"):
        start, end = seconds(row.get("start") or 0), seconds(row.get("end") or math.inf)
        side = row.get("split", "").lower()
        if not (0 <= start < end and row["path"] and row[label]):
            raise ValueError(f"{path}:{at}: {row['path']!r} from {start:g} to {end:g} s is {row[label]!r}: every row needs a "
                             f"path, a label and, if there are times, 0 <= start < end in seconds")
        if "split" in row and side not in TRAIN + TEST:
            raise ValueError(f"{path}:{at}: split is {row['split']!r}: write train or val")
        yield at, row["path"], start, end, row[label], side


def label_of(path: Path, column: str) -> str:
    """The column of a list that holds labels or captions, "" where the list has no header; ValueError where it has none."""
    first = next((line for _, line in lines(path)), "")
    if (plain := PLAIN.fullmatch(first)) and suffix(plain[1].strip('"')) in TYPES and not column:
        return ""
    names = [name.strip(' "').lower() for name in first.split(",") if name]
    label = column.lower() or next((name for name in ("label", *CAPTIONS) if name in names), "")
    if label not in names:
        raise ValueError(f"{path}: the first line names no column {label or 'label'}, but {', '.join(names) or 'nothing'}: "
                         f"write path,label[,start,end][,split], or csv={path}:COLUMN")
    return label


def table(files: Files, paths: list[Path], column: str, outside: bool = False) -> Found:
    """From one list, or one to train on and one to test on; labels from `column`, else "label", else captions.

    Without sides one file in five is held out. Files outside the folder of the list are an error, unless `outside`: then
    the root of `files` is one above all. The list is read twice, and some bytes a row are kept of it: it may be large.
    """
    root = above = paths[0].parent.absolute()
    label, numbers = [label_of(path, column) for path in paths], {}
    captioned = label[0] in CAPTIONS and not column
    kept = array("Q"), array("Q"), array("i"), array("b"), array("i")       # of each row: file, part, class, side, line
    read = lambda: ((path, *entry) for path, name in zip(paths, label, strict=True) for entry in entries(path, name))
    for path, at, name, start, end, what, side in read():
        # paths of an index lie below its root
        above = Path(os.path.commonpath([above, within(f"{path}:{at}", root, name, outside)]))
        number = -1 if captioned else numbers.setdefault(what, len(numbers))
        test = side in TEST if side else len(paths) == 2 and path == paths[1]
        for values, value in zip(kept, (key(name), key(name, start, end), number, test, at), strict=True):
            values.append(value)
        if len(numbers) > MOST:
            raise ValueError(f"{path}:{at}: more than {MOST} classes: name the column of the labels, csv={path}:COLUMN")
    if not kept[0]:
        raise ValueError(f"{paths[0]} lists no file: write path,label, a line each")
    names, parts, targets, tests, at = (np.frombuffer(values, values.typecode) for values in kept)
    if captioned:
        tests = tests if tests.any() else np.ones_like(tests)
    elif len(paths) == 1 and not side:                                      # without the column `split`
        tests = np.isin(names, fifth(names, targets))
    told = paths[0] if len(paths) == 1 else root
    contradictions(told, names, tests, at, "name a file to train on and to test on: its scores mean nothing", files.problems)
    contradictions(told, parts, targets, at, "give a file two labels: each row counts", files.problems)
    if odd := [name for name in numbers if "|" in name]:
        line = at[targets == numbers[odd[0]]][0]
        files.problems.append(errors.printable(f"{told}: {len(odd)} labels hold a |, and each is one class, first: "
                                               f"{odd[0]!r}, line {line}"))
    used = set(np.unique(targets if tests.all() else targets[tests == 0]).tolist())
    classes = [name for name, k in numbers.items() if k in used]
    numeric = all(map(str.isdecimal, classes))                              # 2 comes before 10
    classes.sort(key=lambda name: (len(name) if numeric else 0, name))
    number = {name: i for i, name in enumerate(classes)}
    files.root, home = above, os.path.realpath(above) + os.sep

    @functools.lru_cache(1 << 16)
    def place(name: str) -> str | None:
        path = os.path.join(root, name)
        if not os.path.isfile(path):
            return None
        if not (end := os.path.realpath(path)).startswith(home):
            files.sums.add(LINKED, f"{name} -> {end}")
        return os.path.relpath(path, above)

    def rows(test: bool):
        for (path, line, name, start, end, what, _), side in zip(read(), tests, strict=True):
            if side == test:
                target = what if captioned else known(number, what, f"{path}:{line}: {name}", "the rows of training")
                yield name, place(name), start, end, target

    return Found(classes, rows(False), rows(True))


def contradictions(told: Path, keys: np.ndarray, values: np.ndarray, at: np.ndarray, what: str, problems: list[str]) -> None:
    """Adds a problem, with lines, where rows with the same key have different values."""
    order = np.argsort(keys, kind="stable")
    same = (keys[order][1:] == keys[order][:-1]) & (values[order][1:] != values[order][:-1])
    if same.any():
        first = min(np.flatnonzero(same), key=lambda i: order[i + 1])
        one, other = at[order[first : first + 2]]
        problems.append(f"{told}: {same.sum()} rows {what}, first: lines {one} and {other}")


def known(numbers: dict[str, int], name: str, at: str | Path, where: str) -> int:
    """The number of a class; ValueError where the list of classes does not have it"""
    if name not in numbers:
        raise ValueError(f"{at}: {errors.printable(name)!r} is none of the {len(numbers)} classes of {where}: "
                         f"mend the label, or take lists of one version")
    return numbers[name]
