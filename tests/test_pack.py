"""Packing (pack.py, shards.py): pictures, sound and words of the clips against their films, and the same bytes after a kill."""

import csv
import functools
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import runs
import torch
from films import TINY, film, folder
from runs import Rank

import data
import pretrain
import vatt
from engine import loading
from engine.sampling import Sampler
from media import Media
from media.captions import Caption, nearest
from sources import index, layouts, pack
from sources.shards import checksum
from tools import show

HERE = Path(__file__).parent.parent
SMALL = ["--rate", "8000", "--workers", "2"]
RECIPE = data.ClipSpec(frames=4, fps=10.0, size=16, rate=8000, words=6)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    root = folder(tmp_path_factory.mktemp("films"), films=7, silent=1, captioned=5)
    (root / "bad.mp4").write_text("not a film")
    (root / "zero.mp4").touch()
    return root


@pytest.fixture(scope="module")
def packed(films, tmp_path_factory):
    """The films in shards of two, four and one of them"""
    out = tmp_path_factory.mktemp("packed") / "out"
    show.main(["pack", str(films), str(out), *SMALL, "--shard-size", "3e-5"])
    return out


def content(out):
    """Every file below a folder, by name"""
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.rglob("*")) if p.is_file()}


def clips(where, kind, root, recipe=RECIPE):
    layouts.list_files(kind, root, where, where.with_suffix(".problems"))
    rows = index.Index(where)
    words = vatt.tokenize.Vocabulary.build(rows.texts())
    return data.TrainDataset([data.Source.to_train(rows)], Sampler([len(rows)], [1.0], 4, 0), recipe, vocabulary=words)


def test_shards_are_plain_tars_whose_members_are_the_rows_of_the_index(packed):
    rows, members = index.Index(packed / "index"), []
    for path in sorted(packed.glob("shard-*.tar")):
        with tarfile.open(path) as tar:
            members += [(path, m, tar.extractfile(m).read()) for m in tar]
    assert len(rows) == 7
    assert len({path for path, *_ in members}) > 1
    for i, row in enumerate(rows):
        (path, film, clip), (_, said, text) = members[2 * i : 2 * i + 2]
        assert (film.name, said.name) == (f"{i:09d}.mp4", f"{i:09d}.json")
        assert rows.media(i)[:3] == (str(path), film.offset_data, film.size) == (str(path), row.place.offset, len(clip))
        assert zlib.crc32(clip) == row.place.crc == checksum(path, row.place.offset, row.place.size)
        said = json.loads(text)
        assert said["path"] == row.path == f"{i:02d}.mp4"
        assert said["captions"] == [[*map(pytest.approx, cue[:2]), cue.text] for cue in row.captions]


def test_packed_clips_show_and_sound_like_their_films(packed, films):
    rows = index.Index(packed / "index")
    for i in range(len(rows)):
        with Media(films / f"{i:02d}.mp4") as film, Media(*rows.media(i)) as clip:
            assert clip.has_audio == film.has_audio
            assert clip.duration == pytest.approx(film.duration, abs=0.11)
            for start in (0.0, 0.3, 0.9):
                a, b = (m.video(start, 4, 10, size=(24, 32)).astype(float) for m in (clip, film))
                assert abs(a - b).mean() < 3
                assert abs((a - b).mean()) < 1
                if film.has_audio:
                    a, b = (m.audio(start, 3200, 8000) for m in (clip, film))
                    assert np.corrcoef(a, b)[0, 1] > 0.98, "the sound is late, early or another"


def test_the_same_clips_fill_the_same_slots_from_a_folder_and_from_its_shards(packed, films, tmp_path):
    shutil.copytree(films, tmp_path / "films", ignore=shutil.ignore_patterns("bad*", "zero*"))
    one, other = clips(tmp_path / "a", "folder", tmp_path / "films"), clips(tmp_path / "b", "shards", packed)
    for at in ((step, slot) for step in range(3) for slot in range(4)):
        (a, _), (b, _) = one[at], other[at]
        assert Path(a["path"]).name in b["path"]
        assert np.array_equal(a["text"], b["text"])
        assert np.array_equal(a["keys"], b["keys"])
        assert a["flip"] == b["flip"]
        assert abs(a["video"].astype(float) - b["video"]).mean() < 4


