"""From files to batches: what is in a clip (Sections 3.4, 4.1, A.2.1). Which clip fills a slot is in `sampling.py`.

    video (B, T, H, W, 3) uint8   audio (B, S) float32   text (B, K, L) int64   has_audio (B,) bool   has_text (B, K) bool
    flip (B,) bool   colour (B, 5) float32   keys (B, 2) int64 for DropToken of video and audio
"""

import argparse
import collections
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from engine.errors import TooManyBad
from engine.loading import InFlight
from engine.sampling import Sampler, generator
from media import Unreadable
from media.cache import Reader
from media.captions import nearest
from sources.index import Index, Row, complement, starts, windows
from tools import augment

TRIES = 100  # files that one slot may try before the data are given up


class Recipe(NamedTuple):
    """How a clip is cut; the defaults are the paper's (Sections 4.1, A.2.1)."""

    frames: int = 32
    fps: float = 10.0
    size: int = 224
    rate: int = 48000
    samples: int = 153600
    captions: int = 5
    words: int = 16
    area: tuple[float, float] = (0.08, 1.0)
    colour: tuple[float, float, float, float] = (32 / 255, 0.4, 0.4, 0.2)  # brightness, saturation, contrast, hue
    noise: float = 0.01
    cache: float = 0.0             # GB of decoded clips that a process keeps
    control: str | None = None     # "captions" or "audio": taken from another file, so that there is nothing to learn

    @property
    def nbytes(self) -> int:
        """Of a clip: 5.4 MB for the paper's"""
        return 3 * self.frames * self.size**2 + 4 * self.samples + 8 * self.captions * self.words


class Source(NamedTuple):
    """One of the data sets of a mixture: its rows, those held out (row numbers, ascending), and its share of the slots."""

    index: Index
    held: np.ndarray
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.index) - len(self.held)


