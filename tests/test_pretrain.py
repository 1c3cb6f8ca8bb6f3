"""The whole of pre-training, run as a user runs it, on a few tiny films: logs, kills, resumes, wrong input, exit codes."""

import argparse
import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import runs
import torch
from films import TINY, film, folder
from runs import rows

import data
import losses
import pretrain
import vatt
from sources import check
from tools import show

HERE = Path(__file__).parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def signals_as_they_were():
    before = [(s, signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGINT)]
    yield
    for s, handler in before:
        signal.signal(s, handler)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("films"), films=10, silent=1, captioned=7)


@pytest.fixture(scope="module")
def finished(films, tmp_path_factory):
    """A run of six steps that was never stopped"""
    out = tmp_path_factory.mktemp("runs") / "whole"
    pretrain.main([*both(films), "--out", str(out), *TINY])
    return out


def both(films):
    """Trains on a folder and scores on it, so that the pools are not those of one or two films"""
    return ["--data", str(films), "--val", str(films)]


refused = functools.partial(runs.refused, pretrain.main)


def test_a_run_folder_holds_settings_words_log_scores_and_checkpoints(finished):
    assert [row["step"] for row in rows(finished)] == list(range(6))
    assert {"loss", "nce", "mil_nce", "lr", "pos_va", "neg_va", "pos_vt", "neg_vt"} <= rows(finished)[0].keys()
    names = {p.name for p in finished.iterdir()}
    assert {"config.json", "vocabulary.txt", "metrics.jsonl", "results.json"} <= names
    assert {"checkpoint-00000004.pt", "checkpoint-00000006.pt"} <= names
    results = json.loads((finished / "results.json").read_text())
    assert results["video_to_audio"]["chance"]["R@1"] == 1 / results["video_to_audio"]["N"]


def test_the_loss_is_the_sum_of_both_with_lambda_one_and_starts_near_chance(finished):
    first = rows(finished)[0]
    assert first["loss"] == pytest.approx(first["nce"] + first["mil_nce"], rel=1e-6)
    assert abs(first["nce"] - losses.at_chance(4, int(first["sounding"]))) < 2
    assert "held_out" in rows(finished)[3]


