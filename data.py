"""What is in a clip (Sections 3.4, 4.1, A.2.1, A.2.5): its place in time, its crop and colours, its waveform, captions, labels.

    video   (B, T, H, W, 3) uint8      has_audio (B,) bool    flip   (B,) bool         labels (B, C) float32, one or more 1s
    image   (B, H, W, 3) uint8         text (B, K, L) int64   colour (B, 5) float32    mix    (B,) float32, mixup's share
    audio   (B, S) float32             has_text (B, K) bool   keys   (B, M) int64      path   B strings

A clip to train on is a random one; keys are DropToken's, of each of M modalities. Clips to test on cover a file: video, image
and audio then are (B, V, ...), V views. `python data.py pack | check | show` prepares videos and looks at them.
"""

import collections
import copy
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from engine.errors import TooManyBad
from engine.loading import InFlight
from engine.sampling import Sampler, generator
from media import Unreadable
from media.cache import Reader
from media.captions import nearest
from media.convert import shorter_side
from sources.index import Index, Row, complement, even, starts, windows

TRIES = 100                       # files that one slot may try before the data are given up
AREA = (0.08, 1.0)                # Section A.2.1: a crop's share of the frame
COLOUR = (32 / 255, 0.4, 0.4, 0.2)  # Section A.2.1: largest change of brightness, saturation, contrast, hue
UNCHANGED = (0.0, 1.0, 1.0, 0.0)  # brightness, saturation, contrast, hue
AT_ONCE = 8                       # clips: a change of colour needs some four copies of what it works on

WHOLE = (0.0, 0.0, 1.0, 1.0)
Box = tuple[float, float, float, float]  # (left, top, right, bottom) of the part of a frame that is kept, in fractions


class ClipSpec(NamedTuple):
    """What a clip holds and how it is cut; the defaults are those of pre-training (Sections 4.1, A.2.1)."""

    modalities: tuple[str, ...] = ("video", "audio", "text")  # or one of "video", "audio", "image", for a task with labels
    frames: int = 32
    fps: float = 10.0
    size: int = 224                 # pixels
    rate: int = 48000               # Hz
    captions: int = 5
    words: int = 16                 # of a caption
    area: tuple[float, float] = AREA
    colour: tuple[float, float, float, float] = COLOUR
    flip: float = 0.5               # share of the clips
    noise: float = 0.0              # deviation, as a share of the largest amplitude
    mixup: float = 0.0              # Beta(mixup, mixup); 0: none
    windows: int = 1                # views in time of a file to test on
    crops: int = 1                  # views in space of each of them
    cache: float = 0.0              # GB of decoded files that a process keeps
    control: str | None = None      # "captions" or "audio": taken from another file, so that there is nothing to learn

    @property
    def seconds(self) -> float:
        """Length of a clip"""
        return self.frames / self.fps

    @property
    def samples(self) -> int:
        """Length of a clip's waveform: 153,600 for 32 frames at 10 fps and 48 kHz (Section 4.1)"""
        return round(self.seconds * self.rate)

    @property
    def views(self) -> int:
        """Views of a file to test on"""
        return (1 if "image" in self.modalities else self.windows) * (1 if self.modalities == ("audio",) else self.crops)

    @property
    def nbytes(self) -> int:
        """Bytes of a clip of all modalities: 5.4 MB for the paper's"""
        return 3 * self.frames * self.size**2 + 4 * self.samples + 8 * self.captions * self.words


class Source(NamedTuple):
    """A data set: its index, the rows (ascending) that are held out of training and tested on, its share of the slots."""

    index: Index
    held: np.ndarray
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.index) - len(self.held)

    @classmethod
    def to_train(cls, index: Index, skip: frozenset[str] = frozenset()) -> "Source":
        """A source of which no row is held out but those whose names are in `skip`."""
        return cls(index, index.among(skip))

    @classmethod
    def to_test(cls, index: Index, skip: frozenset[str] = frozenset()) -> "Source":
        """A source all of whose rows are held out but those whose names are in `skip`."""
        return cls(index, np.setdiff1d(np.arange(len(index)), index.among(skip)))


