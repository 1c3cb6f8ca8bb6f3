"""Files of timed text to captions: what is said, and when (the text of Section 3.4's MIL-NCE).

    Caption  (start, end, text)   seconds from the beginning of the video, one line of clean text
    .srt .vtt .sbv                blocks of "hh:mm:ss,mmm --> hh:mm:ss,mmm" (.sbv: a comma for the arrow) and text
    .csv .tsv                     header start,end,text in any order; seconds (HowTo100M), in a .tsv milliseconds (Whisper)
    .json                         {"start": [..], "end": [..], "text": [..]}, or a list of {"start", "end", "text"}; what
                                  Whisper, WhisperX, whisper.cpp and YouTube write
    .ass .ssa .ttml .dfxp .lrc    lines "Dialogue: ..", elements <p begin=".." end="..">, lines "[mm:ss.xx] .."

Caption files are files of others: nothing here raises for what is in one. What is dropped or doubtful becomes a line
"path:line: what" (in a json or ttml the number of the entry) of the list `problems`.
"""

import codecs
import csv
import heapq
import html
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import tell

MAX_BYTES = 16 << 20        # of a file; the words of a video are some 100 kB
MAX_CAPTIONS = 50_000       # of a file: those of a day; all are looked at for each clip
MAX_CHARACTERS = 4096       # of a caption
MAX_SECONDS = 1e6           # eleven days; float32 still tells 0.06 s apart there
TOLD_PER_FILE = 10_000

ARROW = re.compile(r"\s*(-?[0-9:.,]+)\s*-->\s*(-?[0-9:.,]+)(?:\s|$)")
COMMA = re.compile(r"([0-9:.]+),([0-9:.]+)\s*$")                                    # the arrow of .sbv
CLOCK = re.compile(r"(?:([0-9]+):)?([0-9]+):([0-9]+(?:[.,][0-9]*)?)")
NO_CUE = re.compile(r"(?:WEBVTT|NOTE|STYLE|REGION)(?:\s|$)")
BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
LYRIC = re.compile(r"((?:\[[0-9]+:[0-9.:]+\]\s*)*)(.*)")                          # its times, its words
OFFSET = re.compile(r"([0-9.]+)(h|m|s|ms|t)")                                      # a time of TTML
ATTRIBUTE = re.compile(r"\b(begin|end|dur|tickRate)\s*=\s*[\"']([^\"']*)[\"']")
TAG = re.compile(r"</?(?:b|c|i|u|s|v|rt|ruby|lang|font|span)(?:[\s.][^<>]*)?>|<[0-9:.]+>|\{\\k[^{}]*\}", re.IGNORECASE)
STYLE = re.compile(r"\{\\(?!k)[^{}]*\}|\\[Nnh]")                                   # of .ass, also within .srt: between words
HALF = re.compile(r"\S*\ufffd\S*")                                               # a word that could not be read
Rows = Iterator[tuple[int, Any, Any, Any]]  # (line, start, end, text), each of anything
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Caption(NamedTuple):
    """What is said from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def read(path: Path, problems: list[str]) -> list[Caption]:
    """The captions in a file, sorted by start, rolling ones merged; none for a file that cannot be read."""
    parse, reason, data = PARSERS.get(path.suffix.lower()), None, b""
    try:
        if parse is None:
            reason = f"not a caption file ({', '.join(PARSERS)})"
        elif not path.is_file():                         # a named pipe would be waited for
            reason = "not a file"
        else:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:               # ValueError: a NUL in the name
        reason = f"cannot be read: {error}"
    if len(data) > MAX_BYTES:
        reason = f"larger than {MAX_BYTES >> 20} MB: passed over"
    if reason:
        tell(problems, f"{path}:1: {reason}")
        return []
    text = data.decode(encoding(data), "replace").replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
    intact, wrong, _ = text.partition("\ufffd")
    if wrong:
        line = 1 + intact.count("\n")
        tell(problems, f"{path}:{line}: not UTF-8: words that cannot be read are left out; write the file anew, if it is "
             "Western European with iconv -f WINDOWS-1252 -t UTF-8")
    return sift(parse(text), path, problems)


def encoding(data: bytes) -> str:
    """UTF-8, unless a mark at the beginning, or a zero in every other byte, says UTF-16."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = data[:1000:2].count(0), data[1:1000:2].count(0)
    if 3 * max(even, odd) > len(data[:1000]):
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8-sig"


