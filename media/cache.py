"""Short films decoded once and kept in memory, for data sets that fit there: a demo, a few hundred films of one's own."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from media.decode import Media, Unreadable

LONGEST = 30.0  # seconds; of a longer film it is cheaper to decode the clip alone


class Reader:
    """Opens media files. With `cache` GB, short films come from memory, `size` pixels wide, at `fps` and `rate`."""

    def __init__(self, size: int, fps: float, rate: int, cache: float = 0.0):
        self.size, self.fps, self.rate, self.cache = size, fps, rate, cache
        self.kept, self.room = {}, cache * 1e9

    def open(self, path, offset: int = 0, size: int | None = None, name: str | None = None) -> "Media | Decoded":
        """As `Media`. Whether a film is in memory already does not change what is read of it."""
        if (path, offset) in self.kept:
            return self.kept[path, offset]
        media = Media(path, offset, size, name)
        if not self.cache or media.duration > LONGEST:
            return media
        with media:
            whole = Decoded(media, self.size, self.fps, self.rate)
        if whole.nbytes <= self.room:
            self.kept[path, offset], self.room = whole, self.room - whole.nbytes
        return whole


class Decoded:
    """A film decoded whole, in memory, that is read like `decode.Media`."""

    def __init__(self, media: Media, size: int, fps: float, rate: int):
        self.path, self.duration, self.has_audio = media.path, media.duration, media.has_audio
        self.frames = np.zeros((0, 0, 0, 3), np.uint8)
        if media.has_video:
            scale = size / min(media.width, media.height)
            width, height = (min(max(size, round(x * scale)), 8 * size) for x in (media.width, media.height))
            self.frames = media.video(0.0, max(1, round(media.duration * fps)), fps, size=(height, width))
        samples = max(1, round(media.duration * rate))
        wave = media.audio(0.0, samples, rate) if self.has_audio else np.zeros(0, np.float32)
        self.wave = (wave * 32767).astype(np.int16)
        self.nbytes = self.frames.nbytes + self.wave.nbytes

    width = property(lambda self: self.shape[1], doc="Pixels of what is kept.")
    height = property(lambda self: self.shape[0], doc="Pixels of what is kept.")

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width); Unreadable where there is sound alone"""
        if not len(self.frames):
            raise Unreadable(self.path, "no video")
        return self.frames.shape[1:3]

    def video(self, start: float, frames: int, fps: float, box, size: tuple[int, int]) -> np.ndarray:
        """As `Media.video`, from the frames in memory"""
        height, width = self.shape
        at = (round(start * fps) + np.arange(frames)) % len(self.frames)
        return crop(self.frames[at], box(width, height) if callable(box) else box, size)

    def audio(self, start: float, samples: int, rate: int) -> np.ndarray:
        """As `Media.audio`, from the sound in memory"""
        wave = self.wave[round(start * rate) :][:samples].astype(np.float32) / 32767
        return np.pad(wave, (0, samples - len(wave)))

    def __enter__(self) -> "Decoded":
        return self

    def __exit__(self, *_):
        pass


def crop(frames: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """uint8 (T, H, W, 3), box (left, top, right, bottom) in fractions -> uint8 (T, h, w, 3), bilinear"""
    height, width = frames.shape[1:3]
    left, top = math.floor(box[0] * width), math.floor(box[1] * height)
    right, bottom = max(left + 1, round(box[2] * width)), max(top + 1, round(box[3] * height))
    part = torch.from_numpy(frames[:, top:bottom, left:right]).permute(0, 3, 1, 2).float()  # (T, 3, ., .)
    part = F.interpolate(part, size=size, mode="bilinear").add_(0.5).byte()
    return part.permute(0, 2, 3, 1).contiguous().numpy()
