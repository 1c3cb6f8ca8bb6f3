"""Videos that tell what a clip of them holds: each frame shows its number, and no two places of the audio are alike.

    path = write(tmp_path / "a.mkv", frames=100)              4 s at 25 fps, and audio as long
    numbers(media.video(1.0, 8, 10))                          the numbers of the frames
    late(media.audio(1.0, 24000, 48000), 1.0)                 seconds by which the audio comes late; nan where it is none of it
"""

import math
from fractions import Fraction

import av
import numpy as np

WIDTH, HEIGHT, RATE, BITS = 144, 96, 48_000, 12
FPS = 25


def noise(seconds=60):
    """(S,) float32 at 48 kHz of which no two places are alike, up to 4 kHz"""
    x = np.random.default_rng(5).standard_normal(seconds * RATE // 6 + 8)
    t = np.arange(seconds * RATE) / 6
    fine = np.interp(t, np.arange(len(x)), x)
    return (0.2 * np.convolve(fine, np.hanning(9) / np.hanning(9).sum(), "same")).astype(np.float32)


NOISE = noise()


def image(number):
    """(96, 144, 3) uint8: the bits of a number as bars, dark and light"""
    bars = np.repeat([220 if number >> bit & 1 else 35 for bit in range(BITS)], WIDTH // BITS)
    return np.tile(bars[None, :, None], (HEIGHT, 1, 3)).astype(np.uint8)


def numbers(frames):
    """(T, H, W, 3) uint8 -> the number that each frame shows"""
    width = frames.shape[2] / BITS
    rows = frames[:, frames.shape[1] // 2, :, 1]
    return [sum(int(row[int((bit + 0.5) * width)] > 128) << bit for bit in range(BITS)) for row in rows]


def shown(start, frames, fps, times):
    """The numbers of the frames shown at start + i / fps, where frame n begins at times[n]"""
    return [max(0, int(np.searchsorted(times, start + i / fps + 1e-6, "right")) - 1) for i in range(frames)]


def late(wave, start, rate=RATE, within=0.5):
    """Seconds by which audio that begins at `start` comes late; nan where it is not that of this place within half a second"""
    whole = NOISE if rate == RATE else NOISE[:: RATE // rate]
    first = max(0, round((start - within) * rate))
    part = whole[first : round((start + within) * rate) + len(wave)].astype(np.float64)
    size = 1 << math.ceil(math.log2(len(part) + len(wave)))
    products = np.fft.irfft(np.fft.rfft(part, size) * np.conj(np.fft.rfft(wave, size)), size)[: len(part) - len(wave) + 1]
    at = int(np.argmax(products))
    like = part[at : at + len(wave)]
    if products[at] < 0.6 * np.linalg.norm(like) * np.linalg.norm(wave):
        return math.nan
    return start - (first + at) / rate


def write(path, frames=100, times=None, seconds=None, codec="libx264", audio="aac", **more):
    """A video of `frames` coded frames at `times` (25 fps), with `seconds` of audio (as long as the video).

    more: `at`, where the audio begins; `lost`, numbers of audio packets that are missing, whose time stays; `jitter(k)`, added
    to the time of audio packet k; `first`, number of the first frame, whose place in the noise goes with it; `options` of the
    video encoder, `muxer`, `format`, `gop`, `rate`, `time_base`.
    """
    times = [n / FPS for n in range(frames)] if times is None else times
    unit, rate = more.get("time_base", Fraction(1, 90_000)), more.get("rate", RATE)
    with av.open(str(path), "w", format=more.get("format"), options=more.get("muxer", {})) as out:
        packets = []
        if frames:
            video = out.add_stream(codec, rate=FPS, options=more.get("options", {"bf": "2"} if codec == "libx264" else {}))
            video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            video.codec_context.gop_size, video.codec_context.time_base = more.get("gop", 20), unit
            if codec != "libx264":
                video.bit_rate = 2_000_000
        if audio:
            sound = out.add_stream(audio, rate=rate, layout="mono")
        for n, t in enumerate(times[:frames]):
            frame = av.VideoFrame.from_ndarray(image(more.get("first", 0) + n), "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(t / unit), unit
            packets += video.encode(frame)
        if frames:
            packets += video.encode(None)
        if audio:
            packets += _audio(sound, frames / FPS if seconds is None else seconds, more)
        for packet in sorted(packets, key=lambda p: (p.dts if p.dts is not None else p.pts) * p.time_base):
            out.mux(packet)
    return path


def _audio(stream, seconds, more):
    """The packets of the noise of an interval"""
    at, jitter = more.get("at", 0.0), more.get("jitter")
    begin = round((more.get("first", 0) / FPS + at) * RATE)
    block = av.AudioFrame.from_ndarray(NOISE[None, begin : begin + round(seconds * RATE)], "fltp", "mono")
    block.sample_rate, block.pts, block.time_base = RATE, 0, Fraction(1, RATE)
    size = stream.codec_context.frame_size or 1000
    resampler = av.AudioResampler(stream.codec_context.format.name, "mono", stream.rate, frame_size=size)
    encoded = []
    for part in [*resampler.resample(block), *resampler.resample(None), None]:
        if part is not None:
            part.pts += round(at * stream.rate)
        encoded += stream.encode(part)
    for k, packet in enumerate(encoded):
        if jitter:
            shift = round(jitter(k) / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
    return [packet for k, packet in enumerate(encoded) if k not in more.get("lost", ())]
