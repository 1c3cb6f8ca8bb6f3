"""A media file of unknown origin, opened with care: its packets, and what they decode to, in order of time.

Only plain media formats are let in, nothing but the file itself is opened, damage is passed over, and the work of a call is
bounded. Times are seconds from the first timestamp of the file, whichever stream it belongs to.
"""

import math
import os
import stat
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import closing
from functools import cached_property, lru_cache
from itertools import chain, pairwise

import av
from av.stream import Disposition

from engine.errors import Unreadable

MAX_SIDE, MAX_PIXELS = 16_384, 64_000_000  # a larger frame is refused before it is decoded
MAX_MOVING = 36_000_000                    # pixels of a video's frame, that of 8K: a decoder may hold 16 of them
MAX_WORK = 2e10                            # pixels decoded by one call; a packet that is read counts as 2e3
EPS = 1e-6                                 # seconds: files round their timestamps, FFmpeg the first of them
BACKWARD, FORWARD = 1.0, 10.0              # seconds: a timestamp that goes back or on by more than that is of another clock

OPTIONS = {
    # Never a playlist or a script (hls, concat, dash, sdp, ..): those open other files and addresses.
    "format_whitelist": "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,mxf,flv,ogg,asf,rm,h264,hevc,obu,ivf,gif,mp3,wav,"
                        "w64,aiff,caf,flac,aac,ac3,eac3,amr,jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,image2",
    "protocol_whitelist": "file",
    "pattern_type": "none",                # a % in the name of an image stands for itself
    "max_pixels": str(MAX_PIXELS),
}
# A title that is not UTF-8 stops PyAV 18 unless told to pass over it; PyAV 19 always does, and does not know the word.
LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
LENGTHS = {"mov", "avi", "ogg", "wav", "w64", "aiff", "caf", "flac", "ivf"}  # formats that state the length of each stream
BOXED = {"mov", "avi", "wav"}              # formats whose header says where the file ends
ENDS = {"matroska", "asf"}                 # formats where the last packets are soon found
STILLS = {"mjpeg", "png", "bmp", "gif", "webp", "tiff"}
JOINED = "several files joined by their bytes (ffmpeg -f concat joins them)"
NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


class Part:
    """What lies between two jumps of a file's clock: where it begins and, by kind of stream, its timestamps in seconds."""

    def __init__(self):
        self.byte: dict[str, int] = {}      # of the first packet
        self.first: dict[str, float] = {}
        self.end: dict[str, float] = {}
        self.shift = 0.0                    # seconds to add, so that it follows the part before it

    def holds(self, kind: str, t: float) -> bool:
        """Whether a packet of that time is of this clock: it follows the last, or its stream paused while others went on"""
        near = any(abs(t - end) <= FORWARD for end in self.end.values())
        end = self.end.get(kind)
        return near if end is None else t >= end - BACKWARD and (near or t <= end)

    def rank(self, kind: str, byte: int, stamp: int | None, unit: float) -> tuple:
        """How likely a packet of this place and time is of this clock"""
        t = self.first[kind] if stamp is None else stamp * unit
        is_within = self.first[kind] - BACKWARD <= t <= self.end[kind] + BACKWARD
        return is_within, self.byte[kind] <= byte, self.byte[kind] if self.byte[kind] <= byte else -self.byte[kind]


