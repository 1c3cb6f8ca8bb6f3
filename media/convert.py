"""Decoded frames to RGB, upright, cut and resized (the crops of Section A.2.1); decoded audio to one channel at one rate."""

from collections.abc import Callable

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer

Box = tuple[float, float, float, float]  # (left, top, right, bottom) in fractions of the frame as displayed
Size = tuple[int, int]                   # (height, width) in pixels
# A box or a size may also be a function of the frame's width and height in pixels as displayed.
BoxOf, SizeOf = Box | Callable[[int, int], Box], Size | Callable[[int, int], Size]
MARGIN = 0.05                            # seconds of audio kept on both sides of an interval
STEP = 5e-4                              # seconds by which audio may come early or late before it is moved to its place
AHEAD = 16                               # blocks that must all say so


class FrameConverter:
    """Converts decoded frames to (H, W, 3) uint8 of `size` = (H, W), the one of a time once.

    A function for the box or the size is called with width and height as displayed, at the first frame; `asking` meanwhile.
    `stretch`: how many times as wide as high a pixel is.
    """

    def __init__(self, box: BoxOf, size: SizeOf, stretch: float = 1.0, path: str = ""):
        self.box, self.size, self.stretch, self.path, self.asking = box, size, stretch, path, False
        self.time = self.image = self.kind = self.graph = None

    def __call__(self, time: float, frame: av.VideoFrame) -> np.ndarray:
        if time != self.time:
            kind = (frame.width, frame.height, frame.format.name, _turn(frame))
            if kind != self.kind:  # at the first one, and where the video changes
                self._choose(frame)
                self.kind, self.graph = kind, _graph(frame, self.box, self.size)
            self.graph.vpush(frame)
            self.time, self.image = time, self.graph.vpull().to_ndarray()
        return self.image

    def _choose(self, frame: av.VideoFrame) -> None:
        self.asking, shape = True, displayed(frame, self.stretch)
        self.box, self.size = (given(*shape) if callable(given) else given for given in (self.box, self.size))
        left, top, right, bottom = self.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"{self.path!r}: a box has 0 <= left < right <= 1 and 0 <= top < bottom <= 1, not {self.box}")
        if min(self.size) < 1:
            raise ValueError(f"{self.path!r}: a size has a height and a width of at least 1, not {self.size}")
        self.asking = False


def displayed(frame: av.VideoFrame, stretch: float) -> tuple[int, int]:
    """(width, height) in pixels, turned upright, and made square where a pixel is `stretch` times as wide as high"""
    width = max(round(frame.width * stretch), 1) if 0.1 <= stretch <= 10 else frame.width
    return (frame.height, width) if _turn(frame)[1] else (width, frame.height)


def _graph(frame, box, size) -> av.filter.Graph:
    """Filters that turn a frame upright, cut it, resize it, and make it RGB."""
    turn, across = _turn(frame)
    width, height = (frame.height, frame.width) if across else (frame.width, frame.height)
    x, y = int(box[0] * width) // 2 * 2, int(box[1] * height) // 2 * 2  # even: colour may have half the resolution
    w, h = max(round(box[2] * width) - x, 1), max(round(box[3] * height) - y, 1)
    graph = av.filter.Graph()
    graph.threads = 1
    given = {"video_size": f"{frame.width}x{frame.height}", "pix_fmt": frame.format.name, "time_base": "1/1000"}
    # Ours: swscale's bilinear, with antialiasing, while decoding (official: without, on stored, already small frames).
    scale = f"{size[1]}:{size[0]}:flags=bilinear+full_chroma_int+full_chroma_inp+accurate_rnd"
    # Planes, since swscale has no fast way to rgb24 with these flags; the values are the same.
    steps = [*turn, ("crop", f"{w}:{h}:{x}:{y}:exact=1"), ("scale", scale), ("format", "gbrp"), ("buffersink", None)]
    graph.link_nodes(graph.add("buffer", **given), *(graph.add(name, how) for name, how in steps)).configure()
    return graph


