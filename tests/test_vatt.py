"""Figure 1 as a whole: shapes, parameters and what depends on what, against the released model's counts and F.conv3d."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import droptoken
import losses
import tokenize
from transformer import Size
from vatt import PRESETS, VATT, Config, projection, resize_table

TINY = Config(Size(2, 16, 32, 2), Size(2, 12, 24, 2), Size(2, 8, 16, 2), frames=4, size=12, patch=(2, 4, 4), rate=16000,
              vocabulary=50, words=6, d_va=10, d_vt=6, dropout=0.0)  # fmt: skip
ONE_SIZE = Size(2, 16, 32, 2)
SHARED = dataclasses.replace(TINY, video=ONE_SIZE, audio=ONE_SIZE, text=ONE_SIZE, shared=True)
KINDS = pytest.mark.parametrize("config", [TINY, SHARED], ids=["separate", "shared"])


def build(config):
    """A model in fp64 and evaluation, its weights large enough for every input to matter"""
    model = VATT(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.2)
    return model


def inputs(config, b=3, dtype=torch.float64, device=None):
    video = torch.rand(b, config.frames, config.size, config.size, 3, dtype=dtype, device=device) * 2 - 1
    audio = torch.rand(b, config.samples, dtype=dtype, device=device) * 2 - 1
    text = torch.randint(1, config.vocabulary, (b, config.captions, config.words), device=device)
    if device is None:
        text[0, 1, 2:], text[1, 3] = 0, 0                                 # a short caption, and one of padding alone
    return video, audio, text


def count(*tensors_or_modules):
    return sum(x.numel() if isinstance(x, torch.Tensor) else count(*x.parameters()) for x in tensors_or_modules)


def entering(model):
    """Collects the tokens, AGG first, that enter the first block of the backbones at each call: (B, 1 + N, d)"""
    tokens = []
    for name, module in model.named_modules():
        if name.endswith("blocks.0"):
            module.register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    return tokens


def lengths(tokens):
    return [x.shape[1] for x in tokens]


# Shapes


@pytest.mark.parametrize("preset", PRESETS)
def test_figure_1_gives_one_vector_a_clip_and_modality_and_caption(preset):
    config = PRESETS[preset]
    with torch.device("meta"):
        model = VATT(config)
        z_video, z_audio, z_text = model(*inputs(config, 2, torch.float32, "meta"))
    assert z_video.shape == (2, config.video.d)
    assert z_audio.shape == (2, config.audio.d)
    assert z_text.shape == (2, config.captions, config.text.d)


def test_a_clip_of_the_paper_is_1568_and_1200_and_16_tokens_and_agg():
    with torch.device("meta"):
        model = VATT(PRESETS["bbs"])
        tokens = entering(model)
        model(*inputs(PRESETS["bbs"], 1, torch.float32, "meta"))
    assert PRESETS["bbs"].samples == 153600
    assert lengths(tokens) == [1 + 1568, 1 + 1200, 1 + 16]


@KINDS
def test_the_common_spaces_compare_video_with_audio_and_video_with_text(config):
    model = build(config)
    z_v_va, z_a_va, z_v_vt, z_t_vt = model.project(*model(*inputs(config)))
    assert z_v_va.shape == z_a_va.shape == (3, config.d_va)
    assert z_v_vt.shape == (3, config.d_vt)
    assert z_t_vt.shape == (3, config.captions, config.d_vt)


def test_a_config_is_plain_json_and_back():
    for config in [*PRESETS.values(), TINY, SHARED, dataclasses.replace(TINY, audio_input="spectrogram")]:
        again = Config.from_json(json.loads(json.dumps(config.to_json())))
        assert again == config
        assert isinstance(again.video, Size)


# Parameters


def test_the_presets_are_those_of_the_appendix():
    d = {name: (c.video.layers, c.video.d, c.audio.layers, c.audio.d, c.text.layers, c.text.d) for name, c in PRESETS.items()}
    assert d["bbs"] == (12, 768, 12, 768, 6, 512)
    assert d["mbs"] == (12, 1024, 12, 768, 6, 512)
    assert d["lbs"] == (24, 1024, 12, 768, 6, 512)
    assert d["ma"] == (12, 1024, 12, 1024, 12, 1024)
    assert PRESETS["ma"].shared
    for name in ("bbs", "mbs", "lbs", "ma"):
        c = PRESETS[name]
        assert (c.frames, c.fps, c.size, c.patch, c.rate, c.audio_patch) == (32, 10, 224, (4, 16, 16), 48000, 128)
        assert (c.captions, c.words, c.vocabulary, c.d_va, c.d_vt) == (5, 16, 2**16, 512, 256)


@pytest.mark.parametrize(("preset", "video", "audio", "heads"), [
    ("sss", 20.509, None, None), ("bbs", 87.446, 86.079, 1.314), ("mbs", 154.343, 86.079, 1.445),
    ("lbs", 305.498, 86.079, 1.445),
])  # fmt: skip
def test_the_towers_have_the_parameters_of_the_released_ones(preset, video, audio, heads):
    with torch.device("meta"):
        model = VATT(PRESETS[preset])
    b, d_video, d_audio = model.backbones, PRESETS[preset].video.d, PRESETS[preset].audio.d
    # Theirs have a bias of the projection and a LayerNorm of the positions besides: 3 d.
    ours = count(b.W_vp, b.e_temporal, b.e_vertical, b.e_horizontal, b.video_transformer)
    assert round((ours + 3 * d_video) / 1e6, 3) == video
    if audio:
        assert round((count(b.W_ap, b.e_audio, b.audio_transformer) + 3 * d_audio) / 1e6, 3) == audio
        # Ours have a batch norm (512 and 256, twice) on audio and text, theirs a bias.
        assert round((count(model.heads) - 512 - 256) / 1e6, 3) == heads


@pytest.mark.parametrize("preset", ["bbs", "ma", "demo"])
def test_every_parameter_belongs_to_a_part_of_figure_1(preset):
    c = PRESETS[preset]
    t, h, w = c.patch
    encoder = lambda s: s.layers * (4 * s.d**2 + 2 * s.d * s.d_mlp + 9 * s.d + s.d_mlp) + 2 * s.d
    places = math.ceil(c.frames / t) + math.ceil(c.size / h) + math.ceil(c.size / w)
    tokens = (t * h * w * 3 + places) * c.video.d + (128 + math.ceil(c.samples / 128)) * c.audio.d + c.vocabulary * c.text.d
    if c.shared:
        backbones = encoder(c.video) + 3 * c.video.d + 16 * c.text.d      # three AGGs, positions of words
    else:
        backbones = sum(encoder(s) + s.d for s in (c.video, c.audio, c.text)) + 32 * c.text.heads
    va, vt = c.d_va, c.d_vt
    heads = (c.video.d + va + c.audio.d) * va + (va + c.text.d) * vt + 2 * (3 * va + 2 * vt)
    with torch.device("meta"):
        assert count(VATT(c)) == tokens + backbones + heads


def test_the_shared_backbone_has_three_aggs_absolute_word_positions_and_no_relative_bias():
    backbones = VATT(SHARED).backbones
    assert backbones.transformer.x_agg.shape == (3, 16)
    assert backbones.transformer.relative_bias is None
    assert backbones.e_text.shape == (SHARED.words, 16)
    separate = VATT(TINY).backbones
    assert not hasattr(separate, "e_text")
    transformers = separate.video_transformer, separate.audio_transformer, separate.text_transformer
    assert [t.relative_bias is not None for t in transformers] == [False, False, True]
    assert [t.x_agg.shape for t in transformers] == [(1, 16), (1, 12), (1, 8)]


def test_each_modality_of_the_shared_backbone_takes_its_own_agg():
    model = build(SHARED)
    for i, z in enumerate(model(*inputs(SHARED))):
        model.zero_grad()
        z.square().sum().backward()
        assert model.backbones.transformer.x_agg.grad.abs().sum(1).ne(0).tolist() == [i == j for j in range(3)]


@KINDS
def test_every_parameter_learns_from_the_total_loss(config):
    model = build(config).train()
    z_v_va, z_a_va, z_v_vt, z_t_vt = model.project(*model(*inputs(config)))
    losses.total(losses.nce(z_v_va, z_a_va), losses.mil_nce(z_v_vt, z_t_vt)).backward()
    for name, p in model.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name


# Tokens


def test_a_video_token_is_a_strided_convolution_plus_the_vectors_of_its_time_row_and_column():
    model, (video, audio, text) = build(TINY), inputs(TINY)
    b, tokens = model.backbones, entering(model)
    model(video, audio, text)
    kernel = b.W_vp.view(2, 4, 4, 3, 16).permute(4, 3, 0, 1, 2)           # rows of W_vp: t h w c; kernel: (d, c, t, h, w)
    convolved = F.conv3d(video.movedim(-1, 1), kernel, stride=(2, 4, 4)).movedim(1, -1)  # (B, T/t, H/h, W/w, d)
    placed = convolved + b.e_temporal[:, None, None] + b.e_vertical[:, None] + b.e_horizontal
    assert_close(tokens[0][:, 1:], placed.flatten(1, 3), atol=1e-12, rtol=0)


def test_a_waveform_token_is_a_strided_convolution_plus_the_vector_of_its_segment():
    model, (video, audio, text) = build(TINY), inputs(TINY)
    b, tokens = model.backbones, entering(model)
    model(video, audio, text)
    convolved = F.conv1d(audio[:, None], b.W_ap.T[:, None], stride=128)   # (B, d, N)
    assert_close(tokens[1][:, 1:], convolved.transpose(1, 2) + b.e_audio, atol=1e-12, rtol=0)


@KINDS
def test_a_word_is_its_one_hot_vector_times_w_tp_with_a_position_in_the_shared_backbone_only(config):
    model, (video, audio, text) = build(config), inputs(config)
    b, tokens = model.backbones, entering(model)
    model(video, audio, text)
    words = F.one_hot(text.flatten(0, 1), config.vocabulary).double() @ b.W_tp
    assert_close(tokens[2][:, 1:], words + b.e_text if config.shared else words, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("channels", "patch", "std"), [(3, (4, 16, 16), 0.00159), (1, (128,), 0.0045)])
def test_projections_start_as_small_as_in_the_official_code(channels, patch, std):
    W = projection(768, channels, *patch)
    assert W.shape == (channels * math.prod(patch), 768)
    assert W.std().item() == pytest.approx(std, rel=0.01)
    fans = (channels + 768) * math.prod(patch)
    assert W.abs().max().item() == pytest.approx(math.sqrt(6 / fans), rel=0.001)


def test_position_tables_start_as_a_normal_cut_at_two_standard_deviations():
    table = VATT(dataclasses.replace(TINY, frames=40)).backbones.table(2000, 256)
    assert table.abs().max().item() == pytest.approx(2 / 16, rel=0.01)
    assert table.std().item() == pytest.approx(0.88 / 16, rel=0.01)


@pytest.mark.parametrize(("config", "time"), [(TINY, 2), (PRESETS["bbs"], 10)])
def test_a_spectrogram_has_tables_of_time_and_frequency(config, time):
    with torch.device("meta"):
        backbones = VATT(dataclasses.replace(config, audio_input="spectrogram")).backbones
    assert backbones.W_ap.shape == (16 * 5, config.audio.d)
    assert backbones.e_audio.shape == (time, config.audio.d)              # 150 frames at 48 kHz are 10
    assert backbones.e_frequency.shape == (16, config.audio.d)


def test_a_spectrogram_token_is_a_patch_of_16_by_5_plus_the_vectors_of_its_time_and_frequency():
    config = dataclasses.replace(TINY, audio_input="spectrogram")
    model, (video, audio, text) = build(config), inputs(config)
    b, tokens = model.backbones, entering(model)
    model(video, audio, text)
    patches = tokenize.spectrogram_patches(tokenize.mel_spectrogram(audio, 16000)).unflatten(1, (2, 16))
    placed = patches @ b.W_ap + b.e_audio[:, None] + b.e_frequency        # (B, 2, 16, d)
    assert_close(tokens[1][:, 1:], placed.flatten(1, 2), atol=1e-12, rtol=0)


def test_a_spectrogram_is_not_rounded_by_autocast(monkeypatch):
    config = dataclasses.replace(TINY, audio_input="spectrogram")
    model, (video, audio, text) = VATT(config), inputs(config, dtype=torch.float32)
    seen, patches = [], tokenize.spectrogram_patches
    monkeypatch.setattr(tokenize, "spectrogram_patches", lambda x: seen.append(x) or patches(x))
    with torch.autocast("cpu", torch.bfloat16):
        model(video, audio, text)
    assert_close(*seen, tokenize.mel_spectrogram(audio, 16000), atol=1e-5, rtol=0)


@KINDS
def test_dropout_follows_the_positions_in_training_only(config):
    model = VATT(dataclasses.replace(config, dropout=0.5))
    tokens, clip = entering(model), inputs(config, 20, torch.float32)
    model(*clip)
    model.eval()(*clip)
    for training, evaluation in zip(tokens[:3], tokens[3:], strict=True):
        assert (training[:, 1:] == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
        assert (evaluation[:, 1:] == 0).float().mean() < 0.001


# DropToken


@pytest.mark.parametrize("training", [True, False])
@KINDS
def test_droptoken_leaves_agg_and_text_alone_and_is_off_unless_asked_for(config, training):
    model, clip = build(config).train(training), inputs(config)
    tokens = entering(model)
    model(*clip)
    model(*clip, drop=(0.5, 0.25), keys=torch.arange(6).view(3, 2))
    video, audio, text = 2 * 3 * 3, 50, 6
    assert lengths(tokens) == [1 + video, 1 + audio, 1 + text, 1 + 9, 1 + 38, 1 + text]
    assert all(torch.equal(x[:, 0], x[:1, 0].expand(len(x), -1)) for x in tokens)  # AGG, in all of them


@KINDS
def test_video_and_audio_are_dropped_by_keys_of_their_own(config):
    model, clip = build(config), inputs(config)
    keys = torch.arange(6).view(3, 2)
    z = model(*clip, drop=(0.5, 0.5), keys=keys)
    other = model(*clip, drop=(0.5, 0.5), keys=keys + torch.tensor([100, 0]))
    assert (other[0] - z[0]).abs().amax(1).min() > 1e-6
    assert torch.equal(other[1], z[1])
    assert torch.equal(other[2], z[2])


@KINDS
def test_a_permuted_batch_drops_the_same_tokens(config):
    model, clip = build(config), inputs(config)
    keys, order = torch.arange(6).view(3, 2), torch.tensor([2, 0, 1])
    z = model(*clip, drop=(0.5, 0.5), keys=keys)
    again = model(*(x[order] for x in clip), drop=(0.5, 0.5), keys=keys[order])
    for actual, expected in zip(again, z, strict=True):
        assert_close(actual, expected[order], atol=1e-12, rtol=0)


@KINDS
def test_dropping_raw_patches_gives_the_tokens_and_gradients_of_dropping_after_projection_and_positions(config):
    model, clip = build(config), inputs(config)
    b, keys = model.backbones, torch.arange(6).view(3, 2)
    tokens = entering(model)
    model(*clip, drop=(0.5, 0.25), keys=keys)
    model(*clip)
    tables = (b.W_vp, b.e_temporal, b.e_vertical, b.e_horizontal), (b.W_ap, b.e_audio)
    for i, drop in enumerate((0.5, 0.25)):
        before, whole = tokens[i][:, 1:], tokens[3 + i][:, 1:]
        after = droptoken.take(whole, droptoken.keep(whole.shape[1], drop, keys[:, i]))
        assert_close(before, after, atol=1e-12, rtol=0)
        weight = torch.randn_like(before)
        gradients = (torch.autograd.grad(x, tables[i], weight, retain_graph=True) for x in (before, after))
        for actual, expected in zip(*gradients, strict=True):
            assert_close(actual, expected, atol=1e-12, rtol=0)


# What depends on what


@KINDS
def test_z_out_of_a_clip_does_not_depend_on_the_others_of_its_batch(config):
    model, clip = build(config), inputs(config)
    alone = model(*(x[1:2] for x in clip))
    for actual, expected in zip(alone, model(*clip), strict=True):
        assert_close(actual, expected[1:2], atol=1e-12, rtol=0)


@KINDS
def test_the_five_captions_of_a_clip_are_read_alike_and_apart(config):
    model, (video, audio, text) = build(config), inputs(config)
    z, order = model(video, audio, text)[2], torch.tensor([3, 0, 4, 1, 2])
    assert_close(model(video, audio, text[:, order])[2], z[:, order], atol=1e-12, rtol=0)


@KINDS
def test_padding_of_a_caption_changes_nothing(config):
    model, (video, audio, text) = build(config), inputs(config)
    text[:, :, 4:] = 0
    assert_close(model(video, audio, text[:, :, :4])[2], model(video, audio, text)[2], atol=1e-12, rtol=0)
    with torch.no_grad():
        model.backbones.W_tp[0] = 100.0
    assert_close(model(video, audio, text[:, :, :4])[2], model(video, audio, text)[2], atol=1e-12, rtol=0)


@KINDS
def test_the_order_of_frames_rows_columns_sounds_and_words_matters(config):
    model, (video, audio, text) = build(config), inputs(config)
    z_video, z_audio, z_text = model(video, audio, text)
    for dim, patch in ((1, 2), (2, 4), (3, 4)):                           # whole patches change places
        assert (model(video.roll(patch, dim), audio, text)[0] - z_video).abs().amax(1).min() > 1e-6
    assert (model(video, audio.roll(128, 1), text)[1] - z_audio).abs().amax(1).min() > 1e-6
    assert (model(video, audio, text.roll(1, 2))[2] - z_text).abs().amax(2)[0, 0] > 1e-6


def test_a_model_in_bf16_autocast_stays_finite_and_close():
    model, clip = VATT(TINY), inputs(TINY, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model.eval()(*clip)
    for actual, expected in zip(inside, model(*clip), strict=True):
        assert_close(actual.float(), expected, atol=0.1, rtol=0)


# Position tables for another size (Section A.2.5)


def literal_bicubic(table, n):
    """Keys' cubic convolution with a = -0.75 (torch's), half-pixel centres, the edge repeated; one place at a time"""
    a, m = -0.75, len(table)

    def kernel(x):
        x = abs(x)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        return near if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    rows = []
    for i in range(n):
        at = (i + 0.5) * m / n - 0.5
        first = math.floor(at) - 1
        rows.append(sum(kernel(at - j) * table[min(max(j, 0), m - 1)] for j in range(first, first + 4)))
    return torch.stack(rows)


@pytest.mark.parametrize(("m", "n"), [(14, 20), (14, 24), (8, 16), (14, 7), (1200, 1500), (1, 4)])
def test_a_table_for_another_number_of_places_is_bicubic_in_one_dimension(m, n):
    table = torch.randn(m, 6, dtype=torch.float64)
    assert_close(resize_table(table, n), literal_bicubic(table, n), atol=1e-10, rtol=0)


def test_a_table_of_the_same_size_is_itself_and_a_constant_one_stays_constant():
    table = torch.randn(14, 6)
    assert torch.equal(resize_table(table, 14), table)
    assert_close(resize_table(table[:1].expand(14, 6), 20), table[:1].expand(20, 6))


def test_a_resized_table_keeps_its_type():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert resize_table(torch.randn(14, 6, dtype=dtype), 20).dtype == dtype
