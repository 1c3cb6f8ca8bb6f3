"""Which pictures and which sound an interval holds (decode.py), on films made here, whose truth is therefore known.

Each picture tells its number in six bars, dark and light; the sound is a sine of 100 Hz, so that a shift of 1 ms shows.
"""

import http.server
import os
import pickle
import resource
import threading
from fractions import Fraction

import av
import numpy as np
import pytest

from media import Media, Unreadable, convert, decode
from media import container as containers

FPS = 25


def numbered(i):
    """A picture of 48 x 60 pixels whose six bars, dark and light, are the bits of i < 64"""
    bars = np.repeat([200 if i >> bit & 1 else 40 for bit in range(6)], 10)
    return np.tile(bars[None, :, None], (48, 1, 3)).astype(np.uint8)


def numbers(pictures):
    """The number that each picture tells: (T, H, W, 3) -> a list of T"""
    bars = [np.array_split(p.mean((0, 2)), 6) for p in pictures]
    return [sum(int(np.median(bar) > 120) << bit for bit, bar in enumerate(p)) for p in bars]


def film(path, pictures, fps=FPS, codec="libx264", pixels="yuv420p", times=None, options=None, muxer=None, tone=None,
         **more):
    """Encodes pictures (H, W, 3), or frames, at `times` in ms or at `fps`; tone: (start, end) of the sine in seconds"""
    with av.open(str(path), "w", options=muxer or {}) as container:
        video = container.add_stream(codec, rate=fps, options=options or {})
        if not isinstance(pictures[0], av.VideoFrame):
            pictures = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures]
        video.height, video.width, video.pix_fmt = pictures[0].height, pictures[0].width, pixels
        for name, value in more.items():
            getattr(video, name)(value) if name.startswith("set_") else setattr(video.codec_context, name, value)
        if times is not None:
            video.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac", rate=44100, layout="stereo") if tone else None
        for i, frame in enumerate(pictures):
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if tone:
            first, last = (round(t * 44100) for t in tone)
            for i in range(first, last, 1024):
                container.mux(audio.encode(block(sine(np.arange(i, min(i + 1024, last)) / 44100, 2), 44100, "fltp", i)))
            container.mux(audio.encode(None))
    return path


def sine(t, channels=1):
    return np.tile(0.5 * np.sin(2 * np.pi * 100 * t), (channels, 1)).astype(np.float32)


def block(wave, rate, form, pts=None, layout=None):
    """(C, S) in [-1, 1] -> a block of sound in a sample format"""
    kind = {"u8": np.uint8, "s1": np.int16, "s3": np.int32, "fl": np.float32, "db": np.float64}[form[:2]]
    if kind is np.uint8:
        wave = wave * 127 + 128
    elif kind in (np.int16, np.int32):
        wave = wave.astype(np.float64) * np.iinfo(kind).max
    wave = wave.astype(kind) if form.endswith("p") else wave.T.reshape(1, -1).astype(kind)
    layout = layout or {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[wave.shape[0] if form.endswith("p") else 2]
    out = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), format=form, layout=layout)
    out.sample_rate, out.pts = rate, pts
    return out


def sound(path, wave, rate, codec, form, layout):
    """Writes (C, S) in [-1, 1] to a file of sound alone"""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        size = stream.codec_context.frame_size or 1000
        for i in range(0, wave.shape[1], size):
            container.mux(stream.encode(block(wave[:, i:i + size], rate, form, i, layout)))
        container.mux(stream.encode(None))
    return path


def reason(path, action=lambda media: media.video(0, 2, 10)):
    with pytest.raises(Unreadable) as caught, Media(path) as media:
        action(media)
    assert os.path.basename(path) in str(caught.value)
    return caught.value.reason


# ------------------------------------------------------------------------------------------------------------- pictures

B_FRAMES = {"x264-params": "bframes=3:b-pyramid=normal:keyint=20:scenecut=0"}
OPEN_GROUPS = {"x264-params": "bframes=3:keyint=20:min-keyint=20:open-gop=1:scenecut=0"}
FILMS = {
    "a.mp4": {"options": B_FRAMES}, "b.mkv": {"options": OPEN_GROUPS}, "c.ts": {"options": OPEN_GROUPS},
    "d.flv": {"options": B_FRAMES}, "e.h264": {"options": B_FRAMES}, "one_key.mov": {"options": {"g": "999"}},
    "f.mpg": {"codec": "mpeg1video", "max_b_frames": 2, "gop_size": 5},
    "h.avi": {"codec": "mpeg4", "max_b_frames": 2},
    "h264.avi": {"options": B_FRAMES}, "i.webm": {"codec": "libvpx"},
    "no_index.mkv": {"options": B_FRAMES, "muxer": {"live": "1"}},
}


