"""finetune.py as a user runs it, on a few tiny films: recipes, logs, kills, processes, broken files, wrong input."""

import csv
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import runs
import soundfile
import torch
from films import film, image
from runs import classify, clips_to_test, pretrained, rows

import finetune
import vatt
from engine.processes import Processes
from sources import demo, official
from tools.embed import Reading

HERE = Path(__file__).parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
SHORT = ["--batch", "4", "--steps", "6", "--warmup", "1", "--save-every", "2", "--eval-every", "3", "--cache", "0",
         "--windows", "2", "--crops", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A csv of ten films of three classes to train on, and seven to test on"""
    root = tmp_path_factory.mktemp("labelled")
    with open(root / "labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for i in range(17):
            rows.writerow([film(root / f"{i}.mp4", seconds=0.8, seed=i).name, "abc"[i % 3], "train" if i < 10 else "val"])
    return root / "labels.csv"


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    """A run of pretrain.py"""
    return pretrained(tmp_path_factory.mktemp("runs") / "pretrained")


@pytest.fixture(scope="module")
def finished(labelled, init, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "video"
    finetune.main(["--task", "video", "--data", str(labelled), "--init", str(init), "--out", str(out), *SHORT])
    return out


def results(out, task):
    return json.loads((out / "results.json").read_text())[task]


refused = functools.partial(runs.refused, finetune.main)


# recipes


def test_the_recipes_are_those_of_the_paper():
    get = lambda *argv: finetune.settings(finetune.parse([*argv, "--data", "x", "--preset", "bbs"]), Processes())
    video, audio, image = (get("--task", task) for task in ("video", "audio", "image"))
    assert (video.lr, video.warmup, video.steps, video.batch, video.smoothing) == (0.005, 2500, 100_000, 64, 0.1)
    assert (video.frames, video.fps, video.size, video.windows, video.crops, video.drop) == (32, 12.5, 320, 4, 3, 0)
    assert (video.classifier_dropout, video.clip, video.dropout) == (0.5, 0.75, 0.1)
    assert (audio.lr, audio.warmup, audio.steps, audio.batch, audio.mixup) == (0.2, 5000, 50_000, 1024, 5)
    assert audio.frames / audio.fps * audio.rate == 6.4 * 24_000 == 153_600
    assert (audio.windows, audio.crops, audio.balance) == (4, 1, True)
    assert (image.lr, image.epochs, image.batch, image.size, image.smoothing) == (0.08, 50, 512, 384, 0.1)


def test_the_linear_recipe_is_that_of_a_3_2(init):
    argv = ["--task", "linear", "--data", "x", "--init", str(init), "--preset", "bbs"]
    args = finetune.settings(finetune.parse(argv), Processes())
    assert (args.components, args.sampled, args.lr, args.batch, args.steps) == (128, 13, 5e-4, 64, 50_000)


# a run


def test_a_run_folder_holds_settings_log_scores_the_best_and_the_last_checkpoints(finished, labelled):
    config = json.loads((finished / "config.json").read_text())
    assert config["settings"]["data"] == str(labelled)
    assert config["settings"]["part"] == 1
    assert config["model"]["classes"] == ["a", "b", "c"]
    assert [row["step"] for row in rows(finished)] == list(range(6))
    assert {"loss", "lr", "grad_norm"} <= rows(finished)[0].keys()
    assert {"best.pt", "checkpoint-00000004.pt", "checkpoint-00000006.pt"} <= {p.name for p in finished.iterdir()}
    scores = results(finished, "video")
    assert scores["N"] == 7
    assert scores["best"] == max(scores["top-1"], rows(finished)[2]["held_out"]["top-1"])


def test_a_loaded_run_scores_what_the_run_printed(finished, labelled):
    model = vatt.load(finished)
    found = official.load(str(labelled), finished / "again", [])
    tests = clips_to_test(found.test, 3, model.spec(2, 2))
    scores = classify(model, Reading(Processes(), 4).batches(tests), Processes())
    assert scores["top-1"] == results(finished, "video")["top-1"]


def test_a_finished_run_prints_its_score_again_and_trains_nothing(finished, labelled, init, capsys):
    before = {p.name: p.stat().st_mtime_ns for p in finished.glob("[a-z]*.*")}
    finetune.main(["--task", "video", "--data", str(labelled), "--init", str(init), "--out", str(finished), *SHORT])
    assert "is finished" in capsys.readouterr().out
    assert {p.name: p.stat().st_mtime_ns for p in finished.glob("[a-z]*.*")} == before


def test_a_killed_run_goes_on_bit_for_bit_like_one_that_was_not(finished, labelled, init, tmp_path):
    argv = ["--task", "video", "--data", str(labelled), "--init", str(init), "--out", str(tmp_path / "run"), *SHORT]
    child = subprocess.Popen([sys.executable, str(HERE / "finetune.py"), *argv], env=ENV, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL, start_new_session=True)
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.time() + 120
    while time.time() < deadline and not (log.exists() and log.read_bytes().count(b"\n") >= 3):
        time.sleep(0.002)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "run" / "results.json").exists(), "killed too late to show anything"
    finetune.main(argv)
    assert rows(tmp_path / "run") == rows(finished)
    assert (tmp_path / "run" / "results.json").read_text() == (finished / "results.json").read_text()
    best = [torch.load(out / "best.pt", weights_only=True) for out in (finished, tmp_path / "run")]
    assert best[0]["step"] == best[1]["step"]
    assert all(torch.equal(best[0]["model"][k], best[1]["model"][k]) for k in best[0]["model"])


def test_a_frozen_backbones_classifier_goes_on_bit_for_bit_too(labelled, init, tmp_path):
    argv = ["--task", "linear", "--data", str(labelled), "--init", str(init), *SHORT, "--out", str(tmp_path / "run")]
    finetune.main(argv)
    log, scores = rows(tmp_path / "run"), (tmp_path / "run" / "results.json").read_text()
    (tmp_path / "run" / "results.json").unlink()
    (tmp_path / "run" / "checkpoint-00000006.pt").unlink()
    finetune.main(argv)
    assert rows(tmp_path / "run") == log
    assert (tmp_path / "run" / "results.json").read_text() == scores


def test_chunks_train_what_the_whole_batch_trains(labelled, init, tmp_path):
    argv = ["--task", "audio", "--data", str(labelled), "--init", str(init), *SHORT, "--precision", "fp64", "--mixup", "5",
            "--drop", "0.5"]
    for name, more in (("whole", []), ("chunks", ["--chunk", "3"])):
        finetune.main([*argv, "--out", str(tmp_path / name), *more])
    for whole, chunks in zip(rows(tmp_path / "whole"), rows(tmp_path / "chunks"), strict=True):
        assert whole["loss"] == pytest.approx(chunks["loss"], rel=1e-9)


def test_two_processes_train_and_score_as_one_does(labelled, init, tmp_path):
    """Seven files to test on, which no batch divides; fine-tuning with mixup and DropToken, and a frozen backbone."""
    short = ["--data", str(labelled), "--init", str(init), *SHORT, "--precision", "fp64"]
    runs = {"audio": ["--task", "audio", *short, "--mixup", "5", "--drop", "0.5"],
            "linear": ["--task", "linear", *short]}
    (tmp_path / "both.py").write_text(f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import vatt, finetune
from engine.processes import Processes
processes = Processes()
for name, argv in {runs!r}.items():
    argv += ["--out", sys.argv[1] + name]
    finetune.train(finetune.settings(finetune.parse(argv), processes), processes)
processes.end()
""")
    for name, argv in runs.items():
        finetune.main([*argv, "--out", str(tmp_path / f"one-{name}")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(tmp_path / "both.py"), str(tmp_path / "two-")], env=ENV, check=False,
                          capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    for name in runs:
        one, two = tmp_path / f"one-{name}", tmp_path / f"two-{name}"
        for a, b in zip(rows(one), rows(two), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-9)
            assert a.get("held_out") == b.get("held_out")
        assert results(one, name) == results(two, name)
        assert results(one, name)["N"] == 7


# files


def test_broken_files_are_counted_replaced_in_training_and_left_out_of_the_score(labelled, init, tmp_path, capsys):
    root = tmp_path / "data"
    root.mkdir()
    for path in labelled.parent.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    for name in ("3.mp4", "12.mp4", "15.mp4"):
        (root / name).write_bytes(b"")
    (root / "16.mp4").unlink()
    argv = ["--task", "video", "--data", str(root), "--init", str(init), "--out", str(tmp_path / "run"), *SHORT]
    finetune.main([*argv, "--max-bad", "1"])
    said = capsys.readouterr()
    assert said.out.count(f"{root}/3.mp4: empty file") == 1
    assert "draws of 1 unreadable files" in said.out
    assert "1 of 17 listed files are missing" in said.err
    scores = results(tmp_path / "run", "video")
    assert scores["N"] == 4
    assert [reason for _, reason in scores["unreadable"]] == ["empty file"] * 2
    (tmp_path / "broken.csv").write_text("path,start,end,reason\n" + "".join(f"{root}/{i}.mp4,0,inf,\n" for i in (3, 12, 15)))
    finetune.main([*argv, "--out", str(tmp_path / "skips"), "--skip", str(tmp_path / "broken.csv")])
    assert "unreadable" not in capsys.readouterr().out
    scores = results(tmp_path / "skips", "video")
    assert (scores["N"], scores["unreadable"]) == (4, [])


def test_all_folds_are_trained_each_and_their_mean_is_printed(init, tmp_path, capsys):
    (tmp_path / "ESC-50" / "audio").mkdir(parents=True)
    (tmp_path / "ESC-50" / "meta").mkdir()
    with open(tmp_path / "ESC-50" / "meta" / "esc50.csv", "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        for i in range(15):
            name = f"{i % 5 + 1}-{i}-A-{i % 2}.wav"
            lines.writerow([name, i % 5 + 1, i % 2, "dog" if i % 2 else "rain", True, i, "A"])
            tone = np.sin(2 * np.pi * (300 + 400 * (i % 2)) * np.arange(8000) / 8000)
            soundfile.write(tmp_path / "ESC-50" / "audio" / name, 0.5 * tone, 8000)
    argv = ["--task", "linear", "--data", f"esc50={tmp_path / 'ESC-50'}", "--init", str(init), "--out", str(tmp_path / "run"),
            *SHORT, "--components", "8", "--sampled", "4"]
    finetune.main([*argv, "--fold", "all"])
    said = capsys.readouterr().out
    scores = results(tmp_path / "run", "linear")
    assert len(scores["parts"]) == 5
    assert scores["top-1"] == pytest.approx(sum(scores["parts"]) / 5)
    assert "top-1 of each part" in said
    for fold in range(1, 6):
        config = json.loads((tmp_path / "run" / f"part-{fold}" / "config.json").read_text())
        assert config["settings"]["part"] == fold
        assert results(tmp_path / "run" / f"part-{fold}", "linear")["N"] == 3
    # Features of all 15 files in one view, to train on, and in two to test on: computed once for all folds.
    kept = sorted(path.stat().st_size for path in (tmp_path / "run").glob("features-*"))
    assert kept == [15 * (68 + 4 * 32 * views) for views in (1, 2)]
    assert "split or fold 7" in refused([*argv, "--fold", "7", "--out", str(tmp_path / "seven")], capsys)


def test_clips_with_several_labels_are_mixed_balanced_and_scored_by_mean_average_precision(init, tmp_path, capsys):
    root = tmp_path / "audioset"
    root.mkdir()
    (root / "class_labels_indices.csv").write_text('index,mid,display_name\n0,/m/0a,"A, b"\n1,/m/0b,B\n2,/m/0c,C\n')
    for side in ("balanced_train", "eval"):
        (root / side).mkdir()
        text = "# Segments csv created\n# num_ytids=8\n# YTID, start_seconds, end_seconds, positive_labels\n"
        for i in range(8):
            name = f"-{side[:2]}{i:08d}"
            labels = ",".join(["/m/0a", "/m/0b", "/m/0c"][: i % 3 + 1])
            text += f'{name}, 0.000, 1.000, "{labels}"\n'
            soundfile.write(root / side / f"Y{name}.wav", 0.1 * np.random.default_rng(i).standard_normal(8000), 8000)
        (root / f"{side}_segments.csv").write_text(text)
    finetune.main(["--task", "audio", "--data", f"audioset={root}", "--init", str(init), "--out", str(tmp_path / "run"),
                   *SHORT, "--mixup", "5", "--balance"])
    scores = results(tmp_path / "run", "audio")
    assert {"mAP", "AUC", "d'", "d' of AUC", "best"} <= scores.keys()
    assert scores["N"] == 8
    assert vatt.load(tmp_path / "run").multi
    assert "mAP" in capsys.readouterr().out


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    for side, n in (("train", 3), ("val", 2)):
        for k, grey in enumerate((40, 200)):
            for i in range(n):
                path = folder / side / f"n{k}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image(path, np.full((20, 30, 3), grey + 9 * i, np.uint8))
    return f"imagenet={folder}"


def test_images_are_clips_of_equal_frames_to_a_backbone_of_video(init, images, tmp_path):
    argv = ["--data", images, "--init", str(init), *SHORT]
    finetune.main(["--task", "image", *argv, "--out", str(tmp_path / "image"), "--crops", "1"])
    assert results(tmp_path / "image", "image")["N"] == 4
    assert vatt.load(tmp_path / "image").backbone.e_temporal.shape[0] == 1
    epochs = [flag for flag in argv if flag not in ("--steps", "6")]
    finetune.main(["--task", "image", *epochs, "--epochs", "2", "--out", str(tmp_path / "epochs")])
    assert len(rows(tmp_path / "epochs")) == 3, "twice six images in batches of four"


def test_an_svm_is_trained_on_features_of_images(init, images, tmp_path):
    pytest.importorskip("sklearn")
    finetune.main(["--task", "linear", "--data", images, "--init", str(init), "--classifier", "svm", "--out", str(tmp_path)])
    assert results(tmp_path, "linear")["N"] == 4
    assert results(tmp_path, "linear")["top-1"] == 1


# wrong input


@pytest.mark.parametrize(("flags", "says"), [
    (["--batch", "0"], "--batch: must be at least 1"),
    (["--lr", "0"], "--lr: must be above 0"),
    (["--smoothing", "1"], "--smoothing: must be below 1"),
    (["--mixup", "5", "--batch", "3"], "--mixup mixes neighbours"),
    (["--split", "two"], "write a number or all"),
    (["--split", "2"], "no split or fold 2"),
    (["--task", "audio", "--patch", "2", "4", "4", "--audio-input", "spectrogram"], "holds another model"),
    (["--init", "nowhere"], "is no run"),
    (["--data", "nowhere"], "nowhere"),
    (["--task", "image"], "name other data"),
    (["--task", "linear", "--sampled", "0"], "--sampled: must be at least 1"),
    (["--task", "linear", "--sampled", "200"], "--sampled must be from 1"),
    (["--task", "linear", "--modality", "image"], "name other data"),
])  # fmt: skip
def test_a_wrong_flag_is_one_line_and_exit_code_2(labelled, init, tmp_path, capsys, flags, says):
    argv = ["--task", "video", "--data", str(labelled), "--init", str(init), "--out", str(tmp_path / "run"), *SHORT, *flags]
    assert says in refused(argv, capsys)
    assert not list(tmp_path.glob("run/checkpoint*"))


def test_flags_without_a_task_and_a_task_without_its_data_or_run_are_one_line(capsys):
    assert "--data needs --task" in refused(["--data", "x"], capsys)
    assert "needs --data" in refused(["--task", "video"], capsys)
    assert "needs --init" in refused(["--task", "linear", "--data", "x"], capsys)


def test_a_folder_with_another_run_is_left_as_it_is(finished, labelled, init, capsys):
    argv = ["--task", "video", "--data", str(labelled), "--init", str(init), "--out", str(finished), *SHORT]
    assert "--smoothing was 0.1 and is 0.2" in refused([*argv, "--smoothing", "0.2"], capsys)


@pytest.mark.parametrize("task", ["video", "linear"])
def test_a_dry_run_says_memory_and_time_and_leaves_nothing(labelled, init, tmp_path, capsys, task):
    argv = ["--task", task, "--data", str(labelled), "--init", str(init), "--out", str(tmp_path / "run"), *SHORT]
    finetune.main([*argv, "--dry-run"])
    said = capsys.readouterr().out
    assert "video     (4, 4, 16, 16, 3) torch.uint8" in said
    # A frozen backbone passes each of ten files once, and four views of each of seven.
    assert re.search(rf"memory .* GB a process(.*\n)*time .* s a step.* for {10 if task == 'linear' else 6} steps", said)
    assert not (tmp_path / "run").exists()


# the demo


def test_without_a_demo_run_one_line_says_which_command_makes_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "python pretrain.py" in refused([], capsys)
    assert not list(tmp_path.iterdir())


def test_the_demos_labels_are_as_many_for_each_class_and_a_function_of_the_seed(tmp_path):
    (tmp_path / "data").mkdir()
    names = ["path", "start", "end", "split", "colour", "texture", "rhythm", "place"]
    with open(tmp_path / "data" / "labels.csv", "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(names)
        for i in range(60):
            texture, split = ("dots", "plain")[i % 2], "train" if i < 40 else "val"
            lines.writerow([f"train/{i}.mp4", 0, 3, split, "red", texture, "fade", "snow"])
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo.write_labels(tmp_path / f"{name}.csv", tmp_path / "data", ("texture", "rhythm"), 6, seed)
    first, again, other = ((tmp_path / f"{name}.csv").read_text() for name in "abc")
    assert first == again != other
    taken = list(csv.DictReader(first.splitlines()))
    assert sum(row["split"] == "val" for row in taken) == 20
    for label in ("dots, fade", "plain, fade"):
        assert sum(row["split"] == "train" and row["label"] == label for row in taken) == 6
    assert all((tmp_path / row["path"]).parent.parent == tmp_path / "data" for row in taken)


# what changes under a run


def test_a_run_does_not_go_on_with_other_classes(labelled, init, tmp_path, capsys):
    data = tmp_path / "labels.csv"
    text = labelled.read_text().replace("\r\n", "\n").splitlines()
    put = lambda change: data.write_text("\n".join([text[0], *(change(f"{labelled.parent}/{line}") for line in text[1:])]))
    put(lambda line: line)
    argv = ["--task", "video", "--data", str(data), "--init", str(init), "--out", str(tmp_path / "run"), *SHORT]
    argv += ["--allow-outside"]
    finetune.main(argv)
    (tmp_path / "run" / "results.json").unlink()
    config = (tmp_path / "run" / "config.json").read_bytes()
    put(lambda line: line.replace(",c,", ",z,"))
    assert "was trained on other classes" in refused(argv, capsys)
    assert (tmp_path / "run" / "config.json").read_bytes() == config


def test_a_warm_up_that_was_not_chosen_fits_into_the_epochs(labelled, init, tmp_path):
    argv = ["--task", "video", "--data", str(labelled), "--init", str(init), "--batch", "4", "--cache", "0", "--windows", "1"]
    finetune.main([*argv, "--epochs", "4", "--out", str(tmp_path / "run")])
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (settings["steps"], settings["warmup"]) == (10, 1)


@pytest.mark.parametrize(("flags", "says"), [
    (["--epochs", "3"], "give one of them"), (["--modality", "audio"], "--modality is of")])
def test_flags_that_contradict_each_other_are_refused(labelled, init, tmp_path, capsys, flags, says):
    argv = ["--task", "video", "--data", str(labelled), "--init", str(init), "--out", str(tmp_path / "run"), *SHORT, *flags]
    assert says in refused(argv, capsys)


def test_a_score_of_no_file_is_an_error(labelled, init, tmp_path, capsys):
    text = [line.split(",") for line in labelled.read_text().split()]
    for path, _, split in text[1:]:
        if split == "val":
            (tmp_path / path).touch()
        else:
            (tmp_path / path).symlink_to(labelled.parent / path)
    (tmp_path / "labels.csv").write_text(labelled.read_text())
    argv = ["--task", "video", "--data", str(tmp_path / "labels.csv"), "--init", str(init), "--out", str(tmp_path / "run")]
    argv += SHORT
    assert "none of the 7 files to test on could be read" in refused(argv, capsys, 3)
    assert not (tmp_path / "run" / "results.json").exists()