def sift(rows: Rows, name: object, problems: list[str]) -> list[Caption]:
    """Rows (line, start, end, text) of anything to sorted, merged captions; every row dropped or cut is told as of `name`."""
    captions, told, line = [], [], 1
    try:
        for line, start, end, text in rows:
            start, end = seconds(start), seconds(end)
            if not isinstance(text, str):
                told.append((line, f"text is no string: {str(text)[:40]!r}"))
            elif not 0 <= start <= end <= MAX_SECONDS:
                told.append((line, f"{text[:40]!r} has no valid time: {start:g} to {end:g} s"))
            elif not (said := clean(text[:MAX_CHARACTERS])):
                told.append((line, "no text"))
            else:
                if len(text) > MAX_CHARACTERS:
                    told.append((line, f"text of {len(text)} characters is cut to {MAX_CHARACTERS}"))
                captions.append(Caption(start, end, said))
            if len(captions) == MAX_CAPTIONS:
                told.append((line, f"more than {MAX_CAPTIONS} captions: the rest is passed over"))
                break
    except (csv.Error, ValueError, RecursionError) as error:
        told.append((line, f"cannot be read from here on: {error}"))
    for line, what in told[:TOLD_PER_FILE]:
        tell(problems, f"{name}:{line}: {what}")
    if len(told) > TOLD_PER_FILE:
        tell(problems, f"{name}: {len(told) - TOLD_PER_FILE} more problems")
    return merge_rolling(sorted(captions, key=lambda caption: caption.start))


def merge_rolling(captions: Sequence[Caption]) -> list[Caption]:
    """Rolling captions of speech recognisers, sorted by start, so merged that each word is said once.

    Such a caption begins with the words that the last one ended with (compared as written, punctuation and all) and
    follows it within 0.1 s. It keeps its new words and its own time; without new words it extends the last caption's end.
    Ordinary speech repeats itself too ("no no", "very" / "very good"), so a repeat is cut only where it has two
    different words or more and is three words long or the whole of the last caption; or, shorter, in a file where at least
    half of the captions that follow closely repeat so surely: repeating is then the habit of the file, not of the speaker.
    """
    # Ours: paper and official code do not speak of rolling captions; unmerged, a word would be said up to three times.
    repeats, close = [], 0  # of each caption but the first: (how many words it repeats, whether surely)
    for before, after in pairwise(captions):
        follows = after.start <= before.end + 0.1
        last, said = before.text.split(), after.text.split()
        n = overlap(last, said) if follows else 0
        repeats.append((n, len(set(said[:n])) >= 2 and (n >= 3 or n == len(last))))
        close += follows
    rolls = 2 * sum(sure for _, sure in repeats) >= close
    merged = list(captions[:1])
    for caption, (n, sure) in zip(captions[1:], repeats, strict=True):
        if not (n and (sure or rolls)):
            merged.append(caption)
        elif new := caption.text.split()[n:]:
            merged.append(caption._replace(text=" ".join(new)))
        else:
            merged[-1] = merged[-1]._replace(end=max(merged[-1].end, caption.end))
    return merged


def overlap(before: list[str], after: list[str]) -> int:
    """The most words, up to 200, that end `before` and begin `after`."""
    most = min(len(before), len(after), 200)
    return next((n for n in range(most, 0, -1) if before[-n:] == after[:n]), 0)


def nearest(times: Sequence[tuple[float, float]], start: float, end: float, k: int) -> list[int]:
    """The numbers of the k captions nearest in time to the clip [start, end], nearest first (P of Eq. 5).

    The distance is the gap between the intervals, 0 where they touch; ties go to the nearer middle, then the earlier.
    """
    # Paper: 3.4, "five text clips that are nearest neighbors to the video clip in time".
    def distance(i: int) -> tuple[float, float]:
        first, last = times[i][0], times[i][1]
        return max(0.0, first - end, start - last), abs(first + last - start - end)

    return heapq.nsmallest(k, range(len(times)), key=distance)


# ---------------------------------------------------------------------------------------------------------------------
# Files to rows (line, start, end, text)

def blocks(text: str, arrow: re.Pattern = ARROW) -> Rows:
    """.srt, .vtt and .sbv: a line with an arrow begins a cue, an empty line ends it; the line before an arrow is its name.

    Blank is not empty: recognisers' cues begin with a line of one blank. Words outside a cue have no time (None).
    """
    times, said, outside = None, [], []                  # of the open cue: (line, start, end), its lines; other lines
    for number, line in enumerate([*text.split("\n"), ""], 1):
        found = arrow.match(line)
        if times and (found or not line):
            if found and said and said[-1].strip().isdecimal():
                said.pop()                               # the next cue's number: the empty line is missing
            yield *times, "\n".join(said)
            times = None
        elif outside and (found or not line.strip()):
            if not NO_CUE.match(outside[0]) and (lost := outside[:-1] if found else outside):
                yield number - len(outside), None, None, "\n".join(lost)
            outside = []
        if found:
            times, said = (number, *found.groups()), []
        elif times:
            said.append(line)
        elif line.strip():
            outside.append(line)


def table(text: str, delimiter: str = ",") -> Rows:
    """.csv: rows below a header that has start, end and text among its columns; ValueError for another header."""
    csv.field_size_limit(MAX_BYTES)                      # Python's own limit of 128 kB would raise
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
    if not {"start", "end", "text"} <= set(reader.fieldnames):
        raise ValueError("the first line must name the columns start,end,text")
    for row in reader:
        yield reader.line_num, row["start"], row["end"], row["text"]


def milliseconds(text: str) -> Rows:
    """.tsv: the same, with tabs; times are whole milliseconds, as Whisper writes them, or seconds with a point."""
    for line, start, end, said in table(text, "\t"):
        yield line, *(int(time) / 1000 if time and time.isdecimal() else time for time in (start, end)), said


