"""Labelled files to views: one at random to train on, or several that cover the file to test on (Sections A.2.1, A.2.5, A.3).

    x (B, T, H, W, 3) uint8 of video, (B, H, W, 3) uint8 of images, (B, S) float32 of audio   y (B, C) float32, one or more 1s
    flip (B,) bool   colour (B, 5) float32   key (B,) int64 for DropToken   mix (B,) float32 for mixup

To test, x is (B, V, ...): V = windows x crops views of a video, windows of a sound, crops of an image.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

import data
from engine import loading
from engine.sampling import Sampler
from media import Unreadable
from media.cache import Reader
from sources.index import Index, Row, starts, windows
from tools import augment


class Recipe(NamedTuple):
    """How a view is cut; the defaults are the paper's for video: 32 frames at 12.5 fps, 320 pixels, 4 x 3 views (A.2.1)."""

    kind: str = "video"            # or "audio", "image"
    frames: int = 32
    fps: float = 12.5
    size: int = 320
    rate: int = 48000
    windows: int = 4
    crops: int = 3
    area: tuple[float, float] = (0.08, 1.0)
    colour: tuple[float, float, float, float] = (32 / 255, 0.4, 0.4, 0.2)  # brightness, saturation, contrast, hue
    flip: float = 0.5              # of the clips
    mixup: float = 0.0             # Beta(mixup, mixup); 0: none
    cache: float = 0.0             # GB of decoded files that a process keeps

    @property
    def samples(self) -> int:
        """Of a view's sound, which is as long as its frames"""
        return round(self.frames / self.fps * self.rate)


reader = functools.cache(Reader)  # what is decoded to train on is not decoded again to test on


class Views(Dataset):
    """What both kinds of views share: the rows of an index, all or those of the numbers `rows`, and their labels.

    `numbers`: what the labels' numbers are to a model that knows them by others.
    """

    def __init__(self, index: Index, classes: int, recipe: Recipe, rows: Sequence[int] | None = None,
                 numbers: Sequence[int] | None = None):
        self.index, self.classes, self.recipe = index, classes, recipe
        self.rows, self.numbers = range(len(index)) if rows is None else rows, numbers or range(classes)
        self.reader, self.in_flight = reader(recipe.size, recipe.fps, recipe.rate, recipe.cache), loading.InFlight(0)

    def __len__(self) -> int:
        return len(self.rows)

    def target(self, row: Row) -> np.ndarray:
        """Its classes as ones among zeros, (C,) float32"""
        y = np.zeros(self.classes, np.float32)
        y[[self.numbers[k] for k in row.labels if self.classes]] = 1
        return y

    def pixels(self, media, start: float, end: float, box, size: tuple[int, int]) -> np.ndarray:
        """Frames (T, h, w, 3) uint8 from `start` on, and again from there where `end` comes first; or an image (h, w, 3)"""
        r = self.recipe
        if r.kind == "image":
            return media.video(start, 1, r.fps, box, size)[0]
        clip = media.video(start, max(1, min(r.frames, math.floor(min(end - start, 1e6) * r.fps + 1e-6))), r.fps, box, size)
        return clip[np.arange(r.frames) % len(clip)]

    def sound(self, media, start: float, end: float) -> np.ndarray:
        """(S,) float32 from `start` on, zeros from `end` on: what comes then may be another file's part, with another label"""
        r = self.recipe
        if not media.has_audio:
            raise Unreadable(media.path, "no sound")
        wave = media.audio(start, r.samples, r.rate)
        wave[round(min(end - start, 1e6) * r.rate):] = 0
        return wave


class Training(Views):
    """Item (step, slot) -> (a random view of a file, what failed on the way to it): a pure function of seed, step, slot."""

    def __init__(self, index: Index, classes: int, recipe: Recipe, batch: int, seed: int = 0):
        super().__init__(index, classes, recipe)
        self.slots, self.seed = Sampler([len(index)], [1.0], batch, seed), seed

    def __getitem__(self, at: tuple[int, int]) -> tuple[dict, list[tuple[str, str]]]:
        step, slot = at
        return data.attempts(self.view, self.slots(step, slot)[1], len(self), (self.seed, step, slot))

    def view(self, k: int, rng: np.random.Generator) -> dict:
        """A random place, crop, flip and colour of file k (A.2.1)"""
        r, item, name = self.recipe, self.index[k], self.index.name(k)
        with self.in_flight.track(name), self.reader.open(*self.index.media(k)) as media:
            start = data.random_start(rng, item, media.duration, r)
            if r.kind == "audio":
                x = self.sound(media, start, item.end)
            else:
                box = augment.random_box(rng, media.width, media.height, r.area)
                x = self.pixels(media, start, item.end, box, (r.size, r.size))
        return dict(x=x, y=self.target(item), flip=bool(rng.random() < r.flip), colour=augment.colour_draws(rng, *r.colour),
                    key=int(rng.integers(2**62)), mix=np.float32(rng.beta(r.mixup, r.mixup) if r.mixup else 1.0),
                    path=name)


class Testing(Views):
    """Item i -> (all views of file i, []), or (None, why it could not be read)."""

    def __getitem__(self, i: int) -> tuple[dict | None, list[tuple[str, str]]]:
        k = self.rows[i]
        r, item, name = self.recipe, self.index[k], self.index.name(k)
        try:
            with self.in_flight.track(name), self.reader.open(*self.index.media(k)) as media:
                first, last = starts(item, media.duration, r.frames / r.fps)
                at = windows(first, last, 1 if r.kind == "image" else r.windows, r.fps)
                if r.kind == "audio":
                    x = [self.sound(media, start, item.end) for start in at]
                else:
                    h, w = shape(media.width, media.height, r.size)
                    x = [view for start in at
                         for view in crops(self.pixels(media, start, item.end, (0, 0, 1, 1), (h, w)), r.size, r.crops)]
        except Unreadable as e:
            return None, [(str(e.path), e.reason)]
        return dict(x=np.stack(x), y=self.target(item), path=name, number=i), []


def shape(width: int, height: int, size: int) -> tuple[int, int]:
    """(height, width) where the shorter side is `size`, the other at most 8 times that"""
    scale = size / min(width, height)
    return tuple(min(max(size, round(x * scale)), 8 * size) for x in (height, width))


def crops(x: np.ndarray, size: int, n: int) -> list[np.ndarray]:
    """n squares along the longer side, from one end to the other; one is in the middle (A.2.5).  (.., h, w, 3)"""
    h, w = x.shape[-3:-1]
    at = [0.5] if n == 1 else [i / (n - 1) for i in range(n)]
    places = [(round((h - size) * share), round((w - size) * share)) for share in at]
    return [x[..., top : top + size, left : left + size, :] for top, left in places]


def inputs(x: torch.Tensor, flip: torch.Tensor | None = None, colour: torch.Tensor | None = None) -> torch.Tensor:
    """Views as the model takes them: pixels to [-1, 1], flipped and coloured, sound as it is.  (B, ...) -> (B, ...) float32"""
    if x.dtype != torch.uint8:
        return x
    clips = x if x.dim() == 5 else x[:, None]
    return augment.augment(clips, flip, colour).view(x.shape)


def loader(views: Testing, batch: int, processes, workers: int, timeout: float = 0) -> loading.Batches:
    """Every file once, over all processes: batches of at most `batch` views (one file at least), and what failed"""
    r = views.recipe
    each = (1 if r.kind == "image" else r.windows) * (1 if r.kind == "audio" else r.crops)
    return loading.eval_batches(views, max(1, batch // each), processes, workers, timeout)
