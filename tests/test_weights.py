"""Weights in and out: Google's checkpoints against their equations (tensorflow_files.py), ViTs against their libraries."""

import dataclasses

import numpy as np
import pytest
import tensorflow_files as tf
import torch
import torch.nn.functional as F
from films import folder
from runs import refused
from torch import nn
from torch.testing import assert_close

import evaluate
import pretrain
import vatt
from transformer import Size
from vatt import Classifier
from weights import bundle, files
from weights.__main__ import main, preset

CLOSE = dict(atol=1e-5, rtol=1e-5)
KINDS = pytest.mark.parametrize("shared", [False, True], ids=["three backbones", "one backbone"])


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "howto100m_en.txt"
    path.write_text("\n".join(["<pad>", "<bos>", "<eos>", "<unk>", *(f"word{i}" for i in range(tf.WORDS - 4))]) + "\n")
    return path


@pytest.fixture
def converted(tmp_path, vocabulary):
    """Writes a checkpoint of these shapes and converts it -> (the run, the variables)"""
    def convert(shapes, dtype=torch.float32, **layout):
        values = tf.variables(shapes, dtype)
        prefix = tf.write(tmp_path / "google" / "ckpt-7", values, **layout)
        main(["official", str(prefix), "--vocabulary", str(vocabulary), "--head-width", str(tf.WIDTH), "--out",
              str(tmp_path / "run")])
        return tmp_path / "run", values
    return convert


# ------------------------------------------------------------------------------------------------------- Google's checkpoints


@KINDS
@pytest.mark.parametrize(("dtype", "layout"), [(torch.float32, {}), (torch.bfloat16, {"shards": 3, "rows": 7})],
                         ids=["fp32", "bf16 in three shards"])
@torch.no_grad()
def test_a_checkpoint_of_googles_becomes_a_run_that_says_the_same(converted, shared, dtype, layout):
    run, values = converted(tf.pretrained(shared), dtype, **layout)
    model, google, (video, audio, text) = vatt.load(run), tf.Model(values), tf.clips()
    z_out = model(video, audio, text[:, None])
    expected = google.z_out(video, audio, text)
    for ours, theirs in zip((*z_out[:2], z_out[2][:, 0]), expected, strict=True):
        assert_close(ours, theirs.float(), **CLOSE)
    for ours, theirs in zip(model.project(*z_out), google.spaces(*expected), strict=True):
        assert_close(ours.flatten(0, -2), theirs.float(), **CLOSE)
    assert vatt.Run(run).read_config()["model"]["variant"] == "official"


@pytest.mark.parametrize(("kind", "shared"), [("video", False), ("audio", False), ("video", True)])
@torch.no_grad()
def test_a_classifier_of_googles_gives_the_same_logits(converted, kind, shared):
    run, values = converted(tf.finetuned(kind, 5, shared))
    video, audio, _ = tf.clips()
    x = video if kind == "video" else audio
    assert_close(vatt.load(run)(x), tf.Model(values).logits(x, kind).float(), **CLOSE)


def test_layers_and_heads_are_found_from_names_and_shapes(tmp_path, vocabulary):
    prefix = tf.write(tmp_path / "ckpt-1", tf.variables(tf.pretrained(False, layers=3)))
    main(["official", str(prefix), "--vocabulary", str(vocabulary), "--out", str(tmp_path / "run")])  # no --head-width
    config = vatt.load(tmp_path / "run").config
    assert [config.video, config.audio, config.text] == [Size(3, 24, 52, 3), Size(4, 32, 68, 4), Size(3, 16, 36, 2)]
    assert (config.frames, config.size, config.samples) == (6, 16, 144)


@pytest.mark.parametrize(("preset", "count"), [("bbs", 193_877_292), ("mbs", 260_905_772), ("ma", 162_990_336)])
def test_the_official_model_has_as_many_trainable_parameters_as_googles(preset, count):
    with torch.device("meta"):
        model = vatt.VATT(dataclasses.replace(vatt.PRESETS[preset], variant="official"))
    assert sum(p.numel() for p in model.parameters()) == count


