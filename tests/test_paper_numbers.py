"""Every number of Sections 3, 4.1 and A.2 to A.5 as the paper prints it, beside what the code trains and tests with.

A row: place, what, the number as printed, how it is read. Settings are those that a command line gives; what a run hands to
optimizers, losses and augmentation is taken from runs that are really made, small. Numbers of the official code where the paper
prints none stand in a table of their own.
"""

import functools
import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from films import TINY, film, folder, image
from runs import pretrained

import data
import droptoken
import evaluate
import finetune
import heads
import losses
import pretrain
import vatt
from bench import audit
from engine.processes import Processes
from engine.run import Run
from sources import index
from tools import embed
from transformer import SIZES, RelativeBias, Transformer
from vatt import PRESETS, tokenize

MBS = PRESETS["mbs"]
SMALL = ["--batch", "4", "--workers", "0"]


def default(function, name):
    """The value of an argument that is not given"""
    return inspect.signature(function).parameters[name].default


def watch(monkeypatch, seen, owner, name):
    """Notes with which arguments, defaults included, a function was called: first as `name`, last as `last_name`"""
    function = getattr(owner, name)

    @functools.wraps(function)
    def spy(*args, **kwargs):
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        called = owner.__name__ if name == "__init__" else name
        seen[f"last_{called}"] = SimpleNamespace(**bound.arguments)
        seen.setdefault(called, seen[f"last_{called}"])
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, spy)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Settings of the paper's runs, and what small ones of the same recipes were made with: seen.pretrain.nce.temperature"""
    root = tmp_path_factory.mktemp("paper")
    videos = folder(root / "videos", films=6)
    run = pretrained(root / "run")
    config = Run(run).read_config()
    Run(run).describe({**config["settings"], "preset": "mbs"}, config["model"])      # a small model with the paper's recipes
    for name in ("0", "1"):
        for side in ("train", "val"):
            film(root / "classes" / side / name / "a.mp4")
            film(root / "classes" / side / name / "b.mp4", seed=1)
            (root / "images" / side / name).mkdir(parents=True)
            for file, grey in (("a.png", 100), ("b.png", 50)):
                image(root / "images" / side / name / file, np.full((20, 30, 3), grey, np.uint8))
    (root / "captions.csv").write_text("path,caption\n" + "".join(f"videos/0{i}.mp4,a red cloth\n" for i in range(3)))
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        def runs(name, main, argv, *watched):
            with patch.context() as inner:
                calls = found[name] = {}
                for owner, function in watched:
                    watch(inner, calls, owner, function)
                main([str(word) for word in argv])
            found[name] = SimpleNamespace(**calls)

        adam = (torch.optim.Adam, "__init__")
        runs("pretrain", pretrain.main, ["--data", videos, "--val", videos, "--out", root / "out", *TINY, "--noise", "0.01",
                                          "--workers", "0"],
             adam, (losses, "nce"), (losses, "mil_nce"), (losses, "total"), (data, "random_box"), (data, "colour_draws"),
             (data, "audio_noise"), (pretrain, "learning_rate"), (vatt.Backbones, "text"))
        args = pretrain.settings(["--data", str(videos), "--val", str(videos), *TINY], Processes())
        clips = pretrain.datasets(args, Run(root / "flips"), Processes())[0]
        found["flips"] = [clips[i, 0][0]["flip"] for i in range(400)]
        short = {"video": ["--size", "16", "--frames", "4", "--steps", "2"], "audio": ["--steps", "2", "--frames", "4"],
                 "image": ["--size", "16", "--epochs", "1"]}
        for task, more in short.items():
            files = root / ("images" if task == "image" else "classes")
            runs(task, finetune.main, ["--task", task, "--data", files, "--init", run, "--out", root / task, *SMALL, *more],
                 (finetune.SGD, "__init__"), (torch.nn.utils, "clip_grad_norm_"), (losses, "smooth"), (losses, "mixup"),
                 (heads.LinearClassifier, "__init__"), (finetune, "ClipSpec"), (data, "random_box"), (data, "colour_draws"),
                 (finetune, "half_cosine"))
        runs("linear", finetune.main, ["--task", "linear", "--data", root / "classes", "--init", run, "--out", root / "linear",
                                       *SMALL, *short["video"]], adam, (heads.LowRankClassifier, "__init__"))
        runs("retrieve", evaluate.main, ["retrieve", run, f"csv={root / 'captions.csv'}"], (embed, "vectors"))
    for task in ("video", "audio", "image", "linear"):
        argv = ["--task", task, "--data", "x", "--init", str(run)]
        found[task].settings = finetune.settings(finetune.parse(argv), Processes())
    argv = ["--task", "linear", "--classifier", "svm", "--data", "x", "--init", str(run)]
    found["svm"] = finetune.settings(finetune.parse(argv), Processes())
    for preset in ("bbs", "mbs", "lbs", "ma"):
        found[preset] = pretrain.settings(["--preset", preset, "--data", "x"], Processes())
    found["run"] = run
    return SimpleNamespace(**found)


