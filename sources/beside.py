"""Which caption files belong to which videos of a folder, by what recorders, recognisers and downloaders call them.

    clip.srt  clip.mp4.srt  Clip.SRT           the video's name, with its suffix or without, in any case and Unicode form
    clip.en.vtt  clip_pt-BR.vtt  clip.english  then a language, by its code or its English name
    clip.en.sdh.srt  clip.forced.en.srt        and what kind of captions they are, or an id, in any order
    clip.f137.mp4  clip [id].mp4               what yt-dlp adds to a video's name, and not to its captions'
"""

import os
import re
import unicodedata
from typing import NamedTuple

from media.captions import PARSERS

NAMES = {
    "arabic": "ar", "chinese": "zh", "czech": "cs", "danish": "da", "dutch": "nl", "english": "en", "finnish": "fi",
    "french": "fr", "german": "de", "greek": "el", "hebrew": "he", "hindi": "hi", "hungarian": "hu", "indonesian": "id",
    "italian": "it", "japanese": "ja", "korean": "ko", "norwegian": "no", "polish": "pl", "portuguese": "pt", "romanian": "ro",
    "russian": "ru", "spanish": "es", "swedish": "sv", "thai": "th", "turkish": "tr", "ukrainian": "uk", "vietnamese": "vi",
    "eng": "en", "deu": "de", "ger": "de", "fra": "fr", "fre": "fr", "spa": "es"}
CODES = frozenset(NAMES.values()) - {"he", "hi", "id", "it", "no"}     # which are no English words
FORCED = frozenset(("forced", "foreign"))                       # what is said in another language than the rest, alone
AUTOMATIC = frozenset(("auto", "automatic", "generated", "asr", "orig", "whisper", "whisperx"))
HEARING = frozenset(("sdh", "cc", "hoh"))                       # with noises in words
OTHER = frozenset(("sub", "subs", "subtitle", "subtitles", "caption", "captions", "default", "full", "normal", "transcript"))
TIMED = frozenset(PARSERS) - {".csv", ".json", ".tsv"}          # which are nothing else than captions
UNREAD = frozenset((".idx", ".mks", ".sami", ".scc", ".smi", ".srv1", ".srv2", ".srv3", ".stl", ".sub", ".sup", ".usf"))

BREAK = re.compile(r"[._ \-\[(]")                               # between a video's name and what follows it
UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
TOKEN = re.compile(r"([^\w]|_)*([^\W_]+)")
REGION = re.compile(r"[a-z]{2}|[a-z]{4}|[0-9]{3}")              # pt-BR, zh-Hans, es-419
NUMBER = re.compile(r"[0-9]{1,2}|track[0-9]+|[0-9a-f]{8,}")
ADDED = re.compile(r"(?:\.f[0-9]+(?:-[0-9a-z]+)?|[ _-]?\[[A-Za-z0-9_-]{11}\])$")


class Marks(NamedTuple):
    """What the name of a caption file says of it."""

    forced: bool
    language: str                                               # folded, "" where it says none
    automatic: bool
    hearing: bool


def fold(name: str) -> str:
    """A name as others may have written it: NFC, without capitals."""
    return unicodedata.normalize("NFC", name).casefold()


def marks(rest: str) -> Marks | None:
    """What stands between a video's name and the suffix of a caption file; None where that is another name's part."""
    rest = fold(rest)
    plain = UUID.sub("", rest)
    language, kinds, number = "", set(), False
    for match in TOKEN.finditer(plain):
        before, token = match.groups()
        if token in FORCED | AUTOMATIC | HEARING | OTHER:
            kinds.add(token)
        elif not language and is_language(token, before):
            language = NAMES.get(token, token)
        elif language and REGION.fullmatch(token):
            language += f"-{token}"
        elif NUMBER.fullmatch(token):
            number = True
        else:
            return None
    if number and not (language or kinds):                      # "Talk 2.srt" is not of "Talk.mp4"
        return None
    return Marks(bool(kinds & FORCED), language, bool(kinds & AUTOMATIC), bool(kinds & HEARING))


