"""A media file of strangers, opened with care: its packets, and what they decode to, in order of time.

Only plain media formats are let in, nothing but the file itself is opened, what is damaged is passed over, and the work that
a call may do is bounded.
"""

import math
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from itertools import chain

import av

MAX_SIDE, MAX_PIXELS = 16_384, 64_000_000  # a larger picture is refused before it is decoded
MAX_WORK = 2e10                            # pixels decoded by one call; a packet that is read counts as 1e4
EPS = 1e-6                                 # seconds: files round their timestamps, FFmpeg the first of them

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


class Container:
    """An open media file; for use in a `with`. Raises Unreadable.

    `has_video`, `has_audio`: a cover picture is no video, and a stream without a decoder is absent. `has_captions`: streams of
    them inside, which are not read.
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

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Lets go of the file; to do so twice does no harm."""
        if self._container:
            self._container.close()
        self._container, self._streams = None, {}

    def _open(self):
        """Opens the file; where it is open already, anew: the one way back to its beginning that works for all."""
        self.close()
        try:
            self._container = av.open(self._url, options=self._options, **LENIENT)
        except Exception as error:
            reason = "not a media file" if os.access(self._file, os.R_OK) else "no permission"
            raise Unreadable(self.path, reason) from error
        self._origin = (self._container.start_time or 0) / av.time_base
        self._units = [float(stream.time_base) for stream in self._container.streams]  # once: fractions are slow
        for stream in (*self._container.streams.video, *self._container.streams.audio):
            context, cover = stream.codec_context, stream.disposition & av.stream.Disposition.attached_pic
            if not context or cover or not (context.width if stream.type == "video" else context.sample_rate):
                continue
            # One thread a file, and more files at once; frame threads can also hang where a file is closed early.
            context.thread_count, context.thread_type = 1, "SLICE"
            context.options = {"max_pixels": str(MAX_PIXELS)}
            self._streams.setdefault(stream.type, stream)
        self.has_captions = len(self._container.streams.subtitles) > 0
        reason = None if self._streams else "no video and no sound"
        if "video" in self._streams:
            width, height = self._streams["video"].width, self._streams["video"].height
            if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
                reason = "too large"
        if reason:
            self.close()
            raise Unreadable(self.path, reason)

    def _frames(self, kind: str, t: float, late: float = EPS) -> Iterator[tuple]:
        """(seconds, frame) in order of display, from one at most `late` after t, or from the first of all, to the end."""
        for stream, sought in self._places(kind, t):
            frames = self._decode(stream, sought)
            first = next(frames, None)
            if not sought or (first and first[0] <= self._due(stream, t) + late and not first[1].is_corrupt):
                yield from chain([first] if first else [], frames)
                return

    def _places(self, kind: str, t: float) -> Iterator[tuple]:
        """Puts the file at the key frame before t, then, if more is asked for, further and further back: (stream, sought).

        If the file has no index or a wrong one, or is damaged there, a seek fails or comes out late; some have what the
        decoder must know only in their first packet. At last its beginning.
        """
        stream = self._streams[kind]
        # In a program stream the first timestamps after a seek are wrong.
        for back in (0, 1, 4, 16, 64, 256, 1024, 4096)[2 * (self._container.format.name == "mpeg"):]:
            if 0 < back > t:
                break
            try:
                self._container.seek(math.floor((t - back + self._origin + EPS) / self._units[stream.index]), stream=stream)
            except (av.FFmpegError, OverflowError):
                continue
            yield stream, True
        self._open()
        yield self._streams[kind], False

    def _due(self, stream, t: float) -> float:
        """Seconds until which something must have been shown or heard: t, or the start of a stream that starts later"""
        return max(t, self._time(stream, stream.start_time or 0))

    def _time(self, stream, stamp: int) -> float:
        """A timestamp in seconds"""
        return stamp * self._units[stream.index] - self._origin

    def _decode(self, stream, sought: bool = False) -> Iterator[tuple]:
        """(seconds, frame) from where the file stands to its end; what does not decode is passed over."""
        context, unit, is_video = stream.codec_context, self._units[stream.index], stream.type == "video"
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
                    following = stamp + (frame.duration or 1 / (rate_of(stream) * unit))
                else:
                    following = stamp + frame.samples / frame.sample_rate / unit
                yield stamp * unit - self._origin, frame

    def _packets(self, stream) -> Iterator:
        """The packets of a stream that hold anything; an empty one would tell the decoder that the file is over."""
        with closing(self._container.demux(stream)) as packets:  # else what it holds outlives the file
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


def rate_of(stream) -> float:
    """Frames a second as the file states them, where that can be believed."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    return rate if 0 < rate <= 240 else 25.0
