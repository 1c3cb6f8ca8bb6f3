"""An interval of a media file, as pictures and as sound (what is taken: Sections 3.1, 4.2.1 and A.2.1).

    with Media(path) as film:
        film.video(start, frames, fps, box, size)    (T, H, W, 3) uint8    the pictures shown at start + i / fps
        film.audio(start, samples, rate)             (S,) float32          one channel in [-1, 1], in step with them

Times are seconds from the first timestamp of the file, whichever stream it belongs to. A box is (left, top, right,
bottom) in fractions of the picture as displayed.

Pictures are read in one of two ways, which give the same to the bit of a film that is whole: `_pick` decodes only those that
are drawn and those that others are made from, where packets tell which; `_draw` decodes all, and gets along with anything.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property

import av
import numpy as np

from media.container import EPS, Container, Unreadable, rate_of
from media.pictures import Box, Painter, displayed
from media.sounds import Mixer

PREROLL = 0.3              # seconds of sound decoded ahead, until the decoder has swung in
# Codecs whose pictures say whether others are made from them. (Those of HEVC say it only for pictures of their own layer.)
SKIPPABLE = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}
UNTIMED = {"avi", "mpeg"}  # no times of display; wrong ones after a seek
MAX_HELD = 1e8             # bytes of packets that wait for it to be known which of them are drawn


class Media(Container):
    """A media file, open for its pictures and its sound; for use in a `with`. Raises Unreadable."""

    @cached_property
    def duration(self) -> float:
        """Seconds from time 0 to the end of the video, or of the sound where there is no video, by the header."""
        stream = self._streams["video" if self.has_video else "audio"]
        if stream.duration and stream.start_time is not None:
            length = self._time(stream, stream.start_time + stream.duration)
        else:  # that of the container, unless it starts late: formats do not agree whether the lateness is counted in
            length = (self._container.duration or 0) / av.time_base if abs(self._origin) < 0.1 else 0
        return length if 0 < length < 1e6 else self._measure(stream.type)

    width = property(lambda self: self._displayed[0], doc="Pixels as displayed: turned upright, made square.")
    height = property(lambda self: self._displayed[1], doc="Pixels as displayed.")

    def video(self, start: float, frames: int, fps: float, box: Box | Callable[[int, int], Box] = (0, 0, 1, 1),
              size: tuple[int, int] = (224, 224)) -> np.ndarray:
        """The pictures shown at start + i / fps, cut to `box`, resized to `size` = (H, W): (frames, H, W, 3) uint8.

        Shown at t is the last one whose timestamp is at most t; before the first one, the first. A box may be a function
        of width and height that gives one, which is cheaper than to ask for them first.
        """
        if not (0 <= start < math.inf and frames >= 1 and fps > 0 and min(size) >= 1):
            raise ValueError(f"{self.path!r}: video wants start >= 0, frames >= 1, fps > 0 and sizes >= 1")
        if not self.has_video:
            raise Unreadable(self.path, "no video")
        self._work = 0.0
        out = np.empty((frames, *size, 3), np.uint8)
        chosen = (lambda width, height: self._checked(box(width, height))) if callable(box) else self._checked(box)
        paint = Painter(out, chosen, self._stretch)
        wanted = deque((start + i / fps, i) for i in range(frames))
        try:
            while wanted and not self._pick(wanted, paint):
                end = self._draw(wanted, paint)
                if len(wanted) == frames:
                    raise Unreadable(self.path, "start past the end")
                # Official: a clip that runs past the end of the film goes on from its beginning (DMVR loops).
                wanted = deque(sorted(((t + EPS) % end, i) for t, i in wanted))
        except Unreadable:
            raise
        except Exception as error:
            if paint.asking:
                raise
            raise Unreadable(self.path, "decoding failed") from error
        return out

    def pictures(self, start: float, fps: float, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """All pictures shown at start + i / fps, whole, (H, W, 3) uint8 each, one after the other to the end of the film."""
        if not self.has_video:
            raise Unreadable(self.path, "no video")
        out, i = np.empty((1, *size, 3), np.uint8), 0
        paint = Painter(out, (0, 0, 1, 1))
        try:
            self._work = 0.0
            for time, until, frame in self._shown(start):
                while start + i / fps < until - EPS:
                    paint(0, time, frame)
                    yield out[0]
                    i, self._work = i + 1, 0.0
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(self.path, "decoding failed") from error
        if not i:
            raise Unreadable(self.path, "start past the end")

    def audio(self, start: float, samples: int, rate: int) -> np.ndarray:
        """The sound from `start` on, its channels mixed into one, at `rate` Hz: (samples,) float32 in [-1, 1].

        Zeros where there is none: before a late track, past the end. Raises ValueError on a file without a track.
        """
        if not self.has_audio:
            raise ValueError(f"{self.path!r} has no sound: look at has_audio first")
        if not (0 <= start < math.inf and samples >= 1 and rate >= 1):
            raise ValueError(f"{self.path!r}: audio wants start >= 0, samples >= 1 and rate >= 1")
        self._work = 0.0
        # Ours: silence past the end of the sound (official: it loops, as the pictures do).
        mix = Mixer(start, samples, rate)
        try:
            for time, block in self._frames("audio", start - PREROLL, late=PREROLL / 3):
                if not mix(time, block):
                    break
            wave = mix.wave()
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(self.path, "decoding failed") from error
        if not mix.heard:
            raise Unreadable(self.path, "no sound decodes")
        return wave

    @cached_property
    def _displayed(self) -> tuple[int, int]:
        """(width, height) in pixels; only a decoded picture tells how it is to be turned."""
        if not self.has_video:
            raise Unreadable(self.path, "no video")
        self._work = 0.0
        _, frame = next(self._frames("video", 0.0), (None, None))
        if frame is None:
            raise Unreadable(self.path, "no frame decodes")
        return displayed(frame, self._stretch)

    @property
    def _stretch(self) -> float:
        return float(self._streams["video"].sample_aspect_ratio or 1)

    def _checked(self, box: Box) -> Box:
        if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise ValueError(f"{self.path!r}: a box has 0 <= left < right <= 1 and 0 <= top < bottom <= 1, not {box}")
        return box

    def _measure(self, kind: str) -> float:
        """Seconds from time 0 to the end, by reading every packet and decoding none."""
        self._open()
        self._work, end, stream = 0.0, 0.0, self._streams[kind]
        for packet in self._packets(stream):
            length = (packet.duration or 0) * self._units[stream.index]
            if packet.pts is None:
                end += length or 1 / rate_of(stream)
            else:
                end = max(end, self._time(stream, packet.pts) + length)
        return end

    def _pick(self, wanted: deque, paint: Painter) -> bool:
        """Draws all that are wanted, as `_draw`, but decodes no picture that is neither drawn nor needed for one that is.

        False where the packets do not tell which those are, or what comes out is not what they tell.
        """
        if self._streams["video"].codec_context.name not in SKIPPABLE or self._container.format.name in UNTIMED:
            return False
        packets = self._hold(wanted[0][0], wanted[-1][0])
        shown = sorted((p.pts, p.duration or 0) for p in packets if not p.is_discard)
        times = [self._time(self._streams["video"], pts) for pts, _ in shown]
        hidden = max((p.pts for p in packets if p.is_discard), default=-math.inf)
        if not times or len(set(times)) < len(times) or hidden > shown[0][0]:
            return False
        gap = times[-1] - times[-2] if len(times) > 1 else 0.0
        ends = [time - EPS for time in (*times[1:], times[-1] + self._length(gap, shown[-1][1]))]
        if wanted[-1][0] >= ends[-1]:  # where a film ends is told by its pictures
            return False
        places = {}
        for t, i in wanted:
            places.setdefault(shown[bisect_right(ends, t)][0], []).append(i)
        done = self._paint(packets, places, paint)
        if not done:
            paint.drawn.clear()
        return done

    def _hold(self, t: float, until: float) -> list:
        """The packets of the video from a key frame at or before t until none to come is shown by `until`; [] if in doubt."""
        for stream, _ in self._places("video", t):
            packets, size = [], 0
            for packet in self._packets(stream):
                if packet.pts is None or (packet.dts is not None and packet.dts > packet.pts):
                    return []
                if packets or packet.is_keyframe:
                    packets.append(packet)
                    size += packet.size
                if size > MAX_HELD:
                    return []
                # Nothing is shown before it is decoded.
                if packet.dts is not None and self._time(stream, packet.dts) > until + EPS:
                    break
            first = self._time(stream, packets[0].pts) if packets else math.inf
            if first <= self._due(stream, t) + EPS:
                # Pictures that are shown before the key frame they follow are made from others before it.
                return packets if first <= t + EPS or packets[0].pts == min(p.pts for p in packets) else []
        return []

    def _paint(self, packets: list, places: dict[int, list[int]], paint: Painter) -> bool:
        """Paints the pictures of some timestamps, each at its places; False where one does not come, or may not be whole."""
        context, needed = packets[0].stream.codec_context, set(places)
        while packets[-1].pts not in needed:
            packets.pop()
        try:
            for packet in (*packets, None):
                context.skip_frame = "DEFAULT" if packet is None or packet.pts in needed else "NONREF"
                try:
                    frames = context.decode(packet)
                except Exception:  # as in _decode
                    return False
                for frame in frames:
                    self._spend(frame.width * frame.height)
                    # A packet may have been that of one of two fields; what stands in for damage can be of any picture.
                    if frame.interlaced_frame or frame.is_corrupt:
                        return False
                    for i in places.pop(frame.pts, ()):
                        paint(i, self._time(packets[0].stream, frame.pts), frame)
        finally:
            context.skip_frame = "DEFAULT"
        return not places

    def _draw(self, wanted: deque, paint: Painter) -> float:
        """Draws the i-th picture, the one shown at t, for each (t, i) of `wanted` in order, and takes it off.

        Stops after the last one, or leaves those past the end of the film, and returns that end in seconds.
        """
        until = None
        for time, until, frame in self._shown(wanted[0][0]):
            while wanted and wanted[0][0] < until - EPS:
                paint(wanted.popleft()[1], time, frame)
            if not wanted:
                break
        if until is None:
            raise Unreadable(self.path, "no frame decodes")
        return until

    def _shown(self, t: float) -> Iterator[tuple]:
        """(seconds, seconds until which it is shown, picture), from the one shown at t to the last."""
        time, shown, gap = 0.0, None, 0.0
        for later, frame in self._frames("video", t):
            if shown is not None:
                if later <= time:  # damage can turn time back
                    continue
                yield time, later, shown
                gap = later - time
            time, shown = later, frame
        if shown is not None:
            yield time, time + self._length(gap, shown.duration), shown

    def _length(self, gap: float, duration: int | None) -> float:
        """Seconds for which the last picture is shown: as the one before it, or as the file says, whichever is longer"""
        stream = self._streams["video"]
        return max(gap, (duration or 0) * self._units[stream.index]) or 1 / rate_of(stream)
