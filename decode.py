"""An interval of a media file, as pictures and as sound (what is taken: Sections 3.1, 4.2.1 and A.2.1).

    with Media(path) as film:
        film.video(start, frames, fps, box, size)    (T, H, W, 3) uint8    the pictures shown at start + i / fps
        film.audio(start, samples, rate)             (S,) float32          one channel in [-1, 1], in step with them

Times are seconds from the first timestamp of the file, whichever stream it belongs to. A box is (left, top, right,
bottom) in fractions of the picture as displayed. Files are strangers' work: only plain media formats are let in,
nothing but the file itself is opened, what is damaged is passed over, and the work that a call may do is bounded.
"""

import math
import os
import stat
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from itertools import chain

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer

MAX_SIDE, MAX_PIXELS = 16_384, 64_000_000  # a larger picture is refused before it is decoded
MAX_WORK = 2e10                            # pixels decoded by one call; a packet that is read counts as 1e4
EPS = 1e-6                                 # seconds: files round their timestamps, FFmpeg the first of them
PREROLL, MARGIN, GAP = 0.3, 0.05, 0.05     # seconds of sound: decoded ahead, kept ahead, taken for a break

OPTIONS = {
    # Never a playlist or a script (hls, concat, dash, sdp, ..): those open other files and addresses.
    "format_whitelist": "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,ogg,asf,rm,h264,hevc,obu,ivf,gif,mp3,wav,"
                        "w64,aiff,caf,flac,aac,ac3,eac3,amr,jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,image2",
    "protocol_whitelist": "file",
    "pattern_type": "none",                # a % in the name of a picture stands for itself
    "max_pixels": str(MAX_PIXELS),
}
# A title that is not UTF-8 stops PyAV 18 unless told to pass over it; PyAV 19 always does, and does not know the word.
LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