@pytest.mark.parametrize("name", FILMS)
def test_wherever_a_clip_starts_its_pictures_are_those_of_its_times(tmp_path, name):
    path = film(tmp_path / name, [numbered(i) for i in range(60)], **FILMS[name])
    with Media(path) as media:
        for start in (1.97, 0.0, 0.52, 1.01, 1.99, 1.4, 0.3, 0.839, 2.2):
            times = start + np.arange(8) * 0.03
            got = numbers(media.video(start, 8, 1 / 0.03, size=(8, 12)))
            for t, i in zip(times, got, strict=True):
                assert i in {int((t + e) * FPS + 1e-6) % 60 for e in (-0.001, 0, 0.001)} or t > 2.39


def test_pictures_are_chosen_by_their_times_not_by_their_number(tmp_path):
    times = np.cumsum(np.random.default_rng(0).integers(10, 200, 40)) - 10
    times -= times[0]
    path = film(tmp_path / "a.mkv", [numbered(i) for i in range(40)], times=times.tolist(), options={"g": "10"})
    with Media(path) as media:
        for start in (0.0, 1.5, 0.701):
            got = numbers(media.video(start, 20, 10, size=(8, 12)))
            assert got == [int(np.searchsorted(times, round((start + i / 10) * 1000), "right")) - 1 for i in range(20)]


def test_a_clip_that_runs_past_the_end_goes_on_from_the_beginning(tmp_path):
    path = film(tmp_path / "a.mp4", [numbered(i) for i in range(10)], fps=10)
    with Media(path) as media:
        assert numbers(media.video(0.7, 26, 10)) == [7, 8, 9, *range(10), *range(10), 0, 1, 2]
        assert numbers(media.video(0.0, 6, 2)) == [0, 5, 0, 5, 0, 5]


def doubted(*_):
    """Nothing is told by packets: all frames are decoded"""
    raise decode.Doubt
    yield


def test_a_film_of_one_picture_shows_it_throughout(tmp_path):
    for name in ("a.mp4", "a.flv", "a.h264", "a.mkv"):
        with Media(film(tmp_path / name, [numbered(9)], muxer={"live": "1"} if name == "a.mkv" else {})) as media:
            assert numbers(media.video(0, 5, 10)) == [9] * 5
            (_, frame), = media.file.frames("video", 0.0)
            frame.duration = 0  # as where neither file nor FFmpeg knows
            media._selected = doubted
            media.file.frames = lambda *_, frame=frame: iter([(0.0, frame)])
            assert numbers(media.video(0, 5, 10)) == [9] * 5


def test_a_start_past_the_end_is_told(tmp_path):
    path = film(tmp_path / "a.mp4", [numbered(i) for i in range(10)])
    assert reason(path, lambda media: media.video(0.41, 2, 10)) == "start past the end"


@pytest.mark.parametrize("name", ["a.mkv", "a.ts", "a.mp4"])
def test_the_first_timestamp_of_a_file_is_time_0(tmp_path, name):
    path = film(tmp_path / name, [numbered(i) for i in range(50)], times=[10_000 + 40 * i for i in range(50)])
    with Media(path) as media:
        assert media.duration == pytest.approx(2.0, abs=0.03)
        assert numbers(media.video(0.5, 4, 10)) == [12, 15, 17, 20]