@pytest.mark.parametrize("workers", [0, 3])
def test_any_number_of_processes_and_workers_makes_the_same_global_batch_from_shards(packed, tmp_path, workers):
    some = clips(tmp_path / "a", "shards", packed)
    one = [batch for batch, _ in loading.train_batches(some, 4, Rank(), 0, 3, 0)]
    halves = [list(loading.train_batches(some, 4, Rank(rank, 2), 1, 3, workers)) for rank in range(2)]
    for whole, (a, _), (b, _) in zip(one[1:], *halves, strict=True):
        assert whole["path"] == a["path"] + b["path"]
        assert torch.equal(whole["video"], torch.cat([a["video"], b["video"]]))


def test_broken_films_are_counted_by_reason_and_listed(packed, films, tmp_path, capsys):
    with (packed / "broken.csv").open() as file:
        assert [(row["path"], row["reason"]) for row in csv.DictReader(file)] == [
            ("bad.mp4", "not a media file"), ("zero.mp4", "empty file")]
    show.main(["pack", str(films), str(packed), *SMALL, "--shard-size", "3e-5"])
    assert "7 clips with 10 captions" in capsys.readouterr().out
    shutil.copy(films / "bad.mp4", tmp_path)
    argv = ["pack", str(tmp_path), str(tmp_path / "out")]
    assert "none of 1 videos could be packed (not a media file: 1)" in refused(argv, capsys, 3)


refused = functools.partial(runs.refused, show.main)


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_packs_the_same_bytes(packed, films, tmp_path, workers):
    show.main(["pack", str(films), str(tmp_path / "out"), "--rate", "8000", "--workers", str(workers), "--shard-size", "3e-5"])
    assert content(tmp_path / "out") == content(packed)


def test_a_killed_pack_started_again_keeps_the_whole_shards_and_ends_with_the_same_bytes(packed, films, tmp_path):
    out = tmp_path / "out"
    argv = ["pack", str(films), str(out), *SMALL, "--shard-size", "3e-5"]
    slow = ("import sys, time, data; from sources import pack; finish = pack.finish; "
            "pack.finish = lambda *a: (finish(*a), time.sleep(1))[0]; from tools import show; show.main(sys.argv[1:])")
    child = subprocess.Popen([sys.executable, "-c", slow, *argv], stderr=subprocess.DEVNULL,
                             start_new_session=True, cwd=HERE, env={**os.environ, "MALLOC_PERTURB_": "165"})
    first, deadline = out / "shard-000000.tar", time.time() + 60
    while time.time() < deadline and not (first.is_file() and (out / "partial" / "000000.json").is_file()):
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not (out / "index").exists(), "killed too late to show anything"
    written = first.stat().st_mtime_ns
    show.main(argv)
    assert content(out) == content(packed)
    assert first.stat().st_mtime_ns == written, "a whole shard is not packed again"


@pytest.mark.parametrize("damage", ["record cut", "shard cut", "first shard missing", "no record", "no shard"])
def test_what_did_not_reach_the_disk_is_packed_again(packed, films, tmp_path, monkeypatch, damage):
    out, count = tmp_path / "out", 0
    argv = ["pack", str(films), str(out), "--rate", "8000", "--workers", "1", "--shard-size", "3e-5"]
    finish = pack.finish

    def stops(*args):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return finish(*args)

    monkeypatch.setattr(pack, "finish", stops)
    with pytest.raises(SystemExit) as end:
        show.main(argv)
    assert end.value.code == 130
    shards, record = sorted(out.glob("shard-*")), out / "partial" / "000001.json"
    assert [path.name for path in shards] == ["shard-000000.tar", "shard-000001.tar"], "what was begun is removed"
    if damage == "record cut":
        record.write_bytes(record.read_bytes()[:-20])
    elif damage == "shard cut":
        shards[1].write_bytes(shards[1].read_bytes()[:600])
    elif damage == "first shard missing":
        shards[0].unlink()
    elif damage == "no record":
        record.unlink()
    else:
        shards[1].unlink()
    monkeypatch.setattr(pack, "finish", finish)
    show.main(argv)
    assert content(out) == content(packed)


