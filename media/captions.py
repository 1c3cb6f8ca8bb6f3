"""Timed text files to cues: what is said, and when (the text of Section 3.4's MIL-NCE).

    cue      (start, end, text)   seconds from the beginning of the film, one line of clean text
    formats  .srt, .vtt           blocks of "hh:mm:ss,mmm --> hh:mm:ss,mmm" and text
             .csv                 header start,end,text in any order, seconds (HowTo100M, a file a video)
             .json                {"start": [..], "end": [..], "text": [..]}, or a list of {"start", "end", "text"}

Subtitle files are strangers' files: nothing here raises for what is in one. What is dropped or doubtful becomes a line
"path:line: what" (in a json the number of the entry) of the list `problems`.
"""

import codecs
import csv
import heapq
import html
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import tell

MAX_BYTES = 64 << 20        # of a file; a film's words are some 100 kB
MAX_CHARACTERS = 4096       # of a cue
MAX_SECONDS = 1e6           # eleven days; float32 still tells 0.06 s apart there
TOLD_PER_FILE = 10_000

SUFFIXES = (".srt", ".vtt", ".csv", ".json")
ARROW = re.compile(r"\s*(-?[0-9:.,]+)\s*-->\s*(-?[0-9:.,]+)(?:\s|$)")
CLOCK = re.compile(r"(?:([0-9]+):)?([0-9]+):([0-9]+(?:[.,][0-9]*)?)")
NO_CUE = re.compile(r"(?:WEBVTT|NOTE|STYLE|REGION)(?:\s|$)")
BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
TAG = re.compile(r"</?(?:b|c|i|u|s|v|rt|ruby|lang|font|span)(?:[\s.][^<>]*)?>|<[0-9:.]+>|\{\\[^{}]*\}", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Caption(NamedTuple):
    """What is said from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def read(path: Path, problems: list[str]) -> list[Caption]:
    """The cues of a subtitle file, sorted by start, rolling ones merged; none for a file that cannot be read."""
    path = Path(path)
    parse = {".srt": blocks, ".vtt": blocks, ".csv": table, ".json": objects}.get(path.suffix.lower())
    with complaints(path, problems) as complain:
        if parse is None:
            complain(1, f"not a subtitle file ({', '.join(SUFFIXES)})")
            return []
        try:
            if not path.is_file():                       # a named pipe would be waited for
                complain(1, "not a file")
                return []
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:           # ValueError: a NUL in the name
            complain(1, f"cannot be read: {error}")
            return []
        if len(data) > MAX_BYTES:
            complain(1, f"larger than {MAX_BYTES >> 20} MB: passed over")
            return []
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if utf16 else "utf-8-sig", "replace").replace("\0", "")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if "\ufffd" in text:
            complain(1 + text[: text.index("\ufffd")].count("\n"), "not UTF-8: what cannot be read is replaced")
        return sift(parse(text), complain)


def sift(rows: Iterable[tuple[int, Any, Any, Any]], complain: Callable[[int, str], None]) -> list[Caption]:
    """Rows (line, start, end, text) of anything to sorted, merged cues; every row dropped or cut is complained of."""
    cues, line = [], 1
    try:
        for line, start, end, text in rows:
            start, end = seconds(start), seconds(end)
            if not isinstance(text, str):
                complain(line, f"text is no string: {str(text)[:40]!r}")
            elif not 0 <= start <= end <= MAX_SECONDS:
                complain(line, f"{text[:40]!r} has no valid time: {start:g} to {end:g} s")
            elif not (said := clean(text[:MAX_CHARACTERS])):
                complain(line, "no text")
            else:
                if len(text) > MAX_CHARACTERS:
                    complain(line, f"text of {len(text)} characters is cut to {MAX_CHARACTERS}")
                cues.append(Caption(start, end, said))
    except (csv.Error, ValueError, RecursionError) as error:
        complain(line, f"cannot be read from here on: {error}")
    return merge_rolling(sorted(cues, key=lambda cue: cue.start))


def merge_rolling(cues: Sequence[Caption]) -> list[Caption]:
    """Rolling captions of speech recognisers, sorted by start, so merged that each word is said once.

    Such a cue begins with the words that the last one ended with (compared as written, punctuation and all) and
    follows it within 0.1 s. It keeps its new words and its own time; without new words it extends the last cue's end.
    Ordinary speech repeats itself too ("no no", "very" / "very good"), so a repeat is cut only where it has two
    different words or more and is three words long or the whole of the last cue; or, shorter, in a file where at least
    half of the cues that follow closely repeat so surely: repeating is then the habit of the file, not of the speaker.
    """
    # Ours: paper and official code do not speak of rolling captions; unmerged, a word would be said up to three times.
    words = [cue.text.split() for cue in cues]
    close = [after.start <= before.end + 0.1 for before, after in pairwise(cues)]
    shared = [overlap(before, after) if near else 0
              for near, (before, after) in zip(close, pairwise(words), strict=True)]
    sure = [len(set(after[:n])) >= 2 and (n >= 3 or n == len(before))
            for n, (before, after) in zip(shared, pairwise(words), strict=True)]
    rolls = 2 * sum(sure) >= sum(close)
    merged = list(cues[:1])
    for cue, said, n, certain in zip(cues[1:], words[1:], shared, sure, strict=True):
        if n == 0 or not (certain or rolls):
            merged.append(cue)
        elif n < len(said):
            merged.append(cue._replace(text=" ".join(said[n:])))
        else:
            merged[-1] = merged[-1]._replace(end=max(merged[-1].end, cue.end))
    return merged


def overlap(before: list[str], after: list[str]) -> int:
    """The most words, up to 200, that end `before` and begin `after`."""
    most = min(len(before), len(after), 200)
    return next((n for n in range(most, 0, -1) if before[-n:] == after[:n]), 0)


def nearest(times: Sequence[tuple[float, float]], start: float, end: float, k: int) -> list[int]:
    """The numbers of the k cues nearest in time to the clip [start, end], nearest first (P of Eq. 5).

    The distance is the gap between the intervals, 0 where they touch; ties go to the nearer middle, then the earlier.
    """
    # Paper: 3.4, "five text clips that are nearest neighbors to the video clip in time".
    def distance(i: int) -> tuple[float, float]:
        first, last = times[i][0], times[i][1]
        return max(0.0, first - end, start - last), abs(first + last - start - end)

    return heapq.nsmallest(k, range(len(times)), key=distance)


# ---------------------------------------------------------------------------------------------------------------------
# Files to rows (line, start, end, text)

def blocks(text: str) -> Iterator[tuple[int, Any, Any, str]]:
    """.srt and .vtt: a line with an arrow begins a cue, an empty line ends it; the line before an arrow is its name.

    Blank is not empty: recognisers' cues begin with a line of one blank. Words outside a cue have no time (None).
    """
    times, said, outside = None, [], []                  # of the open cue: (line, start, end), its lines; other lines
    for number, line in enumerate([*text.split("\n"), ""], 1):
        arrow = ARROW.match(line)
        if times and (arrow or not line):
            if arrow and said and said[-1].strip().isdecimal():
                said.pop()                               # the next cue's number: the empty line is missing
            yield *times, "\n".join(said)
            times = None
        elif outside and (arrow or not line.strip()):
            if not NO_CUE.match(outside[0]) and (lost := outside[:-1] if arrow else outside):
                yield number - len(outside), None, None, "\n".join(lost)
            outside = []
        if arrow:
            times, said = (number, *arrow.groups()), []
        elif times:
            said.append(line)
        elif line.strip():
            outside.append(line)


def table(text: str) -> Iterator[tuple[int, Any, Any, Any]]:
    """.csv: rows below a header that has start, end and text among its columns; ValueError for another header."""
    csv.field_size_limit(MAX_BYTES)                      # Python's own limit of 128 kB would raise
    reader = csv.reader(io.StringIO(text), skipinitialspace=True)
    header = [name.strip().lower() for name in next(reader, [])]
    columns = [header.index(name) for name in ("start", "end", "text") if name in header]
    if len(columns) < 3:
        raise ValueError("the first line must name the columns start,end,text")
    for row in filter(None, reader):
        yield reader.line_num, *(row[column] if column < len(row) else None for column in columns)


def objects(text: str) -> Iterator[tuple[int, Any, Any, Any]]:
    """.json: what `entries` makes of the whole file; ValueError where it is not JSON."""
    yield from entries(json.loads(text))


def entries(parsed: Any) -> Iterator[tuple[int, Any, Any, Any]]:
    """A parsed {"start": [..], "end": [..], "text": [..]}, as in HowTo100M, or list of {"start", "end", "text"}.

    ValueError for another form.
    """
    names = ("start", "end", "text")
    if isinstance(parsed, dict) and all(isinstance(parsed.get(name), list) for name in names):
        rows = zip_longest(*(parsed[name] for name in names))
    elif isinstance(parsed, list) and all(isinstance(entry, dict) for entry in parsed):
        rows = ([entry.get(name) for name in names] for entry in parsed)
    else:
        raise ValueError('neither {"start": [..], "end": [..], "text": [..]} nor a list of {"start", "end", "text"}')
    for number, row in enumerate(rows, 1):
        yield number, *row


# ---------------------------------------------------------------------------------------------------------------------
# What stands in a row

def seconds(value: Any) -> float:
    """A number, its text, or a clock time "hh:mm:ss,mmm" (hours may be missing) in seconds; NaN for anything else."""
    if isinstance(value, str) and (clock := CLOCK.fullmatch(value.strip())):
        hours, minutes, rest = clock.groups()
        return 3600 * float(hours or 0) + 60 * float(minutes) + float(rest.replace(",", "."))
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def clean(text: str) -> str:
    """One line of text that can be encoded: tags and control characters removed, entities and blanks resolved."""
    text = html.unescape(TAG.sub("", BREAK.sub(" ", text)))
    return " ".join(CONTROL.sub(" ", text).split()).encode("utf-8", "replace").decode()


# ---------------------------------------------------------------------------------------------------------------------
# Problems

@contextmanager
def complaints(name: object, problems: list[str]) -> Iterator[Callable[[int, str], None]]:
    """A function complain(line, what) about one file: its first calls become lines of `problems`, then a count."""
    count = 0

    def complain(line: int, what: str) -> None:
        nonlocal count
        count += 1
        if count <= TOLD_PER_FILE:
            tell(problems, f"{name}:{line}: {what}")

    yield complain
    if count > TOLD_PER_FILE:
        tell(problems, f"{name}: {count - TOLD_PER_FILE} more problems")