def test_each_picture_is_converted_once_however_often_it_is_shown(tmp_path, monkeypatch):
    path, converted = film(tmp_path / "a.mp4", [numbered(i) for i in range(10)]), []
    real = convert._graph

    class Counting:
        def __init__(self, *given):
            self.graph = real(*given)

        def vpush(self, frame):
            converted.append(frame.pts)
            self.graph.vpush(frame)

        def vpull(self):
            return self.graph.vpull()

    monkeypatch.setattr(convert, "_graph", Counting)
    with Media(path) as media:
        assert numbers(media.video(0, 40, 50)) == [i // 2 % 10 for i in range(40)]
    assert len(converted) == len(set(converted)) == 10


def test_pictures_that_go_back_in_time_are_passed_over(tmp_path):
    with Media(film(tmp_path / "a.mp4", [numbered(i) for i in range(4)])) as media:
        frames = [frame for _, frame in media.file.frames("video", 0.0)]
        media._selected = doubted
        media.file.frames = lambda *_: iter(zip((0.0, 0.4, 0.2, 0.8), frames, strict=True))
        assert numbers(media.video(0, 12, 10)) == [0] * 4 + [1] * 4 + [3] * 4


def test_packets_that_hold_nothing_are_passed_over(tmp_path):
    class Gappy:
        def __init__(self, container):
            self.real = container

        def __getattr__(self, name):
            return getattr(self.real, name)

        def demux(self, *streams):
            for packet in self.real.demux(*streams):
                yield packet
                yield av.Packet()

    with Media(film(tmp_path / "a.mp4", [numbered(i) for i in range(20)])) as media:
        media.file._av = Gappy(media.file._av)
        assert numbers(media.video(0, 6, 10)) == [0, 2, 5, 7, 10, 12]


# ----------------------------------------------------------------------------------------------------- shape and colour


def quadrants(height=48, width=64):
    """Red, green / blue, white"""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:height // 2, :, 0] = picture[:, width // 2:, 1] = picture[height // 2:, :, 2] = 255
    picture[:height // 2, width // 2:, 0] = picture[height // 2:, :width // 2, 1] = 0
    picture[height // 2:, width // 2:] = 255
    return picture


@pytest.mark.parametrize(("degrees", "mirror"), [(90, 0), (180, 0), (270, 0), (0, 1), (90, 1)])
def test_a_film_is_turned_as_players_turn_it(tmp_path, degrees, mirror):
    corner = 65536 * np.array([[np.cos(np.radians(degrees)), -np.sin(np.radians(degrees))],
                               [np.sin(np.radians(degrees)), np.cos(np.radians(degrees))]])
    corner = np.rint(corner * ([[-1, 1]] if mirror else 1)).astype(int)
    matrix = [*corner[0], 0, *corner[1], 0, 0, 0, 1 << 30]
    path = film(tmp_path / "a.mp4", [quadrants()] * 3, set_display_matrix=[int(m) for m in matrix])
    # the matrix says where each point (x, y), y downwards, comes to lie: (x, y) @ corner
    shown = quadrants()[8::32, 8::48]                                            # (2, 2, 3): the four colours
    want = np.zeros_like(shown)
    for y in (0, 1):
        for x in (0, 1):
            to = np.array([x - 0.5, y - 0.5]) @ corner / 65536 + 0.5
            want[round(to[1]), round(to[0])] = shown[y, x]
    with Media(path) as media:
        assert (media.width, media.height) == ((48, 64) if degrees % 180 else (64, 48))
        got = media.video(0, 1, 10, size=(2, 2))[0]
        assert np.abs(got.astype(int) - want).max() < 80
        left = media.video(0, 1, 10, (0.1, 0.1, 0.4, 0.4), (2, 2))[0]  # the box is of the picture as displayed
        assert np.abs(left.astype(int) - want[0, 0]).max() < 40


def test_pixels_that_are_not_square_are_counted_as_displayed(tmp_path):
    path = film(tmp_path / "a.mp4", [numbered(0)] * 2, sample_aspect_ratio=Fraction(3, 2))
    with Media(path) as media:
        assert (media.width, media.height) == (90, 48)


def yuv(height, width, pixels):
    """A frame whose brightness rises to the right and downwards, of one tint; and what it is in RGB (BT.601)"""
    frame = av.VideoFrame(width, height, pixels)
    luma = 60 + 60 * np.arange(width)[None] // width + 60 * np.arange(height)[:, None] // height
    ten = "10" in pixels
    for plane, values in zip(frame.planes, (luma, np.full((1, 1), 110), np.full((1, 1), 150)), strict=False):
        rows = np.zeros((plane.height, plane.line_size // (1 + ten)), "<u2" if ten else "u1")
        rows[:, :plane.width] = values << 2 * ten
        plane.update(rows.tobytes())
    if pixels == "gray":
        return frame, luma[..., None].repeat(3, -1)
    u, v = -18 * 255 / 224, 22 * 255 / 224
    return frame, (luma[..., None] - 16) * 255 / 219 + np.array([1.402 * v, -0.344 * u - 0.714 * v, 1.772 * u])


SIZES = [(48, 64), (33, 17), (1, 1), (5, 321)]
FORMATS = ["yuv444p", "yuv420p", "yuv422p", "yuv444p10le", "yuv420p10le", "gray"]
CASES = [(112, 3, "yuv444p"), *((height, width, pixels) for height, width in SIZES for pixels in FORMATS)]


@pytest.mark.parametrize(("height", "width", "pixels"), CASES)
def test_no_size_or_pixel_format_shears_the_picture_or_changes_its_colour(tmp_path, height, width, pixels):
    frame, want = yuv(height, width, pixels)
    with Media(film(tmp_path / "a.mkv", [frame], codec="ffv1", pixels=pixels)) as media:
        assert (media.width, media.height) == (width, height)
        assert np.abs(media.video(0, 1, 10, size=(height, width))[0] - want).max() < 2
        if min(height, width) > 16:
            x, y, w, h = width // 4 // 2 * 2, height // 4 // 2 * 2, width // 2, height // 2
            # A box that would start at an odd pixel starts at the even one before, where colour is stored too.
            box = ((x + 1.01) / width, (y + 1.01) / height, (x + w) / width, (y + h) / height)
            assert np.abs(media.video(0, 1, 10, box, (h, w))[0] - want[y:y + h, x:x + w]).max() < 2
        assert media.video(0, 1, 10, size=(224, 224)).shape == (1, 224, 224, 3)


@pytest.mark.parametrize(("matrix", "wide"), [(1, 0), (6, 0), (6, 1), (9, 0)])
def test_colour_matrix_and_range_are_those_of_the_file(tmp_path, matrix, wide):
    frame, _ = yuv(16, 16, "yuv444p")
    path = film(tmp_path / "a.mkv", [frame], codec="ffv1", pixels="yuv444p", colorspace=matrix, color_range=1 + wide)
    kr = {1: 0.2126, 6: 0.299, 9: 0.2627}[matrix]
    luma = 60 + 2 * (60 * 15 // 16)
    want = luma + 2 * (1 - kr) * 22 if wide else (luma - 16) * 255 / 219 + 2 * (1 - kr) * 22 * 255 / 224
    with Media(path) as media:
        assert media.video(0, 1, 10, size=(16, 16))[0, 15, 15, 0] == pytest.approx(want, abs=1)


def test_resizing_is_bilinear_with_antialiasing(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)

    def weights(n, m):  # (m, n): a triangle over the pixels under each new one
        centre = (np.arange(m) + 0.5) * n / m - 0.5
        w = np.maximum(1 - np.abs(np.arange(n) - centre[:, None]) / max(n / m, 1), 0)
        return w / w.sum(1, keepdims=True)

    with Media(film(tmp_path / "a.mkv", [picture], codec="ffv1", pixels="bgr0")) as media:
        for h, w in ((16, 16), (20, 30), (96, 128)):
            want = np.einsum("yh,hwc,xw->yxc", weights(48, h), picture, weights(64, w))
            assert np.abs(media.video(0, 1, 10, size=(h, w))[0] - want)[2:-2, 2:-2].max() < 1.5


def test_a_film_that_changes_its_size_on_the_way_is_read_on(tmp_path):
    for name, first, size in (("1.h264", 0, 1), ("2.h264", 10, 2)):
        film(tmp_path / name, [numbered(i).repeat(size, 0).repeat(size, 1) for i in range(first, first + 10)])
    both = tmp_path / "a.h264"
    both.write_bytes((tmp_path / "1.h264").read_bytes() + (tmp_path / "2.h264").read_bytes())
    with Media(both) as media:
        assert numbers(media.video(0, 20, FPS, size=(8, 12))) == list(range(20))


def test_a_picture_of_its_own_is_a_film_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "MAX_MOVING", 48 * 64 - 1)  # of which no decoder holds sixteen
    for name, codec, pixels in (("a.png", "png", "rgb24"), ("100%d.jpg", "mjpeg", "yuvj444p")):
        context = av.CodecContext.create(codec, "w")
        context.height, context.width, context.pix_fmt, context.time_base = 48, 64, pixels, Fraction(1, 25)
        frame = av.VideoFrame.from_ndarray(quadrants(), format="rgb24").reformat(format=pixels)
        (tmp_path / name).write_bytes(b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)]))
        (tmp_path / "1000.jpg").write_text("what the second would be as the first of a series")
        with Media(tmp_path / name) as media:
            assert (media.width, media.height, media.has_audio) == (64, 48, False)
            got = media.video(0, 3, 10, size=(48, 64)).astype(int)
            assert np.abs(got - quadrants()).mean() < 3


# ---------------------------------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize(("name", "codec", "form", "rate", "layout"), [
    ("a.wav", "pcm_u8", "u8", 44100, "stereo"), ("a.wav", "pcm_s16le", "s16", 8000, "mono"),
    ("a.wav", "pcm_s32le", "s32", 96000, "5.1"), ("a.wav", "pcm_f32le", "flt", 48000, "mono"),
    ("a.wav", "pcm_f64le", "dbl", 22050, "7.1"), ("a.flac", "flac", "s16", 44100, "stereo"),
    ("a.mp4", "aac", "fltp", 44100, "stereo"), ("a.mkv", "aac", "fltp", 44100, "5.1"),
    ("a.mkv", "libopus", "flt", 48000, "mono"), ("a.mp3", "libmp3lame", "fltp", 44100, "mono"),
    ("a.mkv", "ac3", "fltp", 48000, "stereo"),
])
def test_any_sound_becomes_one_channel_at_the_rate_asked_for_and_at_its_time(tmp_path, name, codec, form, rate, layout):
    channels = {"mono": 1, "stereo": 2, "5.1": 6, "7.1": 8}[layout]
    path = sound(tmp_path / name, sine(np.arange(2 * rate) / rate, channels), rate, codec, form, layout)
    with Media(path) as media:
        assert not media.has_video
        assert media.has_audio
        assert media.duration == pytest.approx(2, abs=0.1)
        for start, samples, wanted in ((0.0, 4800, 48000), (1.2345, 9600, 48000), (0.5, 3000, 16000), (0.1, 99, 8000)):
            got = media.audio(start, samples, wanted)
            assert got.dtype == np.float32
            assert got.shape == (samples,)
            want = sine(start + np.arange(samples) / wanted)[0]
            edge = 2500 if start == 0 else 0  # a codec's first block swings in
            # mkv rounds times to a millisecond, Opus' delay among them: 0.5 sin(2 pi 100 / 2000)
            bound = 0.02 if name == "a.wav" else 0.2 if codec in ("libopus", "ac3") else 0.05
            assert np.abs(got - want)[edge:].max() < bound


