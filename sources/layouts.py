"""The data sets as they lie on disk (Section A.1.1): one function each, from a folder to rows (path, start, end, cues).

    folder       any folder of videos, with subtitles beside them or none
    howto100m    videos, and their captions in one caption.json or in a csv each (Section 4.1)
    audioset     videos, and *_segments.csv: ten seconds of each, no text (Section 4.1)
    shards       what `python data.py pack` wrote of any of them: these have their index already

Each takes the root and a list `problems`, to which it adds a line for what it passes over, and one for what is missing.
"""

import codecs
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine import errors
from media import captions
from sources import index
from sources.index import Row

VIDEOS = frozenset((
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".h264", ".h265", ".hevc", ".m2ts", ".m2v",
    ".m4v", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".rm", ".rmvb",
    ".ts", ".vob", ".webm", ".wmv",
))
LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]+)*")            # en, en-US, zh-Hans
CAPTIONS = ("caption.json", "raw_caption.json")                         # the first that is there
SEGMENTS = re.compile(r".*_segments\.csv", re.IGNORECASE)
YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
NUMBER = r"[0-9]+(?:\.[0-9]+)?"
CUT = re.compile(rf"Y?({YOUTUBE_ID.pattern})(?:_({NUMBER})(?:_{NUMBER})?)?")
LABEL = re.compile(r"/[mtg]/\w+")
OPENING = re.compile(r'[\s\ufeff]*\{\s*(?=["}])')                      # in JSON: before a first member, or an end
COMMA = re.compile(r'\s*(?:,\s*(?=")|(?=\}))')                         # before another member, or an end
COLON = re.compile(r"\s*:\s*")


# ---------------------------------------------------------------------------------------------------------------------
# --data

def parse_source(text: str) -> tuple[str, Path]:
    """"[howto100m=|audioset=|folder=]PATH" -> (kind, path), the kind looked up on disk where it is not given.

    ValueError for an unknown kind, no path or a file; FileNotFoundError for a path that is not there.
    """
    name, equals, rest = text.partition("=")
    if not equals or "/" in name or os.path.lexists(text):
        name, rest = "", text                                           # a path may hold "=" too
    elif name not in KINDS:
        raise ValueError(f"--data {text}: {name!r} is no kind of data: write {'=, '.join(KINDS)}= or the path alone")
    path = Path(rest).expanduser()                                      # the shell leaves the ~ of "folder=~/x" alone
    if not rest:
        raise ValueError(f"--data {text!r} names no folder: write --data {name + equals}FOLDER")
    if not os.path.exists(path):
        raise FileNotFoundError(f"--data {text}: there is no {path}: name a folder that holds videos")
    if not path.is_dir():
        raise ValueError(f"--data {text}: {path} is a file: name the folder that holds it")
    return name or kind(path), path


def kind(path: Path) -> str:
    """The layout of a folder, a key of KINDS, by what lies directly in it. ValueError where it cannot be listed."""
    try:
        names = os.listdir(path)
    except OSError as error:
        raise ValueError(f"--data {path} cannot be listed ({error.strerror}): name a folder you may read") from None
    if "index" in names and any(re.fullmatch(r"shard-[0-9]+\.tar", name) for name in names):
        return "shards"
    if any(name in CAPTIONS for name in names):
        return "howto100m"
    return "audioset" if any(map(SEGMENTS.fullmatch, names)) else "folder"


def list_films(kind: str, root: Path, folder: Path, problems: Path) -> None:
    """Makes the index `folder` of a source, and of what is wrong with it the file `problems`, also said on stderr."""
    if kind == "shards":
        index.point(folder, root / "index")
        return
    found = errors.Problems(problems)
    index.write(folder, root, KINDS[kind](root, found))
    found.warn()


# ---------------------------------------------------------------------------------------------------------------------
# A folder of videos

def folder(root: Path, problems: list[str]) -> Iterator[Row]:
    """Every video below root, whole, with the cues of the subtitles beside it, if any (`beside` says which)."""
    for inside, names in walk(root, problems):
        texts = beside(names)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in VIDEOS:
                cues = captions.read(Path(root, inside, texts[stem]), problems) if stem in texts else []
                yield Row(inside + name, 0.0, math.inf, cues)


