"""Short videos decoded once and kept in memory, for data sets that fit there: a demo, a few hundred videos of one's own."""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from media.container import EPS, Unreadable
from media.convert import shorter_side
from media.decode import Media

LONGEST = 30.0  # seconds; of a longer video it is cheaper to decode the clip alone


class Reader:
    """Opens media files. With `cache` GB, short videos come from memory, their shorter side `size`, at `fps` and `rate`."""

    def __init__(self, size: int, fps: float, rate: int, cache: float = 0.0):
        self.size, self.fps, self.rate, self.room = size, fps, rate, cache * 1e9
        self.kept: dict[tuple, Decoded] = {}

    def open(self, path, offset: int = 0, size: int | None = None, name: str | None = None) -> AbstractContextManager:
        """As `Media`, for a `with`: what a file gives and refuses does not depend on whether it is in memory."""
        source = (path, offset, size, name)
        if source not in self.kept:
            media = Media(*source)
            if not self.room or media.duration > LONGEST:
                return media
            with media:
                whole = Decoded(source, media, self.size, self.fps, self.rate)
            if whole.nbytes > self.room:
                return nullcontext(whole)
            self.kept[source], self.room = whole, self.room - whole.nbytes
        return nullcontext(self.kept[source])


class Decoded:
    """A video decoded whole, when first asked for, that is read like `Media`."""

    def __init__(self, source: tuple, media: Media, size: int, fps: float, rate: int):
        self.source, self.size, self.fps, self.rate = source, size, fps, rate
        self.path, self.duration, self.has_video, self.has_audio = media.path, media.duration, media.has_video, media.has_audio
        self.nbytes = media.duration * (media.has_video * fps * 3 * 2 * size**2 + media.has_audio * rate * 2)  # 2:1, about

    @cached_property
    def frames(self) -> np.ndarray:
        """All frames, (T, H, W, 3) uint8, `fps` of them a second; Unreadable"""
        with Media(*self.source) as media:
            return np.stack(list(media.frames(0.0, self.fps, shorter_side(self.size))))

    @cached_property
    def wave(self) -> np.ndarray:
        """All of the audio, (S,) int16; Unreadable"""
        with Media(*self.source) as media:
            return (media.audio(0.0, max(1, round(self.duration * self.rate)), self.rate) * 32767).astype(np.int16)

    def video(self, start: float, frames: int, fps: float, box, size) -> np.ndarray:
        """As `Media.video`, from the frames in memory; decoded anew where the frames asked for are between those."""
        first = round(start * self.fps)
        count = len(self.frames) if fps == self.fps and abs(start - first / fps) <= EPS else 0
        if count and first >= count:
            raise Unreadable(self.path, "start past the end")
        if not count or (first + frames > count and abs(self.duration - count / fps) > EPS):
            with Media(*self.source) as media:
                return media.video(start, frames, fps, box, size)
        box, size = (given(*self.frames.shape[2:0:-1]) if callable(given) else given for given in (box, size))
        return crop(self.frames[(first + np.arange(frames)) % count], box, size)

    def audio(self, start: float, samples: int, rate: int) -> np.ndarray:
        """As `Media.audio`, from the audio in memory; decoded anew where it may go on after the video."""
        first = round(start * rate)
        if rate != self.rate or first + samples > len(self.wave):
            with Media(*self.source) as media:
                return media.audio(start, samples, rate)
        return self.wave[first : first + samples].astype(np.float32) / 32767


def crop(frames: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """(T, H, W, 3) uint8 cut to a box (left, top, right, bottom) in fractions, resized to `size` = (h, w): bilinear, uint8"""
    height, width = frames.shape[1:3]
    left, top = math.floor(box[0] * width), math.floor(box[1] * height)
    right, bottom = max(left + 1, round(box[2] * width)), max(top + 1, round(box[3] * height))
    part = torch.from_numpy(frames[:, top:bottom, left:right]).permute(0, 3, 1, 2).float()  # (T, 3, ., .)
    part = F.interpolate(part, size=size, mode="bilinear").add_(0.5).byte()
    return part.permute(0, 2, 3, 1).contiguous().numpy()