def test_only_mapped_memory_is_read_and_slots_of_the_optimizer_are_not(tmp_path):
    values = tf.variables(tf.finetuned("video", 5))
    found = bundle.read(tf.write(tmp_path / "ckpt-7", values))
    assert set(found) == {name for name in values if "OPTIMIZER" not in name}
    assert all(torch.equal(found[name], values[name]) for name in found)


def test_a_variable_without_a_place_is_named(converted, capsys):
    converted({**tf.finetuned("video", 5), "_base/mask_embedding": (tf.D,)})
    assert "left over: _base/mask_embedding\n" in capsys.readouterr().out


def cut(folder, name, n):
    path = folder / name
    path.write_bytes(path.read_bytes()[:n])


LOST = "_base_layer/aud_backbone/_base/tx/layers/1/mha/k/bias"
BROKEN = {
    "lacks 1 weights: backbones.audio_transformer.blocks.1.attention.qkv.bias": lambda shapes, write: write(
        {k: v for k, v in shapes.items() if k != LOST}),
    "compressed": lambda shapes, write: write(shapes, compression=1),
    "data-00000-of-00001 is torn": lambda shapes, write: cut(write(shapes).parent, "ckpt-7.data-00000-of-00001", 5000),
    "data-00001-of-00002 is missing": lambda shapes, write: write(shapes, shards=2).with_name(
        "ckpt-7.data-00001-of-00002").unlink(),
    "ckpt-7.index is torn": lambda shapes, write: cut(write(shapes).parent, "ckpt-7.index", 3000),
    "there is no": lambda shapes, write: write(shapes).with_name("ckpt-7.index").rename(write(shapes).with_name("x.index")),
    "another model": lambda shapes, write: write({"dense/kernel": (3, 4)}),
    "audio, heads, text alone": lambda shapes, write: write({k: v for k, v in shapes.items() if "vid_backbone" not in k}),
}


@pytest.mark.parametrize("says", BROKEN)
def test_a_checkpoint_that_will_not_do_is_one_line(tmp_path, vocabulary, capsys, says):
    BROKEN[says](tf.pretrained(False), lambda shapes, **layout: tf.write(tmp_path / "ckpt-7", tf.variables(shapes), **layout))
    argv = ["official", str(tmp_path / "ckpt-7"), "--vocabulary", str(vocabulary), "--out", str(tmp_path / "run")]
    assert says in refused(main, argv, capsys)
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("words", [None, "<pad>\n<unk>\na\n", "<pad>\n<bos>\n<eos>\n<unk>\na\n"],
                         ids=["none", "of another kind", "of another size"])
def test_a_wrong_vocabulary_is_one_line(tmp_path, capsys, words):
    argv = ["official", str(tf.write(tmp_path / "ckpt-7", tf.variables(tf.pretrained(False)))), "--out", str(tmp_path / "run")]
    if words:
        (tmp_path / "words.txt").write_text(words)
        argv += ["--vocabulary", str(tmp_path / "words.txt")]
    assert "vocabulary" in refused(main, argv, capsys)


def test_googles_words_lose_ascii_punctuation_and_capitals_only():
    words = vatt.VARIANTS["official"].vocabulary(["dont", "caf\u00e9", "it"])
    assert words.encode("Don't  stop\nit, CAF\u00c9 caf\u00e9!", 8) == [4, 3, 6, 3, 5, 0, 0, 0]


def test_ids_before_words_are_read_too(converted, vocabulary):
    lines = vocabulary.read_text().splitlines()
    vocabulary.write_text("".join(f"{i} {word}\n" for i, word in reversed(list(enumerate(lines)))))
    run, _ = converted(tf.pretrained(False))
    assert (run / "vocabulary.txt").read_text().splitlines() == lines


@KINDS
@torch.no_grad()
def test_sentences_are_embedded_as_googles_model_would(converted, shared, tmp_path):
    run, values = converted(tf.pretrained(shared))
    (tmp_path / "lines.txt").write_text("Word3, word7!\nnothing word1\n")
    evaluate.main(["embed", str(run), str(tmp_path / "lines.txt"), str(tmp_path / "vectors.npz")])
    text = F.pad(torch.tensor([[7, 11], [3, 5]]), (0, vatt.load(run).config.words - 2))
    google, (video, audio, _) = tf.Model(values), tf.clips()
    z = google.spaces(*google.z_out(video[:2], audio[:2], text))[3]
    assert_close(torch.from_numpy(np.load(tmp_path / "vectors.npz")["vectors"]), F.normalize(z).float(), **CLOSE)