class Clips(Dataset):
    """The training clips: item (step, slot) -> (a dictionary of one clip's arrays, what failed on the way to it)."""

    def __init__(self, sources: list[Source], slots: Sampler, recipe: Recipe, vocabulary, seed: int = 0):
        self.sources, self.slots, self.recipe, self.vocabulary, self.seed = sources, slots, recipe, vocabulary, seed
        self.reader = Reader(recipe.size, recipe.fps, recipe.rate, recipe.cache)
        self.in_flight = InFlight(0)

    def __getitem__(self, at: tuple[int, int]) -> tuple[dict, list[tuple[str, str]]]:
        step, slot = at
        place, k = self.slots(step, slot)
        source = self.sources[place]

        def clip(k: int, rng: np.random.Generator) -> dict:
            number = int(complement(k, source.held))
            with self.in_flight.track(source.index.name(number)):
                return self.clip(source, k, number, rng)

        return attempts(clip, k, len(source), (self.seed, step, slot))

    def clip(self, source: Source, k: int, number: int, rng: np.random.Generator) -> dict:
        """A random place of file k, row `number`: frames, the sound in sync with them, the captions nearest in time (3.4)"""
        r, index, other = self.recipe, source.index, number
        row = words = index[number]
        if r.control:
            other = int(complement((k + len(source) // 2) % len(source), source.held))
            words = index[other] if r.control == "captions" else row
        with self.reader.open(*index.media(number)) as media:
            start = random_start(rng, row, media.duration, r)
            video = media.video(start, r.frames, r.fps, lambda w, h: augment.random_box(rng, w, h, r.area), (r.size, r.size))
            has_audio = media.has_audio
            audio = media.audio(start, r.samples, r.rate) if has_audio and r.control != "audio" else None
        if r.control == "audio":
            with self.reader.open(*index.media(other)) as media:
                has_audio = media.has_audio
                audio = media.audio(start, r.samples, r.rate) if has_audio else None
        if not has_audio:
            audio = np.zeros(r.samples, np.float32)
        elif r.noise:
            audio = augment.audio_noise(audio, rng, r.noise)
        text, has_text = captions(words, start, r, self.vocabulary)
        return dict(video=video, audio=audio, has_audio=has_audio, text=text, has_text=has_text,
                    flip=bool(rng.random() < 0.5), colour=augment.colour_draws(rng, *r.colour),
                    keys=rng.integers(2**62, size=2), path=index.name(number))


def attempts(clip: Callable[[int, np.random.Generator], dict], k: int, n: int, numbers: tuple[int, ...]):
    """clip(k, rng), or that of another of n files for as long as one is Unreadable: all draws are a function of `numbers`.

    -> (what `clip` returned, what failed on the way to it)
    """
    failed: list[tuple[str, str]] = []
    for attempt in range(TRIES):
        rng = generator(*numbers, attempt)
        if attempt:
            k = int(rng.integers(n))
        try:
            return clip(k, rng), failed
        except Unreadable as e:
            failed.append((str(e.path), e.reason))
    reasons = collections.Counter(reason for _, reason in failed).most_common()
    raise TooManyBad(f"{TRIES} files in a row could not be read ({', '.join(f'{r}: {n}' for r, n in reasons)}): check "
                     f"--data; they are {', '.join(list(dict.fromkeys(path for path, _ in failed))[:10])}")


class HeldOut(Dataset):
    """The held-out clips: the middle of each held-out row, the central square, no augmentation; None where unreadable."""

    def __init__(self, sources: list[Source], recipe: Recipe, vocabulary):
        self.sources, self.recipe, self.vocabulary = sources, recipe, vocabulary
        self.ends = np.cumsum([len(source.held) for source in sources])
        self.reader = Reader(recipe.size, recipe.fps, recipe.rate, recipe.cache)
        self.in_flight = InFlight(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> tuple[dict | None, list[tuple[str, str]]]:
        k = int(np.searchsorted(self.ends, i, side="right"))
        r, index, number = self.recipe, self.sources[k].index, int(self.sources[k].held[i - self.ends[k]])  # from the end
        row = index[number]
        try:
            with self.in_flight.track(index.name(number)), self.reader.open(*index.media(number)) as media:
                start, = windows(*starts(row, media.duration, r.frames / r.fps), 1, r.fps)
                video = media.video(start, r.frames, r.fps, augment.centre_box, (r.size, r.size))
                has_audio = media.has_audio
                audio = media.audio(start, r.samples, r.rate) if has_audio else np.zeros(r.samples, np.float32)
            text, has_text = captions(row, start, r, self.vocabulary)
        except Unreadable as e:
            return None, [(str(e.path), e.reason)]
        return dict(video=video, audio=audio, has_audio=has_audio, text=text, has_text=has_text, path=index.name(number)), []


def random_start(rng: np.random.Generator, row: Row, duration: float, r: Recipe) -> float:
    """Uniform on the frames of the row from which a whole clip follows; 0 where the row is too short (it loops)"""
    first, last = starts(row, duration, r.frames / r.fps)
    return first + int(rng.integers(math.floor((last - first) * r.fps + 1e-6) + 1)) / r.fps


def captions(row: Row, start: float, r: Recipe, vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """The K captions nearest in time to the clip (Eq. 5), the nearest first -> ids (K, L) int64, which are there (K,) bool"""
    text = np.zeros((r.captions, r.words), np.int64)
    near = nearest([(c.start, c.end) for c in row.captions], start, start + r.frames / r.fps, r.captions)
    for k, i in enumerate(near):
        text[k] = vocabulary.encode(row.captions[i].text, r.words)
    # Ours: a caption with no known word says nothing, so it counts as missing (official: it is kept).
    return text, (text > 1).any(1)


def flags() -> argparse.ArgumentParser:
    """The command line of `python data.py pack`, `check` and `show`"""
    from sources import check, pack
    from tools import show

    p = argparse.ArgumentParser(description="Films, outside of training: pack them, check them, look at them.")
    commands = p.add_subparsers(required=True)
    for command in (pack, check, show):
        command.flags(commands)
    return p


def main(argv: list[str] | None = None) -> None:
    """Reads the flags and runs the command"""
    p = flags()
    args = p.parse_args(argv)
    args.command(p, args)


if __name__ == "__main__":
    main()