def test_a_disk_that_gives_back_something_else_is_noticed(films, tmp_path, monkeypatch, capsys):
    fsync = os.fsync

    def rots(descriptor):
        fsync(descriptor)
        os.pwrite(descriptor, b"rot", 700)

    monkeypatch.setattr("sources.shards.os.fsync", rots)
    assert "is not what was written to it" in refused(["pack", str(films), str(tmp_path / "out"), *SMALL], capsys, 3)


def test_shards_may_be_moved_and_are_found_without_being_named(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "elsewhere")
    assert layouts.parse_source(str(tmp_path / "elsewhere")) == ("shards", tmp_path / "elsewhere")
    rows = index.Index(tmp_path / "elsewhere" / "index")
    assert Path(rows.path(0)).parent == tmp_path / "elsewhere"
    assert checksum(*rows.media(0)[:3]) == rows.place(0).crc


def test_shards_that_changed_since_a_run_began_are_refused(packed, films, tmp_path):
    shutil.copytree(packed, tmp_path / "out")
    index.point(tmp_path / "run", tmp_path / "out" / "index")
    assert index.Index(tmp_path / "run")[3] == index.Index(packed / "index")[3]
    shutil.rmtree(tmp_path / "out")
    show.main(["pack", str(films), str(tmp_path / "out"), *SMALL, "--crf", "40"])
    with pytest.raises(ValueError, match="is not what it was"):
        index.Index(tmp_path / "run")


def test_files_are_copied_as_they_are_where_that_is_asked_for(films, tmp_path):
    show.main(["pack", str(films), str(tmp_path / "out"), "--copy", "--workers", "1"])
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        assert tar.extractfile("000000003.mp4").read() == (films / "03.mp4").read_bytes()
    row = index.Index(tmp_path / "out" / "index")[1]
    assert row[:3] == ("01.mp4", 0.0, math.inf)
    assert [cue.text for cue in row.captions] == ["film number1 begins", "number1 goes on"]


def test_a_long_film_becomes_pieces_that_follow_each_other(tmp_path):
    film(tmp_path / "films" / "a.mp4", seconds=5.6)
    (tmp_path / "films" / "a.csv").write_text("start,end,text\n0,1,one\n2.5,3,two\n5,5.5,three\n")
    show.main(["pack", str(tmp_path / "films"), str(tmp_path / "out"), *SMALL, "--seconds", "2"])
    rows = index.Index(tmp_path / "out" / "index")
    assert len(rows) == 3
    with Media(tmp_path / "films" / "a.mp4") as whole:
        for i, seconds in enumerate((2.0, 2.0, 1.6)):
            with Media(*rows.media(i)) as clip:
                assert clip.duration == pytest.approx(seconds, abs=0.03)
                a, b = clip.video(0.5, 8, 10, size=(24, 32)), whole.video(2 * i + 0.5, 8, 10, size=(24, 32))
                assert abs(a.astype(float) - b).mean() < 3
                assert np.corrcoef(clip.audio(0.5, 4000, 8000), whole.audio(2 * i + 0.5, 4000, 8000))[0, 1] > 0.98
    assert {rows.data["hashes"][i] for i in range(3)} == {rows.data["hashes"][0]}, "pieces of a film are held out together"
    assert [(round(c.start, 2), c.text) for c in rows[1].captions] == [(-2.0, "one"), (0.5, "two"), (3.0, "three")]


