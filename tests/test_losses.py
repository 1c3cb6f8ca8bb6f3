"""The contrastive losses (Section 3.4, Eq. 4, 5, 6), against the equations written out pair by pair, in fp64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from losses import at_chance, balance, cross_entropy, mil_nce, mixup, multi_label, nce, smooth, total

TAU = 0.07  # Section 4.1


def vectors(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def similarity(x, y):
    """exp(x y / tau) of the normalised vectors"""
    return torch.exp((x / x.square().sum().sqrt()) @ (y / y.square().sum().sqrt()) / TAU)


def literal_nce(z_v, z_a):
    """Eq. 4, N: the pairs of other clips that share this one's video or this one's sound."""
    losses = []
    for i in range(len(z_v)):
        positive = similarity(z_v[i], z_a[i])
        others = [j for j in range(len(z_v)) if j != i]
        negatives = sum(similarity(z_v[i], z_a[j]) + similarity(z_v[j], z_a[i]) for j in others)
        losses.append(-torch.log(positive / (positive + negatives)))
    return sum(losses) / len(losses)


def literal_mil_nce(z_v, z_t, has_text):
    """Eq. 5, P: the clip's captions that are there; N: others' captions for this video, other videos for P."""
    clips, captions = range(len(z_v)), range(z_t.shape[1])
    losses = []
    for i in clips:
        own = [k for k in captions if has_text[i, k]]
        if own:
            positive = sum(similarity(z_v[i], z_t[i, k]) for k in own)
            negative = sum(similarity(z_v[i], z_t[j, k]) for j in clips for k in captions if j != i and has_text[j, k])
            negative = negative + sum(similarity(z_v[j], z_t[i, k]) for j in clips for k in own if j != i)
            losses.append(-torch.log(positive / (positive + negative)))
    return sum(losses) / len(losses)


# five clips of three captions
ALL = torch.ones(5, 3, dtype=torch.bool)
ONE = torch.zeros(5, 3, dtype=torch.bool)
ONE[2, 1] = True
CLIPS = torch.tensor([True, False, True, True, False])[:, None].expand(5, 3)
SOME = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]], dtype=torch.bool)
PATTERNS = pytest.mark.parametrize("has_text", [ALL, ONE, CLIPS, SOME], ids=["all", "one caption", "whole clips", "some"])


def equal_values_and_gradients(ours, literal, *inputs):
    assert_close(ours, literal, atol=1e-12, rtol=0)
    pairs = zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(literal, inputs), strict=True)
    for actual, expected in pairs:
        assert_close(actual, expected, atol=1e-12, rtol=0)


def test_nce_is_equation_4():
    z_v, z_a = vectors(6, 4), vectors(6, 4)
    equal_values_and_gradients(nce(z_v, z_a), literal_nce(z_v, z_a), z_v, z_a)


@PATTERNS
def test_mil_nce_is_equation_5(has_text):
    z_v, z_t = vectors(5, 4), vectors(5, 3, 4)
    equal_values_and_gradients(mil_nce(z_v, z_t, has_text), literal_mil_nce(z_v, z_t, has_text), z_v, z_t)


@PATTERNS
def test_the_gradients_are_those_of_finite_differences(has_text):
    assert torch.autograd.gradcheck(lambda z_v, z_t: mil_nce(z_v, z_t, has_text, 0.5), (vectors(5, 4), vectors(5, 3, 4)))


def test_the_whole_loss_is_the_sum_of_both():
    one, other = torch.tensor(2.0), torch.tensor(5.0)
    assert total(one, other) == 7
    assert total(one, other, lam=0.5) == 4.5


def test_mil_nce_with_one_candidate_is_nce():
    z_v, z_a = vectors(6, 4), vectors(6, 4)
    equal_values_and_gradients(mil_nce(z_v, z_a[:, None]), literal_nce(z_v, z_a), z_v, z_a)
    assert torch.equal(mil_nce(z_v, z_a[:, None]), nce(z_v, z_a))


def test_a_mask_of_clips_masks_all_their_captions():
    z_v, z_t = vectors(5, 4), vectors(5, 3, 4)
    assert torch.equal(mil_nce(z_v, z_t, CLIPS[:, 0]), mil_nce(z_v, z_t, CLIPS))
    assert torch.equal(mil_nce(z_v, z_t), mil_nce(z_v, z_t, ALL))


def test_clips_without_sound_are_no_anchors_and_their_sound_no_negative():
    z_v, z_a = vectors(5, 4), vectors(5, 4)
    has_audio = CLIPS[:, 0]
    literal = literal_mil_nce(z_v, z_a[:, None], has_audio[:, None])
    equal_values_and_gradients(nce(z_v, z_a, has_audio=has_audio), literal, z_v, z_a)


# What is a positive, what a negative


def test_every_one_of_the_five_captions_is_a_positive():
    z_v, z_t = vectors(4, 6), vectors(4, 5, 6)
    before = mil_nce(z_v, z_t).item()
    for k in range(5):
        nearer = z_t.detach().clone()
        nearer[1, k] = z_v.detach()[1]
        assert mil_nce(z_v[1:2], nearer[1:2]) == 0                        # alone, there is nothing else to choose
        assert mil_nce(z_v, nearer) < before


def test_a_missing_caption_is_neither_a_positive_nor_a_negative():
    z_v, z_t = vectors(5, 4), vectors(5, 3, 4)
    loss = mil_nce(z_v, z_t, SOME)
    other = torch.where(SOME[..., None], z_t, 1e6 * torch.randn(5, 3, 4))
    assert torch.equal(mil_nce(z_v, other, SOME), loss)
    loss.backward()
    assert not z_t.grad[~SOME].any()
    assert (z_t.grad[SOME].abs().sum(1) > 0).all()


def test_the_video_of_a_clip_without_text_remains_a_negative_of_the_others_captions():
    z_v, z_t = vectors(5, 4), vectors(5, 3, 4)
    mil_nce(z_v, z_t, CLIPS).backward()
    assert (z_v.grad[~CLIPS[:, 0]].abs().sum(1) > 0).all()
    without = mil_nce(z_v[CLIPS[:, 0]], z_t[CLIPS[:, 0]])
    assert mil_nce(z_v, z_t, CLIPS) > without


def official(z_v, z_t):
    """As the official code has it: row and column in one log-sum-exp, so that the positives stand in it twice"""
    s = torch.einsum("id,jkd->ijk", F.normalize(z_v, dim=-1), F.normalize(z_t, dim=-1)) / TAU
    both = torch.cat([s.flatten(1), s.transpose(0, 1).flatten(1)], 1).logsumexp(1)
    return (both - s.diagonal().T.logsumexp(1)).mean()


def test_the_official_loss_is_the_softplus_of_the_paper_s():
    # Clips evenly spaced on a circle have the same loss, each of them, so that the mean commutes with the softplus.
    for spread in (0.05, 0.3, 2.0):
        at = 2 * math.pi * torch.arange(7, dtype=torch.float64) / 7
        point = lambda angle: torch.stack([angle.cos(), angle.sin()], -1)
        z_v, z_t = point(at), point(at[:, None] + spread * torch.tensor([0.1, -0.4, 1.0]))
        assert_close(official(z_v, z_t), F.softplus(mil_nce(z_v, z_t)), atol=1e-12, rtol=0)


def test_a_solved_batch_costs_nothing():
    z = torch.eye(8, dtype=torch.float64)
    assert nce(z, z).item() == pytest.approx(math.log(1 + 14 * math.exp(-1 / TAU)), abs=1e-12)
    assert official(z, z[:, None]) > math.log(2)                          # which counts the positive twice


# Chance


@pytest.mark.parametrize("b", [1, 2, 8, 33])
def test_nce_of_a_collapsed_batch_is_at_chance(b):
    same = torch.randn(1, 4, dtype=torch.float64).expand(b, 4)
    assert nce(same, same).item() == pytest.approx(math.log(2 * b - 1), abs=1e-12)
    assert at_chance(b, b) == math.log(2 * b - 1)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(("b", "n"), [(1, 1), (8, 8), (8, 3), (8, 1), (8, 0), (33, 20)])
def test_mil_nce_of_a_collapsed_batch_is_at_chance(b, n, k):
    same = torch.randn(4, dtype=torch.float64)
    loss = mil_nce(same.expand(b, 4), same.expand(b, k, 4), torch.arange(b) < n)
    assert loss.item() == pytest.approx(at_chance(b, n), abs=1e-12)
    assert at_chance(b, n) == (math.log(n + b - 1) if n else 0)


# Invariances


def test_only_the_direction_of_a_vector_counts():
    z_v, z_t = vectors(5, 4), vectors(5, 3, 4)
    scaled = mil_nce(z_v * torch.rand(5, 1).double().add(0.1) * 9, z_t * torch.rand(5, 3, 1).double().add(0.1), SOME)
    assert_close(scaled, mil_nce(z_v, z_t, SOME), atol=1e-12, rtol=0)


def test_neither_the_order_of_clips_nor_that_of_captions_counts():
    z_v, z_t = vectors(5, 4), vectors(5, 3, 4)
    clips, captions = torch.randperm(5), torch.randperm(3)
    permuted = mil_nce(z_v[clips], z_t[clips][:, captions], SOME[clips][:, captions])
    assert_close(permuted, mil_nce(z_v, z_t, SOME), atol=1e-12, rtol=0)


def test_the_temperature_divides_the_similarities():
    z_v, z_t = vectors(5, 4), vectors(5, 3, 4)
    equal_values_and_gradients(mil_nce(z_v, z_t, SOME, temperature=0.07), mil_nce(z_v, z_t, SOME), z_v, z_t)
    assert mil_nce(z_v, z_t, ALL, temperature=1e6).item() == pytest.approx(at_chance(5, 5), abs=1e-4)


# At the edges


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_a_batch_without_any_text_gives_0_and_gradients_of_0(shape, dtype):
    z_v = torch.randn(4, 5, dtype=dtype, requires_grad=True)
    z_t = torch.randn(4, 3, 5, dtype=dtype, requires_grad=True)
    loss = mil_nce(z_v, z_t, torch.zeros(shape, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert torch.equal(z_v.grad, torch.zeros_like(z_v))
    assert torch.equal(z_t.grad, torch.zeros_like(z_t))


def test_a_batch_of_one_clip_has_no_negatives():
    z_v, z_t = vectors(1, 4), vectors(1, 3, 4)
    for loss in (mil_nce(z_v, z_t), nce(z_v, z_t[:, 0])):
        assert abs(loss.item()) < 1e-12
        assert all(not grad.abs().gt(1e-12).any() for grad in torch.autograd.grad(loss, [z_v, z_t]))


def test_logits_are_fp32_whatever_the_autocast():
    z_v, z_t = torch.randn(6, 8), torch.randn(6, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = mil_nce(z_v, z_t)
        half = mil_nce(z_v.bfloat16(), z_t.bfloat16())
    assert torch.equal(inside, mil_nce(z_v, z_t))
    assert half.dtype == torch.float32
    assert torch.equal(half, mil_nce(z_v.bfloat16().float(), z_t.bfloat16().float()))


@pytest.mark.parametrize("has_text", [ALL, SOME, ONE], ids=["all", "some", "one caption"])
@pytest.mark.parametrize("sign", [1, -1])
def test_huge_logits_stay_finite(sign, has_text):
    z_v = torch.randn(1, 4).expand(5, 4) + torch.eye(5, 4)
    z_v, z_t = z_v.clone().requires_grad_(), sign * 1e4 * z_v[:, None].expand(5, 3, 4)
    z_t = z_t.detach().clone().requires_grad_()
    loss = mil_nce(z_v, z_t, has_text, temperature=0.001)                 # 1000, either way
    loss.backward()
    assert loss.isfinite()
    assert loss >= 0
    assert z_v.grad.isfinite().all()
    assert z_t.grad.isfinite().all()


def test_a_vector_of_zeros_gives_no_nan():
    z_v, z_a = torch.zeros(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    loss = nce(z_v, z_a)
    loss.backward()
    assert loss.item() == pytest.approx(at_chance(3, 3), abs=1e-6)
    assert z_v.grad.isfinite().all()


# classification (Sections A.2.5, A.3)


def test_smooth_labels_and_their_cross_entropy_are_those_of_torch():
    logits, target = vectors(6, 9), torch.randint(9, (6,))
    y = F.one_hot(target, 9).double()
    ours = cross_entropy(logits, smooth(y, 0.1))
    assert_close(ours, F.cross_entropy(logits, target, reduction="none", label_smoothing=0.1))
    assert_close(cross_entropy(logits, y), F.cross_entropy(logits, target, reduction="none"))


def test_a_wrong_answer_keeps_its_gradient_however_sure_it_is():
    logits = torch.tensor([[0.0, 100.0]], requires_grad=True)
    cross_entropy(logits, torch.tensor([[1.0, 0.0]])).sum().backward()
    assert_close(logits.grad, torch.tensor([[-1.0, 1.0]]))


def test_mixup_mixes_each_clip_and_its_labels_with_its_neighbour():
    x, y, alpha = torch.rand(6, 4, 3), torch.rand(6, 5), torch.rand(6)
    mixed, labels = mixup(x, y, alpha)
    for i in range(6):
        j = i + 1 if i % 2 == 0 else i - 1
        assert_close(mixed[i], alpha[i] * x[i] + (1 - alpha[i]) * x[j])
        assert_close(labels[i], alpha[i] * y[i] + (1 - alpha[i]) * y[j])


def test_halves_of_a_batch_mix_as_the_whole_does():
    x, y, alpha = torch.rand(8, 3), torch.rand(8, 5), torch.rand(8)
    halves = [mixup(x[part], y[part], alpha[part]) for part in (slice(0, 4), slice(4, 8))]
    assert_close(torch.cat([x for x, _ in halves]), mixup(x, y, alpha)[0])


def test_a_clip_weighs_the_mean_inverse_count_of_its_labels():
    y = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 0, 0]])
    assert_close(balance(y, y.sum(0)), torch.tensor([1 / 3, (1 / 3 + 1) / 2, (1 / 3 + 1) / 2, 0]))
    labels = torch.rand(7, 4)  # mixed ones
    counts = [sum(float(row[c]) for row in labels) for c in range(4)]
    for weight, row in zip(balance(labels, labels.sum(0)).tolist(), labels.tolist(), strict=True):
        assert weight == pytest.approx(sum(v / n for v, n in zip(row, counts, strict=True)) / sum(row), rel=1e-5)


def test_the_multi_label_loss_is_summed_over_classes_and_weighted_by_clip():
    logits, y, weight = vectors(5, 6), torch.randint(2, (5, 6)).double(), torch.rand(5).double()
    for i, loss in enumerate(multi_label(logits, y, weight)):
        p = [1 / (1 + math.exp(-v)) for v in logits[i].tolist()]
        literal = -sum(math.log(q) if label else math.log(1 - q) for q, label in zip(p, y[i], strict=True))
        assert loss.item() == pytest.approx(float(weight[i]) * literal, rel=1e-9)


def test_a_batch_without_labels_gives_no_nan():
    logits, y = vectors(3, 4), torch.zeros(3, 4).double()
    loss = multi_label(logits, y, balance(y, y.sum(0))).sum()
    loss.backward()
    assert loss == 0
    assert logits.grad.isfinite().all()
