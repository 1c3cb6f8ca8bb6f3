"""What the demo must show, by training it: `pytest -m slow -s tests/test_demo_learns.py`, about 25 minutes on two cores.

Three seeds, two controls whose captions or sounds are those of other files, and linear probes on frozen features.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from runs import Rank

import data
import vatt
from engine import loading
from sources import demo, index

HERE = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


def train(here, name, *flags):
    """Runs the demo as a user does -> its folder"""
    out = here / "runs" / name
    subprocess.run([sys.executable, str(HERE / "pretrain.py"), "--out", str(out), *flags], cwd=here, check=True, timeout=1500)
    return out


@pytest.fixture(scope="module")
def runs(here):
    return [train(here, f"seed{seed}", "--seed", str(seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def scores(runs):
    """Medians of the three seeds"""
    results = [json.loads((run / "results.json").read_text()) for run in runs]
    median = {task: {k: statistics.median(r[task][k] for r in results) for k in ("R@1", "R@5", "R@10", "MedR", "N")}
              for task in ("text_to_video", "video_to_audio", "audio_to_video")}
    print("\nmedians of three seeds:", json.dumps(median))
    return median


def test_captions_find_their_videos(scores):
    assert scores["text_to_video"]["R@10"] >= 0.85
    assert scores["text_to_video"]["R@1"] >= 0.34


def test_sounds_find_their_videos_and_videos_their_sounds(scores):
    assert scores["video_to_audio"]["R@10"] >= 0.60
    assert scores["audio_to_video"]["R@10"] >= 0.60


def test_text_to_video_is_above_what_any_one_or_two_attributes_give(scores, here):
    for name, ceiling in demo.ceilings(demo.labels(here / "demo-data")).items():
        if name.count("+") < 2:
            assert all(scores["text_to_video"][k] > ceiling[k] for k in ("R@1", "R@5", "R@10")), name


def test_the_loss_of_each_part_falls(runs):
    for run in runs:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
        for part in ("nce", "mil_nce"):
            first, last = (statistics.mean(row[part] for row in half) for half in (rows[:40], rows[-40:]))
            assert last < first - 0.5


@pytest.mark.parametrize(("control", "tasks"), [
    ("captions", ["text_to_video"]),
    ("audio", ["video_to_audio", "audio_to_video"]),
])  # fmt: skip
def test_a_control_stays_at_chance(here, runs, control, tasks):
    run = train(here, control, "--control", control)
    results = json.loads((run / "results.json").read_text())
    for task in tasks:
        print(f"\ncontrol {control}: {task} R@10 {results[task]['R@10']:.3f}, chance {results[task]['chance']['R@10']:.3f}")
        assert results[task]["R@10"] < results[task]["chance"]["R@10"] + 0.05


@torch.no_grad()
def features(model, here, rows):
    """z_out of video and audio in the middle of each event, without augmentation -> (N, d), (N, d)"""
    where = here / f"events{len(rows)}"
    if not where.exists():
        index.write(where, here / "demo-data", (index.Row(r["path"], r["start"], r["end"], []) for r in rows))
    c, events = model.config, index.Index(where)
    spec = data.ClipSpec(frames=c.frames, fps=c.fps, size=c.size, rate=c.rate)
    held = data.TestDataset([data.Source.to_test(events)], spec, vocabulary=vatt.tokenize.Vocabulary([]))
    z = [(model.backbones.video(data.augment(batch["video"][:, 0])), model.backbones.audio(batch["audio"][:, 0]))
         for batch, _ in loading.eval_batches(held, 64, Rank(), 2)]
    return tuple(torch.cat(part) for part in zip(*z, strict=True))


def probe(x, y, x_held, y_held):
    """Accuracy on held-out events of logistic regression on standardised features, fitted to the training events"""
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_held = (x - mean) / std, (x_held - mean) / std
    linear = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(linear(x), y) + 1e-3 * linear.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return (linear(x_held).argmax(1) == y_held).float().mean().item()


@pytest.fixture(scope="module")
def probes(runs, here):
    """{(modality, attribute): (random network, trained network)}"""
    rows = demo.labels(here / "demo-data")
    parts = [[r for r in rows if r["split"] == split] for split in ("train", "val")]
    trained = vatt.load(runs[0])
    torch.manual_seed(0)
    networks = [vatt.Trained(trained.config).eval(), trained]
    found = {}
    for network in networks:
        (v, a), (v_held, a_held) = (features(network, here, part) for part in parts)
        for modality, x, x_held in (("video", v, v_held), ("audio", a, a_held)):
            for attribute, values in demo.ATTRIBUTES.items():
                y, y_held = (torch.tensor([values.index(r[attribute]) for r in part]) for part in parts)
                found.setdefault((modality, attribute), []).append(probe(x, y, x_held, y_held))
    for (modality, attribute), (random, learned) in found.items():
        print(f"\nlinear probe, {modality} {attribute}: random {100 * random:.0f}, trained {100 * learned:.0f}", end="")
    return found


def gain(probes, modality, attribute):
    random, learned = probes[modality, attribute]
    return learned - random


def test_frozen_video_features_read_texture_and_rhythm_far_better_than_a_random_networks(probes):
    gains = sorted(gain(probes, "video", attribute) for attribute in ("texture", "rhythm"))
    assert gains[1] >= 0.20
    assert gains[0] >= 0.10


def test_frozen_audio_features_read_an_attribute_of_sound_better_than_a_random_networks(probes):
    assert max(gain(probes, "audio", attribute) for attribute in ("texture", "rhythm", "place")) >= 0.10


def test_what_was_pre_trained_needs_fewer_labels_than_what_was_not(runs, here):
    (here / "runs" / "demo").symlink_to(runs[0])
    subprocess.run([sys.executable, str(HERE / "finetune.py")], cwd=here, check=True, timeout=1500)
    results = json.loads((here / "runs" / "demo-finetune" / "results.json").read_text())
    print("\nlabels:", json.dumps(results))
    assert set(results) == {"linear_video", "linear_audio", "finetune_video", "finetune_audio"}
    for name, least in (("linear_video", 0.25), ("linear_audio", 0.3), ("finetune_video", 0.05), ("finetune_audio", 0.1)):
        other = "random" if name.startswith("linear") else "scratch"
        assert results[name]["pretrained"] - results[name][other] >= least, name
        assert results[name]["pretrained"] > 5 * results[name]["chance"], name
