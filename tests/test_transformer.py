"""The Transformer (Section 3.2, Eq. 2, Table 7), against torch.nn.TransformerEncoderLayer, a literal softmax and T5's law."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from transformer import SIZES, Attention, Block, RelativeBias, Size, Transformer

TINY = Size(layers=3, d=16, d_mlp=32, heads=4)


def tiny(**kwargs):
    """A small encoder in fp64 without dropout, far from its initial values so that nothing is nearly zero"""
    encoder = Transformer(TINY, dropout=0.0, **kwargs).double()
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    return encoder


def tokens(b=3, n=6):
    return torch.randn(b, n, TINY.d, dtype=torch.float64)


# The block


def test_the_block_is_the_standard_one_of_pytorch_on_the_same_weights():
    ours = tiny().blocks[0]
    theirs = nn.TransformerEncoderLayer(
        TINY.d, TINY.heads, TINY.d_mlp, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).double()
    theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias = ours.attention.qkv.weight, ours.attention.qkv.bias
    theirs.self_attn.out_proj, theirs.linear1, theirs.linear2 = ours.attention.out, ours.mlp[0], ours.mlp[-1]
    theirs.norm1, theirs.norm2 = ours.norm1, ours.norm2
    x = tokens()
    assert_close(ours(x), theirs(x), atol=1e-12, rtol=0)
    seen = torch.rand(3, 1, 1, 6) > 0.3
    seen[..., 0] = True
    assert_close(ours(x, seen), theirs(x, src_key_padding_mask=~seen[:, 0, 0]), atol=1e-12, rtol=0)


def literal_attention(attention, x, bias):
    """Query by query, head by head; bias (b, h, n, n) is added to the scores."""
    b, n, d = x.shape
    width = d // attention.heads
    q, k, v = (x @ w.T + c for w, c in zip(attention.qkv.weight.split(d), attention.qkv.bias.split(d), strict=True))
    out = torch.zeros_like(x)
    for i in range(b):
        for h in range(attention.heads):
            part = slice(h * width, (h + 1) * width)
            for query in range(n):
                scores = torch.stack([q[i, query, part] @ k[i, key, part] / math.sqrt(width) for key in range(n)])
                weight = torch.exp(scores + bias[i, h, query])
                out[i, query, part] = sum(weight[key] / weight.sum() * v[i, key, part] for key in range(n))
    return out @ attention.out.weight.T + attention.out.bias


def test_attention_is_softmax_of_scaled_scores_times_values():
    attention, x = tiny().blocks[0].attention, tokens(2, 5)
    bias = torch.randn(2, TINY.heads, 5, 5, dtype=torch.float64)
    seen = torch.rand(2, 1, 1, 5) > 0.4
    seen[..., 0] = True
    hidden = torch.zeros(2, TINY.heads, 5, 5, dtype=torch.float64).masked_fill(~seen, -math.inf)
    assert_close(attention(x), literal_attention(attention, x, torch.zeros_like(bias)), atol=1e-12, rtol=0)
    assert_close(attention(x, bias), literal_attention(attention, x, bias), atol=1e-12, rtol=0)
    assert_close(attention(x, seen), literal_attention(attention, x, hidden), atol=1e-12, rtol=0)
    assert_close(attention(x, bias + hidden), literal_attention(attention, x, bias + hidden), atol=1e-12, rtol=0)


def test_the_mlp_has_the_exact_gelu():
    mlp, x = tiny().blocks[0].mlp, tokens()
    hidden = x @ mlp[0].weight.T + mlp[0].bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    assert_close(mlp(x), hidden @ mlp[-1].weight.T + mlp[-1].bias, atol=1e-12, rtol=0)


# AGG


def test_z_out_is_the_last_layer_norm_at_agg_which_is_token_0():
    encoder, x = tiny(), tokens()
    z = torch.cat([encoder.x_agg.expand(3, 1, -1), x], 1)
    for block in encoder.blocks:
        z = block(z)
    z = (z - z.mean(2, keepdim=True)) / (z.var(2, keepdim=True, correction=0) + 1e-6).sqrt()
    z = z * encoder.norm.weight + encoder.norm.bias
    assert_close(encoder(x, all_tokens=True), z, atol=1e-12, rtol=0)
    assert_close(encoder(x), z[:, 0], atol=1e-12, rtol=0)


def test_without_positions_the_order_of_the_tokens_does_not_matter_to_agg():
    encoder, x = tiny(), tokens()
    assert_close(encoder(x[:, torch.randperm(6)]), encoder(x), atol=1e-12, rtol=0)


def test_each_modality_of_a_shared_backbone_has_an_agg_of_its_own():
    encoder, x = tiny(aggs=3), tokens()
    assert (encoder(x, agg=0) - encoder(x, agg=2)).abs().max() > 1e-3
    encoder(x, agg=1).sum().backward()
    assert encoder.x_agg.grad.abs().sum(1).ne(0).tolist() == [False, True, False]


def test_every_token_reaches_agg():
    encoder, x = tiny(), tokens().requires_grad_()
    encoder(x).square().sum().backward()
    assert x.grad.abs().sum(2).min() > 0


# Padding


@pytest.mark.parametrize("relative_bias", [False, True])
def test_padding_never_changes_an_output(relative_bias):
    encoder, x = tiny(relative_bias=relative_bias), tokens(4, 5)
    lengths = torch.tensor([5, 3, 1, 0])
    mask = torch.arange(5) < lengths[:, None]
    out = encoder(x, mask, all_tokens=True)
    for more in (0, 4):                                                   # what stands there, and how much of it
        padded = torch.cat([torch.where(mask[..., None], x, 100 * tokens(4, 5)), 100 * tokens(4, more)], 1)
        again = encoder(padded, torch.nn.functional.pad(mask, (0, more)), all_tokens=True)
        for i, n in enumerate(lengths):
            assert_close(again[i, : 1 + n], out[i, : 1 + n], atol=1e-12, rtol=0)
            assert_close(encoder(x[i : i + 1, :n], all_tokens=True)[0], out[i, : 1 + n], atol=1e-12, rtol=0)


@pytest.mark.parametrize("relative_bias", [False, True])
def test_a_caption_of_padding_alone_is_agg_attending_to_itself(relative_bias):
    encoder, x = tiny(relative_bias=relative_bias), tokens().requires_grad_()
    z = encoder(x, torch.zeros(3, 6, dtype=torch.bool))
    alone = encoder.x_agg[None]
    for block in encoder.blocks:                                          # a softmax over one score is 1
        value = block.attention.qkv(block.norm1(alone))[..., 2 * TINY.d :]
        alone = alone + block.attention.out(value)
        alone = alone + block.mlp(block.norm2(alone))
    assert_close(z, encoder.norm(alone)[0].expand(3, -1), atol=1e-12, rtol=0)
    z.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)
    assert not x.grad.any()


# The relative bias of the text model


def t5_bucket(relative, buckets=32, distance=64):
    """T5's published law (mesh_tensorflow, `_relative_position_bucket`, bidirectional), for one integer"""
    bucket = 0
    buckets //= 2
    if relative > 0:
        bucket += buckets
    n = abs(relative)
    exact = buckets // 2
    if n < exact:
        return bucket + n
    return bucket + min(exact + int(math.log(n / exact) / math.log(distance / exact) * (buckets - exact)), buckets - 1)