def rate(step):
    """The learning rate of pre-training at a step"""
    return lambda s: pretrain.learning_rate(step, s.mbs.steps, s.mbs.lr, s.mbs.lr_end, s.mbs.warmup)


def half(task, step):
    """The learning rate of fine-tuning at a step"""
    def read(s):
        of = getattr(s, task).settings
        return finetune.half_cosine(step, of.steps, of.lr, of.warmup)
    return read


@functools.cache
def towers(preset="mbs"):
    """The paper's backbones, without memory"""
    with torch.device("meta"):
        return vatt.Backbones(PRESETS[preset])


@functools.cache
def model_heads():
    """The paper's heads, without memory"""
    with torch.device("meta"):
        return heads.Heads(MBS.video.d, MBS.audio.d, MBS.text.d, MBS.d_va, MBS.d_vt)


def sizes(preset):
    """Of the three Transformers"""
    return PRESETS[preset].video, PRESETS[preset].audio, PRESETS[preset].text


def layers(module, kind):
    """How many layers of a kind there are"""
    return sum(isinstance(m, kind) for m in module.modules())


def bright(by):
    """What brightness makes of black, where it takes it away, or of white"""
    frame = torch.full((1, 1, 2, 2, 3), 0 if by < 0 else 255, dtype=torch.uint8)
    return data.augment(frame, None, torch.tensor([[1, by, 1, 1, 0]])).mean().item()