@KINDS
def test_fine_tuning_starts_at_another_size_and_at_the_old_one_from_the_same_z_out(converted, shared):
    run, values = converted(tf.pretrained(shared))
    config, _ = vatt.pretrained(run)
    video, audio, text = tf.clips()
    model = Classifier(config, "video", ["a", "b"]).eval()
    vatt.start_from(model, run)
    assert_close(model.features(video), tf.Model(values).z_out(video, audio, text)[0].float(), **CLOSE)
    larger = Classifier(dataclasses.replace(config, size=3 * tf.PATCH[1], frames=10), "video", ["a", "b"])
    vatt.start_from(larger, run)
    assert_close(larger.backbone.e_vertical.mean(0), vatt.load(run).backbones.e_vertical.mean(0))
    larger(torch.rand(2, 10, 24, 24, 3)).sum().backward()
    unused = "x_agg" if shared else None  # the other two modalities' AGG get zeros
    assert all(p.grad is not None and (p.grad.abs().sum() > 0 or name == unused) for name, p in larger.named_parameters())


@KINDS
def test_the_official_model_trains_batch_norms_and_all_but_its_word_vectors(converted, shared):
    run, _ = converted(tf.pretrained(shared))
    model, (video, audio, text) = vatt.load(run).train(), tf.clips()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    z = model.project(*model(video, audio, text[:, None], (0.5, 0.5), torch.arange(6).view(3, 2)))
    sum((x * torch.randn_like(x)).sum() for x in z).backward()
    optimizer.step()
    same = {name for name, x in model.state_dict().items() if torch.equal(x, before[name])}
    assert same == {"backbones.W_tp"}


def test_pre_training_goes_on_from_googles_model_with_its_words(converted, vocabulary, tmp_path):
    run, _ = converted(tf.pretrained(False))
    folder(tmp_path / "films", films=6, silent=1, captioned=5)
    pretrain.main(["--data", str(tmp_path / "films"), "--val", str(tmp_path / "films"), "--init", str(run), "--size", "24",
                   "--steps", "2", "--batch", "4", "--cache", "0", "--workers", "0", "--out", str(tmp_path / "more")])
    model = vatt.load(tmp_path / "more")
    assert model.config == dataclasses.replace(vatt.load(run).config, size=24)
    assert (tmp_path / "more" / "vocabulary.txt").read_text() == vocabulary.read_text()
    assert torch.equal(model.backbones.W_tp, vatt.load(run).backbones.W_tp)
    assert not torch.equal(model.heads.v_to_va1.norm.running_mean, vatt.load(run).heads.v_to_va1.norm.running_mean)


def test_the_recipe_of_a_training_from_a_converted_run_is_that_of_its_size(tmp_path):
    for name, config in vatt.PRESETS.items():
        assert preset(config) == name, name
    assert preset(dataclasses.replace(vatt.PRESETS["bbs"], video=Size(12, 384, 1536, 6))) == "sss"
    assert preset(dataclasses.replace(vatt.PRESETS["bbs"], video=Size(2, 32, 64, 2), size=32)) == "demo"


# ------------------------------------------------------------------------------------------------------------------- image ViTs


def spread(module: nn.Module, positions: nn.Parameter, side: int) -> nn.Module:
    """Random weights that are far from zero; positions that are a sum of rows and columns"""
    torch.manual_seed(3)
    for p in module.parameters():
        nn.init.normal_(p, std=0.2)
    rows, columns = torch.randn(2, side, positions.shape[-1])
    positions.data[0, 1:] = (rows[:, None] + columns).flatten(0, 1)
    return module.eval()


def timm_vit(**settings):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    vit = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, **settings)
    return spread(vit, vit.pos_embed, 4)


def transformers_vit():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
                                    image_size=32, patch_size=8, layer_norm_eps=1e-6)
    vit = transformers.ViTModel(config, add_pooling_layer=False)
    return spread(vit, vit.embeddings.position_embeddings, 4)


