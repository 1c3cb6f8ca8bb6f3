"""What `--dry-run` says a run will need, against sums by hand and against what autograd holds."""

import dataclasses

import pytest
import torch

import vatt
from engine.processes import Processes
from pretrain import Step
from tools import dry_run
from transformer import Size, Transformer

SIZE = Size(2, 32, 64, 2)
CONFIG = vatt.Config(SIZE, SIZE, SIZE, frames=4, size=16, patch=(2, 8, 8), rate=8000, vocabulary=20, words=4, d_va=16,
                     d_vt=8, dropout=0.0)


def batch(n):
    keys = torch.arange(2 * n).view(n, 2)
    return {"video": torch.zeros(n, 4, 16, 16, 3, dtype=torch.uint8), "audio": torch.zeros(n, CONFIG.samples),
            "text": torch.full((n, 5, 4), 2), "keys": keys, "flip": keys[:, 0] > 0, "colour": torch.zeros(n, 5)}


def gradients(config=CONFIG, chunk=None):
    return Step(vatt.VATT(config), Processes(), (0.5, 0.5), chunk)


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
    kept, again = gradients(), gradients()
    for transformer in (m for m in again.model.modules() if isinstance(m, Transformer)):
        transformer.recompute = True
    one, two, three = (dry_run.activations(kept, batch(n)) for n in (1, 2, 3))
    assert 0.9 < (three - two) / (two - one) < 1.1
    assert dry_run.activations(again, batch(2)) < two / 2


@pytest.mark.parametrize(("chunk", "at_once", "forwards"), [(None, 6, 1), (2, 2, 2), (100, 6, 1)])
def test_the_report_counts_what_chunks_take(chunk, at_once, forwards):
    text = dry_run.report(step := gradients(chunk=chunk), batch(3), clips=6, steps=10, world=2, waiting=7 * 10**9)
    forward, backward = dry_run.cost(CONFIG, (0.5, 0.5))
    clip = forwards * forward + backward
    assert f"FLOPs {clip / 1e9:.1f} G a clip" in text
    assert f"{clip * 6 * 2 * 10 / 1e18:.3g} E in all" in text
    assert f"{at_once} at once" in text
    assert "shared memory 7.00 GB" in text
    total = sum(p.numel() for p in step.model.parameters())
    assert f"parameters {total / 1e6:.1f} M" in text
    assert "video     (3, 4, 16, 16, 3) torch.uint8" in text


def test_the_size_of_the_model_is_four_numbers_a_parameter():
    wide = dataclasses.replace(CONFIG, vocabulary=200_000)
    text = dry_run.report(gradients(wide), batch(2), clips=2, steps=1, world=1, waiting=0)
    assert f"{16 * sum(p.numel() for p in vatt.VATT(wide).parameters()) / 1e9:.2f} weights, gradients and Adam" in text
