"""Small real films for the tests, encoded when a test asks for them."""

from pathlib import Path

import av
import numpy as np

from media.encode import Encoder

TINY = ["--frames", "4", "--size", "16", "--patch", "2", "8", "8", "--rate", "8000", "--batch", "4", "--warmup", "1",
        "--steps", "6", "--save-every", "2", "--eval-every", "4", "--cache", "0"]  # fmt: skip


def film(path: Path, seconds: float = 1.5, sound: bool = True, seed: int = 0) -> Path:
    """A 32 x 24 film at 10 fps of a changing grey, with a tone at 8 kHz"""
    rng = np.random.default_rng(seed)
    grey, hertz = rng.integers(0, 200), rng.integers(200, 900)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Encoder(path, 10, 8000 if sound else 0) as out:
        for i in range(round(seconds * 10)):
            frame = np.full((24, 32, 3), (grey + 5 * i) % 256, np.uint8)
            frame[:, : 8 + seed % 16] //= 2
            out.frame(frame)
        if sound:
            out.audio(0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * 8000)) / 8000)[None])
    return path


def folder(root: Path, films: int = 8, silent: int = 0, captioned: int | None = None) -> Path:
    """A folder of films 00.mp4, 01.mp4, ...; the last `silent` have no sound, the first `captioned` have subtitles"""
    for i in range(films):
        film(root / f"{i:02d}.mp4", sound=i < films - silent, seed=i)
        if i < (films if captioned is None else captioned):
            (root / f"{i:02d}.csv").write_text(f"start,end,text\n0,0.5,film number{i} begins\n0.8,1.4,number{i} goes on\n")
    return root


def captioned(path: Path, text: str) -> Path:
    """A film in Matroska with a stream of captions: `text` is an srt"""
    video, said = film(path.with_suffix(".tmp.mp4")), path.with_suffix(".tmp")
    said.write_text(text)
    with av.open(str(video)) as one, av.open(str(said), format="srt") as other, av.open(str(path), "w") as out:
        for source, stream in [(source, out.add_stream_from_template(source.streams[0])) for source in (one, other)]:
            for packet in source.demux(source.streams[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
    video.unlink()
    said.unlink()
    return path


def image(path: Path, picture: np.ndarray) -> Path:
    """A PNG of a picture (H, W, 3) uint8"""
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", 1)
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    return path