def of_images(run):
    """The run's video tower as fine-tuning on images begins with it: images (B, 3, H, W) -> z_out"""
    model = Classifier(dataclasses.replace(vatt.pretrained(run)[0], frames=4), "image", ["a"]).eval()
    vatt.start_from(model, run)
    return lambda images: model.features(images.permute(0, 2, 3, 1))


@pytest.mark.parametrize("library", ["timm", "transformers", "transformers' own names"])
@torch.no_grad()
def test_an_image_vit_becomes_a_video_tower_and_goes_back_with_equal_outputs(library, tmp_path):
    images, file, out = torch.rand(3, 3, 32, 32) * 2 - 1, tmp_path / "vit.safetensors", tmp_path / "out"
    if library == "timm":
        vit = timm_vit(num_classes=5)
        expected = vit.forward_features(images)[:, 0]
    else:
        vit = transformers_vit()
        expected = vit(images).last_hidden_state[:, 0]
    files.write(file, vit.state_dict())
    if library == "transformers":  # which writes other names than the modules have
        vit.save_pretrained(tmp_path / "hub")
        file = tmp_path / "hub" / "model.safetensors"
    main(["vit", str(file), "--out", str(tmp_path / "run"), "--head-width", "8"])
    assert_close(of_images(tmp_path / "run")(images), expected, **CLOSE)

    main(["export", str(tmp_path / "run"), "--to", library.split("'")[0], "--out", str(out)])
    if library == "timm":
        vit = timm_vit(num_classes=0, mlp_ratio=4)
        vit.load_state_dict(files.read(out / "model.safetensors"))
        assert_close(vit.forward_features(images)[:, 0], expected, **CLOSE)
    else:
        back = type(vit).from_pretrained(out, add_pooling_layer=False).eval()
        assert_close(back(images).last_hidden_state[:, 0], expected, **CLOSE)


