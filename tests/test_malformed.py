"""What others have written, or a disk has torn: one line that names the file, in bounded time and memory; workers that die."""

import json
import os
import re
import signal
import sys
import time
import zipfile

import numpy as np
import pytest
from films import film, folder
from runs import finetuned, pretrained, refused

import evaluate
import pretrain
from media import Media
from sources import layouts
from tools import embed, show


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("videos"), films=4)


def changed(run, **fields):
    """The run, with other fields of its model in config.json"""
    config = json.loads((run / "config.json").read_text())
    config["model"] = {**config["model"], **fields}
    (run / "config.json").write_text(json.dumps(config))
    return run


@pytest.mark.parametrize("fields", [
    {"video": [10**8, 32, 64, 2]}, {"video": [1, 10**6, 10**6, 2]}, {"video": "x"}, {"video": [1, 2]}, {"video": None},
    {"frames": 10**9, "fps": 1e-3}, {"fps": 0}, {"size": "16"}, {"patch": 3}, {"vocabulary": 10**9}, {"variant": ["x"]},
    {"unknown": 1}, {"video": [1, 32, 64, 0]}, {"rate": float("nan")}, {"classes": 7}, {"d_va": -1}], ids=str)
def test_a_config_that_is_malformed_or_claims_any_size_is_one_line(tmp_path, capsys, videos, fields):
    run, began = changed(pretrained(tmp_path / "run"), **fields), time.monotonic()
    said = refused(evaluate.main, ["embed", str(run), str(videos), str(tmp_path / "x.npz")], capsys)
    assert str(run) in said or "config.json" in said
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"settings": 1, "model": [], "versions": {}}', "\x00\xff", "null"])
def test_a_config_that_is_no_object_is_one_line(tmp_path, capsys, videos, text):
    run = pretrained(tmp_path / "run")
    (run / "config.json").write_bytes(text.encode("latin-1"))
    for command in (["embed", str(run), str(videos), str(tmp_path / "x.npz")], ["predict", str(run), str(videos)],
                    ["search", str(run), "red", "--in", str(videos)], ["classify", str(run)],
                    ["retrieve", str(run), str(videos)]):
        assert "config.json" in refused(evaluate.main, command, capsys)


def test_a_vocabulary_of_another_run_is_one_line(tmp_path, capsys, videos):
    run = pretrained(tmp_path / "run")
    with (run / "vocabulary.txt").open("a") as file:
        file.write("more\nwords\n")
    assert "more words than the model" in refused(evaluate.main, ["search", str(run), "red", "--in", str(videos)], capsys)


def bomb(path, kind):
    """An .npz that takes much more memory than disk"""
    form, shape, megabytes = {"deflated": (zipfile.ZIP_DEFLATED, (500_000_000,), 2000),
                              "claimed": (zipfile.ZIP_STORED, (10**15,), 1)}[kind]
    with zipfile.ZipFile(path, "w", form) as file, file.open("vectors.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for _ in range(megabytes):
            member.write(bytes(1_000_000))


@pytest.mark.parametrize("kind", ["deflated", "claimed"])
def test_vectors_that_would_fill_the_memory_are_refused(tmp_path, capsys, videos, kind):
    bomb(tmp_path / "x.npz", kind)
    command = ["embed", str(pretrained(tmp_path / "run")), str(videos), str(tmp_path / "x.npz")]
    memory, began = peak(), time.monotonic()
    assert "is not of this program" in refused(evaluate.main, command, capsys)
    assert peak() - memory < 300e6
    assert time.monotonic() - began < 10


def peak():
    import resource
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("damage", ["torn", "flipped", "other"])
def test_kept_moments_that_are_torn_or_flipped_are_made_anew(tmp_path, capsys, videos, damage):
    run, out = pretrained(tmp_path / "run"), tmp_path / "x.png"
    command = ["search", str(run), "red", "--in", str(videos), "--out", str(out)]
    evaluate.main(command)
    table, first = next(run.glob("moments-*.npz")), [line for line in capsys.readouterr().out.splitlines() if " - " in line]
    content = table.read_bytes()
    at = content.index(b"vectors.npy") + 400
    table.write_bytes({"torn": content[:-300], "other": b"other",
                       "flipped": content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :]}[damage])
    evaluate.main(command)
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if " - " in line] == first
    assert "already" not in said