class Container:
    """An open media file, to be closed. Raises Unreadable.

    `streams`: the video and the audio, of several the one that FFmpeg calls best; without those that have no decoder.
    `has_captions`: there are streams of them inside, which are not read.
    With `offset` and `size`, in bytes, it is one inside another file, such as a member of a tar; errors call it `name`.
    """

    def __init__(self, path: str | os.PathLike, offset: int = 0, size: int | None = None, name: str | None = None):
        self.source = self.file, self.offset, self.size, self.path = os.fsdecode(path), offset, size, name or os.fsdecode(path)
        self._av, self._work = None, 0.0
        try:
            status = os.stat(self.file)
        except (OSError, ValueError):
            raise Unreadable(self.path, "no such file") from None
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(self.path, "not a file")
        self._end = end = status.st_size if size is None else offset + size
        if not 0 <= offset <= end <= status.st_size:
            raise Unreadable(self.path, "file cut short")
        if offset == end:
            raise Unreadable(self.path, "empty file")
        self._url, self._options, self._version = "file:" + self.file, OPTIONS, (status.st_size, status.st_mtime_ns)
        if (offset, end) != (0, status.st_size):
            self._url = f"subfile,,start,{offset},end,{end},,:{self._url}"
            self._options = {**OPTIONS, "protocol_whitelist": "subfile,file"}
        self.open()

    def close(self) -> None:
        """Let go of the file; to do so twice does no harm."""
        if self._av:
            self._av.close()
        self._av, self.streams = None, {}

    def open(self) -> None:
        """Open the file; where it is open already, anew: the one way back to its beginning that works for all."""
        self.close()
        try:
            self._av = av.open(self._url, options=self._options, **LENIENT)
        except Exception as error:
            reason = "not a media file" if os.access(self.file, os.R_OK) else "no permission"
            raise Unreadable(self.path, reason) from error
        self.format, self._from, self._reached = self._av.format.name.split(",")[0], 0, 0
        # What FFmpeg takes for the start of an ASF is, where a track starts late, that track's.
        self._origin = 0.0 if self.format == "asf" else (self._av.start_time or 0) / av.time_base
        self._units = [float(stream.time_base) for stream in self._av.streams]  # once: fractions are slow
        for kind in ("video", "audio"):
            if stream := self._best(kind):
                # One thread a file, and more files at once; frame threads can also hang where a file is closed early.
                stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "SLICE"
                stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
                self.streams[kind] = stream
        self.main = "video" if "video" in self.streams else "audio"  # the one that the duration is that of
        self.has_captions = len(self._av.streams.subtitles) > 0
        reason = None if self.streams else "no video and no audio"
        if self.main == "video":
            width, height = self.streams["video"].width, self.streams["video"].height
            still = self.format.endswith("_pipe") or self.format == "image2"
            if max(width, height) > MAX_SIDE or width * height > (MAX_PIXELS if still else min(MAX_PIXELS, MAX_MOVING)):
                reason = "too large"
        if self.format in BOXED and holds_several(self.file, self.offset, self._end, self.format, self._version):
            reason = JOINED
        if reason:
            self.close()
            raise Unreadable(self.path, reason)

    def _best(self, kind: str):
        """The stream that FFmpeg's av_find_best_stream chooses: by disposition, then by how much there is of it."""
        usable = [stream for stream in self._av.streams if stream.type == kind and self._is_usable(stream)]
        best = self._av.streams.best(kind, self.streams.get("video"))
        if best is None or all(stream.index != best.index for stream in usable):  # it takes covers, too
            best = max(usable, key=lambda s: (bool(s.disposition & Disposition.default), s.bit_rate or 0), default=None)
        return best

    def _is_usable(self, stream) -> bool:
        context = stream.codec_context
        if stream.type == "audio" or not context:
            return bool(context and context.sample_rate)
        alone = context.name in STILLS and stream.frames == 1 and len(self._av.streams.audio) > 0
        return bool(context.width and not stream.disposition & NO_VIDEO and not alone)

    # ------------------------------------------------------------------------------------------------- time and length

    def unit(self, kind: str) -> float:
        """Seconds that a timestamp of a stream counts in"""
        return self._units[self.streams[kind].index]

    def time(self, kind: str, stamp: int) -> float:
        """A timestamp in seconds"""
        return stamp * self.unit(kind) - self._origin

    def rate(self) -> float:
        """Frames a second as the file states them, where that can be believed."""
        video = self.streams["video"]
        rate = float(video.average_rate or video.guessed_rate or 0)
        return rate if 0 < rate <= 240 else 25.0

    @cached_property
    def duration(self) -> float:
        """Seconds from time 0 to the end of the video, or of the audio where there is no video."""
        stream, stated = self.streams[self.main], 0.0
        if stream.duration and stream.start_time is not None:
            stated = self.time(self.main, stream.start_time + stream.duration)
        if self.format in LENGTHS and 0 < stated < 1e6:
            return stated
        # An MP3 with a header knows how much of its last packet is padding; without, what it states is a guess.
        return stated if self.format == "mp3" and abs(stated - self._survey[0]) < 0.1 else self._survey[0]

    @property
    def has_index(self) -> bool:
        """Whether a place in it is found without reading what lies before (Matroska's index is read at the first seek)"""
        return len(self.streams[self.main].index_entries) > 1 or (self.format not in ("avi", "flv") and bool(self._av.duration))

    @property
    def _survey(self):
        return survey(self.source, self._version)

    @property
    def parts(self) -> list[Part]:
        """The parts of a file whose clock jumps, else none"""
        return [] if self.format in LENGTHS else self._survey[1]

    def scan(self, at_end: bool = False) -> tuple[float, list[Part], list[tuple[float, int]]]:
        """Read all packets, or the last ones alone: end of the main stream, parts, (time, byte) of key frames."""
        self.open()
        self.allow()
        main, start, parts, current, keys, byte = self.main, self._origin, [Part()], {}, [], 0
        if at_end and not (self._av.duration and self._seek_time(main, self._av.duration / av.time_base)):
            return 0.0, [], []
        for packet in self.demux(*self.streams.values()):
            kind, byte = packet.stream.type, byte if packet.pos is None else packet.pos
            unit, part = self.unit(kind), current.get(kind, parts[0])
            t = part.end.get(kind, start) if packet.pts is None else packet.pts * unit
            if kind in current and not part.holds(kind, t):
                part = next((later for later in reversed(parts[parts.index(part) + 1:]) if later.holds(kind, t)), None)
                if part is None:
                    parts.append(part := Part())
            current[kind] = part
            length = (packet.duration or 0) * unit
            if kind == "video" and length < 1 / 240:  # none, or a tick of the clock
                length = 1 / self.rate()
            part.byte.setdefault(kind, byte)
            part.first[kind], part.end[kind] = min(part.first.get(kind, t), t), max(part.end.get(kind, t), t + length)
            if kind == main and packet.is_keyframe and packet.pos is not None:
                keys.append((t, byte, part))
        for before, part in pairwise(parts):
            kind = main if main in before.end and main in part.first else next(iter(part.first))
            part.shift = before.shift + before.end.get(kind, max(before.end.values())) - part.first[kind]
        end = max((part.end[main] + part.shift for part in parts if main in part.end), default=start) - start
        return end, parts, [(t + part.shift - start, byte) for t, byte, part in keys]

    def goes_on(self) -> bool:
        """Whether another file begins where FFmpeg, in what it has read so far, has come to its end of this one"""
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            head = file.read(4)
            file.seek(self.offset + self._reached)
            return head in file.read(min(1 << 20, max(self._end - file.tell(), 0)))

    # -------------------------------------------------------------------------------------------------------- packets

    def demux(self, *streams) -> Iterator[av.Packet]:
        """The packets of streams that hold anything; an empty one would tell the decoder that the file is over."""
        with closing(self._av.demux(*streams)) as packets:  # else what it holds outlives the file
            while True:
                try:
                    packet = next(packets)
                except Exception:  # the end, or damage that the container does not get over
                    return
                if packet.size:
                    self.charge(2e3)
                    self._reached = max(self._reached, (packet.pos or 0) + packet.size)
                    yield packet

    def packets(self, kind: str) -> Iterator[av.Packet]:
        """The packets of a stream from where the file stands; after a jump of the clock, timestamps go on."""
        parts, unit, byte = [part for part in self.parts if kind in part.byte], self.unit(kind), self._from
        for packet in self.demux(self.streams[kind]):
            if parts:
                byte = packet.pos if packet.pos is not None else byte
                if byte < self._from:
                    continue
                shift = round(max(parts, key=lambda part: part.rank(kind, byte, packet.pts, unit)).shift / unit)
                packet.pts = None if packet.pts is None else packet.pts + shift
                packet.dts = None if packet.dts is None else packet.dts + shift
            yield packet

    def places(self, kind: str, t: float) -> Iterator[bool]:
        """Put the file at the key frame before t, then, if more is asked for, further and further back; True for a seek.

        If the file has no index or a wrong one, or is damaged there, a seek fails or comes out late; some have what the
        decoder must know only in their first packet. At last its beginning (False).
        """
        tries = (4, 16, 64, 256, 1024, 4096)
        if self.format != "mpeg":  # in a program stream the first timestamps after a seek are wrong
            tries = (0, 1, *tries)
        for back in tries:
            if 0 < back > t:
                break
            if self._seek(kind, t - back):
                yield True
        self.open()
        yield False

    def _seek(self, kind: str, t: float) -> bool:
        if self.parts:
            keys = self._survey[2]
            place = bisect_right(keys, (t - (2 if kind != self.main else 0) + EPS, math.inf)) - 1
            if place < 0:
                return False
            self.open()
            self._from = keys[place][1]  # of several formats, packets are passed over until there
            if self.format in ("mpegts", "flv"):
                self._av.seek(self._from, unsupported_byte_offset=True, stream=self.streams[kind])
            return True
        return self._seek_time(kind, t)

    def _seek_time(self, kind: str, t: float) -> bool:
        try:
            self._av.seek(math.floor((t + self._origin + EPS) / self.unit(kind)), stream=self.streams[kind])
        except (av.FFmpegError, OverflowError):
            return False
        return True

    def due(self, kind: str, t: float) -> float:
        """Seconds until which something must have been shown or heard: t, or the start of a stream that starts later"""
        return max(t, self.time(kind, self.streams[kind].start_time or 0))

    # --------------------------------------------------------------------------------------------------------- frames

    def frames(self, kind: str, t: float, late: float = EPS) -> Iterator[tuple]:
        """(seconds, frame) in order of display, from one at most `late` after t, or from the first of all, to the end."""
        for sought in self.places(kind, t):
            frames = self._decode(kind, sought)
            first = next(frames, None)
            if not sought or (first and first[0] <= self.due(kind, t) + late and not first[1].is_corrupt):
                yield from chain([first] if first else [], frames)
                return

    def _decode(self, kind: str, sought: bool) -> Iterator[tuple]:
        """(seconds, frame) from where the file stands to its end; what does not decode is passed over."""
        stream, unit = self.streams[kind], self.unit(kind)
        context, is_video = stream.codec_context, kind == "video"
        # AVI keeps no times of display, and those that FFmpeg makes up are out of order where there are B-frames: there
        # it is the time of the packet that brought the frame out, less the delay of the decoder.
        by_packet = is_video and self.format == "avi"
        following = None if sought else self._origin / unit
        for packet in chain(self.packets(kind), [None]):
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
                    self.charge(frame.width * frame.height)
                    following = stamp + (frame.duration or 1 / (self.rate() * unit))
                else:
                    following = stamp + frame.samples / frame.sample_rate / unit
                yield stamp * unit - self._origin, frame

    def charge(self, work: float) -> None:
        """Count work, in pixels; Unreadable past the most that a call may do"""
        self._work += work
        if self._work > MAX_WORK:
            raise Unreadable(self.path, "too much to decode")

    def allow(self) -> None:
        """Begin to count anew: another call"""
        self._work = 0.0


