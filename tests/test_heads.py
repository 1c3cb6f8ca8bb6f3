"""The projections to the common spaces (Section 3.3, Eq. 3), against literal formulas and nn.BatchNorm1d, in fp64."""

import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from heads import BatchNorm, Heads, LinearClassifier, LowRankClassifier


def close(actual, expected):
    assert_close(actual, expected, atol=1e-11, rtol=0)


def heads(**kwargs):
    """Heads in fp64 whose norms are far from the identity and from their initial statistics"""
    h = Heads(12, 10, 8, d_va=6, d_vt=5, **kwargs).double()
    with torch.no_grad():
        for tensor in [*h.parameters(), *h.buffers()]:
            tensor.add_(torch.rand_like(tensor))
    return h


def rows(*shape):
    return torch.randn(*shape, dtype=torch.float64) * 2 + 0.5


def linear_and_norm(projection, x):
    """x W^T, then each column less its mean, over its (biased) standard deviation, scaled and shifted; for all rows valid"""
    y = x @ projection.linear.weight.T
    y = (y - y.mean(0)) / ((y - y.mean(0)).square().mean(0) + 1e-5).sqrt()
    return y * projection.norm.weight + projection.norm.bias


# Eq. 3


def test_g_v_va_is_two_linear_layers_with_relu_between_and_g_v_vt_one_linear_layer():
    h, z = heads(), rows(9, 12)
    z_va, z_vt = h.video(z)
    expected = linear_and_norm(h.v_to_va2, linear_and_norm(h.v_to_va1, z).clamp(min=0))
    close(z_va, expected)
    close(z_vt, linear_and_norm(h.v_to_vt, expected))                     # no ReLU before it


def test_g_a_va_and_g_t_vt_are_one_linear_layer_each():
    h, z_audio, z_text = heads(), rows(9, 10), rows(9, 5, 8)
    close(h.audio(z_audio), linear_and_norm(h.a_to_va, z_audio))
    close(h.text(z_text), linear_and_norm(h.t_to_vt, z_text.flatten(0, 1)).view(9, 5, 5))


def test_video_reaches_the_text_space_through_the_audio_space():
    h, z = heads(), rows(9, 12)
    z_va, z_vt = h.video(z)
    assert torch.equal(h.v_to_vt(z_va), z_vt)
    z_vt.square().sum().backward()
    assert h.v_to_va1.linear.weight.grad.any()
    assert h.v_to_va2.linear.weight.grad.any()