def test_a_short_file_that_claims_days_has_few_moments(tmp_path):
    path = film(tmp_path / "a.mp4", seconds=1)
    real = Media.duration
    try:
        Media.duration = property(lambda self: 999_999.0)
        rows = embed.moments(tmp_path, ["a.mp4"], 0.4, 10.0, [])
    finally:
        Media.duration = real
    assert len(rows) <= path.stat().st_size + 1


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="workers are not forks, and do not see the decoder that dies")
def test_a_video_that_kills_whoever_opens_it_is_named_and_the_others_are_embedded(tmp_path, videos, monkeypatch, capsys):
    length, main = Media.duration, os.getpid()
    dies = lambda self: os.kill(os.getpid(), signal.SIGKILL) if "02.mp4" in str(self.path) and os.getpid() != main else None
    monkeypatch.setattr(Media, "duration", property(lambda self: (dies(self), length.__get__(self))[1]))
    out = tmp_path / "x.npz"
    evaluate.main(["embed", str(pretrained(tmp_path / "run")), str(videos), str(out), "--seconds", "0.4"])
    assert re.search(r"02\.mp4: .*SIGKILL", capsys.readouterr().err)
    assert "02.mp4" not in embed.read(out)["ids"]
    assert "01.mp4" in embed.read(out)["ids"]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="workers are not forks, and do not see the decoder that dies")
@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
@pytest.mark.parametrize("command", [
    "embed {trained} {videos} {out}/x.npz", "predict {run} {videos} --out {out}/x.csv",
    "classify {run} csv={videos}/labels.csv", "search {trained} red --in {videos} --out {out}/x.png",
    "retrieve {trained} csv={videos}/captions.csv"])
def test_a_worker_that_dies_or_hangs_is_one_line_that_names_the_file(tmp_path, videos, monkeypatch, capsys, command, signal_):
    (videos / "labels.csv").write_text("path,label,split\n" + "".join(f"0{i}.mp4,{'ab'[i % 2]},val\n" for i in range(4)))
    (videos / "captions.csv").write_text("path,caption\n" + "".join(f"0{i}.mp4,red\n" for i in range(4)))
    video, clips, handler, main = Media.video, Media.clips, signal.getsignal(signal.SIGCHLD), os.getpid()

    def dies(self):
        if "02.mp4" in str(self.path) and os.getpid() != main:
            os.kill(os.getpid(), signal_)

    def dying_clips(self, *args, **more):
        dies(self)
        yield from clips(self, *args, **more)

    monkeypatch.setattr(Media, "video", lambda self, *args, **more: (dies(self), video(self, *args, **more))[1])
    monkeypatch.setattr(Media, "clips", dying_clips)
    words = command.format(trained=pretrained(tmp_path / "trained"), run=finetuned(tmp_path / "run", "video", ["a", "b"]),
                           videos=videos, out=tmp_path).split()
    began = time.monotonic()
    said = refused(evaluate.main, [*words, "--batch", "1", "--timeout", "2"], capsys, 3)
    signal.signal(signal.SIGCHLD, handler)
    assert re.search(r"02\.mp4: move the file away", said)
    assert time.monotonic() - began < 30


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="workers are not forks, and do not see the decoder that dies")
def test_a_file_that_kills_its_decoder_is_named_before_a_training_and_in_a_training_that_names_no_workers(
        tmp_path, videos, monkeypatch, capsys):
    begin, handler, main = Media._converter, signal.getsignal(signal.SIGCHLD), os.getpid()
    dies = lambda self: os.kill(os.getpid(), signal.SIGKILL) if "02.mp4" in str(self.path) and os.getpid() != main else None
    monkeypatch.setattr(Media, "_converter", lambda self, *args: (dies(self), begin(self, *args))[1])
    command = (f"--data {videos} --out {tmp_path / 'run'} --frames 4 --size 16 --patch 2 8 8 --rate 8000 --steps 2 --batch 4 "
               "--warmup 0").split()
    for more in ([], ["--dry-run"]):
        said = refused(pretrain.main, [*command, *more], capsys, 3)
        assert re.search(r"died \(SIGKILL\); it had in hand: .*02\.mp4", said)
    monkeypatch.setattr(show, "pyplot", lambda: True)
    said = refused(show.main, ["show", str(videos), str(tmp_path / "x.png")], capsys, 3)
    signal.signal(signal.SIGCHLD, handler)
    assert "02.mp4: move the file away" in said


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="workers are not forks, and do not see the decoder that dies")
def test_a_video_that_kills_whoever_looks_for_captions_inside_is_listed_like_the_others(tmp_path, monkeypatch):
    for name in ("a.mp4", "b.mp4"):
        film(tmp_path / name, seconds=1)
    captions, main = layouts.look_at, os.getpid()
    dies = lambda path: os.kill(os.getpid(), signal.SIGKILL) if path.name == "a.mp4" and os.getpid() != main else None
    monkeypatch.setattr(layouts, "look_at", lambda path: (dies(path), captions(path))[1])
    assert [row.path for row in layouts.folder(tmp_path, [])] == ["a.mp4", "b.mp4"]
