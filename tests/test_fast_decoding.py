"""The fast way through a film against the plain one (decode.py), and the colours of both against arithmetic in floats."""

import gc
import multiprocessing
import os
import resource
from fractions import Fraction

import av
import numpy as np
import pytest
from test_decode import B_FRAMES, FILMS, FPS, OPEN_GROUPS, doubted, film, numbered, numbers, sine, sound, yuv

from media import decode
from media.decode import Media, Unreadable

TEXTURE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
MOVING = [np.roll(TEXTURE, 3 * i, 1) // 2 + numbered(i)[0, 10].mean().astype(np.uint8) // 4 for i in range(64)]
TIMES = [0, *np.cumsum(np.random.default_rng(1).integers(10, 200, 63)).tolist()]
CASES = {
    **{name: (how, name not in ("e.h264", "f.mpg", "h.avi", "h264.avi", "i.webm")) for name, how in FILMS.items()},
    "open.mp4": ({"options": OPEN_GROUPS}, True),
    "no_b.mp4": ({"options": {"bf": "0"}}, True),
    "refresh.mkv": ({"options": {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}}, True),
    "irregular.mkv": ({"options": B_FRAMES, "times": TIMES}, True),
    "turned.mp4": ({"options": B_FRAMES, "set_display_matrix": [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]}, True),
    "mpeg4.mp4": ({"codec": "mpeg4", "max_b_frames": 2}, True),
    "fields.mp4": ({"options": {"x264-params": "interlaced=1:bframes=3"}}, False),
    "hevc.mp4": ({"codec": "libx265", "options": {"x265-params": "log-level=none"}}, False),
    "vp9.webm": ({"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}, False),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_passed_over_changes_no_bit_of_what_is_shown(tmp_path, monkeypatch, name):
    how, is_fast = CASES[name]
    try:
        path = film(tmp_path / name, MOVING, **how)
    except av.codec.codec.UnknownCodecError:
        pytest.skip("this FFmpeg cannot encode it")
    real, taken = Media._selected, []

    def watched(media, t, times):
        taken.append(True)
        try:
            yield from real(media, t, times)
        except decode.Doubt:
            taken[-1] = False
            raise

    monkeypatch.setattr(Media, "_selected", watched)
    clips = (0.0, 8, 10), (1.03, 8, 10), (0.61, 12, 25), (1.3, 3, 3), (2.0, 2, 10), (0.4, 9, 60)
    with Media(path) as media:
        fast = [media.video(*clip, (0.1, 0, 0.9, 0.7), (40, 40)) for clip in clips]
        assert (bool(taken) and all(taken)) == is_fast, taken
        monkeypatch.setattr(Media, "_selected", doubted)
        for clip, got in zip(clips, fast, strict=True):
            assert np.array_equal(got, media.video(*clip, (0.1, 0, 0.9, 0.7), (40, 40))), clip


def test_pictures_that_nobody_sees_are_not_decoded(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4", MOVING, options={"x264-params": "bframes=3:b-pyramid=none:b-adapt=0:keyint=64"})
    with Media(path) as media:
        pictures = []
        monkeypatch.setattr(media.file, "charge", lambda work: pictures.append(work) if work != 2e3 else None)
        media.video(0.0, 16, 12.5)                                        # every other picture
        assert len(pictures) < 45
        pictures.clear()
        media.video(0.4, 1, 10)
        assert len(pictures) < 8


def test_a_picture_that_does_not_come_is_looked_for_the_plain_way(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4", MOVING, options=B_FRAMES)
    with Media(path) as media:
        plain, real = media.video(0.3, 8, 10), Media._decoded
        for harm in (lambda media, context, packet, needed: real(media, context, None if needed else packet, needed),
                     lambda media, context, packet, needed: real(media, context, packet, {**needed, -1: (0, 0)})):
            monkeypatch.setattr(Media, "_decoded", harm)
            assert np.array_equal(media.video(0.3, 8, 10), plain)
        monkeypatch.setattr(Media, "_decoded", real)
        for held in (1, 2):
            monkeypatch.setattr(decode, "MAX_HELD", held)
            assert np.array_equal(media.video(0.3, 8, 10), plain)


def test_a_key_frame_that_needs_more_than_the_header_is_decoded_from_where_that_stands(tmp_path):
    def packets(name, cabac):
        path = film(tmp_path / name, [numbered(i) for i in range(60)],
                    options={"x264-params": f"cabac={cabac}:keyint=20:min-keyint=20:scenecut=0:bframes=0"})
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return bytes(stream.codec_context.extradata), [(bytes(p), p.pts, p.dts) for p in container.demux(stream) if p.size]

    (needed, content), (told, _) = packets("needed.mp4", 0), packets("told.mp4", 1)
    size = int.from_bytes(needed[6:8], "big")
    sets = (needed[8:8 + size], needed[11 + size:11 + size + int.from_bytes(needed[9 + size:11 + size], "big")])
    with av.open(str(tmp_path / "told.mp4")) as like, av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream_from_template(like.streams.video[0])
        assert bytes(stream.codec_context.extradata) == told
        for i, (held, pts, dts) in enumerate(content):
            packet = av.Packet(b"".join(len(one).to_bytes(4, "big") + one for one in sets) + held if i == 0 else held)
            packet.pts, packet.dts, packet.time_base, packet.stream = pts, dts, like.streams.video[0].time_base, stream
            packet.is_keyframe = i % 20 == 0
            container.mux(packet)
    with Media(tmp_path / "a.mp4") as media:
        for start in (1.0, 0.2, 2.1):
            assert numbers(media.video(start, 4, FPS)) == [round(start * FPS) + i for i in range(4)]


def test_a_box_may_be_drawn_when_the_size_is_known(tmp_path):
    path = film(tmp_path / "a.mp4", MOVING, sample_aspect_ratio=Fraction(3, 2))
    asked = []

    def box(width, height):
        asked.append((width, height))
        return 0.25, 0.5, 0.75, 1.0

    with Media(path) as media:
        got = media.video(2.3, 8, 10, box)                                  # that runs past the end
        assert asked == [(media.width, media.height)] == [(144, 64)]
        assert np.array_equal(got, media.video(2.3, 8, 10, (0.25, 0.5, 0.75, 1.0)))
        with pytest.raises(ValueError, match=r"a\.mp4.*a box has"):
            media.video(0, 1, 10, lambda *_: (0.5, 0, 0.5, 1))
        with pytest.raises(ZeroDivisionError):
            media.video(0, 1, 10, lambda width, height: width / 0)


@pytest.mark.parametrize(("width", "height", "size"), [(340, 256, 224), (640, 360, 224), (96, 64, 64)])
def test_colours_are_those_of_arithmetic_in_floats(tmp_path, width, height, size):
    rng = np.random.default_rng(0)
    noise = [rng.integers(low, high, (height >> half, width >> half)) for low, high, half in
             ((16, 236, 0), (90, 166, 1), (90, 166, 1))]
    frame, _ = yuv(height, width, "yuv420p")
    for plane, values in zip(frame.planes, noise, strict=True):
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, :plane.width] = values
        plane.update(rows.tobytes())

    def weights(n, m):  # (m, n): a triangle over the pixels under each new one
        w = np.maximum(1 - np.abs(np.arange(n) - ((np.arange(m) + 0.5) * n / m - 0.5)[:, None]) / max(n / m, 1), 0)
        return w / w.sum(1, keepdims=True)

    y, u, v = (weights(plane.shape[0], size) @ plane @ weights(plane.shape[1], size).T for plane in noise)
    luma, u, v = (y - 16) * 255 / 219, (u - 128) * 255 / 224, (v - 128) * 255 / 224
    want = np.stack([luma + 1.402 * v, luma - 0.344136 * u - 0.714136 * v, luma + 1.772 * u], -1).clip(0, 255)
    with Media(film(tmp_path / "a.mkv", [frame], codec="ffv1")) as media:
        got = media.video(0, 1, 10, size=(size, size))[0][4:-4, 4:-4] - want[4:-4, 4:-4]
    assert abs(got.mean()) < 0.1
    assert np.abs(got).mean() < 0.5


def test_packets_without_end_are_refused(tmp_path, monkeypatch):
    from media import container

    path = film(tmp_path / "a.mkv", MOVING, muxer={"live": "1"})
    monkeypatch.setattr(container, "MAX_WORK", 60 * 2e3)
    with pytest.raises(Unreadable, match="too much to decode"), Media(path) as media:
        _ = media.duration


def read_clips(path, broken, n):
    """-> how many files this process holds open after n clips, and the most memory that it had, kB"""
    for i in range(n):
        with Media(path) as media:
            media.video(i % 15 / 10, 8, 10)
            media.audio(i % 15 / 10, 8000, 16000)
        try:
            with Media(broken) as media:
                media.video(0, 8, 10)
        except Unreadable:
            pass
        if i % 20 == 0:
            gc.collect()                                                    # PyAV 19 leaves its graphs of filters to it
    return len(os.listdir("/dev/fd")), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_memory_and_files_stay_the_same_over_hundreds_of_clips(tmp_path):
    path = film(tmp_path / "a.mp4", MOVING, options=B_FRAMES, tone=(0, 2))
    broken = tmp_path / "b.mp4"
    broken.write_bytes(path.read_bytes()[:-2000])
    with multiprocessing.get_context("spawn").Pool(1) as alone:             # what other tests have left is not counted
        files, memory = alone.apply(read_clips, (path, broken, 60))
        more = alone.apply(read_clips, (path, broken, 240))
    assert more[0] == files
    assert more[1] - memory < 4000                                          # kB: a picture a clip would be 4400


def test_sound_as_short_as_a_block_or_shorter_than_the_clip_is_zero_after_it(tmp_path):
    path = sound(tmp_path / "a.wav", sine(np.arange(1000) / 44100), 44100, "pcm_s16le", "s16", "mono")
    with Media(path) as media:
        got = media.audio(0, 4800, 48000)
        assert np.abs(got[:1050]).max() > 0.05
        assert not got[1120:].any()
        assert not media.audio(5, 100, 48000).any()
