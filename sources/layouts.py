"""The data sets of pre-training as they lie on disk (Sections 4.1, A.1.1): one function each, from a folder to rows.

    folder       any folder of videos, with captions beside them or none
    howto100m    videos, and their captions in one caption.json or in a csv each (Section 4.1)
    audioset     videos, and *_segments.csv: ten seconds of each, no text (Section 4.1)
    shards       what `python data.py pack` wrote of any of them: these have their index already

To add one, write a function here, name it in `KINDS`, and let `kind` know the folder. Each takes the root and a list
`problems`, to which it adds a line for what it passes over, and one for what is missing.
"""

import contextlib
import functools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from engine import errors
from engine.workers import Failed, map_isolated
from media import Media, Unreadable, captions
from sources import index
from sources.beside import beside
from sources.files import VIDEOS, Files, Sums, counted, lines, stem, suffix, walk
from sources.index import Row

SEVERAL = "videos have several caption files (--language NAME chooses another)"
UNUSED = ("caption files are of no video of their folder, or in a language that is not wanted, and are not used (name them "
          "clip.srt or clip.en.srt beside clip.mp4; where they have a folder of their own: cp -n CAPTIONS/* VIDEOS/)")
UNREAD = ("texts beside videos are of a kind that is not read: pictures of letters, or without times (ffmpeg -i FILE FILE.srt "
          "converts some kinds)")
INSIDE = ("videos that have no captions beside them hold some inside, which are not read (ffmpeg -i VIDEO -map 0:s:0 "
          "VIDEO.srt takes them out)")
ALONE = "files named by an id alone are hardly longer than their segments, and are taken for them"
CAPTIONS = ("caption.json", "raw_caption.json", "raw_caption_superclean.json")      # the first that is there
LOOK_INSIDE = 32                                                        # videos without captions that are opened
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