def test_the_buckets_are_t5_s_with_a_largest_distance_of_64():
    relative = torch.arange(-200, 201)
    assert RelativeBias(8).bucket(relative).tolist() == [t5_bucket(r) for r in relative.tolist()]


def test_distances_below_8_are_exact_and_a_key_after_the_query_adds_16():
    bucket = RelativeBias(8).bucket(-torch.arange(17)).tolist()
    assert bucket == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 9, 9, 9, 10, 10, 10]
    assert RelativeBias(8).bucket(torch.arange(1, 17)).tolist() == [16 + b for b in bucket[1:]]
    assert len({*bucket, *(16 + b for b in bucket[1:])}) == 21            # of 32, in a caption of AGG and 16 words


def test_the_bias_of_a_score_depends_on_key_minus_query_and_head():
    relative = RelativeBias(4)
    bias = relative(6, None)
    assert bias.shape == (1, 4, 6, 6)
    for h in range(4):
        for query in range(6):
            for key in range(6):
                assert bias[0, h, query, key] == relative.table[t5_bucket(key - query), h]


def test_the_relative_bias_is_added_in_the_first_layer_only():
    encoder, x = tiny(relative_bias=True), tokens()
    encoder(x).sum().backward()
    assert encoder.relative_bias.table.grad.abs().max() > 1e-3
    encoder.zero_grad()
    nn.init.zeros_(encoder.blocks[0].attention.out.weight)                # the first layer's attention says nothing now
    encoder(x).sum().backward()
    assert not encoder.relative_bias.table.grad.any()


def test_with_the_relative_bias_the_order_of_the_words_matters():
    encoder, x = tiny(relative_bias=True), tokens()
    assert (encoder(x.flip(1)) - encoder(x)).abs().max() > 1e-3


# Sizes and initial values


