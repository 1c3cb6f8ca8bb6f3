"""What `--dry-run` says a run will need, against sums by hand and against what autograd holds."""

import argparse
import dataclasses
import re
import time

import pytest
import torch

import data
import vatt
from engine import loading
from engine.processes import Processes
from tools import dry_run
from transformer import Size, Transformer

SIZE = Size(2, 32, 64, 2)
DROP = (0.5, 0.5)
CONFIG = vatt.Config(SIZE, SIZE, SIZE, frames=4, size=16, patch=(2, 8, 8), rate=8000, vocabulary=20, words=4, d_va=16,
                     d_vt=8, dropout=0.0)


def batch(n):
    keys = torch.arange(2 * n).view(n, 2)
    return {"video": torch.zeros(n, 4, 16, 16, 3, dtype=torch.uint8), "audio": torch.zeros(n, CONFIG.samples),
            "text": torch.full((n, 5, 4), 2), "keys": keys, "flip": keys[:, 0] > 0, "colour": torch.zeros(n, 5)}


def model(recompute=False):
    model = vatt.VATT(CONFIG)
    for transformer in (m for m in model.modules() if isinstance(m, Transformer)):
        transformer.recompute = recompute
    return model


def kept(model, n):
    return dry_run.activations(model, lambda: dry_run.through(model, batch(n), DROP))


class Clips:
    """Eight clips of a data set"""

    spec, in_flight = data.ClipSpec(("video", "audio", "text"), 4, 10.0, 16, 8000, words=4), loading.InFlight()

    def __getitem__(self, at):
        return {k: v[at[1]] for k, v in batch(8).items()} | {"path": f"{at[1]}.mp4"}, []


def preview(capsys, config=CONFIG, chunk=None, build=None):
    settings = argparse.Namespace(batch=12, chunk=chunk, steps=10, precision="fp32", workers=2, cache=1.0, drop=DROP,
                                  recompute=False, compile=False)
    with pytest.MonkeyPatch.context() as patch:
        processes = Processes()
        patch.setenv("WORLD_SIZE", "2")
        dry_run.preview(build or (lambda: vatt.VATT(config)), Clips(), settings, processes)
    return capsys.readouterr().out


def test_flops_are_two_for_each_multiplication_of_all_three_towers():
    def tower(n, patches, p):  # n tokens without AGG; scores and values: n^2 d each
        d, mlp, n = SIZE.d, SIZE.d_mlp, n + 1
        return 2 * patches * p * d + SIZE.layers * (2 * n * (4 * d * d + 2 * d * mlp) + 4 * n * n * d)

    video, audio = 2 * 2 * 2 // 2, CONFIG.samples // 128 // 2 + CONFIG.samples // 128 % 2
    expected = tower(video, video, 2 * 8 * 8 * 3) + tower(audio, audio, 128) + 5 * tower(4, 0, 0)
    forward, backward = dry_run.cost(CONFIG, (0.5, 0.5))
    assert forward == expected
    assert backward == 2 * forward - 2 * (video * 2 * 8 * 8 * 3 + audio * 128) * SIZE.d  # raw inputs need no gradient


def test_more_clips_at_once_keep_more_and_recomputation_keeps_less():
    one, two, three = (kept(model(), n) for n in (1, 2, 3))
    assert 0.9 < (three - two) / (two - one) < 1.1
    assert kept(model(recompute=True), 2) < two / 2


def test_the_meta_device_keeps_what_the_model_keeps_or_a_little_more():
    with torch.device("meta"):
        meta = vatt.VATT(CONFIG)
    unreal = dry_run.activations(meta, lambda: dry_run.through(meta, dry_run.unreal(CONFIG, 2), DROP))
    assert 1 <= unreal / kept(model(), 2) < 1.3


@pytest.mark.parametrize(("chunk", "at_once", "forwards"), [(None, 6, 1), (2, 2, 2), (100, 6, 1)])
def test_it_counts_what_chunks_take(chunk, at_once, forwards, capsys):
    text = preview(capsys, chunk=chunk)
    forward, backward = dry_run.cost(CONFIG, (0.5, 0.5))
    clip = forwards * forward + backward
    assert f"FLOPs {clip / 1e9:.1f} G a clip" in text
    assert f"{clip * 6 * 2 * 10 / 1e18:.3g} E in all" in text
    assert f"{at_once} at once" in text
    assert f"shared memory {loading.shared_memory(Clips.spec.nbytes, 6, 2) / 1e9:.2f} GB" in text
    assert f"parameters {sum(p.numel() for p in vatt.VATT(CONFIG).parameters()) / 1e6:.1f} M" in text
    assert "video     (8, 4, 16, 16, 3) torch.uint8" in text


def test_the_size_of_the_model_is_four_numbers_a_parameter(capsys):
    wide = dataclasses.replace(CONFIG, vocabulary=200_000)
    text = preview(capsys, wide)
    assert f"{16 * sum(p.numel() for p in vatt.VATT(wide).parameters()) / 1e9:.2f} weights, gradients and moments" in text


def test_it_measures_two_steps_and_says_days(capsys, monkeypatch):
    inside = dry_run.through
    monkeypatch.setattr(dry_run, "through", lambda *given: (time.sleep(0.4), inside(*given))[1])
    text = preview(capsys)
    seconds, days = map(float, re.search(r"time (\S+) s a step.*; (\S+) days for 10 steps", text).groups())
    assert 0.3 <= seconds < 3, "eight clips take 0.4 s, and a step has six"
    assert days == pytest.approx(10 * seconds / 86400, rel=0.02)


def test_what_takes_minutes_is_estimated_by_a_matmul_and_not_built(capsys, monkeypatch):
    monkeypatch.setitem(dry_run.SLOW, "cpu", 1)
    built = []
    text = preview(capsys, build=lambda: built.append(torch.empty(1).device.type) or vatt.VATT(CONFIG))
    assert re.search(r"time .* s a step.* at least, at the speed of a plain matmul.* days for 10 steps", text)
    assert built == ["meta"]


def test_what_would_not_fit_is_not_built(capsys, monkeypatch):
    monkeypatch.setattr(dry_run, "free_memory", lambda _: 1e5)
    built = []
    text = preview(capsys, build=lambda: built.append(torch.empty(1).device.type) or vatt.VATT(CONFIG))
    assert re.search(r"memory 0.0 GB is free .*: weights and two clips alone need .* GB, so nothing was built", text)
    assert built == ["meta"]


def test_free_memory_is_that_of_the_machine():
    assert 1e6 < dry_run.free_memory(torch.device("cpu")) < 1e14