def parse(text: str, kinds: Iterable[str]) -> tuple[str, str]:
    """"[KIND=]PATH" -> (kind or "", path), also of data sets with labels. ValueError for no path, or none of the `kinds`."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name or os.path.lexists(text):
        name, path = "", text                                           # a path may hold "=" too
    elif name not in kinds:
        raise ValueError(f"{text}: {name!r} is no kind of data: write {'=, '.join(kinds)}= or the path alone")
    if not path:
        raise ValueError(f"{text!r} names no folder: write {name + equals}FOLDER")
    return name, os.path.expanduser(path)                               # the shell leaves the ~ of "folder=~/x" alone


def parse_source(text: str) -> tuple[str, Path]:
    """"[howto100m=|audioset=|folder=|shards=]PATH" -> (kind, path), the kind looked up on disk where it is not given.

    ValueError for what cannot be parsed or is a file; FileNotFoundError for a path that is not there.
    """
    name, path = parse(text, KINDS)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{text}: there is no {path}: name a folder that holds videos")
    if not os.path.isdir(path):
        raise ValueError(f"{text}: {path} is a file: name the folder that holds it")
    return name or kind(Path(path)), Path(path)


def kind(path: Path) -> str:
    """The layout of a folder, a key of KINDS, by what lies directly in it."""
    names = os.listdir(path)
    if "index" in names and any(re.fullmatch(r"shard-[0-9]+\.tar", name) for name in names):
        return "shards"
    if any(name in CAPTIONS for name in names):
        return "howto100m"
    return "audioset" if any(map(SEGMENTS.fullmatch, names)) else "folder"


def list_files(kind: str, root: Path, folder: Path, problems: Path, language: str = "") -> index.Index:
    """Makes the index `folder` of a source and opens it; what is wrong with it goes to the file `problems` and to stderr.

    `language`: of the captions to take where a video has several.
    """
    if kind == "shards":
        index.point(folder, root / "index")
        return index.Index(folder)
    found: list[str] = []
    rows = index.write(folder, root, counted(KINDS[kind](root, found, language), f"reading {root}", " videos"))
    errors.report(found, problems)
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# A folder of videos

def folder(root: Path, problems: list[str], language: str = "") -> Iterator[Row]:
    """Every video below root, whole, with the captions beside it, if any (`beside` says which)."""
    sums, silent, tar, count = Sums(), [], "", 0
    for inside, names in walk(root, problems):
        videos = [name for name in names if suffix(name) in VIDEOS]
        texts, unused, unread = beside(names, videos, language)
        for name in videos:
            own = texts.get(os.path.splitext(name)[0], ())
            if len(own) > 1:
                sums.add(SEVERAL, f"{inside}{own[0]} is taken of {', '.join(own)}")
            said = next(filter(None, (captions.read(Path(root, inside, text), problems) for text in own)), [])
            if not said and len(silent) < LOOK_INSIDE:
                silent.append(inside + name)
            yield Row(inside + name, 0.0, math.inf, said)
        count += len(videos)
        tar = tar or next((inside + name for name in names if name.endswith((".tar", ".tar.gz"))), "")
        for what, others in ((UNUSED, unused), (UNREAD, unread)):
            for name in others:
                sums.add(what, inside + name)
    if tar and not count:
        raise ValueError(f"{root} holds no videos but tars that are no shards of this program, first {tar}: unpack them "
                         f"into a folder (tar -xf), and train on that or pack it (data.py pack)")
    for path, (_, inside, _) in zip(silent, look([Path(root, path) for path in silent], 1), strict=True):
        if inside:
            sums.add(f"of the first {len(silent)} {INSIDE}", path)
    sums.tell(problems, root)


def look(paths: list[Path], workers: int, timeout: float = 60) -> list[tuple[float, bool, str]]:
    """What `look_at` says of each file, by processes of their own: a file may crash FFmpeg."""
    with contextlib.closing(map_isolated(look_at, paths, workers, timeout)) as found:
        return [(math.nan, False, said.reason) if isinstance(said, Failed) else said
                for _, said in counted(found, "opening", " files", len(paths))]


def look_at(path: Path) -> tuple[float, bool, str]:
    """(seconds, whether captions are inside, "") of a file; (NaN, False, why) where it cannot be read."""
    try:
        with Media(path) as media:
            return media.duration, media.has_captions, ""
    except Unreadable as error:
        return math.nan, False, error.reason


# ---------------------------------------------------------------------------------------------------------------------
# HowTo100M

def howto100m(root: Path, problems: list[str], _language: str = "") -> Iterator[Row]:
    """Videos anywhere below root, whole; captions by id from one of `CAPTIONS` in root, else from <id>.csv.

    Videos without captions come last. ValueError for a json that breaks off.
    """
    files, videos, to_dot, tables, seen = Files(root, problems), {}, {}, {}, set()        # id -> path below root
    for path in files.every:
        key = stem(path)
        if suffix(path) == ".csv" and not key.lower().startswith("howto100m"):          # those are its lists of videos
            tables.setdefault(key, path)
        elif suffix(path) in VIDEOS:
            if videos.setdefault(key, path) != path:
                files.sums.add("videos have the id of another and are passed over", path)
            to_dot.setdefault(key.partition(".")[0], path)
    file = next((Path(root, name) for name in CAPTIONS if Path(root, name).is_file()), None)
    for key, found in members(file) if file else tables.items():
        # Official: an id ends at the first dot of the name (MIL-NCE, video_loader.py); ours are the whole names, too
        path = videos.get(key) or to_dot.get(key)
        if path is None:
            files.sums.add("videos with captions have no file", key)
        elif path not in seen:
            seen.add(path)
            if file:
                said = captions.sift(captions.entries(found), f"{file}:{key}", problems)
            else:
                said = captions.read(Path(root, found), problems)
            yield Row(path, 0.0, math.inf, said)
    for path in videos.values():
        if path not in seen:
            files.sums.add("videos have no captions", path)
            yield Row(path, 0.0, math.inf, [])
    files.sums.tell(problems, root)


def members(file: Path, size: int = 1 << 20) -> Iterator[tuple[str, Any]]:
    """The members (key, value) of the one object that a JSON file of any length holds, with one at a time in memory.

    `size` characters are read at once, or more for a longer member. ValueError, with the place, where the file breaks off.
    """
    decode = json.JSONDecoder().raw_decode                              # (text, place) -> (value, place behind it)
    text, begin, passed, edge = "", 0, 0, OPENING                       # an edge and a member begin at text[begin]
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:   # so that places are right
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
                text += more
            else:
                yield key, value
                begin, edge = at, COMMA


# ---------------------------------------------------------------------------------------------------------------------
# AudioSet

def audioset(root: Path, problems: list[str], _language: str = "") -> Iterator[Row]:
    """Videos anywhere below root that a *_segments.csv below root lists, the eval list only where there is no other.

    Names are [Y]<id>[_<start>[_<end>]], in seconds or milliseconds: with a start the file is the segment and is taken
    whole, without one the row is the segment's part of it. ValueError where there is no list.
    """
    files = Files(root, problems)
    lists = files.lists(SEGMENTS.pattern)
    if not lists:
        raise ValueError(f"{root} holds no *_segments.csv: put AudioSet's lists there, or write --data folder={root}")
    videos = [path for path in files.every if suffix(path) in VIDEOS]
    for path in (path for path in videos if not CUT.fullmatch(stem(path))):
        files.sums.add("videos are not named [Y]<id>[_<start>[_<end>]]", path)
    cuts = Cuts(files, videos)
    for file in [file for file in lists if not file.name.lower().startswith("eval")] or lists:
        for youtube, start, end, _ in segments(file, problems):
            path, start, end = cuts.find(youtube, start, end)
            if path:
                yield Row(path, start, end, [])
            else:
                files.sums.add("segments have no file", youtube)
    files.sums.tell(problems, root)


class Cuts:
    """Segments of YouTube's videos by the names of files, [Y]<id>[_<start>[_<end>]], in seconds or milliseconds.

    A file with a start in its name is the segment. One that is named by the id alone is the segment, too, where it is hardly
    longer, as common downloaders cut it; else it is the whole video. Of a damaged file and its replacement, the latter counts.
    """

    def __init__(self, files: Files, paths: Iterable[str]):
        self.files, self.paths = files, {}
        for path in paths:
            if cut := CUT.fullmatch(stem(path)):
                youtube, start = cut.groups()
                key = youtube if start is None else f"{youtube}_{float(start):.3f}"
                if key not in self.paths or "replacement" in path:
                    self.paths[key] = path

    @functools.cached_property
    def durations(self) -> dict[str, float]:
        """Seconds of the files that are named by an id alone; NaN where they cannot be read."""
        paths = [path for key, path in self.paths.items() if YOUTUBE_ID.fullmatch(key)]
        found = look([self.files.root / path for path in paths], min(os.cpu_count() or 1, 16))
        return {path: length for path, (length, *_) in zip(paths, found, strict=True)}

    def find(self, youtube: str, start: float, end: float) -> tuple[str | None, float, float]:
        """Path of a segment's file, None where there is none, and from when to when in it the segment lies."""
        cut = self.paths.get(f"{youtube}_{start:.3f}") or self.paths.get(f"{youtube}_{1000 * start:.3f}")
        whole = self.paths.get(youtube)
        if not cut and whole and start > 0 and self.durations[whole] <= 1.1 * (end - start) + 1:
            self.files.sums.add(ALONE, whole)
            cut = whole
        return (cut, 0.0, math.inf) if cut else (whole, start, end)