class Unreadable(Exception):
    """A file that cannot give what was asked; `reason` is one of a few fixed phrases, fit for counting."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path!r}: {self.reason}"


class Media:
    """A media file, open for its pictures and its sound; for use in a `with`. Raises Unreadable.

    `has_video`, `has_audio`: a cover picture is no video, and a stream without a decoder is absent.
    With `offset` and `size`, in bytes, it is one inside another file, such as a member of a tar; errors call it `name`.
    """

    def __init__(self, path: str | os.PathLike, offset: int = 0, size: int | None = None, name: str | None = None):
        self._file, self._container, self._work = os.fsdecode(path), None, 0.0
        self.path = name or self._file
        try:
            status = os.stat(self._file)
        except (OSError, ValueError):
            raise Unreadable(self.path, "no such file") from None
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(self.path, "not a file")
        end = status.st_size if size is None else offset + size
        if not 0 <= offset <= end <= status.st_size:
            raise Unreadable(self.path, "file cut short")
        if offset == end:
            raise Unreadable(self.path, "empty file")
        self._url, self._options = "file:" + self._file, OPTIONS
        if (offset, end) != (0, status.st_size):
            self._url = f"subfile,,start,{offset},end,{end},,:{self._url}"
            self._options = {**OPTIONS, "protocol_whitelist": "subfile,file"}
        self._open()
        self.has_video, self.has_audio = "video" in self._streams, "audio" in self._streams

    def __enter__(self) -> "Media":
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Lets go of the file; to do so twice does no harm."""
        if self._container:
            self._container.close()
        self._container, self._streams = None, {}

    @cached_property
    def duration(self) -> float:
        """Seconds from time 0 to the end of the video, or of the sound where there is no video, by the header."""
        stream = self._streams["video" if self.has_video else "audio"]
        if stream.duration and stream.start_time is not None:
            length = (stream.start_time + stream.duration) * float(stream.time_base) - self._origin
        else:  # that of the container, unless it starts late: formats do not agree whether the lateness is counted in
            length = (self._container.duration or 0) / av.time_base if abs(self._origin) < 0.1 else 0
        return length if 0 < length < 1e6 else self._measure(stream.type)

    width = property(lambda self: self._displayed[0], doc="Pixels as displayed: turned upright, made square.")
    height = property(lambda self: self._displayed[1], doc="Pixels as displayed.")

    def video(self, start: float, frames: int, fps: float, box: tuple[float, float, float, float] = (0, 0, 1, 1),
              size: tuple[int, int] = (224, 224)) -> np.ndarray:
        """The pictures shown at start + i / fps, cut to `box`, resized to `size` = (H, W): (frames, H, W, 3) uint8.

        Shown at t is the last one whose timestamp is at most t; before the first one, the first.
        """
        if not (0 <= start < math.inf and frames >= 1 and fps > 0 and min(size) >= 1):
            raise ValueError(f"{self.path!r}: video wants start >= 0, frames >= 1, fps > 0 and sizes >= 1")
        if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise ValueError(f"{self.path!r}: a box has 0 <= left < right <= 1 and 0 <= top < bottom <= 1, not {box}")
        if not self.has_video:
            raise Unreadable(self.path, "no video")
        self._work = 0.0
        out = np.empty((frames, *size, 3), np.uint8)
        paint = _Painter(out, box)
        wanted = deque((start + i / fps, i) for i in range(frames))
        try:
            while wanted:
                end = self._draw(wanted, paint)
                if len(wanted) == frames:
                    raise Unreadable(self.path, "start past the end")
                # Official: a clip that runs past the end of the film goes on from its beginning (DMVR loops).
                wanted = deque(sorted(((t + EPS) % end, i) for t, i in wanted))
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(self.path, "decoding failed") from error
        return out

    def pictures(self, start: float, fps: float, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """All pictures shown at start + i / fps, whole, (H, W, 3) uint8 each, one after the other to the end of the film."""
        if not self.has_video:
            raise Unreadable(self.path, "no video")
        out, i = np.empty((1, *size, 3), np.uint8), 0
        paint = _Painter(out, (0, 0, 1, 1))
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
        out, run, heard, until = np.zeros(samples, np.float32), [], False, 0.0
        try:
            for time, block in self._frames("audio", start - PREROLL, late=PREROLL / 3):
                if block.sample_rate < 1000:  # a lie that would make a few samples hours
                    continue
                heard, seconds = True, block.samples / block.sample_rate
                if time > start + samples / rate + MARGIN:
                    break
                if time + seconds < start - MARGIN:
                    continue
                if run and (abs(time - until) > GAP or _kind(block) != _kind(run[0][1])):
                    _lay(out, run, start, rate)
                    run = []
                run.append((time, block))
                until = time + seconds
            if run:
                _lay(out, run, start, rate)
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(self.path, "decoding failed") from error
        if not heard:
            raise Unreadable(self.path, "no sound decodes")
        return np.clip(np.nan_to_num(out, posinf=1.0, neginf=-1.0), -1.0, 1.0)

    def _open(self):
        """Opens the file; where it is open already, anew: the one way back to its beginning that works for all."""
        self.close()
        try:
            self._container = av.open(self._url, options=self._options, **LENIENT)
        except Exception as error:
            reason = "not a media file" if os.access(self._file, os.R_OK) else "no permission"
            raise Unreadable(self.path, reason) from error
        self._origin = (self._container.start_time or 0) / av.time_base
        for stream in (*self._container.streams.video, *self._container.streams.audio):
            context, cover = stream.codec_context, stream.disposition & av.stream.Disposition.attached_pic
            if not context or cover or not (context.width if stream.type == "video" else context.sample_rate):
                continue
            # One thread a file, and more files at once; frame threads can also hang where a file is closed early.
            context.thread_count, context.thread_type = 1, "SLICE"
            context.options = {"max_pixels": str(MAX_PIXELS)}
            self._streams.setdefault(stream.type, stream)
        reason = None if self._streams else "no video and no sound"
        if "video" in self._streams:
            width, height = self._streams["video"].width, self._streams["video"].height
            if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
                reason = "too large"
        if reason:
            self.close()
            raise Unreadable(self.path, reason)

    @cached_property
    def _displayed(self) -> tuple[int, int]:
        """(width, height) in pixels; only a decoded picture tells how it is to be turned."""
        if not self.has_video:
            raise Unreadable(self.path, "no video")
        self._work = 0.0
        _, frame = next(self._frames("video", 0.0), (None, None))
        if frame is None:
            raise Unreadable(self.path, "no frame decodes")
        stretch = float(self._streams["video"].sample_aspect_ratio or 1)
        width = max(round(frame.width * stretch), 1) if 0.1 <= stretch <= 10 else frame.width
        return (frame.height, width) if _turn(frame)[1] else (width, frame.height)

    def _measure(self, kind: str) -> float:
        """Seconds from time 0 to the end, by reading every packet and decoding none."""
        self._open()
        self._work, end, stream = 0.0, 0.0, self._streams[kind]
        unit = float(stream.time_base)
        for packet in self._packets(stream):
            length = (packet.duration or 0) * unit
            if packet.pts is None:
                end += length or 1 / _rate(stream)
            else:
                end = max(end, packet.pts * unit - self._origin + length)
        return end

    def _draw(self, wanted: deque, paint: "_Painter") -> float:
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
            stream = self._streams["video"]
            length = max(gap, (shown.duration or 0) * float(stream.time_base)) or 1 / _rate(stream)
            yield time, time + length, shown

    def _frames(self, kind: str, t: float, late: float = EPS) -> Iterator[tuple]:
        """(seconds, frame) in order of display, from one at most `late` after t, or from the first of all, to the end.

        From the key frame before t. If the file has no index or a wrong one, or is damaged there, a seek fails or comes
        out late; then from further and further back, and at last from the beginning.
        """
        stream = self._streams[kind]
        unit = float(stream.time_base)
        latest = max(t, (stream.start_time or 0) * unit - self._origin) + late
        # In a program stream the first timestamps after a seek are wrong.
        for back in (0, 1, 4, 16, 64, 256, 1024, 4096)[2 * (self._container.format.name == "mpeg"):]:
            if 0 < back > t:
                break
            try:
                self._container.seek(math.floor((t - back + self._origin + EPS) / unit), stream=stream)
            except (av.FFmpegError, OverflowError):
                continue
            frames = self._decode(stream, sought=True)
            first = next(frames, None)
            if first and first[0] <= latest:
                yield first
                yield from frames
                return
        self._open()
        yield from self._decode(self._streams[kind])

    def _decode(self, stream, sought: bool = False) -> Iterator[tuple]:
        """(seconds, frame) from where the file stands to its end; what does not decode is passed over."""
        context, unit, is_video = stream.codec_context, float(stream.time_base), stream.type == "video"
        # AVI keeps no times of display, and those that FFmpeg makes up are out of order where there are B frames: there
        # it is the time of the packet that brought the picture out, less the delay of the decoder.
        by_packet = is_video and self._container.format.name == "avi"
        following = None if sought else self._origin / unit
        for packet in chain(self._packets(stream), [None]):
            try:
                frames = context.decode(packet)
            except Exception:  # a damaged packet can raise more than PyAV's own errors
                continue
            for frame in frames:
                stamp = frame.pts
                if by_packet:
                    stamp = None if frame.dts is None else frame.dts - context.reorder_depth
                if stamp is None:
                    stamp = following
                if stamp is None:  # in the middle of the file, with nothing to count from
                    return
                if is_video:
                    self._spend(frame.width * frame.height)
                    following = stamp + (frame.duration or 1 / (_rate(stream) * unit))
                else:
                    following = stamp + frame.samples / frame.sample_rate / unit
                yield stamp * unit - self._origin, frame

    def _packets(self, stream) -> Iterator:
        """The packets of a stream that hold anything; an empty one would tell the decoder that the file is over."""
        packets = self._container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except Exception:  # the end, or damage that the container does not get over
                return
            if packet.size:
                self._spend(1e4)
                yield packet

    def _spend(self, work: float):
        self._work += work
        if self._work > MAX_WORK:
            raise Unreadable(self.path, "too much to decode")


class _Painter:
    """Pictures to RGB, cut to a box and resized, each of them once: paint(i, seconds, frame) -> out[i], (H, W, 3)."""

    def __init__(self, out: np.ndarray, box: tuple[float, float, float, float]):
        self.out, self.box, self.kind, self.drawn = out, box, None, {}

    def __call__(self, i: int, time: float, frame):
        if time in self.drawn:
            self.out[i] = self.out[self.drawn[time]]
            return
        kind = (frame.width, frame.height, frame.format.name, _turn(frame))
        if kind != self.kind:  # at the first one, and where the film changes
            self.kind, self.graph = kind, _graph(frame, self.box, self.out.shape[1:3])
        self.graph.vpush(frame)
        self.out[i], self.drawn[time] = self.graph.vpull().to_ndarray(), i


def _graph(frame, box, size) -> "av.filter.Graph":
    """Filters that turn a picture upright, cut it, resize it, and make it RGB."""
    turn, across = _turn(frame)
    width, height = (frame.height, frame.width) if across else (frame.width, frame.height)
    x, y = int(box[0] * width) // 2 * 2, int(box[1] * height) // 2 * 2  # even: colour may have half the resolution
    w, h = max(round(box[2] * width) - x, 1), max(round(box[3] * height) - y, 1)
    graph = av.filter.Graph()
    graph.threads = 1
    given = {"video_size": f"{frame.width}x{frame.height}", "pix_fmt": frame.format.name, "time_base": "1/1000"}
    # Ours: swscale's bilinear, with antialiasing, while decoding (official: without, on stored, already small frames).
    scale = f"{size[1]}:{size[0]}:flags=bilinear+full_chroma_int+full_chroma_inp+accurate_rnd"
    steps = [*turn, ("crop", f"{w}:{h}:{x}:{y}:exact=1"), ("scale", scale), ("format", "rgb24"), ("buffersink", None)]
    graph.link_nodes(graph.add("buffer", **given), *(graph.add(name, how) for name, how in steps)).configure()
    return graph


def _turn(frame) -> tuple[tuple, bool]:
    """The filters that turn a picture upright, and whether width and height change places (its display matrix)."""
    try:
        # Not frame.side_data: that would be a cycle, and megabytes of pictures would wait for the garbage collector.
        matrix = SideDataContainer(frame).get("DISPLAYMATRIX")
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist() if matrix else (1, 0, 0, 0, 1)
    except ValueError:  # other side data that PyAV 18 does not know; the angle alone can be had
        a, b, c, d = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))[round(frame.rotation / 90) % 4]
    if abs(b) > abs(a):
        way = {(1, 1): "cclock_flip", (1, 0): "clock", (0, 1): "cclock", (0, 0): "clock_flip"}[b > 0, c > 0]
        return (("transpose", way),), True
    return tuple((name, None) for name, on in (("hflip", a < 0), ("vflip", d < 0)) if on), False


def _rate(stream) -> float:
    """Frames a second as the file states them, where that can be believed."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    return rate if 0 < rate <= 240 else 25.0


def _kind(block) -> tuple:
    return block.format.name, block.layout.name, block.sample_rate


def _lay(out: np.ndarray, run: list, start: float, rate: int):
    """Mixes blocks of sound that follow each other, (seconds, block), to one channel at `rate` Hz and fills out."""
    # Loud channels together are scaled to stay within 1, as a mix in integers is, not cut off.
    resampler = av.AudioResampler("flt", "mono", rate, options={"rematrix_maxval": "1.0"})
    mixed = [part for _, block in [*run, (None, None)] for part in resampler.resample(block) if part is not None]
    wave = np.concatenate([part.to_ndarray()[0] for part in mixed])
    # Their times may be rounded to a millisecond, or jitter: samples just follow each other, from the median of all.
    elapsed = np.cumsum([0.0, *(block.samples / block.sample_rate for _, block in run[:-1])])
    begin = round((float(np.median([time for time, _ in run] - elapsed)) - start) * rate)
    wave, begin = wave[max(-begin, 0):], max(begin, 0)
    wave = wave[:max(len(out) - begin, 0)]
    out[begin:begin + len(wave)] = wave
