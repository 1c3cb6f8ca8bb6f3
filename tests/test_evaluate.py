"""Evaluations (evaluate.py): what they print and write, against loops over single views; every file once, whoever reads it."""

import json
import os
import re
import signal
import socket
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from films import film
from runs import CONFIG, classify, clips_to_test, finetuned, pretrained

import data
import evaluate
import vatt
from engine.processes import Processes
from evaluate import classification_metrics, multilabel_metrics
from media import Media
from sources import official
from tools import embed, tables

CLASSES = ["bright", "dim", "none"]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Seven films of three classes to test on, and one that cannot be read"""
    root = tmp_path_factory.mktemp("films")
    for i in range(7):
        film(root / "val" / CLASSES[i % 3] / f"{i}.mp4", seconds=0.8 + 0.2 * i, seed=i)
        film(root / "train" / CLASSES[i % 3] / f"t{i}.mp4", seconds=0.5, seed=i)
    (root / "val" / "dim" / "broken.mp4").write_bytes(b"not a film")
    return root


def literal(model, root):
    """Logits of each readable film of val/, view by view, decoded one at a time; and their classes"""
    c, scores, targets = model.config, [], []
    for path in sorted(root.glob("val/*/?.mp4")):
        with Media(path) as media:
            last = max(0.0, media.duration - c.frames / c.fps)
            starts = [0.0, int(last * c.fps + 1e-6) / c.fps]
            if model.kind == "audio":
                clips = [torch.from_numpy(media.audio(s, c.samples, c.rate)) for s in starts]
            else:
                h, w = (round(side * c.size / min(media.width, media.height)) for side in (media.height, media.width))
                left = round((w - c.size) / 2)
                clips = [media.video(s, c.frames, c.fps, size=(h, w))[:, :, left : left + c.size] for s in starts]
                clips = [data.augment(torch.from_numpy(clip)[None])[0] for clip in clips]
        with torch.no_grad():
            scores.append(torch.stack([model(clip[None])[0] for clip in clips]).mean(0))
        targets.append(CLASSES.index(path.parent.name))
    return torch.stack(scores), torch.tensor(targets)


def loader(model, root, batch, processes):
    found = official.load(str(root), Path(tempfile.mkdtemp()), [])
    return embed.Reading(processes, batch).batches(clips_to_test(found.test, 3, model.spec(2, 1)))


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_classify_is_the_mean_logits_of_all_views_of_every_file_that_can_be_read(films, tmp_path, kind):
    model = vatt.load(finetuned(tmp_path / "run", kind, CLASSES))
    found = classify(model, loader(model, films, 4, Processes()), Processes())
    scores, targets = literal(model, films)
    expected = classification_metrics(scores, targets)
    assert found.pop("unreadable") == [[str(films / "val/dim/broken.mp4"), "not a media file"]]
    assert found == expected
    assert found["N"] == 7


@pytest.mark.parametrize("batch", [2, 4, 6, 100])
def test_an_incomplete_last_batch_counts_as_any_other(films, tmp_path, batch):
    model = vatt.load(finetuned(tmp_path / "run", "audio", CLASSES))
    found = classify(model, loader(model, films, batch, Processes()), Processes())
    assert found == classify(model, loader(model, films, 2, Processes()), Processes())


def work(rank, world, folder, films):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=(folder / "port").read_text())
    torch.set_num_threads(1)
    processes = Processes(timeout_s=60)
    model = vatt.load(folder / "run")
    scores = classify(model, loader(model, films, 4, processes), processes)
    (folder / f"{rank}.json").write_text(json.dumps(scores))
    trained = folder / "trained"
    argv = ["retrieve", str(trained), str(folder / "captions.csv"), "--allow-outside", "--out", str(trained)]
    args = evaluate.flags().parse_args(argv)
    how = embed.Reading(processes, 4)
    evaluate.retrieve_command(args, how)
    embed.embed(vatt.load(trained), embed.Wanted(films, "video", "vt", windows=2), folder / "2.npz", how)
    processes.end()


def captions(root, path):
    rows = [f"{root}/val/{CLASSES[i % 3]}/{i}.mp4,{text},{start},{end}" for i, (text, start, end) in enumerate((
        ("a red cloth", "", ""), ("a blue cloth", 0, 0.9), ("a red cloth", 0.2, ""), ("film begins", "", ""),
        ("a film", "", ""),
        ("blue cloth begins", 0.5, 1.2), ("xyzzy", "", "")))]
    path.write_text("path,caption,start,end\n" + "\n".join([*rows, f"{root}/val/dim/broken.mp4,a film,,"]) + "\n")


def test_two_processes_score_what_one_scores(films, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    run, trained = finetuned(tmp_path / "run", "video", CLASSES), pretrained(tmp_path / "trained")
    captions(films, tmp_path / "captions.csv")
    mp.spawn(work, (2, tmp_path, films), nprocs=2)
    model = vatt.load(run)
    alone = classify(model, loader(model, films, 4, Processes()), Processes())
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [alone, alone]
    two = json.loads((trained / "evaluate.json").read_text())
    evaluate.main(["retrieve", str(trained), str(tmp_path / "captions.csv"), "--allow-outside"])
    assert json.loads((trained / "evaluate.json").read_text()) == two
    assert two["retrieve_captions"]["N"] == 7
    wanted = embed.Wanted(films, "video", "vt", windows=2)
    embed.embed(vatt.load(trained), wanted, tmp_path / "1.npz", embed.Reading(Processes(), 4))
    one, two = (embed.read(tmp_path / f"{n}.npz") for n in (1, 2))
    assert one["ids"].tolist() == two["ids"].tolist()
    assert len(one["ids"]) == 14
    assert one["unreadable"].tolist() == two["unreadable"].tolist() == ["val/dim/broken.mp4"]
    np.testing.assert_allclose(one["vectors"], two["vectors"], atol=1e-6)
    assert not list(tmp_path.glob("*.partial*"))


def test_retrieve_ranks_parts_of_films_by_the_mean_of_their_windows(films, tmp_path, capsys):
    run = pretrained(tmp_path / "run")
    captions(films, tmp_path / "captions.csv")
    evaluate.main(["retrieve", str(run), f"csv={tmp_path}/captions.csv", "--allow-outside", "--windows", "3"])
    said = capsys.readouterr()
    model, c, z, firsts = vatt.load(run), CONFIG, [], []
    for row in (tmp_path / "captions.csv").read_text().splitlines()[1:-1]:
        path, _, start, end = row.split(",")
        with Media(path) as media:
            first, end = float(start or 0), min(float(end or 99), media.duration)
            last = max(first, end - c.frames / c.fps)
            h, w = (round(side * c.size / min(media.width, media.height)) for side in (media.height, media.width))
            left = round((w - c.size) / 2)
            clips = [media.video(first + int((last - first) * k / 2 * c.fps + 1e-6) / c.fps, c.frames, c.fps, size=(h, w))
                     for k in range(3)]
        with torch.no_grad():
            clips = data.augment(torch.from_numpy(np.stack(clips))[:, :, :, left : left + c.size])
            each = model.heads.video(model.backbones.video(clips))[1]
            z.append(each.mean(0))
            firsts.append(each[0])
    items = official.load(f"csv={tmp_path}/captions.csv", tmp_path / "listed", [], outside=True).test
    clips = clips_to_test(items, 0, model.spec("video", 3), at=np.arange(7))
    vectors = embed.vectors(model, clips, "vt", embed.Reading(Processes(), 4))
    torch.testing.assert_close(torch.cat([rows for rows, _ in vectors]), F.normalize(torch.stack(z), dim=1), atol=1e-5, rtol=0)
    assert (F.normalize(torch.stack(z), dim=1) - F.normalize(torch.stack(firsts), dim=1)).abs().max() > 1e-3
    texts = [row.split(",")[1] for row in (tmp_path / "captions.csv").read_text().splitlines()[1:-1]]
    similarity = torch.stack([model.embed_text(text) for text in texts]) @ F.normalize(torch.stack(z), dim=1).T
    ranks = [sum(not x < row[i] for x in row) for i, row in enumerate(similarity.tolist())]
    scores = json.loads((run / "evaluate.json").read_text())["retrieve_captions"]
    assert (scores["R@1"], scores["R@5"]) == (sum(r == 1 for r in ranks) / 7, sum(r <= 5 for r in ranks) / 7)
    assert scores["MedR"] == sorted(ranks)[3]
    assert scores["chance"]["R@5"] == 5 / 7
    assert "3 windows of 4 frames at 10 fps, central crops of 16 pixels" in said.out
    assert "pool of N = 7; ties count against the model; 2 captions stand at more than one clip" in said.out
    assert "1 hold no word that the run knows" in said.out
    assert "1 file could not be read" in said.out


def test_classify_prints_its_protocol_and_writes_a_table_of_classes_and_a_picture(films, tmp_path, capsys):
    run = finetuned(tmp_path / "run", "video", CLASSES, data=str(films))
    evaluate.main(["classify", str(run), "--windows", "2", "--crops", "3"])
    said = capsys.readouterr().out
    assert "8 of 8 test clips found" in said
    assert "2 windows of 0.4 s x 3 crops of 16 pixels a file, logits averaged; N = 7 files, 3 classes" in said
    assert "1 file could not be read, in no score" in said
    assert "scores of 7 files mean little: one more that is right is 14 points" in said
    assert "33.3     100.0" in said, "chance"
    name = films.name
    rows = (run / f"{name}-classes.csv").read_text().splitlines()
    assert rows[0] == "class,samples,recall,precision"
    assert [row.split(",")[:2] for row in rows[1:]] == [["bright", "3"], ["dim", "2"], ["none", "2"]]
    assert json.loads((run / "evaluate.json").read_text())[f"classify_{name}"]["N"] == 7
    pytest.importorskip("matplotlib")
    assert (run / f"{name}-confusion.png").stat().st_size > 1000


def test_classify_finds_classes_by_name_and_lists_what_is_missing(films, tmp_path, capsys):
    run = finetuned(tmp_path / "run", "audio", ["none", "more", "bright", "dim"])
    (tmp_path / "labels.csv").write_text("path,label,split\n" + "".join(
        f"{films}/val/{name}/{i}.mp4,{name},{side}\n" for side in ("train", "val")
        for i, name in ((1, "dim"), (2, "none"), (4, "dim"), (9, "none"))))
    evaluate.main(["classify", str(run), str(tmp_path / "labels.csv"), "--allow-outside"])
    said = capsys.readouterr()
    assert "labels: 3 of 4 test clips found" in said.out
    assert "2 listed files are not there" in said.err
    assert len((run / "labels-missing.txt").read_text().splitlines()) == 2
    rows = [row.split(",")[:2] for row in (run / "labels-classes.csv").read_text().splitlines()[1:]]
    assert rows == [["none", "1"], ["more", "0"], ["bright", "0"], ["dim", "2"]]


def test_classify_of_several_labels_prints_map_auc_and_d_prime(films, tmp_path, capsys):
    root = tmp_path / "audioset"
    root.mkdir()
    lines, targets = [], []
    for i in range(7):
        (root / f"Y0000000000{i}.mp4").symlink_to(films / "val" / CLASSES[i % 3] / f"{i}.mp4")
        targets.append([True, i % 2 == 0, i < 3, False])
        lines.append(f'0000000000{i}, 0.000, 10.000, "' + ",".join(f"/m/{k}" for k in range(4) if targets[-1][k]) + '"\n')
    (root / "eval_segments.csv").write_text("# a\n# b\n# c\n" + "".join(lines) + '00000000009, 0.000, 10.000, "/m/0"\n')
    (root / "class_labels_indices.csv").write_text("index,mid,display_name\n" + "".join(f"{k},/m/{k},c{k}\n" for k in range(4)))
    run = finetuned(tmp_path / "run", "audio", [f"c{k}" for k in range(4)], multi=True)
    evaluate.main(["classify", str(run), str(root)])
    said = capsys.readouterr().out
    found = json.loads((run / "evaluate.json").read_text())["classify_audioset"]
    by_class = [0, 3, 6, 1, 4, 2, 5]
    expected = multilabel_metrics(literal(vatt.load(run), films)[0], torch.tensor(targets)[by_class])
    assert "audioset: 7 of 8 test clips found" in said
    assert "2 classes have no positive or no negative file" in said
    assert found["left_out"] == [0, 3]
    del expected["chance"]
    assert {k: pytest.approx(v) for k, v in expected.items()} == {k: found[k] for k in expected}


def test_images_are_classified(tmp_path, capsys):
    for side in ("train", "val"):
        for i, name in enumerate(("a", "b", "b")):
            path = tmp_path / "images" / side / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(path), "w", format="image2") as file:
                stream = file.add_stream("png")
                stream.width, stream.height, stream.pix_fmt = 24, 20, "rgb24"
                file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((20, 24, 3), 60 * i, np.uint8), "rgb24")))
                file.mux(stream.encode(None))
    run = finetuned(tmp_path / "run", "image", ["a", "b"])
    evaluate.main(["classify", str(run), str(tmp_path / "images")])
    assert "1 crop of 16 pixels a file, logits averaged; N = 3 files, 2 classes" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "said"), [
    ("classify RUN FILMS --fold 2", "there is no split or fold 2 of"),
    ("classify RUN CAPTIONS --allow-outside", "has captions, not classes"),
    ("classify TRAINED FILMS", "is pre-trained and has no classifier"), ("classify NONE FILMS", "is no run"),
    ("classify OTHER FILMS", "has 3 classes that .* was not trained on, first 'bright'"),
    ("classify RUN FILMS --windows 0", "--windows: must be at least 1"), ("classify RUN NONE", "there is no"),
    ("classify MULTI FILMS", "has one class a file, and .* was trained on data with several"),
    ("classify IMAGES FILMS", "has files of kind video, and .* was trained on image"),
    ("retrieve TRAINED FILMS", "has classes, not captions"), ("retrieve RUN CAPTIONS", "is fine-tuned for classes"),
])
def test_what_cannot_be_is_one_line_and_exit_code_2(films, tmp_path, capsys, command, said):
    captions(films, tmp_path / "captions.csv")
    places = {"FILMS": films, "CAPTIONS": tmp_path / "captions.csv", "NONE": tmp_path / "none",
              "TRAINED": pretrained(tmp_path / "trained"), "RUN": finetuned(tmp_path / "run", "video", CLASSES),
              "OTHER": finetuned(tmp_path / "other", "video", ["x", "y"]),
              "IMAGES": finetuned(tmp_path / "images", "image", CLASSES),
              "MULTI": finetuned(tmp_path / "multi", "video", CLASSES, multi=True)}
    with pytest.raises(SystemExit) as end:
        evaluate.main([str(places.get(word, word)) for word in command.split()])
    assert end.value.code == 2
    assert re.search(said, capsys.readouterr().err)


def test_where_no_file_can_be_read_the_exit_code_is_3(films, tmp_path, capsys):
    run = finetuned(tmp_path / "run", "video", ["dim"])
    (tmp_path / "labels.csv").write_text(f"path,label,split\n{films}/val/dim/broken.mp4,dim,val\n")
    with pytest.raises(SystemExit) as end:
        evaluate.main(["classify", str(run), str(tmp_path / "labels.csv"), "--allow-outside"])
    assert end.value.code == 3
    assert "none of the 1 files could be read" in capsys.readouterr().err


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="workers are not forks, and do not see the decoder that crashes")
@pytest.mark.parametrize("command", ["classify {run} {films}", "embed {trained} {films} {tmp}/x.npz"])
def test_a_decoder_that_crashes_ends_with_3_and_the_files_it_had_in_hand(films, tmp_path, monkeypatch, capsys, command):
    real, handler = Media.video, signal.getsignal(signal.SIGCHLD)
    crash = lambda self, *a, **k: os.kill(os.getpid(), signal.SIGSEGV) if "5.mp4" in self.path else real(self, *a, **k)
    monkeypatch.setattr(Media, "video", crash)
    words = command.format(run=finetuned(tmp_path / "run", "video", CLASSES), trained=pretrained(tmp_path / "trained"),
                           films=films, tmp=tmp_path).split()
    with pytest.raises(SystemExit) as end:
        evaluate.main([*words, "--workers", "1"])
    signal.signal(signal.SIGCHLD, handler)
    assert end.value.code == 3
    assert re.search(r"of the loader .*5\.mp4: move the file away", capsys.readouterr().err)


def test_without_a_command_it_names_what_makes_results_and_then_prints_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    evaluate.main([])
    said = capsys.readouterr().out
    assert "python pretrain.py" in said
    assert "python finetune.py" in said
    scores = {"R@1": 0.25, "R@5": 0.5, "R@10": 1.0, "MedR": 3.0, "N": 12, "chance": {"R@1": 1 / 12, "MedR": 6.5}}
    for name, results in (("demo", {**dict.fromkeys(tables.TASKS, scores), "unreadable": []}),
                          ("demo-finetune", {"linear_video": {"pretrained": 0.815, "random": 0.32, "chance": 0.2},
                                             "finetune_audio": {"pretrained": 0.9, "scratch": 0.5, "chance": 0.1}})):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "results.json").write_text(json.dumps(results))
    evaluate.main([])
    said = capsys.readouterr().out
    assert "25.0   50.0  100.0    3.0    12" in said
    assert "81.5     32.0    20.0" in said
    assert "90.0     50.0    10.0" in said