@pytest.mark.parametrize(("name", "layers", "d", "d_mlp", "heads"), [
    ("small", 6, 512, 2048, 8), ("base", 12, 768, 3072, 12), ("medium", 12, 1024, 4096, 16), ("large", 24, 1024, 4096, 16),
])  # fmt: skip
def test_the_sizes_are_those_of_table_7(name, layers, d, d_mlp, heads):
    with torch.device("meta"):
        encoder = Transformer(SIZES[name])
    assert len(encoder.blocks) == layers
    block = encoder.blocks[-1]
    assert block.attention.qkv.weight.shape == (3 * d, d)
    assert block.mlp[0].weight.shape == (d_mlp, d)
    assert block.attention.heads == heads
    assert d == 64 * heads


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_an_encoder_has_the_parameters_of_the_standard_architecture_and_agg(name):
    layers, d, ff, _ = SIZES[name]
    with torch.device("meta"):
        encoder = Transformer(SIZES[name])
        theirs = nn.TransformerEncoderLayer(d, SIZES[name].heads, ff)
    assert count(encoder) == layers * (4 * d * d + 2 * d * ff + 9 * d + ff) + 2 * d + d
    assert count(encoder) == layers * count(theirs) + 2 * d + d


@pytest.mark.parametrize(("name", "millions"), [("small", 20.9), ("base", 87.9), ("medium", 155.0), ("large", 306.1)])
def test_table_7_counts_the_encoder_a_video_projection_and_two_linear_layers(name, millions):
    d = SIZES[name].d
    with torch.device("meta"):
        encoder = count(Transformer(SIZES[name])) - d                     # without AGG
    assert round((encoder + 3072 * d + 512 * d + 512 * 256) / 1e6, 1) == millions


def test_the_text_model_adds_one_bias_a_bucket_and_head():
    with torch.device("meta"):
        assert count(Transformer(SIZES["small"], relative_bias=True)) - count(Transformer(SIZES["small"])) == 32 * 8


def test_query_key_and_value_start_glorot_uniform_each():
    weight = Attention(768, 12, 0.1).qkv.weight
    limit = math.sqrt(6 / (768 + 768))                                    # not 6 / (768 + 3 * 768)
    for part in weight.chunk(3):
        assert 0.999 * limit < part.abs().max() <= limit
        assert part.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.01)


def test_linear_layers_start_glorot_uniform_with_zero_bias_and_norms_as_the_identity():
    block = Block(Size(1, 256, 1024, 4), 0.1)
    for linear in (block.attention.out, block.mlp[0], block.mlp[-1]):
        assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / sum(linear.weight.shape)), rel=0.02)
    biases = [p for name, p in block.named_parameters() if name.endswith("bias")]
    assert len(biases) == 6
    assert not any(bias.any() for bias in biases)
    assert all((norm.weight == 1).all() and norm.eps == 1e-6 for norm in (block.norm1, block.norm2))


def test_agg_starts_with_a_standard_deviation_of_one_over_root_d():
    x_agg = Transformer(Size(1, 768, 8, 1), aggs=400).x_agg
    assert x_agg.std().item() == pytest.approx(0.0361, rel=0.01)          # measured in the official code at d = 768
    assert x_agg.abs().max() < 2.01 * 768**-0.5 / 0.8796                  # cut at two standard deviations


def test_the_relative_bias_starts_uniform_within_a_twentieth():
    table = RelativeBias(64).table
    assert 0.049 < table.abs().max() <= 0.05
    assert table.std().item() == pytest.approx(0.05 / math.sqrt(3), rel=0.05)


# Dropout and precision


def test_dropout_works_in_training_only():
    encoder = Transformer(TINY, dropout=0.5)
    x = torch.randn(200, 6, TINY.d)
    assert not torch.equal(encoder(x), encoder(x))
    assert (encoder(x) == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)  # the last one comes after the last norm
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))
    without = Transformer(TINY, dropout=0.0)
    without.load_state_dict(encoder.state_dict())
    assert_close(without(x), encoder(x))


def test_dropout_stands_on_scores_attention_mlp_and_inside_it():
    block, x = Block(TINY, 1.0), torch.randn(2, 4, TINY.d)
    assert torch.equal(block(x), x)                                       # both branches are dropped whole
    block.dropout.p = 0.0
    nn.init.normal_(block.attention.out.bias)
    nn.init.normal_(block.mlp[-1].bias)
    x_attended = x + block.attention.out.bias                             # no score survives
    assert_close(block(x), x_attended + block.mlp[-1].bias)               # nor a hidden unit


@pytest.mark.parametrize("relative_bias", [False, True])
def test_bf16_autocast_stays_finite_and_close(relative_bias):
    encoder = Transformer(TINY, relative_bias=relative_bias, dropout=0.0)
    x = torch.randn(4, 6, TINY.d)
    mask = torch.arange(6) < torch.tensor([6, 4, 1, 0])[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        z = encoder(x, mask)
        z.float().sum().backward()
    assert_close(z.float(), encoder(x, mask), atol=0.06, rtol=0)
    assert all(p.grad.isfinite().all() for p in encoder.parameters())