def walk(root: Path, problems: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each folder below root once, whatever links there are: ("" or "its/path/", the sorted names of its files).

    What begins with a dot is passed over; a folder that cannot be read is a problem.
    """
    seen, pending = set(), [""]
    while pending:
        inside = pending.pop()
        try:
            status = os.stat(Path(root, inside))
            with os.scandir(Path(root, inside)) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            errors.tell(problems, f"{Path(root, inside)}: cannot be read: {error.strerror}")
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        # without following links the kind is known from the listing: no look at each of a million files
        yield inside, [e.name for e in entries if e.is_file(follow_symlinks=False) or os.path.isfile(e.path)]
        folders = [e.name for e in entries if e.is_dir(follow_symlinks=False) or os.path.isdir(e.path)]
        pending.extend(f"{inside}{name}/" for name in reversed(folders))


def beside(names: list[str]) -> dict[str, str]:
    """Of the files of one folder, the subtitles of each video: base name -> name of the text file.

    film.srt comes before .vtt, .csv and .json; where there is none of them, film.en.srt or .vtt, then other languages.
    """
    best = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in captions.PARSERS:
            continue
        order = list(captions.PARSERS).index(suffix.lower())
        offers = [(stem, (0, order, name))]
        film, _, language = stem.rpartition(".")
        if suffix.lower() in (".srt", ".vtt") and film and LANGUAGE.fullmatch(language):
            offers.append((film, (1 if language == "en" else 2 if language.startswith("en") else 3, order, name)))
        for base, rank in offers:
            best[base] = min(rank, best.get(base, rank))
    return {base: name for base, (_, _, name) in best.items()}


# ---------------------------------------------------------------------------------------------------------------------
# HowTo100M

def howto100m(root: Path, problems: list[str]) -> Iterator[Row]:
    """Videos anywhere below root, whole; captions by id from root/caption.json, else raw_caption.json, else <id>.csv.

    Videos without captions come last. ValueError for a json that breaks off.
    """
    videos, to_dot, tables, doubles, first_double = {}, {}, {}, 0, ""   # id -> path below root
    for inside, names in walk(root, problems):
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in VIDEOS:
                if videos.setdefault(stem, inside + name) != inside + name:
                    doubles, first_double = doubles + 1, first_double or inside + name
                elif "." in stem:
                    to_dot.setdefault(name.partition(".")[0], inside + name)
            elif suffix.lower() == ".csv" and not stem.lower().startswith("howto100m"):     # its lists of videos
                tables.setdefault(stem, inside + name)

    file = next((Path(root, name) for name in CAPTIONS if Path(root, name).is_file()), None)
    seen, lost, first_lost = set(), 0, ""
    for key, found in members(file) if file else tables.items():
        # Official: an id ends at the first dot of the name (MIL-NCE, video_loader.py); ours are the whole names, too
        path = videos.get(key) or to_dot.get(key)
        if path is None:
            lost, first_lost = lost + 1, first_lost or key
        elif path not in seen:
            seen.add(path)
            if file:
                with captions.complaints(f"{file}:{key}", problems) as complain:
                    cues = captions.sift(captions.entries(found), complain)
            else:
                cues = captions.read(Path(root, found), problems)
            yield Row(path, 0.0, math.inf, cues)
    silent = [path for path in videos.values() if path not in seen]
    for path in silent:
        yield Row(path, 0.0, math.inf, [])

    summarize(problems, lost, f"{root}: captions of {lost} videos have no file", first_lost)
    summarize(problems, len(silent), f"{root}: {len(silent)} videos have no captions", *silent[:1])
    summarize(problems, doubles, f"{root}: {doubles} videos have the id of another and are passed over", first_double)


def members(file: Path, size: int = 1 << 20) -> Iterator[tuple[str, Any]]:
    """The members (key, value) of the one object that a JSON file of any length holds, with one at a time in memory.

    `size` bytes are read at once, or more for a longer member. ValueError, with the place, where the file breaks off.
    """
    decode = json.JSONDecoder().raw_decode                              # (text, place) -> (value, place behind it)
    text, begin, passed, edge = "", 0, 0, OPENING                       # an edge and a member begin at text[begin]
    utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")     # keeps wrong bytes, so that places are right
    with file.open("rb") as stream:
        while True:
            try:
                at = edge.match(text, begin).end()
                if text[at] == "}":
                    return
                key, at = decode(text, at)
                value, at = decode(text, COLON.match(text, at).end())
                text[at]                                                # else a number may go on
            except (AttributeError, IndexError, ValueError, RecursionError):        # wrong, or not all of it is here
                passed += len(text[:begin].encode("utf-8", "surrogateescape"))
                text, begin = text[begin:], 0
                more = stream.read(max(size, len(text)))
                if not more or len(text) > captions.MAX_BYTES:
                    raise ValueError(f"{file} breaks off or is no JSON object after byte {passed}: get it again, or "
                                     "move it away to train without its captions") from None
                text += utf8.decode(more)
            else:
                yield key, value
                begin, edge = at, COMMA


# ---------------------------------------------------------------------------------------------------------------------
# AudioSet

def audioset(root: Path, problems: list[str]) -> Iterator[Row]:
    """Videos anywhere below root that a *_segments.csv below root lists, the eval list only where there is no other.

    Names are [Y]<id>[_<start>[_<end>]], in seconds or milliseconds: with a start the file is the segment and is taken
    whole, without one the row is the segment's part of it. ValueError where there is no list.
    """
    clips, lists, unnamed, first_unnamed = {}, [], 0, ""                # id or id_start -> path below root
    for inside, names in walk(root, problems):
        for name in names:
            stem, suffix = os.path.splitext(name)
            if SEGMENTS.fullmatch(name):
                lists.append(inside + name)
            elif suffix.lower() in VIDEOS and (cut := CUT.fullmatch(stem)):
                youtube, start = cut.groups()
                clips.setdefault(youtube if start is None else f"{youtube}_{float(start):g}", inside + name)
            elif suffix.lower() in VIDEOS:
                unnamed, first_unnamed = unnamed + 1, first_unnamed or inside + name
    if not lists:
        raise ValueError(f"{root} holds no *_segments.csv: put AudioSet's lists there, or write --data folder={root}")

    total, missing, first_missing = 0, 0, ""
    training = [name for name in lists if not os.path.basename(name).lower().startswith("eval")]
    for name in training or lists:
        for youtube, start, end, _ in segments(Path(root, name), problems):
            total += 1
            cut = clips.get(f"{youtube}_{start:g}") or clips.get(f"{youtube}_{1000 * start:g}")
            if cut or youtube in clips:
                yield Row(cut, 0.0, math.inf, []) if cut else Row(clips[youtube], start, end, [])
            else:
                missing, first_missing = missing + 1, first_missing or youtube
    summarize(problems, missing, f"{root}: {missing} of {total} segments have no file", first_missing)
    summarize(problems, unnamed, f"{root}: {unnamed} videos are not named [Y]<id>[_<start>[_<end>]]", first_unnamed)


def segments(file: Path, problems: list[str]) -> Iterator[tuple[str, float, float, list[str]]]:
    """The rows (id, start, end, labels) of a *_segments.csv, seconds and machine ids; a bad row is a problem.

    Copies of these lists have lost quotes, blanks or comments, so only what is sure is relied on: the first three
    fields are id and times, and labels are whatever looks like one behind them.
    """
    with captions.complaints(file, problems) as complain, file.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            fields = [field.strip('" \t\n') for field in line.split(",", 3)]
            if not line.strip() or line.startswith("# ") or fields[0] == "YTID":
                continue
            start, end = (captions.seconds(field) for field in (*fields[1:3], "", "")[:2])
            labels = LABEL.findall(fields[-1])
            if not YOUTUBE_ID.fullmatch(fields[0]):
                complain(number, f"{fields[0][:40]!r} is no id of YouTube's")
            elif not 0 <= start < end <= captions.MAX_SECONDS:
                complain(number, f"{fields[0]} has no valid time: {start:g} to {end:g} s")
            elif not labels:
                complain(number, f"{fields[0]} has no label")
            else:
                yield fields[0], start, end, labels


def summarize(problems: list[str], count: int, what: str, first: str = "") -> None:
    """One line for all of a kind, if there are any; past the most that `errors.tell` adds, too."""
    if count:
        problems.append(errors.printable(f"{what}, first: {first}"))


KINDS: dict[str, Callable[[Path, list[str]], Iterator[Row]] | None] = {
    "howto100m": howto100m, "audioset": audioset, "folder": folder, "shards": None,     # which bring their index
}
