"""Labels of files that have none (evaluate.py predict, Classifier.predict): equal to what classify scores, resumed, told."""

import csv
import itertools
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from films import film, image
from runs import finetuned, pretrained, refused

import evaluate
import vatt
from engine.run import Run
from tools import embed
from weights import files

CLASSES = ["bright", "dim", "none"]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Seven files of three classes, and one that cannot be read"""
    root = tmp_path_factory.mktemp("films")
    for side in ("train", "val"):
        for i in range(7):
            film(root / side / CLASSES[i % 3] / f"{i}.mp4", seconds=0.8 + 0.2 * i, seed=i)
    (root / "val" / "dim" / "broken.mp4").write_bytes(b"not a film")
    return root


@pytest.fixture(scope="module")
def loose(films, tmp_path_factory):
    """Copies of the files to test on, in one folder, without what they are"""
    root = tmp_path_factory.mktemp("loose")
    for path in sorted(films.glob("val/*/*.mp4")):
        shutil.copy(path, root / path.name)
    return root


def table(path):
    with path.open(newline="") as file:
        return {row["path"].rpartition("/")[2]: row for row in csv.DictReader(file)}


def cells(row):
    return [row[f"p({name})"] for name in CLASSES]


@pytest.mark.parametrize(("kind", "multi", "head"), [
    ("video", False, "linear"), ("audio", False, "linear"), ("video", True, "linear"), ("video", False, "low-rank")])
def test_labels_of_unlabelled_copies_are_those_that_classify_scores(films, loose, tmp_path, capsys, kind, multi, head):
    run, out = finetuned(tmp_path / "run", kind, CLASSES, multi, head, windows=3), tmp_path / "out" / "found.csv"
    if not multi:
        evaluate.main(["classify", str(run), str(films)])
    evaluate.main(["predict", str(run), str(loose), "--out", str(out), "--top", "2"])
    said, found, model = capsys.readouterr().out, table(out), vatt.load(run)
    assert list(found) == [*(f"{i}.mp4" for i in range(7)), "broken.mp4"]
    for name, row in found.items():
        if name == "broken.mp4":
            assert (row["unreadable"], row["label"], *cells(row)) == ("not a media file", "", "", "", "")
            continue
        p = [float(x) for x in cells(row)]
        assert row["label"] == CLASSES[int(np.argmax(p))]
        assert multi or sum(p) == pytest.approx(1, abs=1e-3)
        best = model.predict(loose / name)
        assert best[0][0] == row["label"]
        assert [x for _, x in best] == pytest.approx(sorted(p, reverse=True), abs=2e-3)
        first, second = ((label, f"{100 * x:.0f}") for label, x in best[:2])
        assert re.search(rf"{name} +{first[0]} [\d.]+%, {second[0]} [\d.]+%\n", said)
    assert "broken.mp4  could not be read: not a media file" in said
    assert "probabilities of 7 of 8 files" in said
    if not multi:
        scored = table(run / f"{films.name}-files.csv")
        assert {name: (row["label"], cells(row)) for name, row in scored.items()} == {
            name: (row["label"], cells(row)) for name, row in found.items()}
        right = [row["label"] == row["true"] for row in scored.values() if row["label"]]
        top = json.loads((run / "evaluate.json").read_text())[f"classify_{films.name}"]["top-1"]
        assert sum(right) / 7 == pytest.approx(top)


def test_one_file_and_lists_of_files_are_taken(loose, tmp_path, capsys):
    run, out = finetuned(tmp_path / "run", "video", CLASSES), tmp_path / "found.csv"
    predict = lambda source, *more: evaluate.main(["predict", str(run), str(source), "--out", str(out), *more])
    predict(loose)
    whole = table(out)
    predict(loose / "3.mp4")
    assert table(out) == {"3.mp4": whole["3.mp4"]}
    (loose / "list.txt").write_text("4.mp4\n2.mp4\nnone.mp4\n")
    predict(loose / "list.txt")
    found = table(out)
    assert list(found) == ["4.mp4", "2.mp4", "none.mp4"]
    assert (found["2.mp4"], found["none.mp4"]["unreadable"]) == (whole["2.mp4"], "no such file")
    (tmp_path / "list.csv").write_text(f"id,path\n1,{loose}/5.mp4\n")
    said = refused(evaluate.main, ["predict", str(run), str(tmp_path / "list.csv"), "--out", str(out)], capsys)
    assert "--allow-outside" in said
    predict(tmp_path / "list.csv", "--allow-outside")
    assert table(out)["5.mp4"] == {**whole["5.mp4"], "path": f"{loose}/5.mp4"}


def test_what_was_stopped_goes_on_and_gives_the_same_file(loose, tmp_path, monkeypatch, capsys):
    run = finetuned(tmp_path / "run", "video", CLASSES)
    command = lambda name: ["predict", str(run), str(loose), "--out", str(tmp_path / name), "--batch", "4"]
    evaluate.main(command("whole.csv"))
    rows_of = embed.rows_of

    def stopped(*args):
        yield from itertools.islice(rows_of(*args), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(embed, "rows_of", stopped)
    assert "the same command goes on" in refused(evaluate.main, command("x.csv"), capsys, 130)
    monkeypatch.undo()
    evaluate.main(command("x.csv"))
    assert "4 done before" in capsys.readouterr().out
    assert (tmp_path / "x.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert not list(tmp_path.glob("*.partial*"))


def test_zero_shot_is_the_softmax_of_cosines_with_a_sentence_about_each_class(loose, tmp_path):
    run, out = pretrained(tmp_path / "run"), tmp_path / "found.csv"
    (tmp_path / "names.txt").write_text("red cloth\nblue\nfilm\n")
    image(loose / "picture.png", np.full((24, 24, 3), 90, np.uint8))
    evaluate.main(["predict", str(run), str(loose), "--classes", str(tmp_path / "names.txt"), "--sentence", "a {} begins",
                   "--out", str(out), "--windows", "2"])
    found, model = table(out), vatt.load(run)
    assert "picture.png" in found
    texts = torch.stack([model.embed_text(f"a {name} begins") for name in ("red cloth", "blue", "film")])
    for i in range(7):
        p = (texts @ model.embed_video(loose / f"{i}.mp4", windows=2) / 0.07).softmax(0)
        row = found[f"{i}.mp4"]
        assert [float(row[f"p({name})"]) for name in ("red cloth", "blue", "film")] == pytest.approx(p.tolist(), abs=2e-3)
    (loose / "picture.png").unlink()


def test_a_run_is_named_by_its_best_checkpoint_or_its_shared_weights_too(loose, tmp_path):
    run = finetuned(tmp_path / "run", "video", CLASSES)
    model = vatt.load(run)
    with torch.no_grad():
        for p in model.classifier.parameters():
            p.zero_()
    Run(run).write("best.pt", {"step": 1, "model": model.state_dict()})
    files.share(model, run)
    for name in ("best.pt", "model.safetensors"):
        assert [p for _, p in vatt.load(run / name).predict(loose / "1.mp4")] == pytest.approx([1 / 3] * 3)
        evaluate.main(["predict", str(run / name), str(loose / "1.mp4"), "--out", str(tmp_path / "x.csv")])
        assert set(cells(table(tmp_path / "x.csv")["1.mp4"])) == {"0.3333"}
    assert not math.isclose(vatt.load(run).predict(loose / "1.mp4")[0][1], 1 / 3, abs_tol=1e-3)


@pytest.mark.parametrize(("command", "said"), [
    ("predict TRAINED LOOSE", "is pre-trained and has no classes: --classes names.txt"),
    ("predict RUN LOOSE --classes NAMES", "has classes of its own"),
    ("predict TRAINED LOOSE --classes NAMES", "knows no word of 1 of the classes, first 'xyzzy'"),
    ("predict RUN LOOSE --out x.txt", "ends in .csv"), ("predict RUN LOOSE --out OTHER", "is not of this program"),
    ("predict RUN NONE", "there is no"), ("predict SOUND PICTURES", "holds no audio or video"),
    ("predict NONE LOOSE", "is no run"), ("predict RUN LOOSE --top 0", "must be at least 1")])
def test_what_cannot_be_is_one_line(loose, tmp_path, capsys, command, said):
    (tmp_path / "names.txt").write_text("red\nxyzzy\n")
    (tmp_path / "other.csv").write_text("a,b\n")
    (tmp_path / "pictures").mkdir()
    image(tmp_path / "pictures" / "1.png", np.zeros((24, 24, 3), np.uint8))
    places = {"RUN": finetuned(tmp_path / "run", "video", CLASSES), "TRAINED": pretrained(tmp_path / "trained"),
              "SOUND": finetuned(tmp_path / "sound", "audio", CLASSES), "LOOSE": loose, "NONE": tmp_path / "none",
              "NAMES": tmp_path / "names.txt", "OTHER": tmp_path / "other.csv", "PICTURES": tmp_path / "pictures"}
    assert said in refused(evaluate.main, [str(places.get(word, word)) for word in command.split()], capsys)


def test_where_no_file_can_be_read_the_exit_code_is_3(tmp_path, capsys):
    run = finetuned(tmp_path / "run", "video", CLASSES)
    (tmp_path / "a.mp4").write_bytes(b"no video")
    said = refused(evaluate.main, ["predict", str(run), str(tmp_path / "a.mp4"), "--out", str(tmp_path / "x.csv")], capsys, 3)
    assert "none of them could be read, first a.mp4: not a media file" in said
