"""The rows of a data set, for pre-training and for tasks with labels: a hundred million of them cost a worker nothing.

A Python list of paths is copied into every loader worker, page by page, as its reference counts are touched.
Here row i lies between two offsets of flat files; workers map the files and share the operating system's one copy.

    paths, path_ends     bytes of all paths; (rows + 1) offsets into them
    hashes               (rows) of the path, for the choice of held-out files
    spans                (rows, 2) seconds: which part of the file
    cue_ends             (rows + 1) offsets into times and text_ends
    times                (captions, 2) seconds
    texts, text_ends     bytes of all captions; (captions + 1) offsets into them
    labels, label_ends   numbers of all classes; (rows + 1) offsets into them; not there where no row has a label
    places               (rows) where the bytes of each lie, if they are packed in shards (`shards.py`)
    index.json           root, counts of rows, captions and labels
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shutil
import zlib
from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.errors import printable
from media import Unreadable
from media.captions import MAX_CAPTIONS, MAX_CHARACTERS, Caption

FORMAT = 3
SHARD = "shard-{:06d}.tar"
TYPES = {                                           # as numpy writes them: 2d is two numbers a row
    "paths": "B", "path_ends": "q", "hashes": "Q", "spans": "2d", "cue_ends": "q", "times": "2f", "texts": "B",
    "text_ends": "q", "labels": "i", "label_ends": "q",
    "places": np.dtype([("shard", "<u4"), ("crc", "<u4"), ("offset", "<u8"), ("size", "<u8")]),
}
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")    # file:, concat:, http:, and the drive letter C:
MANY = 1 << 16                                      # rows, captions or bytes looked at together


class Place(NamedTuple):
    """Where the bytes of a packed clip lie: in which shard, their CRC-32, from which byte on, and how many."""

    shard: int
    crc: int
    offset: int
    size: int


class Row(NamedTuple):
    """A file, or a part of one: its path below the root, with "/"; the part in seconds, (0, inf) for all of it; its captions,
    in seconds of the whole file; its classes, by their numbers; its place in a shard, where it is packed: then the path is
    only a name."""

    path: str
    start: float
    end: float
    captions: list[Caption]
    labels: tuple[int, ...] = ()
    place: Place | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Where clips begin

def starts(row: Row, duration: float, seconds: float) -> tuple[float, float]:
    """The first and the last second at which a clip of so many `seconds` may begin; the same where the row is too short.

    `duration` is that of the file. Unreadable where the row begins behind it.
    """
    if not 0 <= row.start < duration:                       # nor where a list says no number
        raise Unreadable(row.path, "start past the end")
    return row.start, max(row.start, min(row.end, duration) - seconds)


def windows(first: float, last: float, n: int, fps: float) -> list[float]:
    """n starts from `first` to `last`, evenly spread, on whole frames; one is in the middle (A.2.5)."""
    # Ours: on whole frames of the model's rate (official: of the stored rate; at most 0.08 s apart).
    return [first + math.floor((last - first) * share * fps + 1e-6) / fps for share in even(n)]


def even(n: int) -> list[float]:
    """n numbers from 0 to 1, evenly spread; one is in the middle (A.2.5)."""
    return [0.5] if n == 1 else [i / (n - 1) for i in range(n)]


# ---------------------------------------------------------------------------------------------------------------------
# The files


def write(folder: Path, root: Path, rows: Iterable[Row], packed: bool = False, least: int = 1) -> "Index":
    """Writes the index of `rows`, whose paths lie below `root`, in one pass and constant memory, and opens it.

    `folder` appears when it is whole. FileExistsError where it is there; ValueError where there are fewer rows than `least`.
    The index of packed rows lies beside their shards, and may be moved with them.
    """
    folder, root = Path(folder), Path(root).absolute()
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: delete it to have the index written again")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)              # of a run that was killed
    partial.mkdir(parents=True)
    try:
        counts = write_rows(partial, rows, packed)
        if counts["rows"] < least:
            raise ValueError(f"no video found under {root}: name a folder that holds some (--data FOLDER)")
        head = {"format": FORMAT, "root": os.pardir if packed else str(root), "packed": packed, **counts}
        (partial / "index.json").write_text(json.dumps(head))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Index(folder)


def point(folder: Path, at: Path) -> None:
    """Makes `folder` stand for the index in `at`, which is not copied, as long as that one stays what it is.

    Shards may be of others: ValueError where the index points to files that do not lie beside it, or is malformed.
    """
    index, home = Index(at), os.path.realpath(at.parent) + os.sep
    parts = [at / "index.json", *(at / name for name in index.data), *at.parent.glob("shard-*.tar")]
    beside = index.packed and index.folder == at.absolute() and index.root == Path(os.path.normpath(index.folder / os.pardir))
    if not (beside and all(os.path.realpath(part).startswith(home) for part in parts)):
        raise ValueError(f"{at} points to files elsewhere, not to the shards beside it: pack them anew (data.py pack)")
    # more in a row than `write` puts there would cost whoever draws it
    longest = {"path_ends": MANY, "cue_ends": MAX_CAPTIONS, "text_ends": 4 * MAX_CHARACTERS, "label_ends": MANY}
    for name, ends in ((name, index.data[name]) for name in longest if name in index.data):
        sizes = (np.diff(ends[i : i + MANY + 1]) for i in range(0, len(ends) - 1, MANY))
        if ends[0] != 0 or not all(size.min() >= 0 and size.max() <= longest[name] for size in sizes):
            raise ValueError(f"{at} is damaged or made up ({name}): pack its videos anew (data.py pack)")
    folder.mkdir(parents=True, exist_ok=True)
    head = {"format": FORMAT, "at": str(index.folder), "rows": index.rows, "crc": index.crc}
    (folder / "index.json").write_text(json.dumps(head))


def write_rows(folder: Path, rows: Iterable[Row], packed: bool) -> dict[str, int]:
    """Writes all files but index.json; returns {"rows": .., "cues": .., "labels": .., "crc": of all places}."""
    ends, count, crc = dict.fromkeys(("path_ends", "cue_ends", "text_ends", "label_ends"), 0), 0, 0
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in columns(packed)}

        def add(name: str, values: Iterable[float]) -> None:
            files[name].write(array(TYPES[name][-1], values))

        def add_ends(name: str, sizes: Iterable[int]) -> None:
            offsets = list(accumulate(sizes, initial=ends[name]))
            ends[name] = offsets[-1]
            add(name, offsets[1:])

        for name in ends:
            add(name, [0])
        for row in rows:
            count += 1
            path, texts = os.fsencode(row.path), [caption.text.encode("utf-8", "replace") for caption in row.captions]
            add("paths", path)
            add("hashes", hashlib.blake2b(path, digest_size=8).digest())
            add("spans", (row.start, row.end))
            add("times", chain.from_iterable(caption[:2] for caption in row.captions))
            add("texts", b"".join(texts))
            add("labels", row.labels)
            for name, sizes in zip(ends, ([len(path)], [len(texts)], map(len, texts), [len(row.labels)]), strict=True):
                add_ends(name, sizes)
            if packed:
                place = np.array([row.place], TYPES["places"]).tobytes()
                files["places"].write(place)
                crc = zlib.crc32(place, crc)
    for name in set(files) - set(columns(packed, ends["label_ends"] > 0)):
        (folder / name).unlink()
    return {"rows": count, "cues": ends["cue_ends"], "labels": ends["label_ends"], "crc": crc}


def head_of(folder: Path) -> dict[str, Any]:
    """What index.json says; ValueError where it is no file, or too long to be one."""
    path = folder / "index.json"
    if not path.is_file() or path.stat().st_size > 1 << 16:         # a pipe would be waited for
        raise ValueError("no index.json")
    return json.loads(path.read_text(encoding="utf-8"))


def columns(packed: bool, labels: bool = True) -> list[str]:
    """The files of an index."""
    return [name for name in TYPES if (packed or name != "places") and (labels or not name.startswith("label"))]


class Index:
    """The rows in `folder`, as `write` left them, captions' times as float32. ValueError for a missing or damaged one.

    Pickles as its folder: a worker is sent a path, and maps the files itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).absolute()
        try:
            head = head_of(self.folder)
            if "at" in head:
                asked, self.folder = head, Path(head["at"])
                head = head_of(self.folder)
                if any(head[k] != asked[k] for k in ("rows", "crc")):
                    raise ValueError(f"{self.folder} is not what it was when this was written")
            if head["format"] != FORMAT:
                raise ValueError(f"format {head['format']}, not {FORMAT}")
            self.root = Path(os.path.normpath(self.folder / head["root"]))
            self.rows, self.captions, self.labels = head["rows"], head["cues"], head["labels"]
            self.packed, self.crc = head["packed"], head["crc"]
            data = self.data = {name: mapped(self.folder / name) for name in columns(self.packed, self.labels > 0)}
            lengths = {"paths": data["path_ends"][-1], "texts": data["text_ends"][-1], "labels": self.labels,
                       "times": self.captions, "text_ends": self.captions + 1}
            if wrong := [name for name, values in data.items()
                         if len(values) != lengths.get(name, self.rows + name.endswith("_ends"))]:
                raise ValueError(f"wrong length of {', '.join(wrong)}")
        except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise ValueError(f"{folder} holds no whole index ({error}): delete it, and it is written again") from None

    def __reduce__(self) -> tuple:
        return Index, (self.folder,)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> Row:
        """Row i. IndexError below 0 and from len on."""
        if not 0 <= i < self.rows:
            raise IndexError(f"row {i} of an index of {self.rows}")
        first, last = self.data["cue_ends"][i : i + 2].tolist()
        times = self.data["times"][first:last].tolist()
        captions = [Caption(*span, text) for span, text in zip(times, self._texts(first, last), strict=True)]
        labels = self.data["labels"][slice(*self.data["label_ends"][i : i + 2])].tolist() if self.labels else ()
        return Row(self.inside(i), *self.data["spans"][i].tolist(), captions, tuple(labels), self.place(i))

    def inside(self, i: int) -> str:
        """The path of row i below the root, with "/"; of a packed row, that which it had."""
        first, last = self.data["path_ends"][i : i + 2].tolist()
        return os.fsdecode(self.data["paths"][first:last].tobytes())

    def place(self, i: int) -> Place | None:
        """Where row i is packed."""
        return Place(*self.data["places"][i].tolist()) if self.packed else None

    def media(self, i: int) -> tuple[str, int, int | None, str | None]:
        """(file, offset, size, name) of row i, as `Media` takes them; raises as `path`."""
        place = self.place(i)
        return (self.path(i), place.offset, place.size, self.name(i)) if place else (self.path(i), 0, None, None)

    def name(self, i: int) -> str:
        """What row i is called in messages: its file, and which clip of it where it is packed."""
        return f"{self.path(i)}/{i:09d} ({self.inside(i)})" if self.packed else os.path.join(self.root, self.inside(i))

    def path(self, i: int) -> str:
        """The file of row i. Unreadable for a path that leaves the root or names a protocol, as a list of others' may."""
        # A string: Python 3.12 keeps for ever what a Path has held.
        if place := self.place(i):
            return os.path.join(self.root, SHARD.format(place.shard))
        name = self.inside(i)
        path = os.path.join(self.root, name)
        scheme = SCHEME.match(name) and not os.path.exists(path)    # a file may well be called "Part2:end.mp4"
        if not name or "\0" in name or name.startswith("/") or ".." in name.split("/") or scheme:
            raise Unreadable(name, "path leaves its folder")
        return path

    def among(self, names: frozenset[str]) -> np.ndarray:
        """The numbers of the rows with these names, sorted"""
        rows = range(len(self)) if names else ()  # no look at a hundred million rows for nothing
        return np.fromiter((i for i in rows if printable(self.name(i)) in names), np.int64)

    def counts(self) -> tuple[int, int, int]:
        """How many rows have captions, how many captions there are, and how many words between blanks."""
        ends, texts = self.data["cue_ends"], self.data["texts"]
        captioned = sum(np.count_nonzero(np.diff(ends[i : i + MANY + 1])) for i in range(0, self.rows, MANY))
        blanks = sum(np.count_nonzero(texts[i : i + MANY] == ord(" ")) for i in range(0, len(texts), MANY))
        return captioned, self.captions, blanks + self.captions

    def texts(self, skip: np.ndarray | tuple = ()) -> Iterator[str]:
        """Every caption in the order of the rows, but for the rows whose numbers are in `skip`."""
        for before, after in pairwise([-1, *sorted({int(i) for i in skip}), self.rows]):
            first, last = self.data["cue_ends"][[before + 1, after]].tolist()
            for block in range(first, last, MANY):
                yield from self._texts(block, min(block + MANY, last))

    def _texts(self, first: int, last: int) -> Iterator[str]:
        """The texts of the captions first, .., last - 1."""
        ends = self.data["text_ends"][first : last + 1].tolist()
        blob = self.data["texts"][ends[0] : ends[-1]].tobytes()
        return (blob[start - ends[0] : end - ends[0]].decode("utf-8", "replace") for start, end in pairwise(ends))