@lru_cache(4096)
def holds_several(path: str, begin: int, end: int, kind: str, _version: tuple) -> bool:
    """Whether a mov, AVI or WAV ends where its header says, and another one begins there, of which FFmpeg would read nothing.

    Read are the heads of the boxes or chunks that lie one after the other, but not those of a mov in fragments.
    """
    heads = []
    with open(path, "rb") as file:
        while begin + 16 <= end and len(heads) < 1000 and b"moof" not in heads:
            file.seek(begin)
            head = file.read(16)
            if kind == "mov":
                name, length = head[4:8], int.from_bytes(head[8:16] if head[:4] == b"\0\0\0\1" else head[:4], "big")
            else:
                name, length = head[:4] + head[8:12], 8 + int.from_bytes(head[4:8], "little")
                length += length % 2
            heads.append(name)
            if length < 8:  # to the end of the file, or damage
                break
            begin += length
    return any(heads.count(name) > 1 for name in (b"moov", b"RIFFAVI ", b"RIFFWAVE"))


@lru_cache(4096)
def survey(source: tuple, _version: tuple) -> tuple[float, list[Part], list[tuple[float, int]]]:
    """What only the packets of a file tell, without decoding: (duration, parts if its clock jumps, (time, byte) of key frames).

    Read once a process for each version of the file: all packets, or where a format allows it the last ones alone.
    """
    with closing(Container(*source)) as file:
        end, parts, keys = file.scan(at_end=True) if file.format in ENDS else (0.0, [], [])
        if not end or len(parts) > 1:
            end, parts, keys = file.scan()
        if file.format in ("matroska", "flv", "asf") and file.goes_on():
            raise Unreadable(file.path, JOINED)
        return end, parts if len(parts) > 1 else [], keys
