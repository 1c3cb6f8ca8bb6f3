"""Figures 2 to 4 (tools/paper_figures.py): what is drawn is what the model computes, by hand."""

import sys

import pytest
import torch
import torch.nn.functional as F
from films import TINY, folder
from runs import CONFIG, finetuned, pretrained, refused

import data
import evaluate
import pretrain
import vatt
from tools import paper_figures


@pytest.fixture(params=["separate", "shared"])
def model(request):
    torch.manual_seed(0)
    config = vatt.dataclasses.replace(CONFIG, vocabulary=8, shared=request.param == "shared")
    return vatt.Trained(config).eval()


@pytest.fixture
def batch():
    c, rng = CONFIG, torch.Generator().manual_seed(0)
    text = torch.tensor([[[2, 3, 0, 0, 0, 0]], [[4, 0, 0, 0, 0, 0]], [[5, 6, 7, 2, 3, 4]]])
    video = torch.randint(0, 256, (3, 1, c.frames, c.size, c.size, 3), generator=rng, dtype=torch.uint8)
    return {"video": video, "audio": torch.randn(3, 1, c.samples, generator=rng), "text": text}


@torch.no_grad()
def test_the_input_space_is_the_mean_of_the_tokens_and_the_output_space_that_of_the_loss(model, batch):
    found, b = paper_figures.spaces(model, batch), model.backbones
    video = data.augment(batch["video"][:, 0])
    tokens = vatt.tokenize.video_patches(video, *CONFIG.patch) @ b.W_vp
    tokens = tokens + vatt.tokenize.position_sum(b.e_temporal, b.e_vertical, b.e_horizontal)
    torch.testing.assert_close(found["input video"], F.normalize(tokens.mean(1), dim=1))
    words = b.W_tp[[4]] + (b.e_text[:1] if model.config.shared else 0)
    torch.testing.assert_close(found["input text"][1], F.normalize(words.mean(0), dim=0), msg="padding is no word")
    z = model.project(*model(video, batch["audio"][:, 0], batch["text"]))
    for name, x in zip(("va video", "va audio", "vt video"), z, strict=False):
        torch.testing.assert_close(found[name], F.normalize(x, dim=1))
    torch.testing.assert_close(found["vt text"], F.normalize(z[3][:, 0], dim=1))


@torch.no_grad()
def test_activations_are_those_of_the_mlp_before_the_residual_addition(model, batch):
    if not model.config.shared:
        pytest.skip("Figure 4 is of a shared backbone")
    found, b = paper_figures.activations(model, batch), model.backbones
    for i, n in enumerate((2, 1, 6)):                                   # words of each caption
        x = torch.cat([b.transformer.x_agg[2:3], b.W_tp[batch["text"][i, 0, :n]] + b.e_text[:n]])[None]
        block = b.transformer.blocks[0]
        x = x + block.attention(block.norm1(x))
        torch.testing.assert_close(found["text"][i, 0], block.mlp(block.norm2(x))[0].mean(0))
    assert found["video"].shape == (3, 1, CONFIG.video.d)
    assert not torch.allclose(found["video"], found["audio"])


@torch.no_grad()
def test_attention_is_what_makes_aggs_output(model, batch):
    """With values that are one everywhere but at one patch, AGG's attention output shows that patch's share."""
    video = data.augment(batch["video"][:, 0])
    share = paper_figures.attention(model, video)
    assert share.shape == (3, 2, 2, 2)
    tower = model.backbones.transformer if model.config.shared else model.backbones.video_transformer
    block, seen = tower.blocks[-1], {}
    hook = block.attention.register_forward_pre_hook(lambda _m, x: seen.update(x=x[0]))
    model.backbones.video(video)
    hook.remove()
    q, k, _ = block.attention.qkv(seen["x"]).unflatten(2, (3, block.attention.heads, -1)).permute(2, 0, 3, 1, 4)
    for patch in (0, 5):
        v = torch.zeros_like(q)
        v[:, :, 1 + patch] = 1
        out = F.scaled_dot_product_attention(q, k, v)[:, :, 0, 0].mean(1)
        torch.testing.assert_close(share.flatten(1)[:, patch], out)


def test_recalls_and_densities():
    query, pool = torch.eye(4), torch.eye(4)[[1, 0, 2, 3]]
    assert paper_figures.recalls(query, pool, 1) == 0.5
    assert paper_figures.recalls(torch.ones(4, 1), torch.ones(4, 1), 3) == 0, "ties count against it"
    at, x = torch.linspace(-4, 4, 801), torch.randn(4000, generator=torch.Generator().manual_seed(0))
    y = paper_figures.density(x, at)
    assert abs(y.sum() * 0.01 - 1) < 0.01
    assert abs(y[400] - 0.399) < 0.03, "a normal's density in the middle"


def test_all_figures_of_two_runs_and_a_classifier(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    films, held = folder(tmp_path / "films", films=8), folder(tmp_path / "held", films=5)
    runs = []
    for name, preset in (("apart", "demo"), ("ma", "demo-ma")):
        runs.append(tmp_path / name)
        argv = ["--data", str(films), "--val", str(held), "--out", str(runs[-1]), "--preset", preset]
        pretrain.main([*argv, *TINY, "--steps", "2"])
        clips = paper_figures.held(runs[-1], vatt.load(runs[-1]))
        assert [clips.row(i)[0].media(i)[0] for i in range(len(clips))] == [str(held / f"0{i}.mp4") for i in range(5)]
    for label in "ab":
        folder(tmp_path / "labelled" / "test" / label, films=3)
        folder(tmp_path / "labelled" / "train" / label, films=1)
    runs.append(finetuned(tmp_path / "classes", "video", ["a", "b"], data=str(tmp_path / "labelled")))
    out = tmp_path / "figures"
    evaluate.main(["figures", *map(str, runs), "--out", str(out)])
    names = {"activations", "attention", "spaces", "classes", "drop"}
    assert {path.name for path in out.iterdir()} == {f"{n}.{e}" for n in names for e in ("svg", "png")}
    said = capsys.readouterr().out.splitlines()
    assert {line.split(".svg, .png: ")[0] for line in said if ".svg" in line} == names, "a caption each"


def test_without_the_extras_a_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = pretrained(tmp_path / "run")
    assert "requirements-extra.txt" in refused(evaluate.main, ["figures", str(run), "--out", str(tmp_path)], capsys)