def segments(file: Path, problems: list[str]) -> Iterator[tuple[str, float, float, list[str]]]:
    """The rows (id, start, end, labels) of a *_segments.csv, seconds and machine ids; a bad row is a problem.

    Copies of these lists have lost quotes, blanks or comments, so only what is sure is relied on: the first three
    fields are id and times, and labels are whatever looks like one behind them.
    """
    for number, line in lines(file):
        fields = [field.strip('" \t') for field in line.split(",", 3)]
        if line.startswith("# ") or fields[0] == "YTID":
            continue
        start, end = (captions.seconds(field) for field in (*fields[1:3], "", "")[:2])
        labels = LABEL.findall(fields[-1])
        if not YOUTUBE_ID.fullmatch(fields[0]):
            errors.tell(problems, f"{file}:{number}: {fields[0][:40]!r} is no id of YouTube's")
        elif not 0 <= start < end <= captions.MAX_SECONDS:
            errors.tell(problems, f"{file}:{number}: {fields[0]} has no valid time: {start:g} to {end:g} s")
        elif not labels:
            errors.tell(problems, f"{file}:{number}: {fields[0]} has no label")
        else:
            yield fields[0], start, end, labels


KINDS: dict[str, Callable[[Path, list[str], str], Iterator[Row]] | None] = {
    "howto100m": howto100m, "audioset": audioset, "folder": folder, "shards": None,     # which bring their index
}
