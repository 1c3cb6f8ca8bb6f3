"""An interval of a media file, as frames and as waveform (what is taken: Sections 3.1, 4.2.1 and A.2.1).

    with Media(path) as media:
        media.video(start, frames, fps, box, size)    (T, H, W, 3) uint8    the frames shown at start + i / fps
        media.audio(start, samples, rate)             (S,) float32          one channel in [-1, 1], in step with them

Times are seconds from the first timestamp of the file, whichever stream it belongs to. A box is (left, top, right, bottom) in
fractions of the frame as displayed. A box or a size may be a function of the frame's width and height.

Video is read in one of two ways, which give the same to the bit where a file is whole: `_selected` decodes only the frames that
are asked for and those that others are made from, where packets tell which; `_shown` decodes all, and gets along with anything.
"""

import math
import os
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cached_property, partial
from itertools import chain

import av
import numpy as np

from media import waveform
from media.container import EPS, Container, Unreadable
from media.convert import BoxOf, FrameConverter, SizeOf, assemble, displayed

PREROLL = 0.3              # seconds of audio decoded ahead, until the decoder has swung in
APART = 10.0               # seconds between two clips from which on it is cheaper to seek than to decode what lies between
# Codecs whose frames say whether others are made from them. (Those of HEVC say it only for frames of their own layer.)
SKIPPABLE = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}
UNTIMED = {"avi", "mpeg"}  # no times of display; wrong ones after a seek
MAX_HELD = 100             # packets that wait for it to be known which of them are asked for


class Doubt(Exception):
    """Packets do not tell which frames are shown when, or what comes out is not what they tell."""


class Clip:
    """A clip that is being filled, frame after frame."""

    def __init__(self, start: float, frames: int, fps: float):
        self.start, self.out = start, np.empty((frames, 0, 0, 3), np.uint8)
        self.wanted = deque((start + i / fps, i) for i in range(frames))
        self.places: dict[float, int] = {}  # of the frames that are in it

    def take(self, time: float, until: float, frame: av.VideoFrame, convert: FrameConverter) -> None:
        """Put in a frame that is shown from `time` to `until`, at every place that it is wanted for."""
        while self.wanted and self.wanted[0][0] < until - EPS:
            i = self.wanted.popleft()[1]
            image = self.out[self.places[time]] if time in self.places else convert(time, frame)
            if not self.places:
                self.out = np.empty((len(self.out), *image.shape), np.uint8)
            self.out[i], self.places[time] = image, i