def test_sound_that_starts_late_or_ends_early_is_zero_there_and_in_step(tmp_path):
    path = film(tmp_path / "a.mp4", [numbered(i) for i in range(60)], tone=(1.0, 2.0))
    with Media(path) as media:
        got = media.audio(0.0, 3 * 8000, 8000)
        assert not got[:7700].any()
        assert not got[16500:].any()
        # mp4 rounds the late start to a millisecond: 0.5 sin(2 pi 100 / 1000)
        assert np.abs(got - sine(np.arange(3 * 8000) / 8000)[0])[8400:15600].max() < 0.32
        assert np.abs(got[12000:13600] - media.audio(1.5, 1600, 8000)).max() < 0.05


def test_a_gap_in_the_sound_is_silence_and_what_follows_is_in_step(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for i in (*range(0, 8000, 1000), *range(12000, 20000, 1000)):
            container.mux(stream.encode(block(sine(np.arange(i, i + 1000) / 8000), 8000, "s16", i, "mono")))
    want = sine(np.arange(20000) / 8000)[0]
    want[8000:12000] = 0
    with Media(tmp_path / "a.mkv") as media:
        assert np.abs(media.audio(0, 20000, 8000) - want).max() < 0.01
        assert np.abs(media.audio(1.25, 4000, 8000) - want[10000:14000]).max() < 0.01


def test_sound_and_pictures_are_in_step_whatever_is_read_first(tmp_path):
    path = film(tmp_path / "a.mp4", [numbered(i) for i in range(50)], tone=(0.0, 2.0))
    with Media(path) as media:
        before = media.audio(1.0, 4800, 48000), media.video(1.0, 4, 10)
        after = media.video(1.0, 4, 10), media.audio(1.0, 4800, 48000)
    assert np.array_equal(before[0], after[1])
    assert np.array_equal(before[1], after[0])
    assert numbers(after[0]) == [25, 27, 30, 32]


@pytest.mark.parametrize("layout", ["stereo", "5.1", "7.1"])
def test_loud_channels_together_neither_wrap_nor_pass_1(tmp_path, layout):
    channels = {"stereo": 2, "5.1": 6, "7.1": 8}[layout]
    wave = np.sign(sine(np.arange(8000) / 8000, channels)) * 0.99
    with Media(sound(tmp_path / "a.wav", wave, 8000, "pcm_s16le", "s16", layout)) as media:
        got = media.audio(0.25, 4000, 8000)
    inside = np.abs(wave[0, 2000:6000]) > 0.5
    assert np.abs(got).max() <= 1
    assert np.mean(np.sign(got[inside]) == np.sign(wave[0, 2000:6000][inside])) == 1
    assert np.median(np.abs(got)) == pytest.approx(0.99, abs=0.02)


def test_sound_that_is_not_a_number_becomes_silence(tmp_path):
    wave = sine(np.arange(8000) / 8000)
    wave[0, 4000:4010] = np.nan
    wave[0, 6000] = 3
    with Media(sound(tmp_path / "a.wav", wave, 8000, "pcm_f32le", "flt", "mono")) as media:
        got = media.audio(0, 8000, 8000)
    assert np.abs(got).max() == 1
    assert not got[4002:4008].any()
    assert np.abs(got - wave[0])[:3900].max() < 1e-3


def test_a_rate_that_would_make_a_few_samples_hours_is_not_believed(tmp_path):
    path = sound(tmp_path / "a.wav", sine(np.arange(8000) / 8000), 8000, "pcm_s16le", "s16", "mono")
    path.write_bytes(path.read_bytes().replace((8000).to_bytes(4, "little"), (2).to_bytes(4, "little"), 1))
    with av.open(str(path)) as container:
        assert container.streams.audio[0].codec_context.sample_rate == 2
    assert reason(path, lambda media: media.audio(0, 10, 48000)) == "no audio decodes"


def test_what_a_file_lacks_is_told_beforehand(tmp_path):
    silent, blind = film(tmp_path / "a.mp4", [numbered(0)] * 5), tmp_path / "b.wav"
    sound(blind, sine(np.arange(8000) / 8000), 8000, "pcm_s16le", "s16", "mono")
    with Media(silent) as media:
        assert media.has_video
        with pytest.raises(ValueError, match="no audio"):
            media.audio(0, 10, 8000)
    assert reason(blind) == "no video"
    assert reason(blind, lambda media: media.width) == "no video"


def test_a_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("libmp3lame", rate=44100, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(numbered(0), format="rgb24").reformat(format="yuvj420p")
        packets = [*cover.encode(frame), *cover.encode(None)]
        container.mux(packets)
        for i in range(0, 44100, 1152):
            container.mux(audio.encode(block(sine(np.arange(i, i + 1152) / 44100), 44100, "fltp", i)))
        container.mux(audio.encode(None))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with Media(path) as media:
        assert media.has_audio
        assert not media.has_video


def test_the_duration_is_that_of_the_video_and_is_measured_where_no_header_has_it(tmp_path):
    path = film(tmp_path / "a.mp4", [numbered(i) for i in range(50)], tone=(0.0, 5.0))
    with Media(path) as media:
        assert media.duration == pytest.approx(2.0, abs=0.01)
    for name, muxer in (("a.mkv", {"live": "1"}), ("a.h264", {})):
        path = film(tmp_path / name, [numbered(i) for i in range(50)], muxer=muxer)
        with av.open(str(path)) as container:
            assert container.duration is None
        with Media(path) as media:
            assert media.duration == pytest.approx(2.0, abs=0.05)
            assert numbers(media.video(1.0, 2, 10)) == [25, 27]


# -------------------------------------------------------------------------------------------------- damage and mischief


def test_a_film_cut_short_gives_what_is_left(tmp_path):
    index_first = {"movflags": "faststart"}
    whole = film(tmp_path / "a.mp4", [numbered(i) for i in range(60)], options={"g": "10"}, muxer=index_first)
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as container:
        position = max(p.pos for p in container.demux(video=0) if p.size and p.pts * p.time_base < 1.2)
    cut.write_bytes(whole.read_bytes()[:position])
    with Media(cut) as media:
        assert media.duration == pytest.approx(2.4, abs=0.01)                    # by its header
        got = numbers(media.video(0.8, 12, FPS))
        assert got[:8] == list(range(20, 28))
        assert set(got) <= set(range(33))
    assert reason(cut, lambda media: media.video(1.5, 2, 10)) == "start past the end"


def test_damage_in_the_middle_costs_no_more_than_its_group_of_pictures(tmp_path):
    groups = {"x264-params": "keyint=10:min-keyint=10:scenecut=0:bframes=0"}
    path = film(tmp_path / "a.mkv", [numbered(i) for i in range(60)], options=groups)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.size and 0.8 <= float(packet.pts * packet.time_base) < 0.98:  # the first half of the third
                at = content.index(bytes(packet), packet.pos)
                content[at + 6:at + packet.size] = b"\xff" * (packet.size - 6)
    path.write_bytes(content)
    with Media(path) as media:
        assert numbers(media.video(0.0, 20, FPS)) == list(range(20))
        assert numbers(media.video(1.2, 20, FPS)) == list(range(30, 50))
        assert media.video(0.6, 20, FPS).shape == (20, 224, 224, 3)


def test_a_file_of_which_nothing_decodes_is_unreadable(tmp_path):
    path = film(tmp_path / "a.mp4", [numbered(i) for i in range(10)])
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            content[packet.pos or 0:(packet.pos or 0) + packet.size] = bytes(packet.size)
    path.write_bytes(content)
    assert reason(path) == "no frame decodes"
    assert reason(path, lambda media: media.width) == "no frame decodes"


def test_whatever_bytes_come_it_is_a_clip_or_a_reason(tmp_path):
    pictures = [numbered(i) for i in range(20)]
    sources = [film(tmp_path / name, pictures, tone=(0, 0.8)) for name in ("a.mp4", "a.mkv", "a.ts")]
    rng, clips, reasons = np.random.default_rng(0), 0, 0
    for round_ in range(90):
        content = np.frombuffer(sources[round_ % 3].read_bytes(), np.uint8).copy()
        content[rng.integers(len(content), size=60)] ^= 1 << int(rng.integers(8))
        path = tmp_path / "broken"
        path.write_bytes(content[:rng.integers(1, len(content) + 1)] if round_ % 2 else content)
        try:
            with Media(path) as media:
                if media.has_audio:
                    wave = media.audio(0.2, 800, 8000)
                    assert np.isfinite(wave).all()
                    assert np.abs(wave).max() <= 1
                assert media.video(0.1, 3, 10, size=(8, 8)).shape == (3, 8, 8, 3)
                clips += 1
        except Unreadable:
            reasons += 1
    assert clips > 10
    assert reasons > 10


def test_each_way_not_to_be_a_media_file_has_its_reason(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not found\n" * 20)
    (tmp_path / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(5000))
    os.mkfifo(tmp_path / "pipe.mp4")
    cases = {"empty.mp4": "empty file", "text.mp4": "not a media file", "noise.mkv": "not a media file",
             "pipe.mp4": "not a file", ".": "not a file", "none.mp4": "no such file", "a\0.mp4": "no such file"}
    for name, why in cases.items():
        with pytest.raises(Unreadable, match=why):
            Media(tmp_path / name)


def test_playlists_and_addresses_open_nothing(tmp_path, monkeypatch):
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    film(tmp_path / "other.mp4", [numbered(0)] * 5)
    url, port = f"http://127.0.0.1:{server.server_port}", server.server_port
    concat = tmp_path / "concat.mp4"
    concat.write_text("ffconcat version 1.0\nfile other.mp4\n")
    texts = {"list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}/a.ts\n#EXT-X-ENDLIST\n",
             "a.sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video {port} RTP/AVP 96\n",
             "b.mpd": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet>'
                      f"<Representation><BaseURL>{url}/b.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>"}
    texts["list.mp4"], texts["sdp.mp4"] = texts["list.m3u8"], texts["a.sdp"]
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    with av.open(str(concat)) as container:  # what would happen without the list of formats
        assert container.streams.video
    for name in ("concat.mp4", *texts):
        assert reason(tmp_path / name) == "not a media file"
        inside, content = tmp_path / "a.tar", (tmp_path / name).read_bytes()
        inside.write_bytes(bytes(512) + content + bytes(512))
        with pytest.raises(Unreadable, match="not a media file"):
            Media(inside, 512, len(content))
    monkeypatch.chdir(tmp_path)
    for name in (f"{url}/a.mp4", "concat:other.mp4", "file:other.mp4", "subfile,,start,0,end,0,,:other.mp4"):
        assert reason(name) == "no such file"
    server.shutdown()
    server.server_close()
    assert requests == []


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.flv", "a.avi", "a.h264", "a.wav", "a.mp3"])
def test_a_file_inside_another_is_read_as_it_is_alone(tmp_path, name):
    if name in ("a.wav", "a.mp3"):
        codec = ("pcm_s16le", "s16") if name == "a.wav" else ("libmp3lame", "fltp")
        sound(tmp_path / name, sine(np.arange(16000) / 8000), 8000, *codec, "mono")
    else:
        film(tmp_path / name, [numbered(i) for i in range(60)], tone=None if name == "a.h264" else (0, 2.4), options=B_FRAMES)
    content = (tmp_path / name).read_bytes()
    other = film(tmp_path / "other.mp4", [numbered(63)] * 60).read_bytes()
    path = tmp_path / "all, of: it.tar"
    path.write_bytes(other + content + other)
    with Media(tmp_path / name) as alone, Media(path, len(other), len(content), "b.mp4") as inside:
        assert inside.path == "b.mp4"
        assert (inside.duration, inside.has_video, inside.has_audio) == (alone.duration, alone.has_video, alone.has_audio)
        for start in (1.03, 0.0, 1.8):
            if alone.has_video:
                assert np.array_equal(inside.video(start, 8, 10), alone.video(start, 8, 10))
            if alone.has_audio:
                assert np.array_equal(inside.audio(start, 4000, 8000), alone.audio(start, 4000, 8000))


def test_a_place_that_a_file_does_not_have_is_told(tmp_path):
    path = film(tmp_path / "a.mp4", [numbered(i) for i in range(10)])
    size = path.stat().st_size
    for offset, length, why in ((0, size + 1, "cut short"), (size + 1, None, "cut short"), (-1, 5, "cut short"),
                                (5, -1, "cut short"), (10, 0, "empty file"), (size, None, "empty file")):
        with pytest.raises(Unreadable, match=f"'clip 7': .*{why}"):
            Media(path, offset, length, "clip 7")


@pytest.mark.parametrize("name", ["-y.mp4", "a:b.mp4", "http:x.mp4", "%03d.mp4", "a b & ü (1).mp4", "it's.mp4"])
def test_a_name_is_only_a_name(tmp_path, monkeypatch, name):
    film(tmp_path / "plain.mp4", [numbered(7)] * 3).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with Media(name) as media:
        assert numbers(media.video(0, 1, 10)) == [7]


def test_a_title_that_is_not_utf_8_does_no_harm(tmp_path):
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLE"
        video = container.add_stream("mpeg4", rate=FPS)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        container.mux([*video.encode(av.VideoFrame.from_ndarray(numbered(3), format="rgb24")), *video.encode(None)])
    content = path.read_bytes()
    assert b"TITLE" in content
    path.write_bytes(content.replace(b"TITLE", b"T\xfcRK\xff"))
    with Media(path) as media:
        assert numbers(media.video(0, 1, 10)) == [3]


def test_a_picture_too_large_and_work_without_end_are_refused(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4", [numbered(i) for i in range(40)])
    wide = film(tmp_path / "wide.mkv", [np.zeros((2, 16_400, 3), np.uint8)], codec="ffv1", pixels="bgr0")
    assert reason(wide) == "too large"
    with monkeypatch.context() as patch:
        patch.setattr(containers, "MAX_PIXELS", 48 * 60 - 1)
        assert reason(path) == "too large"
    with monkeypatch.context() as patch:
        patch.setattr(containers, "MAX_MOVING", 48 * 60 - 1)
        assert reason(path) == "too large"
    monkeypatch.setattr(containers, "MAX_WORK", 20 * 48 * 60)
    assert reason(path, lambda media: media.video(0, 38, FPS)) == "too much to decode"


def test_no_file_stays_open(tmp_path):
    good = film(tmp_path / "a.mp4", [numbered(i) for i in range(5)], tone=(0, 0.2))
    cut, text = tmp_path / "cut.mp4", tmp_path / "text.mp4"
    cut.write_bytes(good.read_bytes()[:500])
    text.write_text("text")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(n) for n in os.listdir("/dev/fd")) + 10, limits[1]))
    try:
        closed = []
        for _ in range(100):
            closed.append(Media(good))
            with closed[-1] as media:
                assert numbers(media.video(0, 2, 10)) == [0, 2]
                media.audio(0, 10, 8000)
            assert reason(good, lambda media: media.video(9, 2, 10)) == "start past the end"
            assert reason(cut) == reason(text) == "not a media file"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_file_is_decoded_by_one_thread(tmp_path):
    with Media(film(tmp_path / "a.mp4", [numbered(0)] * 5, tone=(0, 0.2))) as media:
        for stream in media.file.streams.values():
            assert stream.codec_context.thread_count == 1
            assert stream.codec_context.thread_type == av.codec.context.ThreadType.SLICE


def test_the_reason_crosses_process_boundaries():
    error = pickle.loads(pickle.dumps(Unreadable("a\n\udcff.mp4", "empty file")))
    assert (error.reason, str(error)) == ("empty file", r"'a\n\udcff.mp4': empty file")


def test_wrong_arguments_are_told(tmp_path):
    with Media(film(tmp_path / "a.mp4", [numbered(0)] * 5, tone=(0, 0.2))) as media:
        for wrong in ({"start": -1}, {"start": float("nan")}, {"frames": 0}, {"fps": 0}, {"size": (0, 4)},
                      {"box": (0.5, 0, 0.5, 1)}, {"box": (0, 0, 1.1, 1)}):
            with pytest.raises(ValueError, match=r"a\.mp4"):
                media.video(**{"start": 0, "frames": 1, "fps": 10, **wrong})
        with pytest.raises(ValueError, match=r"a\.mp4"):
            media.audio(-1, 10, 8000)
