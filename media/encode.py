"""RGB frames and a waveform to an mp4 of H.264 and AAC: the one writer of the demo, of shards, of benchmarks and of tests."""

import os
from fractions import Fraction

import av
import numpy as np

BT601 = 6  # its number in H.264, for matrix, primaries and transfer


class Encoder:
    """Writes an mp4; for use in a `with`.

        with Encoder(path, fps, rate, x264={"crf": "23"}) as out:
            out.frame(image)      (H, W, 3) uint8, the next one; the first says how large they all are
            out.audio(wave)       (C, S) float32 in [-1, 1], the next samples at `rate` Hz, if there is a rate

    `x264` and `aac` are options of the encoders, as FFmpeg names them. With `exact`, colours are kept as well as 8 bits can,
    the file names its colour space, and the same input gives the same bytes. Raises av.FFmpegError.
    """

    def __init__(self, path: str | os.PathLike, fps: float, rate: int = 0, *, layout: str = "mono",
                 x264: dict[str, str] | None = None, aac: dict[str, str] | None = None, exact: bool = False):
        self.fps, self.rate, self.layout, self.exact = Fraction(fps).limit_denominator(1001), rate, layout, exact
        self.x264, self.aac = {"threads": "1", **(x264 or {})}, dict(aac or {})
        muxer = {}
        if exact:
            muxer = {"movflags": "+faststart", "fflags": "+bitexact"}
            # without mbtree: its vector code reads what it never wrote, and the same video gives other bytes now and then
            self.x264 |= {"mbtree": "0", "flags": "+bitexact"}
            self.aac |= {"flags": "+bitexact"}
        self.frames = self.samples = 0
        self._video = self._audio = self._to_yuv = None
        self._out = av.open(os.fspath(path), "w", options=muxer)

    def frame(self, image: np.ndarray) -> None:
        """Encode the next frame."""
        if self._video is None:
            self._add_streams(*image.shape[:2])
        frame = av.VideoFrame.from_ndarray(image, "rgb24")
        frame.pts, frame.time_base = self.frames, 1 / self.fps
        if self._to_yuv:
            self._to_yuv.vpush(frame)
            frame = self._to_yuv.vpull()
        self._out.mux(self._video.encode(frame))
        self.frames += 1

    def audio(self, wave: np.ndarray) -> None:
        """Encode the samples that follow."""
        block = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave, np.float32), "fltp", self.layout)
        # Without a time of their own the encoder's 1024 samples of run-up would be heard: 64 ms late at 16 kHz.
        block.sample_rate, block.pts, block.time_base = self.rate, self.samples, Fraction(1, self.rate)
        self._out.mux(self._audio.encode(block))
        self.samples += wave.shape[1]

    def __enter__(self) -> "Encoder":
        return self

    def __exit__(self, kind, *_) -> None:
        with self._out:
            for stream in () if kind else self._out.streams:
                self._out.mux(stream.encode(None))

    def _add_streams(self, height: int, width: int) -> None:
        self._video = self._out.add_stream("libx264", rate=self.fps, options=self.x264)
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        self._video.codec_context.thread_count = 1
        if self.exact:
            context = self._video.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT601
            context.color_range = 1  # 16 to 235
            # RGB to what H.264 keeps, with a colour space that the file names: swscale's defaults would shift the colours.
            graph = self._to_yuv = av.filter.Graph()
            graph.threads = 1
            given = {"video_size": f"{width}x{height}", "pix_fmt": "rgb24", "time_base": str(1 / self.fps)}
            scale = "out_color_matrix=bt601:out_range=tv:flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp"
            graph.link_nodes(graph.add("buffer", **given), graph.add("scale", scale), graph.add("format", "yuv420p"),
                             graph.add("buffersink")).configure()
        if self.rate:
            self._audio = self._out.add_stream("aac", rate=self.rate, layout=self.layout, options=self.aac)
