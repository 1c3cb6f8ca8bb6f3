"""Frames and audio of a clip belong to the same moment (media), whatever the container, its clock and its gaps."""

import itertools
import math
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from coded import FPS, NOISE, RATE, late, numbers, shown, write

from media import Media, Unreadable, container
from media.cache import Reader

TICK = {"time_base": Fraction(1, 25)}
KINDS = {
    "a.mp4": {}, "a.mov": {}, "a.mkv": {}, "a.ts": {}, "a.flv": {"rate": 44100},
    "a.webm": {"codec": "libvpx", "audio": "libopus", "options": {"deadline": "realtime"}},
    "a.mpg": {"codec": "mpeg2video", "audio": "mp2", "options": {"bf": "2"}, **TICK},
    "a.avi": {"codec": "mpeg4", "audio": "pcm_s16le", "options": {"bf": "2"}, **TICK},
    "a.asf": {"codec": "mpeg4", "audio": "mp2", "options": {"bf": "2"}, **TICK},
}
TIMED = [name for name in KINDS if name != "a.avi"]  # an AVI keeps no timestamps


def begins(media):
    """Seconds at which the first frame is shown: some muxers begin with the encoder's run-up of audio"""
    return next(media.file.frames("video", 0.0))[0]


def out_of_step(media, starts, times, seconds, missing=False):
    """What is wrong: frames that are not those of their time, audio over a millisecond off (nan: not recognized)"""
    wrong, first = [], begins(media)
    for start in starts:
        got = numbers(media.video(start, 10, 10, size=(48, 72)))
        if got != (want := shown(start, 10, 10, np.array(times) + first)):
            wrong.append((start, got, want))
        wave = media.audio(start, round(seconds * RATE), RATE)
        for at in range(0, len(wave) - RATE // 4 + 1, RATE // 4):
            off = late(wave[at:at + RATE // 4], start - first + at / RATE)
            if not abs(off) <= 1e-3 and not (missing and math.isnan(off)):
                wrong.append((start, at, off))
    return wrong


@pytest.mark.parametrize("name", KINDS)
def test_audio_is_in_step_with_its_frames_however_much_is_read(tmp_path, name):
    with Media(write(tmp_path / name, 150, **KINDS[name])) as media:
        for seconds in (0.25, 3.5):
            assert out_of_step(media, (0.1, 0.77, 2.0, 1.4), np.arange(150) / FPS, seconds) == []


@pytest.mark.parametrize("name", TIMED)
@pytest.mark.parametrize("every", [10, 3])
def test_gaps_of_a_packet_keep_all_that_follows_in_its_place(tmp_path, name, every):
    lost = {k for k in range(20, 400) if k % every == 1}
    with Media(write(tmp_path / name, 200, lost=lost, **KINDS[name])) as media:
        assert out_of_step(media, (0.1, 2.3), np.arange(200) / FPS, 5, missing=every == 3) == []


@pytest.mark.parametrize("name", ["a.mkv", "a.ts", "a.flv"])
def test_a_long_gap_is_silent_and_what_follows_is_in_its_place(tmp_path, name):
    with Media(write(tmp_path / name, 600, seconds=24, lost=range(60, 800), **KINDS[name])) as media:
        first = begins(media)
        wave = media.audio(0.0, 22 * RATE, RATE)
        assert not wave[3 * RATE:16 * RATE].any()
        end = 21.5 + first
        assert abs(late(wave[round(end * RATE):][:RATE // 4], 21.5)) < 1e-3 or name == "a.flv"
        assert out_of_step(media, (0.1, 21.0), np.arange(600) / FPS, 0.75) == []


@pytest.mark.parametrize("name", TIMED)
def test_timestamps_that_jitter_give_samples_that_follow_each_other(tmp_path, name):
    shifts = np.random.default_rng(0).uniform(-0.008, 0.008, 600)
    with Media(write(tmp_path / name, 150, jitter=lambda k: shifts[k], **KINDS[name])) as media:
        whole, first = media.audio(0.0, 5 * RATE, RATE), begins(media)
        off = {round(late(whole[at:at + RATE // 4], at / RATE - first) * RATE) for at in range(RATE // 4, 4 * RATE, RATE // 4)}
        assert len(off) == 1
        assert abs(off.pop()) < 0.009 * RATE


@pytest.mark.parametrize("name", TIMED)
def test_a_late_track_is_in_step(tmp_path, name):
    with Media(write(tmp_path / name, 150, at=1.5, seconds=4.5, **KINDS[name])) as media:
        assert not media.audio(0.0, round(1.4 * RATE), RATE).any()
        assert out_of_step(media, (1.7, 2.9), np.arange(150) / FPS, 2.5) == []


@pytest.mark.parametrize("name", KINDS)
def test_the_duration_is_that_of_the_video_where_audio_outlasts_it(tmp_path, name):
    with Media(write(tmp_path / name, 100, seconds=11, **KINDS[name])) as media:
        assert media.duration == pytest.approx(4 + begins(media), abs=0.03)
        with pytest.raises(Unreadable, match="start past the end"):
            media.video(media.duration + 0.1, 4, 10)


@pytest.mark.parametrize("name", ["a.mkv", "a.webm"])
def test_the_duration_of_a_recording_without_a_header_is_that_of_its_frames(tmp_path, name):
    with Media(write(tmp_path / name, 100, seconds=7, muxer={"live": "1"}, **KINDS[name])) as media:
        assert media.file._av.duration is None
        assert media.duration == pytest.approx(4, abs=0.03)


@pytest.mark.parametrize(("name", "codec", "muxer"), [("a.mp3", "libmp3lame", {"write_xing": "0"}), ("a.aac", "aac", {})])
def test_a_length_that_is_guessed_from_the_bit_rate_is_measured(tmp_path, name, codec, muxer):
    quiet = NOISE[:15 * RATE] * np.where(np.arange(15 * RATE) < 10 * RATE, 0.0, 1.0).astype(np.float32)
    with av.open(str(tmp_path / name), "w", options=muxer) as out:
        stream = out.add_stream(codec, rate=RATE, layout="mono", options={"q": "5"} if codec == "libmp3lame" else {})
        stream.codec_context.qscale = codec == "libmp3lame"
        block = av.AudioFrame.from_ndarray(quiet[None], "fltp", "mono")
        block.sample_rate, block.pts = RATE, 0
        out.mux([*stream.encode(block), *stream.encode(None)])
    with av.open(str(tmp_path / name)) as guess:
        assert abs(guess.duration / 1e6 - 15) > 1
    with Media(tmp_path / name) as media:
        assert media.duration == pytest.approx(15, abs=0.06)
        assert media.audio(14.5, RATE // 4, RATE).any()


def joined(tmp_path, suffix, parts, cut=0):
    """Recordings of 4 s, one after the other in one file: of each (number of the first frame, start of its clock in seconds)"""
    how, content = KINDS["a." + suffix], b""
    for i, (first, clock) in enumerate(parts):
        path = write(tmp_path / f"{i}.{suffix}", 100, first=first, muxer={"output_ts_offset": str(clock)}, **how)
        content += path.read_bytes()[cut if i else 0:]
    (tmp_path / f"all.{suffix}").write_bytes(content)
    return tmp_path / f"all.{suffix}"


@pytest.mark.parametrize(("suffix", "parts", "cut"), [
    *itertools.product(("ts", "mpg"), ([(0, 0), (300, 0)], [(0, 500), (700, 3), (300, 9000)], [(0, 0), (700, 300), (100, 4)]),
                       [0]),
    ("mkv", [(0, 0), (300, 0)], 0), ("webm", [(0, 0), (300, 0)], 0),
    ("flv", [(0, 0), (300, 0), (700, 0)], 13),                              # the header of a file
])
def test_where_the_clock_jumps_frames_and_audio_are_of_the_same_part_and_all_of_it_is_used(tmp_path, suffix, parts, cut):
    with Media(joined(tmp_path, suffix, parts, cut)) as media:
        lead = begins(media)
        assert media.duration == pytest.approx(4 * len(parts) + lead, abs=0.1)
        starts = [4 * part + t + lead for part in range(len(parts)) for t in (0.13, 1.0, 2.25)]
        for start, frames in zip(starts, media.clips(starts, 8, 10, size=(48, 72)), strict=True):
            first = parts[int(start // 4)][0]
            at = first / FPS + (start - lead) % 4
            assert np.array_equal(frames, media.video(start, 8, 10, size=(48, 72)))
            assert numbers(frames) == shown(at, 8, 10, np.arange(1000) / FPS)
            assert abs(late(media.audio(start, RATE // 4, RATE), at)) < 2e-3


def test_files_joined_so_that_the_rest_is_never_reached_are_refused(tmp_path):
    for suffix, count in (("flv", 2), ("asf", 2), ("mkv", 3), ("avi", 2), ("mp4", 2), ("mov", 3)):
        path = joined(tmp_path, suffix, [(0, 0)] * count)
        with pytest.raises(Unreadable, match="ffmpeg -f concat joins them"), Media(path) as media:
            _ = media.duration
        with Media(tmp_path / f"0.{suffix}") as media:
            assert media.duration > 3.9
        with Media(path, 0, (tmp_path / f"0.{suffix}").stat().st_size) as media:    # as a member of a tar, others behind it
            assert media.duration > 3.9


def two_tracks(path, dispositions, seconds=(3, 3)):
    """A video with two audio tracks: noise, and the noise backwards"""
    with av.open(str(path), "w") as out, av.open(str(write(path.with_suffix(".avi"), 75, audio=None))) as like:
        video = out.add_stream_from_template(like.streams.video[0])
        tracks = [out.add_stream("aac", rate=RATE, layout="mono") for _ in dispositions]
        for track, disposition in zip(tracks, dispositions, strict=True):
            track.disposition = disposition
        for packet in like.demux(like.streams.video[0]):
            if packet.dts is not None:
                packet.stream = video
                out.mux(packet)
        for track, wave, length in zip(tracks, (NOISE[::-1], NOISE), seconds, strict=True):
            block = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[None, :length * RATE]), "fltp", "mono")
            block.sample_rate, block.pts = RATE, 0
            out.mux([*track.encode(block), *track.encode(None)])
    return path


@pytest.mark.parametrize(("first", "second"), [("comment", "default"), ("visual_impaired", "default"),
                                               ("hearing_impaired", "original")])
def test_the_track_is_that_of_the_disposition_not_the_first(tmp_path, first, second):
    flags = av.stream.Disposition
    with Media(two_tracks(tmp_path / "a.mkv", (getattr(flags, first), getattr(flags, second)))) as media:
        assert abs(late(media.audio(1.0, RATE // 2, RATE), 1.0)) < 1e-3


def test_a_pass_over_the_video_gives_what_each_clip_gives_alone_and_decodes_no_frame_twice(tmp_path, monkeypatch):
    for name, how in KINDS.items():
        path = write(tmp_path / name, 200, **how)
        starts = [0.1, 0.15, 0.8, 0.9, 2.5, 4.4, 4.7, 7.2, 7.7]              # the last two go on from the beginning
        with Media(path) as media:
            alone = [media.video(start, 8, 10, lambda w, h: (0, 0, 0.8, 1), (48, 72)) for start in starts]
            decoded = []
            monkeypatch.setattr(container.Container, "charge", lambda _, work, decoded=decoded: decoded.append(work))
            got = list(media.clips(starts, 8, 10, lambda w, h: (0, 0, 0.8, 1), (48, 72)))
            assert all(np.array_equal(a, b) for a, b in zip(got, alone, strict=True))
            decoded.clear()
            assert len(list(media.clips([i / 5 for i in range(30)], 8, 10))) == 30
            assert sum(work != 2e3 for work in decoded) <= 200
            with pytest.raises(Unreadable, match="start past the end"):
                list(media.clips([7.0, 9.0], 4, 10))
            with pytest.raises(ValueError, match="ascending"):
                list(media.clips([2.0, 1.0], 4, 10))


# ----------------------------------------------------------------------------------------------------- waveform files


@pytest.mark.parametrize(("name", "subtype"), [("a.wav", "PCM_16"), ("b.wav", "FLOAT"), ("a.flac", "PCM_24"),
                                               ("a.ogg", "VORBIS"), ("a.opus", "OPUS"), ("a.aiff", "PCM_16")])
def test_a_waveform_file_has_its_exact_length_and_every_sample_in_its_place(tmp_path, name, subtype):
    kind = {"opus": "OGG"}.get(name[2:], name[2:].upper())
    soundfile.write(tmp_path / name, np.stack([NOISE[:3 * RATE + 17]] * 2, 1), RATE, subtype, format=kind)
    with Media(tmp_path / name) as media:
        assert media._samples is not None
        assert media.duration == (3 * RATE + 17) / RATE
        for start, seconds in ((0.0, 0.25), (1.3, 0.25), (2.7, 0.25), (0.4, 2.5)):
            assert abs(late(media.audio(start, round(seconds * RATE), RATE), start)) < 1.5 / RATE
        assert np.array_equal(media.audio(0.5, RATE, RATE)[RATE // 2:], media.audio(1.0, RATE, RATE)[:RATE // 2])
        if "PCM" in subtype:
            assert np.abs(media.audio(1.0, RATE, RATE) - NOISE[RATE:2 * RATE]).max() < 1e-4
        assert np.abs(media.audio(1.0, 16_000, 16_000)[::2] - media.audio(1.0, RATE, RATE)[::6]).mean() < 0.03


def test_a_waveform_file_that_is_broken_is_a_clip_or_a_reason(tmp_path):
    reasons = set()
    for name, kind in (("a.wav", "WAV"), ("a.flac", "FLAC"), ("a.ogg", "OGG"), ("a.mp3", "MP3"), ("a.aiff", "AIFF")):
        soundfile.write(tmp_path / name, NOISE[:RATE], RATE, format=kind)
        whole, rng, given = (tmp_path / name).read_bytes(), np.random.default_rng(0), 0
        for round_ in range(25):
            content = np.frombuffer(whole, np.uint8).copy()
            content[rng.integers(len(content) if round_ % 3 else 60, size=12)] ^= 1 << int(rng.integers(8))
            (tmp_path / "broken").write_bytes(content[:rng.integers(1, len(content))] if round_ % 2 else content)
            try:
                with Media(tmp_path / "broken") as media:
                    assert 0 < media.duration < 1e6
                    wave = media.audio(0.2, 4000, 16_000)
                    assert np.isfinite(wave).all()
                    assert np.abs(wave).max() <= 1
                    given += 1
            except Unreadable as error:
                reasons.add(error.reason)
        assert given or kind == "OGG"
    assert reasons <= {"not a media file", "no audio decodes", "decoding failed", "no video and no audio"}


# ---------------------------------------------------------------------------------------------------------- the cache


def test_with_the_cache_as_without_the_same_clip_and_the_same_refusal(tmp_path):
    paths = [write(tmp_path / "long.mkv", 50, seconds=6), write(tmp_path / "late.mkv", 50, at=1, seconds=1),
             write(tmp_path / "mute.mp4", 50, audio=None)]
    cut = (tmp_path / "cut.ts")
    cut.write_bytes(write(tmp_path / "a.ts", 100).read_bytes()[:60_000])
    soundfile.write(tmp_path / "a.wav", NOISE[:2 * RATE], RATE)
    plain, cached = Reader(48, 10, RATE), Reader(48, 10, RATE, cache=1)
    for path, start in itertools.product([*paths, cut, tmp_path / "a.wav"], (0.0, 0.7, 1.9, 2.1, 0.43, 5.0)):
        given = []
        for reader in (plain, cached, cached):
            with reader.open(path) as media:
                try:
                    frames = numbers(media.video(start, 6, 10, lambda w, h: (0, 0, 1, 1), (48, 72)))
                except Unreadable as error:
                    frames = error.reason
                given.append((media.duration, frames, media.audio(start, RATE // 4, RATE) if media.has_audio else np.zeros(1)))
        for one in given[1:]:
            assert one[:2] == given[0][:2], (path, start)
            assert np.abs(np.subtract(one[2], given[0][2])).max() < 0.05    # half a sample: blocks begin between two
    assert len(cached.kept) == 5


def test_a_file_is_surveyed_once_a_process_until_it_changes(tmp_path):
    path = write(tmp_path / "a.ts", 60)
    container.survey.cache_clear()
    for _ in range(3):
        with Media(path) as media:
            length = media.duration
            media.video(0.3, 2, 10)
    assert container.survey.cache_info().misses == 1
    path.write_bytes(write(tmp_path / "b.ts", 90).read_bytes())
    with Media(path) as media:
        assert media.duration > length + 1