# ---------------------------------------------------------------------------------------------------------------- data sets


class ClipDataset(Dataset):
    """What clips to train on and to test on share: where they come from, and what goes with them.

    vocabulary: of the captions, or None. classes: how many the labels count. numbers: those that a model knows them by.
    skip: files that have killed workers.
    """

    def __init__(self, sources: list[Source], spec: ClipSpec, vocabulary=None, classes: int = 0, numbers=None,
                 skip: frozenset[str] = frozenset()):
        self.sources, self.spec, self.vocabulary = sources, spec, vocabulary
        self.classes, self.numbers = classes, numbers or range(classes)
        self.reader, self.in_flight = reader(spec.size, spec.fps, spec.rate, spec.cache), InFlight(skip=skip)

    def text_and_labels(self, row: Row, start: float) -> dict:
        """What is said around a clip that begins at `start`, as word ids, and its labels."""
        found = {}
        if "text" in self.spec.modalities:
            found["text"], found["has_text"] = caption_ids(row, start, self.spec, self.vocabulary)
        if self.classes:
            found["labels"] = np.zeros(self.classes, np.float32)
            found["labels"][[self.numbers[k] for k in row.labels]] = 1
        return found


class TrainDataset(ClipDataset):
    """Item (step, slot) -> (a random clip, what failed on the way to it): a pure function of seed, step and slot.

    The sources' rows are those that are not held out.
    """

    def __init__(self, sources: list[Source], sampler: Sampler, spec: ClipSpec, seed: int = 0, **more):
        super().__init__(sources, spec, **more)
        self.sampler, self.seed = sampler, seed

    def __getitem__(self, at: tuple[int, int]) -> tuple[dict, list[tuple[str, str]]]:
        step, slot = at
        place, k = self.sampler(step, slot)
        source = self.sources[place]

        def clip(k: int, rng: np.random.Generator) -> dict:
            with self.in_flight.track(source.index.name(int(complement(k, source.held)))):
                return self.clip(source, k, rng)

        return with_retries(clip, k, len(source), (self.seed, step, slot))

    def clip(self, source: Source, k: int, rng: np.random.Generator) -> dict:
        """A random place, crop, flip and colour of row k of those to train on (A.2.1), with what is heard and said there."""
        s, index, number = self.spec, source.index, int(complement(k, source.held))
        other = number if not s.control else int(complement((k + len(source) // 2) % len(source), source.held))
        row, own = index[number], s._replace(modalities=("video",)) if s.control == "audio" else s
        with self.reader.open(*index.media(number)) as media:
            start = random_start(rng, row, media.duration, s)
            # Paper: an area and an aspect, as of Inception (A.2.1; official: its default is a scaled frame and a square of it).
            clip = read_clip(media, row, start, own, lambda w, h: random_box(rng, w, h, s.area))
        if s.control == "audio":
            with self.reader.open(*index.media(other)) as media:
                clip |= read_clip(media, row, start, s._replace(modalities=("audio", "text")), WHOLE)
        if s.noise and clip.get("has_audio"):
            clip["audio"] = audio_noise(clip["audio"], rng, s.noise)
        clip |= self.text_and_labels(index[other] if s.control == "captions" else row, start)
        towers = [modality for modality in s.modalities if modality != "text"]
        return clip | dict(flip=bool(rng.random() < s.flip), colour=colour_draws(rng, s.colour),
                           keys=rng.integers(2**62, size=len(towers)),
                           mix=np.float32(rng.beta(s.mixup, s.mixup) if s.mixup else 1.0), path=index.name(number))


class TestDataset(ClipDataset):
    """Item i -> (all views of the i-th held row of the sources, []), or (None, why it could not be read).

    Views are `windows` x `crops`, evenly spread, without augmentation (A.2.5, A.3.3); the text is that of the first one.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, sources: list[Source], spec: ClipSpec, **more):
        super().__init__(sources, spec, **more)
        self.ends = np.cumsum([len(source.held) for source in sources])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def row(self, i: int) -> tuple[Index, int]:
        """The index of item i, and its row there"""
        k = int(np.searchsorted(self.ends, i, side="right"))
        return self.sources[k].index, int(self.sources[k].held[i - self.ends[k]])  # counted from the end

    def part(self, items: list[int]) -> "TestDataset":
        """The same of these items alone, of a data set with one source"""
        part = copy.copy(self)
        source, = self.sources
        part.sources = [Source(source.index, source.held[items])]
        part.ends = np.array([len(items)])
        return part

    def __getitem__(self, i: int) -> tuple[dict | None, list[tuple[str, str]]]:
        index, number = self.row(i)
        row, name = index[number], index.name(number)
        try:
            with self.in_flight.track(name), self.reader.open(*index.media(number)) as media:
                start, views = self.views(media, row, number)
                views |= self.text_and_labels(row, start)
        except Unreadable as e:
            return None, [(str(e.path), e.reason)]
        return views | dict(path=name, number=i), []

    def views(self, media, row: Row, number: int) -> tuple[float, dict]:
        """All views of row `number`: see `read_views`"""
        return read_views(media, row, self.spec)


reader = functools.cache(Reader)  # what is decoded to train on is not decoded again to test on


def with_retries(clip: Callable[[int, np.random.Generator], dict], k: int, n: int, numbers: tuple[int, ...]):
    """clip(k, rng), or that of another of n rows for as long as one is Unreadable; all draws are a function of `numbers`.

    -> (the clip, what failed on the way to it). TooManyBad after a hundred.
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


# --------------------------------------------------------------------------------------------------------- place in time


def random_start(rng: np.random.Generator, row: Row, duration: float, s: ClipSpec) -> float:
    """Uniform on the frames of the row from which a whole clip follows; its begin where the row is too short (it loops)."""
    # Ours: on whole frames of the model's rate (official: of the stored rate).
    first, last = starts(row, duration, s.seconds)
    return first + int(rng.integers(math.floor((last - first) * s.fps + 1e-6) + 1)) / s.fps


def caption_ids(row: Row, start: float, s: ClipSpec, vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """The K captions nearest in time to the clip (Eq. 5), the nearest first -> ids (K, L) int64, which are there (K,) bool"""
    text = np.zeros((s.captions, s.words), np.int64)
    near = nearest([(c.start, c.end) for c in row.captions], start, start + s.seconds, s.captions)
    for k, i in enumerate(near):
        text[k] = vocabulary.encode(row.captions[i].text, s.words)
    # Ours: a caption with no known word says nothing, so it counts as missing (official: it is kept).
    return text, (text > 1).any(1)


def read_clip(media, row: Row, start: float, s: ClipSpec, box: Box | Callable[[int, int], Box],
              shape: tuple[int, int] | Callable[[int, int], tuple[int, int]] | None = None) -> dict:
    """Frames (T, h, w, 3), or an image (h, w, 3), uint8, of `shape` (default: size x size), and waveform (S,) from `start` on.

    Where the row ends first, frames begin again from `start`, and the waveform is silent: what comes then may be another
    row's. Unreadable where there is no audio and nothing else is asked for.
    """
    clip, left = {}, min(row.end - start, 1e6)  # seconds
    shape = shape or (s.size, s.size)
    if "image" in s.modalities:
        clip["image"] = media.video(start, 1, s.fps, box, shape)[0]
    if "video" in s.modalities:
        frames = media.video(start, max(1, min(s.frames, math.floor(left * s.fps + 1e-6))), s.fps, box, shape)
        clip["video"] = frames[np.arange(s.frames) % len(frames)]
    if "audio" in s.modalities:
        clip["has_audio"] = media.has_audio
        if media.has_audio:
            clip["audio"] = media.audio(start, s.samples, s.rate)
            clip["audio"][round(left * s.rate) :] = 0
        elif s.modalities == ("audio",):
            raise Unreadable(media.path, "no audio")
        else:
            clip["audio"] = np.zeros(s.samples, np.float32)
    return clip


def read_views(media, row: Row, s: ClipSpec) -> tuple[float, dict]:
    """All views of a file (A.2.5) -> where the first one begins, and video (V, T, H, W, 3), image (V, H, W, 3), audio (V, S).

    Crops are squares along the longer side, from one end to the other; a single one is in the middle.
    """
    first, last = starts(row, media.duration, s.seconds)
    at = windows(first, last, 1 if "image" in s.modalities else s.windows, s.fps)
    seen = next((name for name in ("video", "image") if name in s.modalities), None)
    if seen:
        # Ours: the shorter side is `size`, the other one rounded (official: cut to whole pixels).
        whole = [read_clip(media, row, start, s, WHOLE, shorter_side(s.size)) for start in at]
        clips = [{**clip, seen: view} for clip in whole for view in crops(clip[seen], s.size, s.crops)]
    else:
        clips = [read_clip(media, row, start, s, WHOLE) for start in at]
    views = {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}
    if "has_audio" in views:
        views["has_audio"] = bool(views["has_audio"][0])
    return at[0], views


# ----------------------------------------------------------------------------------------------------------- crop and colour
# The paper gives the ranges; what they are ranges of is said by TensorFlow's operations, which the official code calls
# (those of torchvision follow other laws). All draws come from the caller's generator.


def crops(x: np.ndarray, size: int, n: int) -> list[np.ndarray]:
    """n squares along the longer side, from one end to the other; one is in the middle (A.2.5).  (.., h, w, 3)"""
    h, w = x.shape[-3:-1]
    places = [(round((h - size) * share), round((w - size) * share)) for share in even(n)]
    return [x[..., top : top + size, left : left + size, :] for top, left in places]


def random_box(rng: np.random.Generator, width: int, height: int, area: tuple[float, float] = AREA,
               aspect: tuple[float, float] = (0.5, 2.0)) -> Box:
    """A random part of a frame of width x height pixels (A.2.1): (left, top, right, bottom) in fractions.

    tf.image.sample_distorted_bounding_box: w / h uniform in `aspect`, then h uniform among the whole pixels for which
    w h is in `area` (a share of the frame) and fits in; the whole frame after 100 that do not.
    """
    for _ in range(100):
        ratio = rng.uniform(*aspect)
        low, high = (round(math.sqrt(share * width * height / ratio)) for share in area)
        high = min(high, height, int((width + 0.5) / ratio))
        h = int(rng.integers(low, high, endpoint=True)) if low < high else high
        w = round(h * ratio)
        # Official: never less than a tenth of the frame (min_object_covered), whatever `area` (paper: 0.08 of it).
        least = max(area[0], 0.1) * width * height
        if 0 < w <= width and 0 < h <= height and least <= w * h <= area[1] * width * height:
            x = int(rng.integers(width - w)) if w < width else 0
            y = int(rng.integers(height - h)) if h < height else 0
            return x / width, y / height, (x + w) / width, (y + h) / height
    return 0.0, 0.0, 1.0, 1.0


def colour_draws(rng: np.random.Generator, strengths: tuple[float, ...] = COLOUR, p: float = 0.8) -> np.ndarray:
    """A clip's row of `colour` (A.2.1): uniform within each strength of no change; (5,) float32."""
    draws = UNCHANGED + rng.uniform(-np.array(strengths), strengths)
    # Official: one clip in five keeps its colours (paper: not said).
    return np.array((1, *draws) if rng.random() < p else (0, *UNCHANGED), np.float32)


def audio_noise(wave: np.ndarray, rng: np.random.Generator, strength: float = 0.01) -> np.ndarray:
    """A waveform plus Gaussian noise, whose deviation is `strength` times the loudest sample: (S,) -> (S,) float32."""
    # Official: so in pre-training, 0 in fine-tuning (paper: no noise).
    deviation = strength * float(np.abs(wave).max(initial=0.0))
    return wave + np.float32(deviation) * rng.standard_normal(wave.shape, np.float32)


def augment(x: torch.Tensor, flip: torch.Tensor | None = None, colour: torch.Tensor | None = None) -> torch.Tensor:
    """Clips as the model takes them (A.2.1): frames and images uint8 -> [-1, 1] float32; waveforms as they are.

    x: (B, T, H, W, 3), (B, H, W, 3) or (B, S). flip: (B,) bool; colour: (B, 5), rows of `colour_draws`.
    """
    if x.dtype != torch.uint8:
        return x
    video = x if x.dim() == 5 else x[:, None]
    out = torch.empty(video.shape, dtype=torch.float32, device=x.device)
    for i in range(0, len(video), AT_ONCE):
        part = video[i:i + AT_ONCE]
        if flip is not None:
            part = torch.where(_each(flip[i:i + AT_ONCE], part), part.flip(3), part)
        part = part / 255.0
        if colour is not None:
            part = jitter(part, colour[i:i + AT_ONCE])
        out[i:i + AT_ONCE] = part.mul_(2).sub_(1)
    return out.view(x.shape)


def jitter(x: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """Changes each clip's colours by its row of `colour`: (B, T, H, W, 3) in [0, 1] -> the same shape in [0, 1].

    A row that changes nothing leaves its clip as it was, to the bit.
    """
    on, *draws = _each(colour, x).unbind(-1)
    brightness, saturation, contrast, hue = (torch.where(on > 0, a, b) for a, b in zip(draws, UNCHANGED, strict=True))
    # Official: in this order, cut to [0, 1] only at the end (paper: no order; also cut).
    x = x + brightness
    if x.is_cuda or (saturation != 1).any():  # a GPU does it in any case: to look would be to wait for it
        x = saturate(x, saturation)
    x = x + (contrast - 1) * (x - x.mean((2, 3), keepdim=True))  # about the mean of each channel of each frame
    if x.is_cuda or (hue != 0).any():
        x = torch.where(hue == 0, x, shift_hue(x, hue))
    return x.clamp_(0, 1)


def saturate(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Colours with S of HSV times `factor`, at most 1: channels move to or from the largest of them. (.., 3) -> (.., 3)."""
    v = x.amax(-1, keepdim=True)
    spread = v - x.amin(-1, keepdim=True)                           # S is spread / v
    k = (v / spread.clamp_min(1e-12)).clamp_min(0).minimum(factor)  # what S is multiplied by in the end
    return x + (1 - k) * (v - x)


def shift_hue(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Colours with H of HSV plus `by`, 1 being the full circle; largest and smallest value stay. (.., 3) -> (.., 3)."""
    v = x.amax(-1, keepdim=True)
    spread = v - x.amin(-1, keepdim=True)
    r, g, b = x.split(1, -1)
    h = torch.where(v == r, g - b, torch.where(v == g, b - r, r - g)) / spread.clamp_min(1e-12)
    h = h + torch.where(v == r, 0.0, torch.where(v == g, 2.0, 4.0)) + 6 * by  # sixths of the circle, from red
    h = (h + torch.arange(5, 0, -2, device=x.device)) % 6               # for red, green and blue: 5, 3, 1 on
    return v - spread * torch.minimum(h, 4 - h).clamp_(0, 1)


def _each(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One or more values a clip, (B, ..), where they fit to clips: (B, 1, 1, 1, 1, ..) on the device of x."""
    return values.to(x.device, non_blocking=True)[:, None, None, None, None]


if __name__ == "__main__":
    from tools.show import main  # the commands pack, check and show

    main()
