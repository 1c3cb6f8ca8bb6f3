"""A classifier on a frozen backbone (linear.py): features once, what is trained and what is not, the SVM of scikit-learn."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from films import film
from runs import clips_to_test
from test_classifier import CLASSES, CONFIG
from torch.testing import assert_close

import data
from engine.processes import Processes
from sources import index
from sources.index import Row
from tools import linear
from tools.embed import Reading
from vatt import Classifier


@pytest.fixture(scope="module")
def tests(tmp_path_factory):
    root = tmp_path_factory.mktemp("films")
    rows = [Row(film(root / f"{i}.mp4", seconds=0.8, seed=i).name, 0.0, math.inf, [], (i % 3,)) for i in range(6)]
    (root / "bad.mp4").touch()
    rows.insert(2, Row("bad.mp4", 0.0, math.inf, [], (0,)))
    spec = data.ClipSpec(("video",), CONFIG.frames, CONFIG.fps, CONFIG.size, CONFIG.rate, windows=2)
    return clips_to_test(index.write(root / "index", root, rows), 3, spec)


def features(model, tests, path):
    return linear.features(model, tests, path, Reading(Processes(), 4))


def test_features_are_z_out_of_every_view_and_computed_once(tests, tmp_path, monkeypatch):
    model = Classifier(CONFIG, "video", CLASSES, head="low-rank").eval()
    found = features(model, tests, tmp_path)
    assert found.number.tolist() == [0, 1, 3, 4, 5, 6]
    assert found.failed == [(tests.row(2)[0].name(2), "empty file")]
    for row, i in enumerate(found.number.tolist()):
        assert_close(found.z[row], model.features(data.augment(torch.from_numpy(tests[i][0]["video"]))))
    monkeypatch.setattr(model, "features", None)  # what is not called again
    same = clips_to_test(index.write(tmp_path / "index", tests.row(0)[0].root, tests.row(0)[0]), 3, tests.spec)
    again = features(model, same, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(found[:3], again[:3], strict=True))
    assert again.failed == found.failed


def test_features_that_a_kill_cut_short_or_a_disk_has_altered_are_computed_again(tests, tmp_path):
    model = Classifier(CONFIG, "video", CLASSES, head="low-rank").eval()
    found = features(model, tests, tmp_path)
    path, = tmp_path.glob("features-*.0")
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:-7])
    assert torch.equal(features(model, tests, tmp_path).z, found.z)
    assert len(path.read_bytes()) == len(whole) // 6 * 7, "the altered record stays, and both are written anew"


def test_other_weights_or_other_files_have_other_features(tests, tmp_path):
    model = Classifier(CONFIG, "video", CLASSES, head="low-rank").eval()
    first = features(model, tests, tmp_path)
    torch.manual_seed(1)
    second = features(Classifier(CONFIG, "video", CLASSES, head="low-rank").eval(), tests, tmp_path)
    assert not torch.equal(first.z, second.z)
    fewer = clips_to_test(tests.row(0)[0], 3, tests.spec, at=np.arange(2))
    assert len(features(model, fewer, tmp_path).z) == 2


def test_a_step_trains_13_components_of_the_classifier_and_nothing_of_the_backbone():
    model = Classifier(CONFIG, "video", CLASSES, head="low-rank")
    model.backbone.requires_grad_(False)
    batch = {"z": torch.randn(5, 32), "y": torch.eye(3)[torch.tensor([0, 1, 2, 0, 1])]}
    settings = SimpleNamespace(sampled=13, l2=0.0, seed=0)
    chosen = []
    for number in (0, 1, 0):
        model.zero_grad()
        loss = linear.backward(model, batch, number, settings)["loss"]
        chosen.append((model.classifier.V.grad.abs().sum(1) > 0).nonzero()[:, 0].tolist())
    assert len(chosen[0]) == 13
    assert chosen[0] == chosen[2] != chosen[1]
    logits = batch["z"] @ model.classifier.U[:, chosen[0]] @ model.classifier.V[chosen[0]] * 128 / 13
    assert_close(loss, torch.nn.functional.cross_entropy(logits, batch["y"].argmax(1)).detach())
    assert all(p.grad is None for p in model.backbone.parameters())


def test_the_penalty_is_on_v_alone():
    model = Classifier(CONFIG, "video", CLASSES, head="low-rank").double()
    batch = {"z": torch.zeros(2, 32), "y": torch.eye(3)[:2]}
    linear.backward(model, batch, 0, SimpleNamespace(sampled=13, l2=0.1, seed=0))
    assert_close(model.classifier.V.grad, 0.2 * model.classifier.V.detach())
    assert not model.classifier.U.grad.any()


def test_an_svm_is_trained_on_random_places_squares_and_flips_of_each_file(tests):
    clips = linear.RandomPasses(tests.sources, tests.spec._replace(windows=60, flip=0.5), classes=3)
    (item, failed), again, (other, _) = clips[0], clips[0][0], clips[1]
    assert failed == []
    assert item["video"].shape == (60, CONFIG.frames, CONFIG.size, CONFIG.size, 3)
    assert np.array_equal(item["video"], again["video"])
    assert np.array_equal(clips.part([1])[0][0]["video"], other["video"]), "a function of the row, not of its place"
    seen = item["video"].astype(int)
    dark = seen[:, 0, :, :4].mean((1, 2, 3)) < seen[:, 0, :, -4:].mean((1, 2, 3))   # the left of these videos is darker
    assert 0.3 < dark.mean() < 0.7
    assert len({x.tobytes() for x in seen[:, 0]}) > 30


@pytest.mark.parametrize("classes", [2, 4])
def test_the_svm_is_that_of_scikit_learn_on_standardised_features(classes):
    pytest.importorskip("sklearn")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    y = torch.arange(40) % classes
    z = torch.randn(40, 2, 32) * 3 + 1 + torch.nn.functional.one_hot(y, 32)[:, None]
    found = linear.Features(z, torch.eye(5)[y], torch.arange(40), [])
    model = Classifier(CONFIG, "video", list("abcde"), dropout=0.0).eval()
    linear.fit_svm(model, found, c=0.1, seed=0)
    theirs = make_pipeline(StandardScaler(), LinearSVC(C=0.1, random_state=0, max_iter=10_000))
    theirs.fit(z.flatten(0, 1).double().numpy(), y.repeat_interleave(2).numpy())
    fresh = torch.randn(50, 32)
    ours = model.classifier(fresh).argmax(1).numpy()
    assert np.array_equal(ours, theirs.predict(fresh.double().numpy()))
    assert ours.max() < classes, "a class without a clip to train on"