class Media(AbstractContextManager):
    """A media file, open for its video and its audio; for use in a `with`. Raises Unreadable.

    `has_video`, `has_audio`: of several tracks it is the one that FFmpeg calls best; a cover is no video. `has_captions`:
    there are some inside, which are not read. With `offset` and `size`, in bytes, it is a file inside another, such as a member
    of a tar; errors call it `name`.
    """

    def __init__(self, path: str | os.PathLike, offset: int = 0, size: int | None = None, name: str | None = None):
        self.file = Container(path, offset, size, name)
        self.path, self.has_captions = self.file.path, self.file.has_captions
        self.has_video, self.has_audio = (kind in self.file.streams for kind in ("video", "audio"))
        self._samples = None if self.has_video else waveform.opened(self.file)

    def __exit__(self, *_):
        self.file.close()

    def _again(self) -> "Media":
        """The file, opened once more: what is read a part at a time must not be moved by what is read in between."""
        return Media(*self.file.source)

    @property
    def duration(self) -> float:
        """Seconds from time 0 to the end of the video, or of the audio where there is no video."""
        return self._samples.frames / self._samples.samplerate if self._samples else self.file.duration

    width = property(lambda self: self._displayed[0], doc="Pixels as displayed: turned upright, made square.")
    height = property(lambda self: self._displayed[1], doc="Pixels as displayed.")

    def video(self, start: float, frames: int, fps: float, box: BoxOf = (0, 0, 1, 1),
              size: SizeOf = (224, 224)) -> np.ndarray:
        """The frames shown at start + i / fps, cut to `box`, resized to `size` = (H, W): (frames, H, W, 3) uint8.

        Shown at t is the last one whose timestamp is at most t; before the first one, the first. A function of width and height
        in place of a box or a size is cheaper than to ask for those first.
        """
        return next(self._sweep([start], frames, fps, self._converter([start], frames, fps, box, size)))

    def clips(self, starts: Sequence[float], frames: int, fps: float, box: BoxOf = (0, 0, 1, 1),
              size: SizeOf = (224, 224)) -> Iterator[np.ndarray]:
        """`video` of each of `starts`, which ascend; the file is decoded once from front to back, and one clip held at a time.

        Unreadable at the first clip that cannot be had; those after it begin later, and are not given either.
        """
        convert, first = self._converter(starts, frames, fps, box, size), 0
        with self._again() as media:
            for k in range(1, len(starts) + 1):
                if k == len(starts) or starts[k] - starts[k - 1] > frames / fps + APART:
                    yield from media._sweep(starts[first:k], frames, fps, convert)
                    first = k

    def _converter(self, starts: Sequence[float], frames: int, fps: float, box: BoxOf, size: SizeOf) -> FrameConverter:
        """What makes the frames of clips; ValueError for clips that cannot be"""
        if not (all(0 <= start < math.inf for start in starts) and list(starts) == sorted(starts)
                and frames >= 1 and fps > 0):
            raise ValueError(f"{self.path!r}: video wants ascending starts >= 0, frames >= 1 and fps > 0")
        if not self.has_video:
            raise Unreadable(self.path, "no video")
        return FrameConverter(box, size, self._stretch, self.path)

    @contextmanager
    def _reading(self, convert: FrameConverter | None = None) -> Iterator[None]:
        """Around what decodes: anything that is raised there is Unreadable, but what a function for a box or a size raises."""
        try:
            yield
        except (Unreadable, GeneratorExit):
            raise
        except Exception as error:
            if convert and convert.asking:
                raise
            raise Unreadable(self.path, "decoding failed") from error

    def frames(self, start: float, fps: float, size: SizeOf) -> Iterator[np.ndarray]:
        """All frames shown at start + i / fps, whole, (H, W, 3) uint8 each, one after the other to the end of the video."""
        convert, i = self._converter([start], 1, fps, (0, 0, 1, 1), size), 0
        with self._reading(convert), self._again() as media:
            for time, until, frame in media._shown(start):
                while start + i / fps < until - EPS:
                    yield convert(time, frame)
                    i += 1
                    media.file.allow()
        if not i:
            raise Unreadable(self.path, "start past the end")

    def audio(self, start: float, samples: int, rate: int) -> np.ndarray:
        """The audio from `start` on, its channels mixed into one, at `rate` Hz: (samples,) float32 in [-1, 1].

        Zeros where there is none: before a late track, in a gap, past the end. ValueError on a file without a track.
        """
        if not self.has_audio:
            raise ValueError(f"{self.path!r} has no audio: look at has_audio first")
        if not (0 <= start < math.inf and samples >= 1 and rate >= 1):
            raise ValueError(f"{self.path!r}: audio wants start >= 0, samples >= 1 and rate >= 1")
        self.file.allow()
        # Ours: silence past the end of the audio (official: it loops, as the frames do).
        place = partial(assemble, start=start, samples=samples, rate=rate, unit=self.file.unit("audio"),
                        uneven=self.file.streams["audio"].codec_context.name == "vorbis")
        wave = None
        try:
            wave = place(waveform.blocks(self._samples, start - PREROLL)) if self._samples else None
        except Exception:  # libsndfile gives up where a file is damaged; FFmpeg passes over that
            self._samples = None
        if wave is None:
            with self._reading():
                wave = place(self.file.frames("audio", start - PREROLL, late=PREROLL / 3))
        if wave is None:
            raise Unreadable(self.path, "no audio decodes")
        return wave

    @cached_property
    def _displayed(self) -> tuple[int, int]:
        """(width, height) in pixels; only a decoded frame tells how it is to be turned."""
        if not self.has_video:
            raise Unreadable(self.path, "no video")
        self.file.allow()
        _, frame = next(self.file.frames("video", 0.0), (None, None))
        if frame is None:
            raise Unreadable(self.path, "no frame decodes")
        return displayed(frame, self._stretch)

    @property
    def _stretch(self) -> float:
        return float(self.file.streams["video"].sample_aspect_ratio or 1)

    # --------------------------------------------------------------------------------------------------------- one pass

    def _sweep(self, starts: Sequence[float], frames: int, fps: float, convert: FrameConverter) -> Iterator[np.ndarray]:
        """The clips at `starts`, from one pass"""
        times = np.sort(np.add.outer(starts, np.arange(frames) / fps).ravel())
        waiting, filling = deque(starts), deque()
        is_plain = (self.file.streams["video"].codec_context.name not in SKIPPABLE or self.file.format in UNTIMED
                    or (len(starts) == 1 and times[-1] >= self.duration - EPS))
        with self._reading(convert):
            while True:
                self.file.allow()
                until = None
                try:
                    for time, until, frame in self._shown(waiting[0]) if is_plain else self._selected(waiting[0], times):
                        while waiting and waiting[0] < until - EPS:
                            filling.append(Clip(waiting.popleft(), frames, fps))
                        for clip in filling:
                            clip.take(time, until, frame, convert)
                        while filling and not filling[0].wanted:
                            yield filling.popleft().out
                            self.file.allow()
                        if not waiting and not filling:
                            return
                    break
                except Doubt:
                    waiting.extendleft(clip.start for clip in reversed(filling))
                    filling.clear()
                    is_plain = True
            if until is None:
                raise Unreadable(self.path, "no frame decodes")
            for clip in filling:
                yield self._looped(clip, until, convert)
            if waiting:
                raise Unreadable(self.path, "start past the end")

    def _looped(self, clip: Clip, end: float, convert: FrameConverter) -> np.ndarray:
        """The clip filled from the beginning of the video, which ends at `end`"""
        # Official: a clip that runs past the end of the video goes on from its beginning (DMVR loops).
        while clip.wanted:
            clip.wanted = deque(sorted(((t + EPS) % end, i) for t, i in clip.wanted))
            for time, end, frame in self._shown(clip.wanted[0][0]):
                clip.take(time, end, frame, convert)
                if not clip.wanted:
                    break
        return clip.out

    def _shown(self, t: float) -> Iterator[tuple]:
        """(seconds, seconds until which it is shown, frame), from the one shown at t to the last."""
        time, shown, gap = 0.0, None, 0.0
        for later, frame in self.file.frames("video", t):
            if shown is not None:
                if later <= time:  # damage can turn time back
                    continue
                yield time, later, shown
                gap = later - time
            time, shown = later, frame
        if shown is not None:
            yield time, time + self._length(gap, shown.duration), shown

    def _length(self, gap: float, duration: int | None) -> float:
        """Seconds for which the last frame is shown: as the one before it, or as the file says, whichever is longer"""
        return max(gap, (duration or 0) * self.file.unit("video")) or 1 / self.file.rate()

    def _selected(self, t: float, times: np.ndarray) -> Iterator[tuple]:
        """As `_shown`, but only the frames shown at one of `times`, and no frame is decoded that is of no use for them.

        Until when a frame is shown is known once the next one is; what is decoded later is not shown before that. Raises Doubt.
        """
        packets, context = self._from_key(t), self.file.streams["video"].codec_context
        held, order, decoded = deque(), [], -math.inf  # packets to decode; timestamps to show, and of the last to decode
        needed: dict[int, tuple[float, float]] = {}    # timestamp: when that frame is shown
        last, hidden = None, -math.inf
        try:
            for packet in chain(packets, [None]):
                if packet is None:
                    decoded = math.inf
                else:
                    stamps = packet.pts, packet.dts
                    if stamps[0] is None or stamps[0] in order[-MAX_HELD:] or stamps[0] < max(decoded, stamps[1] or decoded):
                        raise Doubt
                    if packet.is_discard:
                        hidden = max(hidden, packet.pts)
                    else:
                        insort(order, packet.pts)
                    if order and hidden > order[0]:
                        raise Doubt
                    held.append(packet)
                    decoded = decoded if packet.dts is None else max(decoded, packet.dts)
                while held:
                    one, place = held[0], bisect_right(order, held[0].pts)
                    if not one.is_discard:
                        if decoded < (order[place] if place < len(order) else math.inf):
                            break
                        if interval := self._interval(one, order, place, times):
                            needed[one.pts] = interval
                            last = one.pts if times[-1] < interval[1] - EPS else last
                    held.popleft()
                    context.skip_frame = "DEFAULT" if one.pts in needed else "NONREF"
                    yield from self._decoded(context, one, needed)
                if last is not None and all(one.pts > last for one in held):
                    break
                if len(held) > MAX_HELD:
                    raise Doubt
                del order[1:-MAX_HELD]
            context.skip_frame = "DEFAULT"
            yield from self._decoded(context, None, needed)
            if needed or last is None:
                raise Doubt
        finally:
            packets.close()
            context.skip_frame = "DEFAULT"

    def _from_key(self, t: float) -> Iterator[av.Packet]:
        """The packets from a key frame at or before t on. Raises Doubt."""
        for _ in self.file.places("video", t):
            with closing(self.file.packets("video")) as packets:
                key = next((packet for packet in packets if packet.is_keyframe), None)
                begin = self.file.time("video", key.pts) if key and key.pts is not None else math.inf
                if begin <= self.file.due("video", t) + EPS:
                    yield key
                    for packet in packets:
                        # Frames that are shown before the key frame they follow are made from others before it.
                        if begin > t + EPS and (packet.pts or 0) < key.pts:
                            raise Doubt
                        yield packet
                    return
        raise Doubt

    def _interval(self, packet: av.Packet, order: list[int], place: int, times: np.ndarray) -> tuple[float, float] | None:
        """When a frame is shown, before the one at `place` of `order`; None where it is not asked for."""
        begin = self.file.time("video", packet.pts)
        if place < len(order):
            until = self.file.time("video", order[place])
        else:
            gap = begin - self.file.time("video", order[place - 2]) if place > 1 else 0.0
            until = begin + self._length(gap, packet.duration)
            if times[-1] >= until - EPS:  # where a video ends is told by its frames
                raise Doubt
        asked = bisect_left(times, begin - EPS if place > 1 else -math.inf) < bisect_left(times, until - EPS)
        return (begin, until) if asked else None

    def _decoded(self, context, packet: av.Packet | None, needed: dict[int, tuple[float, float]]) -> Iterator[tuple]:
        """What comes out of the decoder for a packet: (seconds, seconds until which it is shown, frame) of those needed."""
        try:
            frames = context.decode(packet)
        except Exception:  # a damaged packet can raise more than PyAV's own errors
            raise Doubt from None
        for frame in frames:
            self.file.charge(frame.width * frame.height)
            # A packet may have been that of one of two fields; what stands in for damage can be of any frame.
            if frame.interlaced_frame or frame.is_corrupt or (needed and min(needed) < frame.pts):
                raise Doubt
            if frame.pts in needed:
                yield *needed.pop(frame.pts), frame
