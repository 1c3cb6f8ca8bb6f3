"""Decoded pictures to RGB: turned upright, cut to a box, resized (the crops of Section A.2.1).

    paint = Painter(out, box)        out (T, H, W, 3) uint8
    paint(i, seconds, frame)         -> out[i]
    displayed(frame, stretch)        -> (width, height) in pixels, as players show it
"""

from collections.abc import Callable

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer

Box = tuple[float, float, float, float]  # (left, top, right, bottom) in fractions of the picture as displayed


class Painter:
    """Paints pictures, each of them once however often it is shown.

    A box that is a function is called with width and height as displayed, at the first picture; `asking` meanwhile.
    """

    def __init__(self, out: np.ndarray, box: Box | Callable[[int, int], Box], stretch: float = 1.0):
        self.out, self.box, self.stretch, self.kind, self.drawn, self.asking = out, box, stretch, None, {}, False

    def __call__(self, i: int, time: float, frame: av.VideoFrame):
        if time in self.drawn:
            self.out[i] = self.out[self.drawn[time]]
            return
        if callable(self.box):
            self.asking = True
            self.box = self.box(*displayed(frame, self.stretch))
            self.asking = False
        kind = (frame.width, frame.height, frame.format.name, _turn(frame))
        if kind != self.kind:  # at the first one, and where the film changes
            self.kind, self.graph = kind, _graph(frame, self.box, self.out.shape[1:3])
        self.graph.vpush(frame)
        self.out[i], self.drawn[time] = self.graph.vpull().to_ndarray(), i


def displayed(frame: av.VideoFrame, stretch: float) -> tuple[int, int]:
    """(width, height) in pixels, turned upright, and made square where a pixel is `stretch` times as wide as high"""
    width = max(round(frame.width * stretch), 1) if 0.1 <= stretch <= 10 else frame.width
    return (frame.height, width) if _turn(frame)[1] else (width, frame.height)


def _graph(frame, box, size) -> av.filter.Graph:
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
    # Planes, since swscale has no fast way to rgb24 with these flags; the values are the same.
    steps = [*turn, ("crop", f"{w}:{h}:{x}:{y}:exact=1"), ("scale", scale), ("format", "gbrp"), ("buffersink", None)]
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