def test_a_file_with_sound_alone_is_counted_with_and_without_a_cache(films, tmp_path, capsys):
    shutil.copytree(films, tmp_path / "films")
    with av.open(str(tmp_path / "films" / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        for i in range(12):
            block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            block.sample_rate, block.pts = 8000, 1024 * i
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    for cache in ("0", "1"):
        pretrain.main([*both(tmp_path / "films"), "--out", str(tmp_path / cache), *TINY, "--max-bad", "1", "--cache", cache])
        assert "unreadable files (no video: " in capsys.readouterr().out


def test_a_row_of_the_log_that_a_kill_cut_short_before_any_checkpoint_does_not_block_the_run(finished, films, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(finished / "config.json", out)
    (out / "metrics.jsonl").write_text((finished / "metrics.jsonl").read_text()[:200])
    pretrain.main([*both(films), "--out", str(out), *TINY])
    assert rows(out) == rows(finished)


def test_a_second_sigterm_does_not_stop_the_saving_and_a_second_ctrl_c_does(tmp_path):
    code = ("import os, signal, sys, time; sys.path.insert(0, sys.argv[1])\n"
            "from engine.processes import GracefulShutdown; GracefulShutdown()\n"
            "for s in sys.argv[2:]: os.kill(os.getpid(), getattr(signal, s)); time.sleep(0.3)\nprint('saved')")
    run = lambda *signals: subprocess.run([sys.executable, "-c", code, str(HERE), *signals], check=False, capture_output=True)
    assert run("SIGTERM", "SIGTERM").stdout.strip() == b"saved"
    twice = run("SIGINT", "SIGINT")
    assert (twice.stdout, twice.returncode) == (b"", 130)


def test_scores_on_films_that_are_trained_on_are_no_held_out_scores(films, tmp_path, capsys):
    pretrain.main([*both(films), "--out", str(tmp_path / "run"), *TINY, "--steps", "1"])
    assert "holds videos that are trained on" in capsys.readouterr().err


def test_a_finished_run_prints_its_table_again_and_trains_nothing(finished, films, capsys):
    before = {p.name: p.stat().st_mtime_ns for p in finished.glob("[a-z]*.*")}
    pretrain.main([*both(films), "--out", str(finished), *TINY])
    out = capsys.readouterr().out
    assert "held-out retrieval" in out
    assert "--out" in out
    assert {p.name: p.stat().st_mtime_ns for p in finished.glob("[a-z]*.*")} == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_goes_on_bit_for_bit_like_one_that_was_not(finished, films, tmp_path, workers):
    command = [sys.executable, str(HERE / "pretrain.py"), *both(films), "--out", str(tmp_path / "run"), *TINY,
               "--workers", str(workers)]
    child = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.time() + 120
    while time.time() < deadline and not (log.exists() and log.read_bytes().count(b"\n") >= 3):
        time.sleep(0.002)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "run" / "results.json").exists(), "killed too late to show anything"
    pretrain.main(command[2:])
    assert rows(tmp_path / "run") == rows(finished)
    assert (tmp_path / "run" / "results.json").read_text() == (finished / "results.json").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_sigterm_and_ctrl_c_save_at_the_end_of_the_step_and_leave(films, tmp_path, number, code):
    command = [sys.executable, str(HERE / "pretrain.py"), *both(films), "--out", str(tmp_path / "run"), *TINY,
               "--steps", "100000", "--save-every", "99999", "--eval-every", "99999", "--workers", "2"]
    child = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             start_new_session=True,
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.time() + 120
    while time.time() < deadline and not (log.exists() and log.stat().st_size):
        time.sleep(0.01)
    os.killpg(child.pid, number)  # as a terminal, torchrun and Slurm do: the loader's workers get it too
    said = child.communicate(timeout=60)[0]
    assert child.returncode == code, said
    steps = len(rows(tmp_path / "run"))
    assert (tmp_path / "run" / f"checkpoint-{steps:08d}.pt").exists()
    assert f"stopped at step {steps}" in said
    assert subprocess.run(["pgrep", "-g", str(child.pid)], check=False, capture_output=True).stdout == b"", "processes remain"


def test_torchrun_with_two_processes_logs_what_one_process_logs(films, tmp_path):
    argv = [*both(films), *TINY, "--steps", "3", "--precision", "fp64"]
    pretrain.main([*argv, "--out", str(tmp_path / "one")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(HERE / "pretrain.py"), *argv, "--out", str(tmp_path / "two")], env=ENV, check=False,
                          capture_output=True, text=True, timeout=180, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys()
        assert all(one[k] == pytest.approx(two[k], rel=1e-9, abs=1e-9) for k in one)
    scores = [json.loads((tmp_path / n / "results.json").read_text()) for n in ("one", "two")]
    assert scores[0] == scores[1]


def test_a_loss_that_is_not_finite_changes_nothing_and_ten_in_a_row_end_the_run(films, tmp_path, monkeypatch, capsys):
    true, states = losses.mil_nce, []

    def broken(*args, **kwargs):
        return true(*args, **kwargs) * float("nan")

    def spy(self, step, state, *keep):
        states.append({k: v.clone() for k, v in state["model"].items()})

    monkeypatch.setattr(losses, "mil_nce", broken)
    monkeypatch.setattr(pretrain.Run, "save", spy)
    line = refused([*both(films), "--out", str(tmp_path / "run"), *TINY, "--steps", "30", "--save-every", "1"], capsys, 3)
    assert "not finite" in line
    logged = rows(tmp_path / "run")
    assert len(logged) == 10
    assert all(row["loss"] is None and len(row["not_finite"]) == 4 for row in logged)
    assert len(states) == 9
    assert all(torch.equal(states[0][k], later[k]) for later in states for k in states[0]), "weights or statistics changed"
    torch.manual_seed(0)
    fresh = vatt.VATT(vatt.Config.from_json(json.loads((tmp_path / "run" / "config.json").read_text())["model"])).state_dict()
    assert all(torch.equal(states[-1][k], fresh[k]) for k in fresh)


def test_unreadable_films_are_named_once_counted_by_reason_and_stop_the_run_past_max_bad(tmp_path, capsys):
    for i in range(6):
        film(tmp_path / "films" / f"{i}.mp4", seed=i)
    for i in range(3):
        (tmp_path / "films" / f"bad{i}.mp4").touch()
    argv = [*both(tmp_path / "films"), *TINY]
    pretrain.main([*argv, "--max-bad", "0.6", "--out", str(tmp_path / "goes-on")])
    said = capsys.readouterr().out
    assert all(said.count(f"in its place: {str(tmp_path / 'films')!r}"[:-1] + f"/bad{i}.mp4") <= 1 for i in range(3))
    assert "3 unreadable files (empty file: " in said
    counted = sum(len(row.get("bad", [])) for row in rows(tmp_path / "goes-on"))
    assert f"{counted} draws of 3 unreadable files" in said
    assert "3 held-out clips could not be read" in said
    line = refused([*argv, "--out", str(tmp_path / "stops")], capsys, 3)
    assert "empty file" in line
    assert "data.py check" in line
    assert "--skip broken.csv" in line


def test_files_on_the_list_of_check_are_left_out_and_a_stopped_run_goes_on(tmp_path, capsys):
    films, out, table = tmp_path / "films", tmp_path / "run", tmp_path / "broken.csv"
    for i in range(6):
        film(films / f"{i}.mp4", seed=i)
    for i in range(3):
        (films / f"bad{i}.mp4").touch()
    argv = [*both(films), *TINY, "--out", str(out)]
    refused(argv, capsys, 3)
    done = len(rows(out))
    with pytest.raises(SystemExit):
        check.run(None, argparse.Namespace(path=str(films), out=table, whole=False, workers=1, timeout=60))
    pretrain.main([*argv, "--skip", str(table)])
    said = capsys.readouterr().out
    assert "6 clips to train on, 6 held out" in said
    assert "unreadable" not in said.split("6 clips to train on")[1]
    assert len(rows(out)) > done
    table.write_text("name\n")
    assert "header has no path" in refused([*both(films), *TINY, "--out", str(tmp_path / "new"), "--skip", str(table)], capsys)


def test_thirty_percent_of_broken_films_are_counted_exactly_and_training_goes_on(tmp_path, capsys):
    for i in range(7):
        film(tmp_path / "films" / f"{i}.mp4", seed=i)
    (tmp_path / "films" / "a.mp4").touch()
    (tmp_path / "films" / "b.mp4").write_text("not a film")
    (tmp_path / "films" / "c.mp4").write_bytes((tmp_path / "films" / "0.mp4").read_bytes()[:400])
    out = tmp_path / "run"
    pretrain.main([*both(tmp_path / "films"), *TINY, "--steps", "12", "--max-bad", "0.5", "--workers", "2", "--out", str(out)])
    wrong, names = {7: "empty file", 8: "not a media file", 9: "not a media file"}, []  # by the number of the row
    slots = pretrain.Sampler([10], [1.0], 4, 0)
    for step in range(12):
        for slot in range(4):
            number, attempt = slots(step, slot)[1], 0
            while number in wrong:
                names.append(wrong[number])
                attempt += 1
                number = int(data.generator(0, step, slot, attempt).integers(10))
    logged = [reason for row in rows(out) for _, reason in row.get("bad", [])]
    assert sorted(logged) == sorted(names)
    assert len(names) >= 14, "a third of 48 draws, and more in their place"
    assert f"{len(names)} draws of 3 unreadable files" in capsys.readouterr().out
    assert all(row["loss"] is not None for row in rows(out))


def test_data_without_a_readable_film_stop_the_run_at_once_with_the_list(tmp_path, capsys):
    for i in range(4):
        (tmp_path / "films" / f"{i}.mp4").parent.mkdir(exist_ok=True)
        (tmp_path / "films" / f"{i}.mp4").write_text("not a film")
    for workers in ("0", "2"):
        line = refused([*both(tmp_path / "films"), *TINY, "--out", str(tmp_path / "run"), "--workers", workers], capsys)
        assert "not a media file: 100" in line
        assert all(f"films/{i}.mp4" in line for i in range(4))
        assert rows(tmp_path / "run") == [] if (tmp_path / "run" / "metrics.jsonl").exists() else True


def test_a_worker_that_hangs_or_dies_ends_the_run_with_the_name_of_its_file(films, tmp_path):
    """In a process of its own: it must end by itself, without a process left"""
    for harm, says in (("time.sleep(60)", "took more than --timeout"), ("os.kill(os.getpid(), 9)", "of the loader")):
        start = ("import os, sys, time, pretrain, data; inside = data.caption_ids; data.caption_ids = lambda row, *rest: "
                 f"({harm} if row.path == '03.mp4' else 0, inside(row, *rest))[1]; pretrain.main()")
        command = [sys.executable, "-c", start, *both(films), "--out", str(tmp_path / "run"), *TINY, "--workers", "2",
                   "--timeout", "3", "--steps", "50"]
        child = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=HERE,
                                 start_new_session=True)
        said = child.communicate(timeout=60)[0]
        assert child.returncode == 3, said
        line = next(line for line in said.splitlines() if "error: " in line)
        assert says in line
        assert "03.mp4" in line
        assert subprocess.run(["pgrep", "-g", str(child.pid)], check=False, capture_output=True).stdout == b""
        shutil.rmtree(tmp_path / "run")


def test_a_run_on_shards_goes_on_in_its_folder_and_refuses_shards_that_changed(films, tmp_path, capsys):
    show.main(["pack", str(films), str(tmp_path / "packed"), "--rate", "8000", "--workers", "1"])
    argv = ["--data", f"shards={tmp_path / 'packed'}", "--out", str(tmp_path / "run"), *TINY]
    pretrain.main([*argv, "--val", str(films)])
    assert "10 clips to train on" in capsys.readouterr().out
    pretrain.main([*argv, "--val", str(films)])
    shutil.rmtree(tmp_path / "packed")
    show.main(["pack", str(films), str(tmp_path / "packed"), "--rate", "8000", "--workers", "1", "--crf", "40"])
    (tmp_path / "run" / "results.json").unlink()
    assert "is not what it was" in refused([*argv, "--val", str(films)], capsys)


def test_a_run_that_fails_with_workers_ends_at_once_and_leaves_none(tmp_path):
    for i in range(5):
        (tmp_path / "films" / f"{i}.mp4").parent.mkdir(exist_ok=True)
        (tmp_path / "films" / f"{i}.mp4").touch()
    command = [sys.executable, str(HERE / "pretrain.py"), *both(tmp_path / "films"), "--out", str(tmp_path / "run"), *TINY]
    child = subprocess.Popen([*command, "--workers", "2"], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                             text=True, start_new_session=True)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 2
    assert said.strip().splitlines()[-1].startswith("error: 100 files in a row could not be read")
    assert subprocess.run(["pgrep", "-g", str(child.pid)], check=False, capture_output=True).stdout == b"", "processes remain"


def test_a_run_starts_from_the_weights_of_another(finished, films, tmp_path):
    pretrain.main([*both(films), "--out", str(tmp_path / "run"), *TINY, "--init", str(finished), "--size", "24",
                   "--steps", "1"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    assert config["size"] == 24
    assert len(torch.load(tmp_path / "run" / "checkpoint-00000001.pt", weights_only=True)["model"]["backbones.e_vertical"]) == 3


def test_weights_of_another_run_bring_their_words_by_spelling(finished):
    trained = vatt.load(finished)
    words = vatt.tokenize.Vocabulary(["goes", "zebra", "begins"])  # two known words in another order, and a new one
    torch.manual_seed(1)
    model = vatt.VATT(dataclasses.replace(trained.config, vocabulary=len(words)))
    new = model.backbones.W_tp[words.ids["zebra"]].clone()
    vatt.start_from(model, finished, words)
    for word in ("<unk>", "goes", "begins"):
        assert torch.equal(model.backbones.W_tp[words.ids[word]], trained.backbones.W_tp[trained.vocabulary.ids[word]])
    assert torch.equal(model.backbones.W_tp[words.ids["zebra"]], new)


def test_a_run_whose_checkpoints_cannot_be_read_is_refused_and_loses_nothing(finished, films, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "results.json").unlink()
    for path in out.glob("checkpoint-*.pt"):
        path.write_bytes(b"")
    log = (out / "metrics.jsonl").read_bytes()
    assert "none can be read" in refused([*both(films), "--out", str(out), *TINY], capsys)
    assert (out / "metrics.jsonl").read_bytes() == log


def test_held_out_films_inside_the_data_are_refused(films, tmp_path, capsys):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "held").symlink_to(films)
    shutil.copytree(films, tmp_path / "films" / "inner")
    argv = ["--data", str(tmp_path / "films"), "--val", str(tmp_path / "films" / "inner"), "--out", str(tmp_path / "run")]
    assert "move it out" in refused([*argv, *TINY], capsys)


def test_films_that_are_mended_after_a_failed_start_are_found(films, tmp_path, capsys):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").touch()
    (tmp_path / "films" / "b.mp4").touch()
    argv = ["--data", str(tmp_path / "films"), "--out", str(tmp_path / "run"), *TINY, "--steps", "1"]
    assert "empty file: 100" in refused(argv, capsys)
    for path in films.iterdir():
        shutil.copy(path, tmp_path / "films")
    pretrain.main([*argv, "--max-bad", "1"])
    assert "11 clips to train on, 1 held out" in capsys.readouterr().out


def test_a_lower_learning_rate_never_rises_above_itself(finished, films, tmp_path):
    args = pretrain.settings(["--preset", "sss", "--lr", "1e-5"], pretrain.Processes())
    assert args.lr_end == pytest.approx(5e-6)


def test_a_dry_run_builds_everything_and_leaves_nothing(films, tmp_path, capsys):
    pretrain.main([*both(films), "--out", str(tmp_path / "run"), *TINY, "--dry-run"])
    said = capsys.readouterr().out
    assert re.search(r"video +\(4, 4, 16, 16, 3\) torch.uint8", said)
    assert re.search(r"parameters .*\nFLOPs .*\nmemory (.*\n)*time .* s a step.* days for 6 steps", said)
    assert not (tmp_path / "run").exists()
    assert "without a GPU" not in said
    pretrain.main([*both(films), "--out", str(tmp_path / "run"), *TINY, "--dry-run", "--preset", "sss"])
    assert "without a GPU --preset demo fits" in capsys.readouterr().out or torch.cuda.is_available()


@pytest.mark.parametrize(("flags", "says"), [
    (["--batch", "0"], "--batch: must be at least 2"),
    (["--batch", "1"], "--batch: must be at least 2"),
    (["--steps", "0"], "--steps: must be at least 1"),
    (["--lr", "-1"], "--lr: must be above 0"),
    (["--lr", "nan"], "--lr: must be finite"),
    (["--drop", "1"], "--drop: must be below 1"),
    (["--drop", "0.1", "0.2", "0.3"], "--drop takes one share or two"),
    (["--area", "0.5", "0.1"], "--area must be"),
    (["--preset", "huge"], "invalid choice: 'huge'"),
    (["--steeps", "5"], "unrecognized arguments: --steeps"),
    (["--weights", "1", "2"], "--weights needs one number"),
    (["--patch", "0", "8", "8"], "--patch: must be at least 1"),
    (["--patch", "2", "8", "17"], "--patch 2 8 17 is larger than a clip of --frames 4, --size 16"),
    (["--audio-patch", "3201"], "--audio-patch 3201 is a part"),
    (["--audio-patch", "128", "--audio-input", "spectrogram"], "--audio-patch 128 is a part"),
    (["--seed", "-1"], "--seed: must be at least 0"),
    (["--noise", "nan"], "--noise: must be finite"),
    (["--lr-end", "1"], "--lr-end 1.0 is above --lr"),
    (["--weights", "nan"], "--weights: must be finite"),
    (["--init", "nowhere"], "nowhere"),
    (["--fps", "1e9"], "--fps: must be at most 240"),
    (["--rate", "1"], "--rate: must be at least 1000"),
    (["--seed", str(10**23)], f"--seed: must be at most {2**63 - 1}"),
])  # fmt: skip
def test_a_wrong_flag_is_one_line_and_exit_code_2(films, tmp_path, capsys, flags, says):
    argv = [*both(films), "--out", str(tmp_path / "run"), *TINY, *flags]
    assert says in refused(argv, capsys)
    assert not list(tmp_path.glob("run/checkpoint*"))


def test_wrong_data_is_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("x")
    argv = [*TINY, "--out", str(tmp_path / "run"), "--data"]
    assert "no video found" in refused([*argv, str(tmp_path / "empty")], capsys)
    assert "there is no" in refused([*argv, str(tmp_path / "missing")], capsys)
    assert "is a file" in refused([*argv, str(tmp_path / "note.txt")], capsys)


def test_a_run_that_failed_to_start_can_be_started_right(films, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    refused(["--data", str(tmp_path / "empty"), "--out", str(tmp_path / "run"), *TINY], capsys)
    pretrain.main([*both(films), "--out", str(tmp_path / "run"), *TINY, "--steps", "1"])


def test_a_folder_with_another_run_is_left_as_it_is(finished, films, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    line = refused([*both(films), "--out", str(out), *TINY, "--lr", "0.5", "--size", "24"], capsys)
    assert "--lr was 0.002 and is 0.5" in line
    assert "--size was 16 and is 24" in line
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_a_checkpoint_of_another_shape_is_refused(finished, films, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "results.json").unlink()
    for path in out.glob("checkpoint-*.pt"):
        state = torch.load(path, weights_only=True)
        state["model"]["backbones.W_vp"] = torch.zeros(3, 5)
        torch.save(state, path)
    line = refused([*both(films), "--out", str(out), *TINY], capsys)
    assert "backbones.W_vp is (3, 5)" in line


def test_the_patches_of_tables_9_and_10_are_flags(films, tmp_path):
    patches = ["--patch", "4", "16", "8", "--audio-patch", "320"]
    pretrain.main([*both(films), "--out", str(tmp_path), *TINY, "--steps", "1", *patches])
    backbones = vatt.load(tmp_path).backbones
    assert len(backbones.W_vp) == 4 * 16 * 8 * 3
    assert [len(e) for e in (backbones.e_temporal, backbones.e_vertical, backbones.e_horizontal)] == [1, 1, 2]
    assert (len(backbones.W_ap), len(backbones.e_audio)) == (320, 10)


def test_a_trained_model_embeds_files_and_sentences(finished, films):
    model = vatt.load(finished)
    video, again = (model.embed_video(films / "00.mp4") for _ in range(2))
    assert torch.equal(video, again)
    assert video.shape == model.embed_text("film number0").shape
    assert model.embed_video(films / "00.mp4", "va").shape == model.embed_audio(films / "00.mp4").shape
    assert video.norm() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="is no run"):
        vatt.load(films)