opened = functools.cache(Index)     # of a folder, once in every process


def mapped(path: Path) -> np.ndarray:
    """A file as a read-only array in the page cache, not in the process's own memory."""
    if path.stat().st_size == 0:                                # nothing to map: no video of the set has captions
        return np.empty(0, TYPES[path.name])
    return np.memmap(path, TYPES[path.name], mode="r").view(np.ndarray)     # a plain array is twice as fast to index


def held_out(index: Index, share: float = 0.02, least: int = 1, most: int = 200) -> np.ndarray:
    """The row numbers, sorted, of the files never trained on: a share of the FILES, at least `least`, at most `most`.

    They are the files whose paths have the smallest hashes: no order of folders, machine or seed changes the choice.
    One file at least is left to train on, so that an index of a single file holds none out.
    """
    # Ours: the paper names no held-out part of its pre-training data.
    hashes = index.data["hashes"]
    files = np.unique(hashes)                               # of a hundred million rows 0.8 GB, for a moment
    count = min(max(round(share * len(files)), least), most, len(files) - 1)
    return np.flatnonzero(hashes <= files[count - 1]) if count > 0 else np.empty(0, np.int64)


def complement(k: int | np.ndarray, held: np.ndarray) -> np.int64 | np.ndarray:
    """The k-th row number (from 0) that is not in `held`, which is sorted and holds none twice; k may be an array."""
    return k + np.searchsorted(held - np.arange(len(held)), k, side="right")