def test_every_linear_layer_is_followed_by_a_batch_norm_and_has_no_bias_of_its_own():
    h = heads()
    linears = [m for m in h.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == sum(isinstance(m, BatchNorm) for m in h.modules()) == 5
    assert all(linear.bias is None for linear in linears)


def test_the_linear_projections_are_affine_in_evaluation_and_g_v_va_is_not():
    h = heads().eval()
    gap = lambda g, d: (lambda x, y: (g(x) + g(y) - g(x + y) - g(0 * x)).abs().max())(rows(9, d), rows(9, d))
    assert gap(h.audio, 10) < 1e-12
    assert gap(h.text, 8) < 1e-12
    assert gap(h.v_to_vt, 6) < 1e-12
    assert gap(lambda x: h.video(x)[0], 12) > 1e-2


def test_the_common_spaces_are_512_and_256_wide():
    h = Heads(24, 20, 16)
    z_va, z_vt = h.video(torch.randn(4, 24))
    assert z_va.shape == h.audio(torch.randn(4, 20)).shape == (4, 512)
    assert z_vt.shape == (4, 256)
    assert h.text(torch.randn(4, 5, 16)).shape == (4, 5, 256)


# Batch norm over the valid rows


@pytest.mark.parametrize("missing", [[], [1, 4], [0, 1, 2, 3, 5, 7]])
def test_batch_norm_sees_the_valid_rows_as_pytorch_s_sees_them_alone(missing):
    ours, theirs = BatchNorm(4).double(), nn.BatchNorm1d(4).double()
    with torch.no_grad():
        ours.weight.copy_(theirs.weight.uniform_(0.5, 2))
        ours.bias.copy_(theirs.bias.uniform_(-1, 1))
    valid = torch.ones(9, dtype=torch.bool)
    valid[missing] = False
    for _ in range(3):                                                    # the running statistics too
        x = rows(9, 4).requires_grad_()
        alone = x.detach()[valid].requires_grad_()
        y, weight = ours(x, valid), rows(9, 4)
        (y[valid] * weight[valid]).sum().backward()
        expected = theirs(alone)
        (expected * weight[valid]).sum().backward()
        close(y[valid], expected)
        close(x.grad[valid], alone.grad)
        assert not x.grad[~valid].any()
    close(ours.weight.grad, theirs.weight.grad)
    close(ours.bias.grad, theirs.bias.grad)
    close(ours.running_mean, theirs.running_mean)
    close(ours.running_var, theirs.running_var)
    close(ours.eval()(x, valid), theirs.eval()(x))


def test_captions_of_all_clips_are_one_batch():
    norm, flat = BatchNorm(4).double(), BatchNorm(4).double()
    x, valid = rows(3, 5, 4), torch.rand(3, 5) > 0.4
    close(norm(x, valid), flat(x.flatten(0, 1), valid.flatten()).view(3, 5, 4))
    close(norm.running_var, flat.running_var)


def test_what_stands_in_a_missing_row_changes_nothing():
    h, has_text = heads(), torch.rand(9, 5) > 0.5
    z = rows(9, 5, 8)
    other = torch.where(has_text[..., None], z, 1e3 * rows(9, 5, 8))
    close(h.text(other, has_text)[has_text], h.text(z, has_text)[has_text])


@pytest.mark.parametrize("valid", [[False] * 4, [False, False, True, False]])
def test_below_two_valid_rows_the_running_statistics_serve_and_stay(valid):
    norm = heads().t_to_vt.norm
    before = [buffer.clone() for buffer in norm.buffers()]
    x = rows(4, 5).requires_grad_()
    y = norm(x, torch.tensor(valid))
    close(y, (x - before[0]) / (before[1] + 1e-5).sqrt() * norm.weight + norm.bias)
    y[torch.tensor(valid)].sum().backward()
    assert all(map(torch.equal, norm.buffers(), before))
    for parameter in (x, norm.weight, norm.bias):
        assert parameter.grad.isfinite().all()
    assert not x.grad[~torch.tensor(valid)].any()


def test_a_batch_of_one_clip_trains():
    h = heads()
    for z in (*h.video(rows(1, 12)), h.audio(rows(1, 10)), h.text(rows(1, 1, 8))):
        assert z.isfinite().all()


def test_evaluation_uses_the_running_statistics_and_leaves_them():
    h, z = heads().eval(), rows(9, 12)
    before = {name: tensor.clone() for name, tensor in h.state_dict().items()}
    close(torch.cat([h.video(one[None])[1] for one in z]), h.video(z)[1])   # a clip alone or among others
    norm, x = h.a_to_va.norm, rows(9, 6)
    close(norm(x), (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias)
    assert all(torch.equal(tensor, before[name]) for name, tensor in h.state_dict().items())


# Precision and initial values


def test_the_heads_compute_in_fp32_whatever_the_autocast():
    h = Heads(12, 10, 8)
    z = torch.randn(9, 12).bfloat16(), torch.randn(9, 10).bfloat16(), torch.randn(9, 5, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = *h.video(z[0]), h.audio(z[1]), h.text(z[2])
    h.double()
    exact = *h.video(z[0].double()), h.audio(z[1].double()), h.text(z[2].double())
    for actual, expected in zip(inside, exact, strict=True):
        assert actual.dtype == torch.float32
        assert_close(actual.double(), expected, atol=1e-4, rtol=0)        # in bf16: 1e-2


def test_the_projections_start_glorot_uniform_and_the_norms_as_the_identity():
    h = Heads(768, 768, 512)
    for projection in (h.v_to_va1, h.v_to_va2, h.a_to_va, h.v_to_vt, h.t_to_vt):
        weight, norm = projection.linear.weight, projection.norm
        assert weight.std().item() == pytest.approx((2 / sum(weight.shape)) ** 0.5, rel=0.02)
        assert (norm.weight == 1).all()
        assert not norm.bias.any()
        assert (norm.momentum, norm.eps) == (0.1, 1e-5)                   # Keras: momentum 0.9


# the classifiers (Sections A.2.5, A.3.2)


def test_the_linear_classifier_is_one_linear_layer_behind_dropout():
    head, z = LinearClassifier(12, 7, dropout=0.5).double(), rows(5, 12)
    close(head.eval()(z), z @ head.linear.weight.T + head.linear.bias)
    assert not torch.equal(head.train()(z), head.eval()(z))
    assert not head.linear.bias.any()
    assert head.linear.weight.std().item() == pytest.approx((2 / 19) ** 0.5, rel=0.25)


def test_each_of_several_labels_starts_at_a_probability_of_one_in_c():
    head = LinearClassifier(12, 527, multi=True)
    assert head(torch.zeros(1, 12)).sigmoid().mean().item() == pytest.approx(1 / 527, rel=1e-4)
    assert head.linear.bias[0].item() == pytest.approx(-6.265, abs=1e-3)


def test_the_low_rank_classifier_is_u_v_and_a_step_uses_only_its_components_scaled():
    head, z = LowRankClassifier(12, 7, n=128).double(), rows(5, 12)
    close(head(z), z @ (head.U @ head.V))
    chosen = torch.randperm(128)[:13]
    mask = torch.zeros(128, dtype=torch.float64)
    mask[chosen] = 128 / 13
    close(head(z, chosen), z @ head.U @ torch.diag(mask) @ head.V)
    head(z, chosen).sum().backward()
    assert (head.U.grad.abs().sum(0) > 0).sum() == 13
    assert (head.V.grad.abs().sum(1) > 0).sum() == 13


def test_the_mean_over_all_choices_of_components_is_the_whole_classifier():
    head, z = LowRankClassifier(4, 3, n=5).double(), rows(6, 4)
    every = [head(z, torch.tensor(choice)) for choice in itertools.combinations(range(5), 2)]
    close(torch.stack(every).mean(0), head(z))
