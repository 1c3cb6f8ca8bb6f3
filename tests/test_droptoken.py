"""DropToken (Section 3.1.1), against the counts of the paper's settings, SplitMix64's published output and statistics.

That it never touches AGG or text, and is off unless asked for, is checked in test_vatt.py, through the model.
"""

import pytest
import torch

import droptoken

KEYS = torch.arange(20000)


@pytest.mark.parametrize(("n", "drop", "kept"), [
    (1568, 0.5, 784), (1568, 0.25, 1176), (1568, 0.75, 392),              # 32 x 224 x 224 in patches of 4 x 16 x 16
    (3200, 0.5, 1600), (3200, 0.25, 2400), (3200, 0.75, 800),             # 32 x 320 x 320
    (1200, 0.5, 600), (7, 0.3, 5), (7, 0.25, 5), (10, 0.04, 10),
])  # fmt: skip
def test_droptoken_keeps_exactly_the_share_that_was_asked_for(n, drop, kept):
    assert droptoken.keep(n, drop, KEYS[:3]).shape == (3, kept)
    assert kept == n - round(n * drop)


@pytest.mark.parametrize("drop", [0.1, 0.5, 0.9])
def test_tokens_are_sampled_without_replacement_and_stay_in_order(drop):
    kept = droptoken.keep(37, drop, KEYS[:500])
    assert (kept[:, 1:] > kept[:, :-1]).all()
    assert kept.min() >= 0
    assert kept.max() < 37


def test_nothing_is_dropped_at_a_share_of_zero():
    assert torch.equal(droptoken.keep(9, 0.0, KEYS[:4]), torch.arange(9).expand(4, 9))


@pytest.mark.parametrize(("n", "drop"), [(1, 0.5), (1, 0.99), (3, 0.99), (40, 0.999)])
def test_at_least_one_token_survives(n, drop):
    assert droptoken.keep(n, drop, KEYS[:50]).shape == (50, 1)


@pytest.mark.parametrize("drop", [-0.1, 1.0, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(drop):
    with pytest.raises(ValueError, match="share to drop"):
        droptoken.keep(8, drop, KEYS[:2])


def test_the_choice_is_a_function_of_the_key_alone():
    keys = torch.tensor([5, -3, 2**62, 5, 0])
    kept = droptoken.keep(30, 0.5, keys)
    torch.manual_seed(1)
    assert torch.equal(droptoken.keep(30, 0.5, keys), kept)               # no generator
    assert torch.equal(kept[0], kept[3])                                  # no matter where in the batch
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(droptoken.keep(30, 0.5, keys[order]), kept[order])
    for i in range(5):                                                    # nor in which company
        assert torch.equal(droptoken.keep(30, 0.5, keys[i : i + 1])[0], kept[i])


def test_droptoken_keeps_another_half_for_every_clip():
    kept = droptoken.keep(30, 0.5, KEYS[:2000])
    assert len(kept.unique(dim=0)) == 2000


def keys_of(kind):
    """Keys that follow each other, that differ in their upper half only, and that are negative"""
    return {"consecutive": KEYS, "upper half": KEYS << 32, "negative": -1 - 7 * KEYS}[kind]


def kept_matrix(n, drop, keys):
    """(keys, n) of 1 where a token is kept and 0 where it is dropped"""
    return torch.zeros(len(keys), n, dtype=torch.float64).scatter_(1, droptoken.keep(n, drop, keys), 1.0)


@pytest.mark.parametrize("kind", ["consecutive", "upper half", "negative"])
@pytest.mark.parametrize("drop", [0.25, 0.5, 0.75])
def test_every_token_is_kept_equally_often(drop, kind):
    n = 16
    kept = kept_matrix(n, drop, keys_of(kind))
    p = 1 - drop
    squares = (kept.sum(0) - len(kept) * p).square() / (len(kept) * p * (1 - p))
    assert squares.sum() * (n - 1) / n < 37.7                             # 99.9% of chi-square, 15 degrees of freedom


@pytest.mark.parametrize("kind", ["consecutive", "upper half", "negative"])
def test_every_pair_of_tokens_is_kept_equally_often(kind):
    n = 16
    kept = kept_matrix(n, 0.5, keys_of(kind))
    pairs = (kept.T @ kept)[torch.triu(torch.ones(n, n, dtype=torch.bool), 1)] / len(kept)
    p = (8 * 7) / (16 * 15)
    assert (pairs - p).abs().max() < 4.5 * (p * (1 - p) / len(kept)) ** 0.5


@pytest.mark.parametrize("kind", ["consecutive", "upper half", "negative"])
def test_neighbouring_keys_choose_independently(kind):
    kept = kept_matrix(16, 0.5, keys_of(kind))
    common = (kept[1:] * kept[:-1]).sum(1).mean()                         # of 8 tokens, hypergeometric: 4 on average
    assert abs(common - 4) < 4 * (8 * 0.5 * 0.5 * 8 / 15 / len(kept)) ** 0.5


def test_the_hash_is_splitmix64():
    # The first outputs for seed 0, printed in many test suites; the k-th state is k times the golden gamma.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]
    assert [x % 2**64 for x in droptoken._mix(torch.arange(1, 6)).tolist()] == published


@pytest.mark.parametrize("trailing", [(), (3,), (2, 3)])
def test_take_gathers_the_tokens_of_each_clip(trailing):
    x = torch.randn(4, 10, *trailing)
    kept = droptoken.keep(10, 0.5, KEYS[:4])
    taken = droptoken.take(x, kept)
    assert taken.shape == (4, 5, *trailing)
    for i in range(4):
        for j in range(5):
            assert torch.equal(taken[i, j], x[i, kept[i, j]])


def test_dropped_tokens_get_no_gradient_and_kept_ones_all_of_it():
    x = torch.randn(3, 8, 2, requires_grad=True)
    kept = droptoken.keep(8, 0.5, KEYS[:3])
    droptoken.take(x, kept).sum().backward()
    expected = torch.zeros(3, 8).scatter_(1, kept, 1.0)[..., None].expand(3, 8, 2)
    assert torch.equal(x.grad, expected)