def _turn(frame) -> tuple[tuple, bool]:
    """The filters that turn a frame upright, and whether width and height change places (its display matrix)."""
    try:
        # Not frame.side_data: that would be a cycle, and megabytes of frames would wait for the garbage collector.
        matrix = SideDataContainer(frame).get("DISPLAYMATRIX")
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist() if matrix else (1, 0, 0, 0, 1)
    except ValueError:  # other side data that PyAV 18 does not know; the angle alone can be had
        a, b, c, d = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))[round(frame.rotation / 90) % 4]
    if abs(b) > abs(a):
        way = {(1, 1): "cclock_flip", (1, 0): "clock", (0, 1): "cclock", (0, 0): "clock_flip"}[b > 0, c > 0]
        return (("transpose", way),), True
    return tuple((name, None) for name, on in (("hflip", a < 0), ("vflip", d < 0)) if on), False


class AudioAssembler:
    """Puts blocks of decoded audio in their places of an interval: `samples` at `rate` Hz from `start` seconds on.

    The samples of blocks follow each other even where timestamps are rounded to `unit` seconds, or jitter; but where all that
    come next are early or late, there is a gap or a repetition, and timestamps are believed. `uneven`: blocks are of several
    lengths, and where those change, timestamps are off by the difference.
    """

    def __init__(self, start: float, samples: int, rate: int, unit: float, uneven: bool = False):
        self.start, self.rate, self.unit, self.uneven, self.out = start, rate, unit, uneven, np.zeros(samples, np.float32)
        self.blocks: list[tuple[float, av.AudioFrame]] = []
        self.heard = False

    def add(self, time: float, block: av.AudioFrame) -> bool:
        """Take a block that begins at `time`; False once they are past the end of the interval."""
        if block.sample_rate < 1000:  # a lie that would make a few samples hours
            return True
        self.heard = True
        if time > self.start + len(self.out) / self.rate + MARGIN:
            return False
        if time + block.samples / block.sample_rate >= self.start - MARGIN:
            self.blocks.append((time, block))
        return True

    def wave(self) -> np.ndarray:
        """The interval, (samples,) float32 in [-1, 1]: 0 where nothing was heard."""
        for run, at in self._runs():
            self._lay(run, at)
        return np.clip(np.nan_to_num(self.out, posinf=1.0, neginf=-1.0), -1.0, 1.0)

    def _runs(self) -> list[tuple[list[av.AudioFrame], float]]:
        """The blocks, cut where there is a gap or the format changes: (blocks that follow each other, seconds of the first)."""
        blocks = [block for _, block in self.blocks]
        lengths = [block.samples / block.sample_rate for block in blocks]
        elapsed = np.cumsum([0.0, *lengths])[:-1]
        late = np.array([time for time, _ in self.blocks]) - elapsed
        back = -np.minimum(np.diff(late), 0)  # timestamps that are only rounded go back by less than a unit
        jitter = float(np.quantile(back, 0.9)) if len(back) else 0.0
        uneven = max(lengths) - min(lengths) if self.uneven and lengths else 0.0
        most = uneven + max(self.unit, STEP) + 1e-4 + 2 * max(0.0, jitter - self.unit)
        runs, first, level, near = [], 0, 0.0, []
        for k, block in enumerate(blocks):
            off = late[k] - level
            if near and (_format(block) != _format(blocks[first]) or
                         (abs(off) > most and np.min(np.sign(off) * (late[k:k + AHEAD] - level)) > most)):
                runs.append((blocks[first:k], float(np.median(near)) + elapsed[first]))
                first, near = k, []
            if not near or abs(off) <= most:
                near.append(late[k])
                level = late[k] if len(near) == 1 else level + off / len(near)
        if blocks:
            runs.append((blocks[first:], float(np.median(near)) + elapsed[first]))
        return runs

    def _lay(self, run: list[av.AudioFrame], at: float) -> None:
        """Mix blocks to one channel at the rate, and fill their place."""
        # Loud channels together are scaled to stay within 1, as a mix in integers is, not cut off.
        resampler = av.AudioResampler("flt", "mono", self.rate, options={"rematrix_maxval": "1.0"})
        mixed = [part for block in [*run, None] for part in resampler.resample(block) if part is not None]
        wave = np.concatenate([np.frombuffer(part.planes[0], np.float32, part.samples) for part in mixed])
        begin = round((at - self.start) * self.rate)
        wave, begin = wave[max(-begin, 0):], max(begin, 0)
        wave = wave[:max(len(self.out) - begin, 0)]
        self.out[begin:begin + len(wave)] = wave


def _format(block: av.AudioFrame) -> tuple:
    return block.format.name, block.layout.name, block.sample_rate