PAPER = [
    ("3.1", "channels of a voxel", 3, lambda s: len(towers().W_vp) / (4 * 16 * 16)),
    ("3.1", "patches of a clip", 8 * 14 * 14, lambda s: tokenize.video_patches(torch.empty(1, 32, 224, 224, 3, device="meta"),
                                                                             *s.mbs.patch).shape[1]),
    ("3.1", "position vectors of a clip", (8, 14, 14), lambda s: tuple(
        len(e) for e in (towers().e_temporal, towers().e_vertical, towers().e_horizontal))),
    ("3.1", "segments of a waveform", 1200, lambda s: tokenize.waveform_patches(torch.empty(1, 153_600, device="meta"),
                                                                                 MBS.audio_patch).shape[1]),
    ("3.1", "position vectors of a waveform", 1200, lambda s: len(towers().e_audio)),
    ("3.1", "size of W_tp", (2**16, 512), lambda s: tuple(towers().W_tp.shape)),
    ("3.1.1", "tokens that DropToken leaves", (784, 600), lambda s: tuple(
        droptoken.keep(n, drop, torch.arange(1)).shape[1] for n, drop in zip((1568, 1200), s.mbs.drop, strict=True))),
    ("3.2", "layers with a relative bias: the first, of the text model", [True, False, False], lambda s: [
        getattr(towers(), f"{tower}_transformer").relative_bias is not None for tower in ("text", "video", "audio")]),
    ("3.3", "linear layers of g v->va, v->vt, a->va, t->vt", (2, 1, 1, 1), lambda s: tuple(
        sum(name.startswith(g) for name, m in model_heads().named_modules() if isinstance(m, torch.nn.Linear))
        for g in ("v_to_va", "v_to_vt", "a_to_va", "t_to_vt"))),
    ("3.3", "batch norms, one after each", 5, lambda s: layers(model_heads(), heads.BatchNorm)),
    ("3.4", "text clips of P", 5, lambda s: MBS.captions),
    ("3.4, A.2.1", "text clips and words that a run reads", (5, 16), lambda s: tuple(s.pretrain.text.text.shape[1:])),

    ("4.1, A.2.1", "frames", 32, lambda s: s.mbs.frames),
    ("4.1, A.2.1", "frames per second", 10, lambda s: s.mbs.fps),
    ("4.1, A.2.1", "pixels", 224, lambda s: s.mbs.size),
    ("4.1, A.2.1", "audio, Hz", 48_000, lambda s: s.mbs.rate),
    *[("4.1, A.2.1", f"{name} of ClipSpec", printed, lambda s, name=name: getattr(data.ClipSpec(), name)) for name, printed in {
        "frames": 32, "fps": 10, "size": 224, "rate": 48_000, "samples": 153_600, "captions": 5, "words": 16, "area": (0.08, 1),
        "colour": (32 / 255, 0.4, 0.4, 0.2), "flip": 0.5}.items()],
    ("4.1, A.2.1", "range of frames", (-1.0, 1.0), lambda s: tuple(
        x.item() for x in data.augment(torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1, 1)).aminmax())),
    ("4.1, A.2.1", "video patch", (4, 16, 16), lambda s: tuple(s.mbs.patch)),
    ("4.1, A.2.1", "audio patch", 128, lambda s: s.mbs.audio_patch),
    ("4.1, A.2.1", "words of a caption", 16, lambda s: MBS.words),
    ("4.1, A.2.1", "vocabulary", 2**16, lambda s: s.mbs.vocabulary),
    ("4.1, A.2.1", "drop rate", (0.5, 0.5), lambda s: tuple(s.mbs.drop)),
    ("4.1, A.2.4", "learning rate at first", 1e-4, lambda s: s.mbs.lr),
    ("4.1, A.2.4", "learning rate after the warm-up", 1e-4, rate(10_000)),
    ("4.1, A.2.4", "learning rate at the end", 5e-5, rate(500_000)),
    ("4.1, A.2.4", "quarter period of a cosine in between", 5e-5 + 5e-5 * math.cos(math.pi / 4), rate(255_000)),
    ("4.1, A.2.4", "half of the warm-up", 0.5e-4, rate(4999)),
    ("4.1, A.2.4", "steps of warm-up", 10_000, lambda s: s.mbs.warmup),
    ("4.1, A.2.4", "steps", 500_000, lambda s: s.mbs.steps),
    ("4.1, A.2.4", "batch", 2048, lambda s: s.mbs.batch),
    ("4.1, A.2.4", "the optimizer is given the rate of the step", True, lambda s: s.pretrain.learning_rate.step == 0),
    ("4.1, A.2.3", "d_va", 512, lambda s: MBS.d_va),
    ("4.1, A.2.3", "d_vt", 256, lambda s: MBS.d_vt),
    ("4.1, A.2.3", "temperature of NCE", 0.07, lambda s: s.pretrain.nce.temperature),
    ("4.1, A.2.3", "temperature of MIL-NCE", 0.07, lambda s: s.pretrain.last_mil_nce.temperature),
    ("4.1, A.2.3", "lambda", 1, lambda s: s.pretrain.total.lam),
    *[("4.1", f"parameters of {preset} as the paper counts them, M", millions, lambda s, preset=preset: round(
        sum(map(audit.parameters_by_fit, sizes(preset))) / 1e6))
      for preset, millions in {"bbs": 197, "mbs": 264, "lbs": 415}.items()],

    ("A.2.1", "area of a crop", (0.08, 1), lambda s: tuple(s.mbs.area)),
    ("A.2.1", "aspect of a crop", (0.5, 2), lambda s: tuple(s.pretrain.random_box.aspect)),
    ("A.2.1", "changes of brightness, saturation, contrast, hue", (32 / 255, 0.4, 0.4, 0.2), lambda s: tuple(s.mbs.colour)),
    ("A.2.1", "a horizontal flip or none: share of the clips, in tenths", 5, lambda s: round(10 * np.mean(s.flips))),
    ("A.2.1", "RGB is cut to [0, 1]", (-1.0, 1.0), lambda s: tuple(bright(by) for by in (-0.1, 0.1))),
    ("A.2.1", "frames of a clip to fine-tune on", 32, lambda s: s.video.settings.frames),
    ("A.2.1", "their rate: a stride of 2 at 25 fps", 25 / 2, lambda s: s.video.settings.fps),
    ("A.2.1", "their seconds", 2.56, lambda s: s.video.settings.frames / s.video.settings.fps),
    ("A.2.1, A.2.5", "their pixels", 320, lambda s: s.video.settings.size),
    ("A.2.1", "tokens dropped in fine-tuning", 0, lambda s: s.video.settings.drop),
    ("A.2.1", "similar augmentation: area", (0.08, 1), lambda s: tuple(s.video.settings.area)),
    ("A.2.1", "similar augmentation: aspect", (0.5, 2), lambda s: tuple(s.video.random_box.aspect)),
    ("A.2.1", "similar augmentation: colour", (32 / 255, 0.4, 0.4, 0.2), lambda s: tuple(s.video.settings.colour)),

    *[("A.2.2, Table 7", f"layers, d, d_mlp, heads of {name}", row, lambda s, name=name: tuple(SIZES[name])) for name, row in {
        "small": (6, 512, 2048, 8), "base": (12, 768, 3072, 12), "medium": (12, 1024, 4096, 16),
        "large": (24, 1024, 4096, 16)}.items()],
    *[("A.2.2", f"video, audio and text model of {preset}", names, lambda s, preset=preset: tuple(
        {v: k for k, v in SIZES.items()}[size] for size in sizes(preset)))
      for preset, names in {"bbs": ("base", "base", "small"), "mbs": ("medium", "base", "small"),
                            "lbs": ("large", "base", "small"), "ma": ("medium",) * 3}.items()],
    ("A.2.2", "backbones of MA", 1, lambda s: layers(towers("ma"), Transformer)),

    ("A.2.5", "momentum", 0.9, lambda s: s.video.SGD.momentum),
    ("A.2.5", "learning rate", 0.005, lambda s: s.video.settings.lr),
    ("A.2.5", "learning rate after the warm-up", 0.005, half("video", 2500)),
    ("A.2.5", "half period of a cosine: its middle", 0.0025, half("video", 51_250)),
    ("A.2.5", "learning rate at the end", 0, half("video", 100_000)),
    ("A.2.5", "steps of warm-up", 2500, lambda s: s.video.settings.warmup),
    ("A.2.5", "batch", 64, lambda s: s.video.settings.batch),
    ("A.2.5", "steps", 100_000, lambda s: s.video.settings.steps),
    ("A.2.5", "label smoothing", 0.1, lambda s: s.video.smooth.alpha),
    ("A.2.5", "positions at 320 pixels", 20, lambda s: len(vatt.resize_table(torch.zeros(14, 2), 320 // 16))),
    ("A.2.5", "clips to test on", 4, lambda s: s.video.settings.windows),
    ("A.2.5", "crops to test on", 3, lambda s: s.video.settings.crops),
    ("A.2.5", "views to test on", 12, lambda s: s.video.ClipSpec.windows * s.video.ClipSpec.crops),

    ("A.3", "momentum", 0.9, lambda s: s.audio.SGD.momentum),
    ("A.3, published", "learning rate", 0.2, lambda s: s.audio.settings.lr),
    ("A.3", "learning rate after the warm-up", 0.2, half("audio", 5000)),
    ("A.3", "learning rate at the end", 0, half("audio", 50_000)),
    ("A.3", "steps of warm-up", 5000, lambda s: s.audio.settings.warmup),
    ("A.3", "batch", 1024, lambda s: s.audio.settings.batch),
    ("A.3", "steps", 50_000, lambda s: s.audio.settings.steps),
    ("A.3", "seconds", 6.4, lambda s: s.audio.settings.frames / s.audio.settings.fps),
    ("A.3", "audio, Hz", 24_000, lambda s: s.audio.settings.rate),
    ("A.3", "samples", 153_600, lambda s: data.ClipSpec(("audio",), s.audio.settings.frames, s.audio.settings.fps,
                                                         rate=s.audio.settings.rate).samples),
    ("A.3", "Beta of mixup", 5, lambda s: s.audio.ClipSpec.mixup),
    ("A.3", "loss weighted by the counts of labels", True, lambda s: s.audio.settings.balance),

    ("4.2.3", "times that an image is repeated", 4, lambda s: tokenize.image_clip(torch.zeros(1, 16, 16, 3), 4).shape[1]),
    ("A.3.1", "epochs", 50, lambda s: s.image.settings.epochs),
    ("A.3.1", "pixels", 384, lambda s: s.image.settings.size),
    ("A.3.1", "batch", 512, lambda s: s.image.settings.batch),
    ("A.3.1", "momentum", 0.9, lambda s: s.image.SGD.momentum),
    ("A.3.1", "learning rate", 8e-2, lambda s: s.image.settings.lr),
    ("A.3.1", "label smoothing", 0.1, lambda s: s.image.smooth.alpha),
    ("A.3.1", "arguments of SGD, no weight decay", {"self", "parameters", "lr", "momentum"}, lambda s: set(vars(s.image.SGD))),

    ("A.3.2", "learning rate", 5e-4, lambda s: s.linear.settings.lr),
    ("A.3.2", "learning rate that Adam is given", 5e-4, lambda s: s.linear.Adam.lr),
    ("A.3.2", "batch", 64, lambda s: s.linear.settings.batch),
    ("A.3.2", "steps", 50_000, lambda s: s.linear.settings.steps),
    ("A.3.2", "n", 128, lambda s: s.linear.settings.components),
    ("A.3.2", "sampling rate, 10%, as whole components", round(0.1 * 128), lambda s: s.linear.settings.sampled),

    ("A.3.3", "pixels, frames", (224, 32), lambda s: (MBS.size, MBS.frames)),
    ("A.3.3", "frames per second: a stride of 2 at 25 fps", {"youcook2": 25 / 2, "msrvtt": 25 / 2},
     lambda s: evaluate.OFFICIAL_FPS),
    ("A.3.3", "clips of a video", 4, lambda s: s.retrieve.vectors.clips.spec.windows),
    ("A.3.3", "clips that cover 10 seconds end at", 10, lambda s: round(index.windows(0.0, 7.44, 4, 12.5)[-1] + 2.56, 6)),

    ("A.4, as in MMV", "random passes to train an SVM on, windows to test on", 10, lambda s: s.svm.windows),
    ("A.4, as in MMV", "C of the SVM", 1e-3, lambda s: s.svm.svm_c),
    ("A.4, as in MMV", "share of mirrored clips", 0.5, lambda s: s.svm.flip),

    ("A.5, Table 10", "mel bins", 80, lambda s: tokenize.mel_spectrogram(torch.zeros(1, 48_000)).shape[2]),
    ("A.5, Table 10", "steps of 21 ms in a second", math.ceil(48_000 / 1024), lambda s: tokenize.mel_spectrogram(
        torch.zeros(1, 48_000)).shape[1]),
    ("A.5, Table 10", "patch of a spectrogram", 16 * 5, lambda s: tokenize.spectrogram_patches(
        torch.zeros(1, 32, 80)).shape[2]),
]

OFFICIAL = [
    ("pre-training", "Adam's eps, betas, weight decay", (1e-7, (0.9, 0.999), 0), lambda s: (
        s.pretrain.Adam.eps, s.pretrain.Adam.betas, s.pretrain.Adam.weight_decay)),
    ("pre-training", "noise in the audio, of the largest amplitude", 0.01, lambda s: s.mbs.noise),
    ("pre-training", "clips whose colours change", 0.8, lambda s: s.pretrain.colour_draws.p),
    ("pre-training", "dropout", 0.1, lambda s: s.mbs.dropout),
    ("pre-training", "standard deviation of positions", (1024**-0.5, 768**-0.5), lambda s: deviations()),
    ("transformer", "eps of LayerNorm", {1e-6}, lambda s: {
        m.eps for m in towers().modules() if isinstance(m, torch.nn.LayerNorm)}),
    ("transformer", "dropout", {0.1}, lambda s: {m.p for m in towers().modules() if isinstance(m, torch.nn.Dropout)}),
    ("transformer", "GELU without an approximation", {"none"}, lambda s: {
        m.approximate for m in towers().modules() if isinstance(m, torch.nn.GELU)}),
    ("transformer", "buckets and largest distance of the relative bias", (32, 64), lambda s: (
        towers().text_transformer.relative_bias.buckets, towers().text_transformer.relative_bias.distance)),
    ("transformer", "range of the relative bias at first", 0.05, lambda s: round(RelativeBias(64).table.abs().max().item(), 3)),
    ("heads", "momentum and eps of batch norm", (0.1, 1e-5), lambda s: (model_heads().t_to_vt.norm.momentum,
                                                                         model_heads().t_to_vt.norm.eps)),
    *[(task, "norm at which the backbone's gradients are clipped", 0.75, lambda s, task=task: (
        getattr(s, task).clip_grad_norm_.max_norm)) for task in ("video", "audio", "image")],
    *[(task, "dropout before the classifier", p, lambda s, task=task: getattr(s, task).LinearClassifier.dropout)
      for task, p in {"video": 0.5, "audio": 0.0, "image": 0.5}.items()],
    *[(task, "share of mirrored clips", 0.5, lambda s, task=task: getattr(s, task).ClipSpec.flip)
      for task in ("video", "image")],
    ("image", "steps of warm-up", 2500, lambda s: finetune.RECIPES["image"]["warmup"]),
    ("audio", "label smoothing", 0, lambda s: s.audio.settings.smoothing),
    ("audio", "windows to test on", 4, lambda s: s.audio.settings.windows),
    ("image", "crops to test on", 1, lambda s: s.image.settings.crops),
    ("image", "area", (0.08, 1), lambda s: tuple(s.image.ClipSpec.area)),
    ("image", "colour", (32 / 255, 0.4, 0.4, 0.2), lambda s: tuple(s.image.ClipSpec.colour)),
    ("linear", "Adam's eps, betas, weight decay", (1e-7, (0.9, 0.999), 0), lambda s: (
        s.linear.Adam.eps, s.linear.Adam.betas, s.linear.Adam.weight_decay)),
    ("linear", "components", 128, lambda s: s.linear.LowRankClassifier.n),
    ("linear", "penalty on V", 0.1, lambda s: s.linear.settings.l2),
    ("linear", "windows, crops to test on", (4, 1), lambda s: (s.linear.settings.windows, s.linear.settings.crops)),
    ("spectrogram", "lowest and highest frequency", (80, 7600), lambda s: (default(tokenize._mel_filters, "low"),
                                                                            default(tokenize._mel_filters, "high"))),
]


def deviations():
    """Of the tables of positions of the paper's video and audio towers, of many numbers, to three digits"""
    tables = (vatt.Backbones.table(SimpleNamespace(config=MBS), 1000, size.d) for size in (MBS.video, MBS.audio))
    return tuple(table.std().item() for table in tables)


def same(found, printed, digits=1e-6):
    """Equal, numbers to six digits"""
    if isinstance(printed, tuple):
        return len(found) == len(printed) and all(map(same, found, printed, (digits,) * len(printed)))
    return found == (pytest.approx(printed, rel=digits) if isinstance(printed, (int, float)) else printed)


@pytest.mark.parametrize(("place", "what", "printed", "read"), PAPER, ids=lambda x: x if isinstance(x, str) else None)
def test_the_paper_prints(seen, place, what, printed, read):
    assert same(read(seen), printed), f"{what}: {read(seen)}, the paper ({place}): {printed}"


@pytest.mark.parametrize(("place", "what", "printed", "read"), OFFICIAL, ids=lambda x: x if isinstance(x, str) else None)
def test_the_official_code_has(seen, place, what, printed, read):
    digits = 0.15 if "deviation" in what else 1e-6
    assert same(read(seen), printed, digits), f"{what} of {place}: {read(seen)}, the official code: {printed}"


def test_every_preset_of_the_paper_is_trained_alike(seen):
    numbers = lambda s: {k: v for k, v in vars(s).items() if k != "preset"}
    assert numbers(seen.bbs) == numbers(seen.mbs) == numbers(seen.lbs) == numbers(seen.ma)