def dialogues(text: str) -> Rows:
    """.ass and .ssa: lines "Dialogue:" with the fields that the last line "Format:" names; no drawings."""
    names = []
    for number, line in enumerate(text.split("\n"), 1):
        kind, _, rest = line.strip().partition(":")
        if kind == "Format":
            names = [name.strip().lower() for name in rest.split(",")]
        elif kind == "Dialogue" and {"start", "end", "text"} <= set(names):
            fields = dict(zip(names, rest.split(",", len(names) - 1), strict=False))
            if not re.search(r"\\p[1-9]", said := fields.get("text", "")):
                yield number, fields.get("start"), fields.get("end"), re.sub(r"\{(?!\\)[^{}]*\}", "", said)


def lyrics(text: str) -> Rows:
    """.lrc: lines "[mm:ss.xx] text", each up to the next one's time, the last for five seconds."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        times, said = LYRIC.match(line).groups()
        rows += [(seconds(time), number, said.strip()) for time in re.findall(r"[0-9:.]+", times)]
    rows.sort()
    ends = [start for start, *_ in rows[1:]] + [start + 5 for start, *_ in rows[-1:]]
    for (start, number, said), end in zip(rows, ends, strict=True):
        if said:
            yield number, start, end, said


def elements(text: str) -> Rows:
    """.ttml: elements <p begin="." end="."> or with dur for end; what is inside of them, without its elements."""
    head, *parts = re.split(r"<(?:\w+:)?p\b", text)
    rate = seconds(dict(ATTRIBUTE.findall(head)).get("tickRate", 1e7)) or 1e7
    units = {"h": 3600, "m": 60, "s": 1, "ms": 0.001, "t": 1 / rate}

    def time(value: str) -> float:
        offset = OFFSET.fullmatch(value)
        return seconds(offset[1]) * units[offset[2]] if offset else seconds(value)

    for number, part in enumerate(parts, 1):
        inside, _, said = part.partition(">")
        said = re.split(r"</(?:\w+:)?p\s*>", said, maxsplit=1)[0]
        times = {name: time(value) for name, value in ATTRIBUTE.findall(inside)}
        start = times.get("begin", math.nan)
        yield number, start, times.get("end", start + times.get("dur", math.nan)), re.sub(r"<[^<>]*>", " ", said)


def objects(text: str) -> Rows:
    """.json: what `entries` makes of the whole file; ValueError where it is not JSON."""
    yield from entries(json.loads(text))


def entries(parsed: Any) -> Rows:
    """A parsed {"start": [..], "end": [..], "text": [..]}, as in HowTo100M, or list of entries, also as a member of an object.

    ValueError for another form.
    """
    names = ("start", "end", "text")
    if isinstance(parsed, dict) and all(isinstance(parsed.get(name), list) for name in names):
        yield from ((number, *row) for number, row in enumerate(zip_longest(*(parsed[name] for name in names)), 1))
        return
    if isinstance(parsed, dict):    # Whisper and WhisperX, whisper.cpp, transformers, YouTube
        parsed = next((parsed[name] for name in ("segments", "transcription", "chunks", "events") if name in parsed), None)
    if not isinstance(parsed, list) or not all(isinstance(entry, dict) for entry in parsed):
        raise ValueError('neither {"start": [..], "end": [..], "text": [..]} nor a list of {"start", "end", "text"}, nor what '
                         "Whisper or YouTube writes")
    for number, entry in enumerate(parsed, 1):
        if "tStartMs" not in entry or str(moment(entry)[2] or "").strip():                # YouTube has events without words
            yield number, *moment(entry)


def moment(entry: dict) -> tuple[Any, Any, Any]:
    """(start, end, text) of an entry, however it names them."""
    match entry:
        case {"offsets": {"from": start, "to": end}, "text": text}:                     # whisper.cpp, ms
            return seconds(start) / 1000, seconds(end) / 1000, text
        case {"timestamp": [start, end], "text": text}:                                 # transformers
            return start, end, text
        case {"tStartMs": start, "segs": [*parts]}:                                     # YouTube's json3
            start = seconds(start) / 1000
            said = [part.get("utf8") for part in parts if isinstance(part, dict)]
            return start, start + seconds(entry.get("dDurationMs", 0)) / 1000, "".join(x for x in said if isinstance(x, str))
        case {"start": start, "duration": length} if "end" not in entry:                # youtube-transcript-api
            return start, seconds(start) + seconds(length), entry.get("text")
    return entry.get("start"), entry.get("end"), entry.get("text")


# of two files with the same name, the kind that stands first is taken
PARSERS = {".srt": blocks, ".vtt": blocks, ".csv": table, ".json": objects, ".tsv": milliseconds, ".ass": dialogues,
           ".ssa": dialogues, ".ttml": elements, ".dfxp": elements, ".sbv": partial(blocks, arrow=COMMA), ".lrc": lyrics,
           ".json3": objects}


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
    text = html.unescape(TAG.sub("", STYLE.sub(" ", BREAK.sub(" ", text))))
    return " ".join(CONTROL.sub(" ", HALF.sub("", text)).split()).encode("utf-8", "replace").decode()
