"""Decoded frames to RGB, upright, cut and resized (the crops of Section A.2.1); decoded audio to one channel at one rate."""

import contextlib
from collections.abc import Callable, Iterator

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


def shorter_side(size: int) -> Callable[[int, int], Size]:
    """A function (width, height) -> the shape with a shorter side of `size` pixels, and another of at most eight times that"""
    return lambda width, height: tuple(
        min(max(size, round(x * (size / min(width, height)))), 8 * size) for x in (height, width))


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


def assemble(blocks: Iterator[tuple[float, av.AudioFrame]], start: float, samples: int, rate: int, unit: float,
             uneven: bool) -> np.ndarray | None:
    """Blocks (seconds, samples) in their places: the audio at `rate` Hz from `start` on, (samples,) float32 in [-1, 1].

    0 where there is none; None where no block holds any. `unit`, `uneven`: see `_runs`.
    """
    kept, heard, out = [], False, np.zeros(samples, np.float32)
    for time, block in blocks:
        if block.sample_rate < 1000:  # a lie that would make a few samples hours
            continue
        heard = True
        if time > start + samples / rate + MARGIN:
            break
        if time + block.samples / block.sample_rate >= start - MARGIN:
            kept.append((time, block))
    for run, at in _runs(kept, unit, uneven):
        wave = np.concatenate([np.frombuffer(part.planes[0], np.float32, part.samples) for part in _mixed(run, rate)])
        begin = round((at - start) * rate)
        wave, begin = wave[max(-begin, 0):], max(begin, 0)
        wave = wave[:max(samples - begin, 0)]
        out[begin:begin + len(wave)] = wave
    return np.clip(np.nan_to_num(out, posinf=1.0, neginf=-1.0), -1.0, 1.0) if heard else None


def _mixed(run: list[av.AudioFrame], rate: int) -> Iterator[av.AudioFrame]:
    """Blocks of one format that follow each other, as float32 of one channel at `rate` Hz"""
    if _format(run[0]) == ("flt", "mono", rate):
        yield from run
        return
    # Not av.AudioResampler: its graph has threads, and a forked process that collects it as garbage waits for them for ever.
    graph = av.filter.Graph()
    graph.threads = 1
    source = {"sample_rate": str(run[0].sample_rate), "sample_fmt": run[0].format.name, "channel_layout": run[0].layout.name}
    if run[0].time_base is not None:
        source["time_base"] = str(run[0].time_base)
    # Loud channels together are scaled to stay within 1, as a mix in integers is, not cut off.
    graph.link_nodes(graph.add("abuffer", **source), graph.add("aresample", rematrix_maxval="1.0"),
                     graph.add("aformat", sample_rates=str(rate), sample_fmts="flt", channel_layouts="mono"),
                     graph.add("abuffersink")).configure()
    for block in [*run, None]:
        graph.push(block)
        with contextlib.suppress(av.BlockingIOError, av.EOFError):
            while True:
                yield graph.pull()


def _runs(timed: list[tuple[float, av.AudioFrame]], unit: float, uneven: bool) -> Iterator[tuple[list[av.AudioFrame], float]]:
    """Blocks cut where there is a gap or the format changes: (blocks that follow each other, seconds of the first).

    Their samples follow each other even where timestamps are rounded to `unit` seconds, or jitter; but where all that come
    next are early or late, there is a gap or a repetition, and timestamps are believed. `uneven`: blocks are of several
    lengths, and where those change, timestamps are off by the difference.
    """
    if not timed:
        return
    blocks = [block for _, block in timed]
    lengths = [block.samples / block.sample_rate for block in blocks]
    elapsed = np.cumsum([0.0, *lengths])[:-1]
    late = np.array([time for time, _ in timed]) - elapsed
    back = -np.minimum(np.diff(late), 0)  # timestamps that are only rounded go back by less than a unit
    jitter = float(np.quantile(back, 0.9)) if len(back) else 0.0
    most = (max(lengths) - min(lengths)) * uneven + max(unit, STEP) + 1e-4 + 2 * max(0.0, jitter - unit)
    first, level, near = 0, 0.0, []
    for k, block in enumerate(blocks):
        off = late[k] - level
        if near and (_format(block) != _format(blocks[first]) or
                     (abs(off) > most and np.min(np.sign(off) * (late[k:k + AHEAD] - level)) > most)):
            yield blocks[first:k], float(np.median(near)) + elapsed[first]
            first, near = k, []
        if not near or abs(off) <= most:
            near.append(late[k])
            level = late[k] if len(near) == 1 else level + off / len(near)
    yield blocks[first:], float(np.median(near)) + elapsed[first]


def _format(block: av.AudioFrame) -> tuple:
    return block.format.name, block.layout.name, block.sample_rate