def test_the_part_of_a_film_that_a_list_names_is_cut_out(tmp_path):
    film(tmp_path / "films" / "abcdefghijk.mp4", seconds=4)
    (tmp_path / "films" / "train_segments.csv").write_text('abcdefghijk, 1.5, 3.5, "/m/09x0r"\n')
    show.main(["pack", str(tmp_path / "films"), str(tmp_path / "out"), *SMALL])
    rows = index.Index(tmp_path / "out" / "index")
    with Media(tmp_path / "films" / "abcdefghijk.mp4") as whole, Media(*rows.media(0)) as clip:
        assert clip.duration == pytest.approx(2.0, abs=0.03)
        a, b = clip.video(0.0, 20, 10, size=(24, 32)), whole.video(1.5, 20, 10, size=(24, 32))
        assert abs(a.astype(float) - b).mean() < 3


def test_a_clip_in_a_piece_has_the_captions_that_it_has_in_the_whole_film():
    rng = np.random.default_rng(0)
    starts = np.sort(rng.uniform(0, 300, 200))
    cues = [Caption(s, s + rng.uniform(0, 8), f"{i}") for i, s in enumerate(starts)]
    for begin in (0.0, 10.0, 150.0, 290.0):
        piece = pack.cut(cues, begin, begin + 10)
        assert len(piece) < 60
        for start in np.arange(0, 6.8, 0.3):
            a = nearest([c[:2] for c in piece], start, start + 3.2, 5)
            b = nearest([c[:2] for c in cues], begin + start, begin + start + 3.2, 5)
            assert [piece[i].text for i in a] == [cues[i].text for i in b]


def test_what_cannot_be_packed_is_refused_in_one_line(packed, films, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note.txt").write_text("mine")
    for argv, says in (
        ([str(films), str(tmp_path / "other")], "holds no shards"),
        ([str(films), str(packed), "--crf", "30"], "crf was 20 and is 30"),
        ([str(packed), str(tmp_path / "o")], "is packed already"),
        ([str(tmp_path / "nowhere"), str(tmp_path / "o")], "there is no"),
        ([str(films), str(tmp_path / "o"), "--fps", "0"], "--fps: must be above 0"),
        ([str(films), str(tmp_path / "o"), "--crf", "99"], "--crf: must be at most 51"),
        ([str(tmp_path / "other"), str(tmp_path / "o")], "no video found"),
    ):
        assert says in refused(["pack", *argv], capsys)
    assert (tmp_path / "other" / "note.txt").read_text() == "mine"
    show.main(["pack", str(films), str(tmp_path / "o"), *SMALL])  # what failed to start can be started right
    assert not (packed / "partial").exists()


def test_a_training_from_long_videos_without_an_index_says_what_packing_would_save(tmp_path, capsys):
    film(tmp_path / "source.mp4", seconds=605, sound=False)
    for name, options in {"a.flv": {}, "b.mkv": {"live": "1"}, "c.mkv": {}, "d.mp4": {}, "e.ts": {}}.items():
        path = tmp_path / name[0] / name
        path.parent.mkdir()
        with av.open(str(tmp_path / "source.mp4")) as source, av.open(str(path), "w", options=options) as out:
            stream = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
        layouts.list_files("folder", path.parent, tmp_path / f"index-{name[0]}", tmp_path / "problems")
    said = {name: pack.advice([index.Index(tmp_path / f"index-{name}")]) for name in "abcde"}
    assert re.search(r"a\.flv is 10 minutes long and has no index: .* in [0-9.]+ s; python data.py pack .* saves", said["a"])
    assert "b.mkv is 10 minutes long" in said["b"]
    assert {said[name] for name in "cde"} == {None}
    pretrain.main(["--data", str(tmp_path / "d"), str(tmp_path / "a"), "--val", str(tmp_path / "c"), *TINY, "--steps", "1",
                   "--batch", "2", "--workers", "0", "--out", str(tmp_path / "run")])
    assert capsys.readouterr().err.count("saves that a clip") == 1
