"""Classifiers on one backbone (classifier.py): their weights from pre-trained runs, resized positions, views averaged."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

import vatt
from engine.run import Run
from transformer import Size
from vatt import Classifier, load, pretrained, start_from
from weights import files

SMALL = Size(2, 32, 64, 2)
CONFIG = vatt.Config(SMALL, SMALL, SMALL, frames=4, size=16, patch=(2, 8, 8), rate=8000, vocabulary=20, words=4, d_va=16,
                     d_vt=8, dropout=0.0)
CLASSES = ["a", "b", "c"]


def run_of(model, config, folder):
    """A run folder as pretrain.py leaves it"""
    folder.mkdir()
    run = Run(folder)
    run.describe({"preset": "demo"}, config.to_json())
    run.save(1, {"model": model.state_dict()})
    return folder


@pytest.fixture(params=[False, True], ids=["three backbones", "one backbone"])
def run(request, tmp_path):
    config = dataclasses.replace(CONFIG, shared=request.param)
    return run_of(vatt.VATT(config), config, tmp_path / "run")


def clips(kind, config=CONFIG):
    shape = {"video": (2, config.frames, config.size, config.size, 3), "image": (2, config.size, config.size, 3),
             "audio": (2, config.samples)}[kind]
    return torch.rand(shape) * 2 - 1


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_features_are_z_out_of_the_pre_trained_backbone(run, kind):
    config, preset = pretrained(run)
    assert preset == "demo"
    whole = vatt.VATT(config)
    whole.load_state_dict(files.of_run(run))
    model = Classifier(config, kind, CLASSES).eval()
    start_from(model, run)
    x = clips(kind)
    assert_close(model.features(x), getattr(whole.eval().backbones, kind)(x))
    assert_close(model(x), model.classifier(model.features(x)))


def test_a_classifier_holds_one_backbone_and_nothing_of_the_others():
    names = {name.split(".")[1] for name, _ in Classifier(CONFIG, "audio", CLASSES).named_parameters() if "backbone" in name}
    assert names == {"W_ap", "e_audio", "audio_transformer"}
    for p in Classifier(CONFIG, "video", CLASSES).parameters():
        assert p.requires_grad


def test_an_image_is_a_clip_of_equal_frames_at_the_first_place_in_time(run):
    config, _ = pretrained(run)
    video, image = Classifier(config, "video", CLASSES), Classifier(dataclasses.replace(config, frames=2), "image", CLASSES)
    start_from(video, run)
    start_from(image, run)
    assert_close(image.backbone.e_temporal, video.backbone.e_temporal[:1])
    x = clips("image")
    assert_close(image.eval().features(x), image.features(x))
    repeated = x[:, None].expand(-1, 2, -1, -1, -1)
    assert_close(image.features(x), image.backbone.video(repeated))


def test_positions_of_the_same_size_are_identical_and_constant_ones_stay_constant(run):
    config, _ = pretrained(run)
    same = Classifier(config, "video", CLASSES).eval()
    start_from(same, run)
    weights = files.of_run(run)
    assert torch.equal(same.backbone.e_vertical, weights["backbones.e_vertical"])
    larger = Classifier(dataclasses.replace(config, size=24), "video", CLASSES).eval()
    start_from(larger, run)
    assert larger.backbone.e_vertical.shape == larger.backbone.e_horizontal.shape == (3, 32)
    assert torch.equal(larger.backbone.e_temporal, weights["backbones.e_temporal"])
    flat = {k: torch.ones_like(v) * 0.3 if ".e_" in k else v for k, v in weights.items()}
    Run(run).save(2, {"model": flat})
    start_from(larger, run)
    assert_close(larger.backbone.e_vertical, torch.full((3, 32), 0.3))


def test_a_network_at_224_and_its_resized_self_at_320_agree_on_what_is_everywhere_the_same(tmp_path):
    """With constant position tables, a picture of one colour and AGG like its tokens, their number does not matter."""
    config, colour = dataclasses.replace(CONFIG, size=224, patch=(2, 16, 16)), torch.tensor([0.2, -0.4, 0.6])
    model = vatt.VATT(config)
    b = model.backbones
    with torch.no_grad():
        for table in (b.e_vertical, b.e_horizontal):
            table.copy_(table[:1].expand_as(table))
        token = colour.repeat(512) @ b.W_vp + b.e_vertical[0] + b.e_horizontal[0]
        b.e_temporal.copy_((b.video_transformer.x_agg - token).expand_as(b.e_temporal))
    run = run_of(model, config, tmp_path / "run")
    sizes = [Classifier(dataclasses.replace(config, size=size), "video", CLASSES).eval() for size in (224, 320)]
    for classifier in sizes:
        start_from(classifier, run)
    assert len(sizes[1].backbone.e_vertical) == 20
    z = [c.features(colour.expand(1, 4, c.config.size, c.config.size, 3)) for c in sizes]
    assert_close(z[0], z[1], atol=1e-5, rtol=1e-4)


def test_a_run_without_the_backbone_that_the_task_needs_is_refused_in_one_line(run, tmp_path):
    config, _ = pretrained(run)
    audio = Classifier(config, "audio", CLASSES)
    folder = tmp_path / "audio"
    folder.mkdir()
    Run(folder).describe({}, audio.describe())
    Run(folder).save(1, {"model": audio.state_dict()})
    with pytest.raises(ValueError, match="has no video backbone"):
        start_from(Classifier(config, "video", CLASSES), folder)
    start_from(Classifier(config, "audio", CLASSES), folder)
    with pytest.raises(ValueError, match="is no run"):
        pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match="has no classifier"):
        load(run, Classifier)


def test_what_is_loaded_says_what_was_saved(tmp_path):
    for head in ("linear", "low-rank"):
        model = Classifier(CONFIG, "audio", CLASSES, multi=head == "linear", head=head).eval()
        folder = tmp_path / head
        folder.mkdir()
        Run(folder).describe({}, model.describe())
        Run(folder).save(1, {"model": model.state_dict()})
        again, x = load(folder), clips("audio")
        assert (again.classes, again.kind, again.multi, again.training) == (CLASSES, "audio", head == "linear", False)
        assert torch.equal(again(x), model(x))


def test_views_are_averaged_as_logits_and_those_of_a_frozen_backbone_as_probabilities():
    logits = torch.randn(4, 12, 3)
    assert_close(Classifier(CONFIG, "video", CLASSES).over_views(logits), logits.mean(1))
    frozen = Classifier(CONFIG, "video", CLASSES, head="low-rank").over_views(logits)
    assert_close(frozen.exp(), logits.softmax(-1).mean(1))
