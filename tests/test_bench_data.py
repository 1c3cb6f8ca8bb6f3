"""`bench data`: contenders give the same clip, ratios are what they say, what is missing is skipped with a word."""

import json

import av
import numpy as np
import pytest

import data
from bench import __main__ as bench
from bench import data as feeding
from media import Media

RECIPE = data.ClipSpec(frames=8, fps=10.0, size=32, rate=16000)
SMALL = {"64x48": (64, 48, {"g": "20"}), "64x48 without B-frames": (64, 48, {"g": "20", "bf": "0"})}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    return {title: feeding.video(folder / title / "a.mp4", *how, seconds=3) for title, how in SMALL.items()}


@pytest.mark.parametrize("name", feeding.PEERS)
def test_every_contender_gives_the_pictures_and_the_sound_that_we_give(films, name):
    module, contender = feeding.PEERS[name]
    try:
        __import__(module)
    except Exception:
        pytest.skip(f"{name} is not installed")
    path = str(films["64x48"])
    for start in (0.0, 1.3, 2.2):
        video, audio = feeding.ours(path, start, (0.1, 0.1, 0.8, 0.9), RECIPE)
        other, sound = contender(path, start, (0.1, 0.1, 0.8, 0.9), RECIPE)
        assert other.shape == video.shape
        assert np.abs(other.astype(int) - video).mean((1, 2, 3)).max() < 12
        assert len(sound) == pytest.approx(len(audio), abs=2)
        if name != "decord":                                                # whose sound is late by the encoder's delay
            assert np.corrcoef(sound[100:12000], audio[100:12000])[0, 1] > 0.9  # some are louder, or a few samples late


def test_the_films_have_b_frames_or_none_and_several_seconds_to_a_key_frame(films):
    kinds = {}
    for title, path in films.items():
        with av.open(str(path)) as container:
            kinds[title] = {int(frame.pict_type) for frame in container.decode(video=0)}
        with Media(path) as media:
            assert media.has_audio
            assert media.duration == pytest.approx(3, abs=0.1)
    assert kinds == {"64x48": {1, 2, 3}, "64x48 without B-frames": {1, 2}}


def test_ratios_are_of_the_same_clips_and_above_one_where_we_are_faster(films, monkeypatch, capsys):
    cost = {"ours": 2, "slow": 6, "floor": 1}
    monkeypatch.setattr(feeding.time, "process_time", lambda: now[0])
    now, clip = [0.0], (np.zeros((8, 32, 32, 3), np.uint8), None)

    def contender(name):
        def run(*_):
            now[0] += cost[name]
            return clip if name != "floor" else None
        return run

    monkeypatch.setattr(feeding, "ours", contender("ours"))
    monkeypatch.setattr(feeding, "floor", contender("floor"))
    monkeypatch.setattr(feeding, "PEERS", {"slow": ("av", contender("slow")), "none": ("no_such_module", None)})
    rows = feeding.clips(films, RECIPE, 4, 1)
    assert capsys.readouterr().out == "left out, since not installed: none\n"
    assert [r["name"] for r in rows] == ["ours", "floor", "slow"] * 2
    for first in (rows[0], rows[3]):
        assert (first["vs_slow"], first["vs_floor"], first["cpu_s"], first["clips_per_s_core"]) == (3, 0.5, 2, 0.5)


def test_a_contender_that_gives_other_pictures_or_fails_is_named(films, monkeypatch, capsys):
    def wrong(path, start, box, r):
        return 255 - feeding.ours(path, start, box, r)[0], None

    def broken(*_):
        raise RuntimeError("no such codec\nand more")

    monkeypatch.setattr(feeding, "PEERS", {"wrong": ("av", wrong), "broken": ("av", broken)})
    rows = feeding.clips({"64x48": films["64x48"]}, RECIPE, 1, 1)
    assert [r["name"] for r in rows] == ["ours", "floor", "wrong"]
    words = sorted(capsys.readouterr().out.splitlines())
    assert words[0] == "broken cannot read 64x48: no such codec"
    assert words[1].startswith("wrong gives other frames of 64x48, round 0: they differ by ")


def test_shards_and_the_loader_are_measured_beside_films_and_one_process(films):
    films = {"64x48": films["64x48"]}
    rows = feeding.packed(films, RECIPE, 1, 1)
    assert [r["name"] for r in rows] == ["shards", "videos"]
    assert rows[0]["vs_videos"] > 0
    rows = feeding.loader(films, RECIPE, 1, 1)
    assert [r["name"] for r in rows] == ["1 workers", "one process"]
    assert rows[0]["vs_one_process"] == rows[1]["cpu_s"] / rows[0]["cpu_s"]
    assert "1 workers: " in feeding.report(rows)


def test_a_search_is_measured_beside_one_pass_in_every_container(films, monkeypatch):
    monkeypatch.setattr(feeding, "LONG", 4)
    rows = feeding.searched(films, RECIPE, 1, 1)
    assert [r["video"] for r in rows] == [suffix for suffix in ("mp4", "mkv", "ts", "flv", "avi") for _ in range(2)]
    assert all(r["vs_one_pass"] > 0 for r in rows[::2])
    assert {feeding.moments(path, RECIPE) for path in (films["64x48"].parent.parent / "long").iterdir()} <= {9, 10}


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(feeding, "VIDEOS", {"64x48": (64, 48, {}, 4)})
    monkeypatch.setattr(feeding, "PEERS", {})
    bench.main(["data", "--parts", "clip", "--rounds", "1", "--folder", str(tmp_path), "--json", str(tmp_path / "a.json")])
    written = json.loads((tmp_path / "a.json").read_text())
    assert [r["name"] for r in written["rows"]] == ["ours", "floor"]
    assert f"ours: {written['rows'][0]['vs_floor']:.2f} times as fast" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    for wrong in (["--rounds", "0"], ["--folder", str(tmp_path / "none")], ["--index", "0"]):
        with pytest.raises(SystemExit, match="2"):
            bench.main(["data", *wrong])