def is_language(token: str, before: str) -> bool:
    """Whether a part of a name is a language. Many codes are English words, too, so that what stands before them counts."""
    return token in NAMES or (token in CODES and before != " ") or (before in ".[(" and bool(re.fullmatch("[a-z]{2,3}", token)))


def speaks(marks: Marks, language: str) -> int | None:
    """How near captions are to the wanted language, 0 the nearest; None where they are in another."""
    if language:
        language = NAMES.get(fold(language), fold(language).replace("_", "-"))
        if not marks.language:
            return 1
        return 0 if f"{marks.language}-".startswith(f"{language}-") else None
    return 0 if not marks.language else 1 if marks.language == "en" else 2 if marks.language.startswith("en-") else 3


class Stems(NamedTuple):
    """Names of videos without suffix: as they are; by the folded form, where it differs; by what is left without additions."""

    exact: set[str]
    folded: dict[str, list[str]]
    added: dict[str, list[str]]
    suffixes: set[str]                                          # of the videos


class Beside(NamedTuple):
    """Of the files of one folder: the caption files of each video by its stem, the best first; and those of none."""

    captions: dict[str, list[str]]
    unused: list[str]                                           # of no video, or in another language than the wanted one
    unread: list[str]                                           # kinds that are not read, and texts without times


def beside(names: list[str], videos: list[str], language: str = "") -> Beside:
    """Finds the caption files among `names` that belong to the `videos`, which are names of the same folder.

    Captions of all that is said come before those of what is foreign, then the wanted language (unasked: no mark, English,
    others), then those of people before those of machines, then the kinds in the order of `media.captions.PARSERS`.
    """
    stems = Stems(set(), {}, {}, set())
    for video in videos:
        stem, suffix = os.path.splitext(video)
        stems.exact.add(stem)
        stems.suffixes.add(suffix)
        if fold(stem) != stem:
            stems.folded.setdefault(fold(stem), []).append(stem)
        if ADDED.search(stem):
            stems.added.setdefault(fold(ADDED.sub("", stem)), []).append(stem)
    offers: dict[str, list[tuple]] = {}
    unused, unread, texts = [], [], []
    for name in names:
        stem, suffix = os.path.splitext(name)
        kind = suffix.lower()
        if kind in PARSERS:
            found, said = owner(stem, stems)
            order = speaks(said, language) if said else None
            if order is not None:
                rank = (said.forced, order, said.automatic, said.hearing, list(PARSERS).index(kind), name)
                for video in found:
                    offers.setdefault(video, []).append(rank)
            elif kind in TIMED:
                unused.append(name)
        elif kind in UNREAD or kind == ".txt":
            texts.append((name, owner(stem, stems)[0], kind == ".txt"))
    for name, found, plain in texts:                            # a video's words may stand beside it twice
        if not (found or plain) or any(video not in offers for video in found):
            unread.append(name)
    return Beside({video: [rank[-1] for rank in sorted(ranks)] for video, ranks in offers.items()}, unused, unread)


def owner(stem: str, stems: Stems) -> tuple[list[str], Marks | None]:
    """The stems of the videos to which a caption file belongs, whose names are the longest that it begins with; its marks."""
    for end in (len(stem), *(match.start() for match in reversed(list(BREAK.finditer(stem))))):
        said = marks(stem[end:])
        base, suffix = os.path.splitext(stem[:end])
        names = (stem[:end], base) if suffix in stems.suffixes else (stem[:end],)
        for name in names if said else ():
            if name in stems.exact:
                return [name], said
            folded = fold(name)
            found = [*stems.folded.get(folded, ()), *({folded} & stems.exact)]
            if len(found) == 1:                                 # of Clay.mp4 and clay.mp4 none owns CLAY.srt
                return found, said
            if folded in stems.added:
                return stems.added[folded], said
    return [], None
