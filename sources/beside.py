"""Which caption files belong to which videos of a folder, by what recorders, recognisers and downloaders call them.

    clip.srt  clip.mp4.srt  Clip.SRT           the video's name, with its suffix or without, in any case and Unicode form
    clip.en.vtt  clip_pt-BR.vtt  clip.english  then a language, by its code or its English name
    clip.en.sdh.srt  clip.forced.en.srt        and what kind of captions they are, or an id, in any order
    clip.f137.mp4  clip [id].mp4               what yt-dlp adds to a video's name, and not to its captions'
"""

import os
import re
import unicodedata

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


def beside(names: list[str], videos: list[str], language: str = "") -> tuple[dict[str, list[str]], list[str], list[str]]:
    """Of the files `names` of a folder: the caption files of each of its `videos`, by its stem, the best first; those that are
    of none, or in another language than the wanted one; texts of kinds that are not read, or without times.

    Captions of all that is said come before those of what is foreign, then the wanted language (unasked: no mark, English,
    others), then those of people before those of machines, then the kinds in the order of `media.captions.PARSERS`.
    """
    stems = Stems(videos)
    offers: dict[str, list[tuple]] = {}
    unused, unread, texts = [], [], []
    for name in names:
        stem, suffix = os.path.splitext(name)
        kind = suffix.lower()
        if kind in PARSERS:
            found, (forced, spoken, automatic, hearing) = stems.owners(stem)
            order = speaks(spoken, language)
            if found and order is not None:
                for video in found:
                    rank = (forced, order, automatic, hearing, list(PARSERS).index(kind), name)
                    offers.setdefault(video, []).append(rank)
            elif kind in TIMED:
                unused.append(name)
        elif kind in UNREAD or kind == ".txt":
            texts.append((name, stems.owners(stem)[0], kind == ".txt"))
    for name, found, plain in texts:                            # a video's words may stand beside it twice
        if not (found or plain) or any(video not in offers for video in found):
            unread.append(name)
    return {video: [rank[-1] for rank in sorted(ranks)] for video, ranks in offers.items()}, unused, unread


class Stems:
    """The names of a folder's videos without suffix: as they are, folded, and without what downloaders add."""

    def __init__(self, videos: list[str]):
        self.exact, self.suffixes = map(set, zip(*map(os.path.splitext, videos), strict=True)) if videos else (set(), set())
        self.folded: dict[str, list[str]] = {}
        self.added: dict[str, list[str]] = {}
        for stem in self.exact:
            self.folded.setdefault(fold(stem), []).append(stem)
            if ADDED.search(stem):
                self.added.setdefault(fold(ADDED.sub("", stem)), []).append(stem)

    def owners(self, text: str) -> tuple[list[str], tuple]:
        """The videos of a caption file, whose names are the longest that its own (without suffix) begins with; its marks."""
        for end in (len(text), *(match.start() for match in reversed(list(BREAK.finditer(text))))):
            base, suffix = os.path.splitext(text[:end])
            said = marks(text[end:])
            for name in (text[:end], base)[: 1 + (suffix in self.suffixes)] if said else ():
                found = [name] if name in self.exact else self.folded.get(fold(name), [])
                if len(found) == 1:                             # of Clay.mp4 and clay.mp4 none owns CLAY.srt
                    return found, said
                if fold(name) in self.added:
                    return self.added[fold(name)], said
        return [], (False, "", False, False)


def marks(rest: str) -> tuple[bool, str, bool, bool] | None:
    """(forced, language or "", automatic, for the hard of hearing), as `rest` says, which stands between a video's name and the
    suffix of a caption file; None where it is another name's part."""
    language, kinds, number = "", set(), False
    for before, token in TOKEN.findall(UUID.sub("", fold(rest))):
        if token in FORCED | AUTOMATIC | HEARING | OTHER:
            kinds.add(token)
        # many codes are English words, too, so that what stands before them counts
        elif not language and (token in NAMES or (token in CODES and before != " ")
                               or (before and before in ".[(" and re.fullmatch("[a-z]{2,3}", token))):
            language = NAMES.get(token, token)
        elif language and REGION.fullmatch(token):
            language += f"-{token}"
        elif NUMBER.fullmatch(token):
            number = True
        else:
            return None
    if number and not (language or kinds):                      # "Talk 2.srt" is not of "Talk.mp4"
        return None
    return (bool(kinds & FORCED), language, bool(kinds & AUTOMATIC), bool(kinds & HEARING))


def speaks(spoken: str, wanted: str) -> int | None:
    """How near the language of captions is to the wanted one, 0 the nearest; None where it is another."""
    if not wanted:
        return 0 if not spoken else 1 if spoken == "en" else 2 if spoken.startswith("en-") else 3
    if not spoken:
        return 1
    wanted = NAMES.get(fold(wanted), fold(wanted).replace("_", "-"))
    return 0 if f"{spoken}-".startswith(f"{wanted}-") else None


def fold(name: str) -> str:
    """A name as others may have written it: NFC, without capitals."""
    return unicodedata.normalize("NFC", name).casefold()