@KINDS
@pytest.mark.parametrize("modality", ["video", "audio"])
@torch.no_grad()
def test_torchs_own_encoder_takes_the_transformer(converted, shared, modality):
    run, _ = converted(tf.pretrained(shared))
    main(["export", str(run), "--to", "torch", "--modality", modality])
    model = vatt.load(run)
    ours = model.backbones.transformer if shared else getattr(model.backbones, f"{modality}_transformer")
    d = ours.x_agg.shape[1]
    layer = nn.TransformerEncoderLayer(d, d // tf.WIDTH, 2 * d + 4, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, len(ours.blocks), nn.LayerNorm(d, 1e-6), enable_nested_tensor=False).eval()
    theirs.load_state_dict(files.read(run / f"{modality}-torch" / "model.safetensors"))
    tokens = torch.randn(2, 9, d)
    whole = torch.cat([ours.x_agg[:1].expand(2, 1, -1), tokens], 1)
    assert_close(theirs(whole), ours(tokens, all_tokens=True), **CLOSE)


@torch.no_grad()
def test_a_still_clip_has_the_tokens_of_its_image(tmp_path):
    vit, image = plain_vit(), torch.rand(3, 32, 32) * 2 - 1
    files.write(tmp_path / "vit.safetensors", vit)
    main(["vit", str(tmp_path / "vit.safetensors"), "--out", str(tmp_path / "run"), "--head-width", "8"])
    still = image.permute(1, 2, 0).expand(1, 32, -1, -1, -1)
    backbones = vatt.load(tmp_path / "run").backbones
    tokens = backbones.project(vatt.tokenize.video_patches(still, 4, 8, 8), "video")[0]
    expected = F.conv2d(image[None], vit["patch_embed.proj.weight"], stride=8)[0].flatten(1).T  # the bias is in the positions
    assert_close(tokens, expected.repeat(8, 1), **CLOSE)


def plain_vit(d: int = 24, side: int = 4) -> dict[str, torch.Tensor]:
    """The weights of an image ViT of one layer, by timm's names"""
    shapes = {"cls_token": (1, 1, d), "pos_embed": (1, 1 + side**2, d), "patch_embed.proj.weight": (d, 3, 8, 8),
              "patch_embed.proj.bias": (d,), "norm.weight": (d,), "norm.bias": (d,), "head.weight": (5, d)}
    for name, *shape in (("norm1", d), ("norm2", d), ("attn.qkv", 3 * d, d), ("attn.proj", d, d), ("mlp.fc1", 4 * d, d),
                         ("mlp.fc2", d, 4 * d)):
        shapes |= {f"blocks.0.{name}.weight": shape, f"blocks.0.{name}.bias": shape[:1]}
    generator = torch.Generator().manual_seed(4)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_positions_become_the_nearest_sum_of_a_row_and_a_column_table(tmp_path, capsys):
    vit = plain_vit()
    files.write(tmp_path / "vit.safetensors", vit)
    (tmp_path / "config.json").write_text('{"layer_norm_eps": 1e-12}')  # as transformers' ViTs have it
    main(["vit", str(tmp_path / "vit.safetensors"), "--out", str(tmp_path / "run"), "--head-width", "8", "--audio"])
    b, grid = vatt.load(tmp_path / "run").backbones, vit["pos_embed"][0, 1:].unflatten(0, (4, 4))
    design = torch.zeros(16, 8)
    for i in range(16):
        design[i, i // 4] = design[i, 4 + i % 4] = 1
    best = (design.double() @ torch.linalg.pinv(design.double()) @ grid.flatten(0, 1).double()).float()
    assert_close((b.e_vertical[:, None] + b.e_horizontal - vit["patch_embed.proj.bias"]).flatten(0, 1), best, **CLOSE)
    error = ((best - grid.flatten(0, 1)).square().mean() / grid.square().mean()).sqrt()
    said = capsys.readouterr().out
    assert f"{100 * error:.1f}% of its positions" in said
    assert "warning: LayerNorms add 1e-12" in said
    assert not b.e_temporal.any()
    assert_close(b.audio_transformer.state_dict(), b.video_transformer.state_dict())


@pytest.mark.parametrize(("change", "says"), [
    ({"blocks.0.ls1.gamma": torch.ones(24)}, "has blocks.0.ls1.gamma"), ({"pos_embed": torch.zeros(1, 16, 24)}, "plain ViT"),
    ({"cls_token": None}, "no image ViT"), ({"blocks.0.mlp.fc2.bias": None}, "lacks blocks.0.mlp.fc2.bias")])
def test_a_vit_of_another_build_is_one_line(tmp_path, capsys, change, says):
    vit = {name: tensor for name, tensor in {**plain_vit(), **change}.items() if tensor is not None}
    files.write(tmp_path / "vit.safetensors", vit)
    argv = ["vit", str(tmp_path / "vit.safetensors"), "--out", str(tmp_path / "run"), "--head-width", "8"]
    assert says in refused(main, argv, capsys)


# ------------------------------------------------------------------------------------------------------------------ safetensors


def test_safetensors_files_are_those_of_the_library(tmp_path):
    library = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    tensors = {"a": torch.randn(3, 5).T, "b": torch.randn(2).bfloat16(), "none": torch.zeros(0, 4), "one": torch.tensor(7)}
    files.write(tmp_path / "ours.safetensors", tensors)
    library.save_file({name: x.contiguous() for name, x in tensors.items()}, tmp_path / "theirs.safetensors")
    assert_close(library.load_file(tmp_path / "ours.safetensors"), tensors)
    assert_close(files.read(tmp_path / "theirs.safetensors"), tensors)


LONG = b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\xff" * 100, (2).to_bytes(8, "little") + b"[]",
                                     len(LONG).to_bytes(8, "little") + LONG])
def test_a_file_that_is_none_is_one_line(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.safetensors is torn, or no safetensors file"):
        files.read(tmp_path / "x.safetensors")


def test_a_backbone_for_all_modalities_stands_in_the_file_once(converted):
    run, _ = converted(tf.pretrained(True))
    names = [name for name in files.read(run / "model.safetensors") if name.endswith("blocks.0.mlp.0.weight")]
    assert names == ["backbones.transformer.blocks.0.mlp.0.weight"]
    assert_close(vatt.load(run / "model.safetensors").state_dict(), vatt.load(run).state_dict())
