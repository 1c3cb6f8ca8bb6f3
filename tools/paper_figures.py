"""The paper's figures of one's own runs: features, spaces, activations, attention, DropToken (4.2.5-4.2.7, Figures 2-4).

`python evaluate.py figures RUN ...` draws what the named runs give, each figure as .svg and .png with its caption in it.
What is drawn is computed by `spaces`, `activations`, `attention` and `recalls`; matplotlib and scikit-learn are extras.
"""

import importlib.util
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import data
import vatt
from engine.errors import printable
from engine.run import Run
from sources import official
from sources.index import Index, held_out
from tools import figures
from tools.embed import Reading, over_files
from transformer import Attention
from weights import files

# Apart in lightness as in hue, for the colour-blind and for print in black and white; markers and dashes differ, too.
STYLES = {"video": ("#0072B2", "o", "-"), "audio": ("#E69F00", "^", "--"), "text": ("#000000", "s", ":")}
DROPS = (0.0, 0.25, 0.5, 0.75)   # Tables 5 and 6
DEMO = tuple(Path("runs") / name for name in (
    "demo", "demo-ma", "demo-finetune/finetune-video-pretrained", "demo-finetune/finetune-video-scratch"))
MOST = 300                       # files that a figure reads


# ---------------------------------------------------------------------------------------------------- what is drawn, computed


def held(run: Path, model: vatt.Trained) -> data.TestDataset:
    """The middle clips of the videos that a run of pretrain.py held out, at most MOST, with all modalities."""
    folders = sorted((run / "index").glob("*"))                   # the sources by number, then val
    if not folders:
        raise ValueError(f"{run} has no index of the videos that it held out: name a run of pretrain.py")
    saved, index = Run(run).read_config()["settings"], Index(folders[-1])
    rows = held_out(index) if saved.get("data") and not saved.get("val") else np.arange(len(index))
    spec = model.spec("video", 1)._replace(modalities=("video", "audio", "text"), captions=1, words=model.config.words)
    return data.TestDataset([data.Source(index, rows[:MOST])], spec, vocabulary=model.vocabulary)


def over(model: torch.nn.Module, clips: data.TestDataset, forward: Callable[[dict], dict], how: Reading) -> dict:
    """forward(batch) of all clips with video, audio and a caption, joined: name -> (N, ...)"""
    parts: list[dict] = []
    batches = how.batches(clips, shared=False)
    for batch, found, _ in over_files(model, forward, batches, how.processes.device, how.precision):
        if batch:
            whole = batch["has_audio"] & batch["has_text"][:, 0] if "text" in batch else torch.ones(len(batch["path"])) > 0
            parts.append({name: x[whole.to(x.device)].float().cpu() for name, x in found.items()})
    if not parts or not len(next(iter(parts[0].values()))):
        raise ValueError("none of the clips has video, audio and a caption: there is nothing to draw")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def common(model: vatt.Trained, batch: dict, drop: float = 0.0) -> dict[str, torch.Tensor]:
    """"va video", "va audio" (B, d_va), "vt video", "vt text" (B, d_vt) of a batch of clips, of length 1"""
    video, keys = data.augment(batch["video"][:, 0]), torch.arange(2 * len(batch["video"]), device=batch["video"].device)
    z = model(video, batch["audio"][:, 0], batch["text"][:, :1], (drop, drop), keys.view(-1, 2))
    *others, z_t_vt = model.project(*z)
    names = ("va video", "va audio", "vt video", "vt text")
    return {name: F.normalize(x, dim=-1) for name, x in zip(names, (*others, z_t_vt[:, 0]), strict=True)}


def by_drop(model: vatt.Trained, batch: dict) -> dict[str, torch.Tensor]:
    """What `common` gives at each of DROPS, "va video 0.5" and so on"""
    return {f"{name} {drop}": x for drop in DROPS for name, x in common(model, batch, drop).items()}


def spaces(model: vatt.Trained, batch: dict) -> dict[str, torch.Tensor]:
    """Figure 3, two points of the model (4.2.5): the mean of a clip's tokens before the Transformer, and its common spaces.

    -> "input video", "input audio", "input text" (B, d), of length 1, and what `common` gives
    """
    encode, found = model.backbones.encode, {}

    def keep(tokens, modality, mask=None):
        weight = torch.ones(tokens.shape[:2], device=tokens.device) if mask is None else mask.float()
        mean = (tokens * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
        found[f"input {modality}"] = F.normalize(mean, dim=-1)
        return encode(tokens, modality, mask)

    model.backbones.encode = keep
    try:
        return {**common(model, batch), **found}
    finally:
        del model.backbones.encode


def activations(model: vatt.Trained, batch: dict) -> dict[str, torch.Tensor]:
    """Figure 4: what each node of each MLP gives before the residual addition, mean over tokens.  modality -> (B, layers, d)"""
    nodes: list[torch.Tensor] = []
    text = batch["text"][:, :1]
    words = F.pad(text[:, 0] != 0, (1, 0), value=True)
    hooks = [block.mlp.register_forward_hook(lambda _m, _x, y: nodes.append(y)) for block in model.backbones.transformer.blocks]
    found = {}
    try:
        for name, run, x in (("video", model.backbones.video, data.augment(batch["video"][:, 0])),
                             ("audio", model.backbones.audio, batch["audio"][:, 0]), ("text", model.backbones.text, text)):
            nodes.clear()
            run(x)
            y = torch.stack(nodes, 1)                                                # (B, layers, 1 + N, d)
            w = words.float() if name == "text" else torch.ones(len(y), y.shape[2], device=y.device)
            found[name] = (y * w[:, None, :, None]).sum(2) / w.sum(1)[:, None, None]
    finally:
        for hook in hooks:
            hook.remove()
    return found


def attention(model: vatt.Trained, video: torch.Tensor) -> torch.Tensor:
    """What AGG attends to in the last layer, itself left out, mean over heads.

    (B, T, H, W, 3) in [-1, 1] -> (B, T/t, H/h, W/w)
    """
    c, b = model.config, model.backbones
    module: Attention = (b.transformer if c.shared else b.video_transformer).blocks[-1].attention
    kept = {}
    hook = module.register_forward_pre_hook(lambda _m, x: kept.update(x=x[0]))
    b.video(video)
    hook.remove()
    q, k, _ = module.qkv(kept["x"]).unflatten(2, (3, module.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, h, 1 + N, d/h) each
    share = (q[:, :, :1] @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1).mean(1)[:, 0, 1:]
    return share.unflatten(1, (len(b.e_temporal), len(b.e_vertical), len(b.e_horizontal)))


def recalls(query: torch.Tensor, pool: torch.Tensor, k: int = 10) -> float:
    """R@k of vectors of length 1, row by row; ties count against it.  (N, d), (N, d) -> a fraction"""
    s = query @ pool.T
    return ((s >= s.diagonal()[:, None]).sum(1) <= k).double().mean().item()


def density(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Kernel density estimate with Scott's bandwidth.  values (n,), at (m,) -> (m,)"""
    h = values.std() * len(values) ** -0.2 + 1e-6
    return (-((at[:, None] - values) / h) ** 2 / 2).exp().mean(1) / (h * (2 * torch.pi) ** 0.5)


def plane(x: torch.Tensor) -> np.ndarray:
    """t-SNE.  (N, d) -> (N, 2)"""
    from sklearn.manifold import TSNE

    return TSNE(perplexity=min(30.0, (len(x) - 1) / 3), init="pca", random_state=0).fit_transform(x.numpy())


# ------------------------------------------------------------------------------------------------------------------- drawings


def finish(figure, out: Path, name: str, caption: str) -> str:
    """Write the figure with its caption below it as .svg and .png; -> the caption, which begins with the file's name"""
    figure.supxlabel(textwrap.fill(caption, round(16 * figure.get_figwidth())), x=0.01, ha="left", fontsize=8)
    figures.save(figure, *(out / f"{name}.{ending}" for ending in ("svg", "png")))
    return f"{name}.svg, .png: {caption}"


def scatter(axis, points: np.ndarray, title: str, styles: dict[str, tuple[np.ndarray, object, str]]) -> None:
    """t-SNE's points (N, 2) in groups: name -> (which of them, colour, marker)"""
    for name, (which, colour, marker) in styles.items():
        axis.scatter(*points[which].T, s=18, color=colour, marker=marker, alpha=0.8, linewidths=0, label=name)
    axis.set(title=title, xticks=[], yticks=[], xlabel="t-SNE 1, no unit", ylabel="t-SNE 2, no unit")


def draw_classes(plt, features: dict[str, tuple[torch.Tensor, torch.Tensor, list[str]]], out: Path) -> str:
    """Figure 2.  name -> features (N, d), classes (N,), their names"""
    figure, axes = plt.subplots(1, len(features), figsize=(5 * len(features) + 1.5, 5.4), layout="constrained", squeeze=False)
    for axis, (run, (x, y, classes)) in zip(axes[0], features.items(), strict=True):
        styles = {printable(name): ((y == c).numpy(), plt.cm.viridis(c % 5 / 4.4), "osD^v*XP<>"[c // 5 % 10])
                  for c, name in enumerate(classes)}
        scatter(axis, plane(x), run, styles)
    if len(classes) <= 30:  # names of more would not be read
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return finish(figure, out, "classes",
        f"Figure 2: z_out of the backbone, by t-SNE, of {len(x)} test clips, a point each; "
        f"{len(classes)} classes, told apart by marker and lightness.")


def draw_spaces(plt, runs: dict[str, dict[str, torch.Tensor]], out: Path) -> str:
    """Figure 3.  run -> what `spaces` gives"""
    figure, axes = plt.subplots(len(runs), 5, figsize=(16, 3.4 * len(runs) + 0.6), layout="constrained", squeeze=False)
    for row, (run, x) in zip(axes, runs.items(), strict=True):
        n, width = len(x["vt text"]), max(x[f"input {m}"].shape[1] for m in STYLES)
        x |= {f"input {m}": F.pad(x[f"input {m}"], (0, width - x[f"input {m}"].shape[1])) for m in STYLES}
        for axis, space, title in zip(row, ("input", "va", "vt"), ("input", "output, S_va", "output, S_vt"), strict=False):
            names = [m for m in STYLES if f"{space} {m}" in x]
            styles = {m: (np.arange(i * n, (i + 1) * n), *STYLES[m][:2]) for i, m in enumerate(names)}
            scatter(axis, plane(torch.cat([x[f"{space} {m}"] for m in names])), f"{run}: {title}", styles)
            axis.legend(fontsize=8, framealpha=0.5)
        for axis, space, title in zip(row[3:], ("input", "vt"), ("input", "output"), strict=True):
            s, own, at = x[f"{space} video"] @ x[f"{space} text"].T, torch.eye(n, dtype=torch.bool), torch.linspace(-1, 1, 201)
            axis.fill_between(at, density(s[~own][:20000], at), color="0.75", label="random pairs")
            axis.plot(at, density(s[own], at), "k-", label="positive pairs")
            axis.set(title=f"{run}: video-text, {title}", xlabel="cosine similarity", ylabel="density", ylim=(0, None))
            axis.legend(fontsize=8)
    return finish(figure, out, "spaces",
        f"Figure 3: {n} held-out clips, a point a clip and modality, by t-SNE: at "
        "the input of the Transformer (mean of the tokens with their positions; narrower ones filled up with zeros) and "
        "in the common spaces. Right: kernel densities of the cosines of matching video-text pairs and of others.")


def draw_activations(plt, nodes: dict[str, torch.Tensor], out: Path) -> str:
    """Figure 4.  modality -> (layers, d), the mean over clips"""
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    most = torch.stack([x.abs().quantile(0.99) for x in nodes.values()]).max().item()
    for axis, (name, x) in zip(axes, nodes.items(), strict=False):
        image = axis.imshow(x.abs(), cmap="Greys", vmin=0, vmax=most, aspect="auto", interpolation="nearest")
        layers, (colour, marker, dash) = range(1, len(x) + 1), STYLES[name]
        axis.set(title=name, xlabel="node of the MLP's output", ylabel="layer", yticks=range(len(x)), yticklabels=layers)
        axes[3].plot(layers, x.abs().mean(1), color=colour, marker=marker, ls=dash, label=name, clip_on=False)
    figure.colorbar(image, ax=axes[:3], label="|mean activation|", shrink=0.8)
    axes[3].set(title="mean over nodes", xlabel="layer", ylabel="|mean activation|", ylim=(0, None), xticks=layers)
    axes[3].legend()
    return finish(figure, out, "activations",
        "Figure 4: the mean activation, without its sign, of every node at the output of the "
        "shared backbone's MLPs, before the residual addition, over the tokens of held-out clips, fed one modality at a "
        "time; right, the mean over the nodes of a layer.")


def draw_attention(plt, video: torch.Tensor, share: torch.Tensor, t: int, fps: float, out: Path) -> str:
    """video (B, T, H, W, 3) uint8, share (B, T/t, H/h, W/w)"""
    figure, axes = plt.subplots(2 * len(video), share.shape[1], figsize=(1.5 * share.shape[1], 3.3 * len(video) + 0.7),
                                layout="constrained", squeeze=False)
    for clip, (frames, maps) in enumerate(zip(video, share, strict=True)):
        for i, m in enumerate(maps):
            axes[2 * clip, i].imshow(frames[min(i * t, len(frames) - 1)])
            axes[2 * clip, i].set_title(f"from {i * t / fps:.1f} s", fontsize=9)
            axes[2 * clip + 1, i].imshow(m, cmap="gray", vmin=0, vmax=share.max(), interpolation="nearest")
            axes[2 * clip + 1, i].set_title(f"{100 * m.sum() / maps.sum():.0f}%", fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    return finish(figure, out, "attention",
        "What AGG attends to in the last layer of the video backbone, mean over heads. Below "
        "each frame the patches that begin there: their share (lighter is more), and that of all of them together.")


def draw_drops(plt, lines: dict[str, list[float]], out: Path) -> str:
    """The form of Table 6.  name -> a fraction for each of DROPS"""
    figure, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
    percent = [100 * d for d in DROPS]
    for (name, y), marker, dash in zip(lines.items(), "os^Dv*", ("-", "--", ":", "-.", "-", "--"), strict=False):
        axis.plot(percent, [100 * v for v in y], color="k", marker=marker, ls=dash, label=name)
    axis.set(xlabel="tokens dropped, % (video and audio)", ylabel="R@10 or top-1, %", ylim=(0, 105), xticks=percent)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return finish(figure, out, "drop",
        "Scores where DropToken leaves out tokens of the test clips: R@10 among the held-out clips, "
        "top-1 of classifiers (Tables 5 and 6 train at each rate, as python -m bench study drop does).")


# -------------------------------------------------------------------------------------------------------------------- command


def classifier_features(run: Path, model: vatt.Classifier, how: Reading) -> dict[str, torch.Tensor]:
    """"x" (N, d), "y" (N, C), "right DROP" (N,) of the test clips of a run of finetune.py, the middle view of each."""
    saved = Run(run).read_config()["settings"]
    found = official.load(saved["data"], run / "index" / "evaluate", [], saved.get("part") or 1, saved.get("allow_outside"))
    rows = np.arange(min(MOST, len(found.test)))
    clips = data.TestDataset([data.Source(found.test, rows)], model.spec(1, 1), classes=len(model.classes))

    def forward(batch: dict) -> dict:
        x = data.augment(batch[model.kind][:, 0])
        keys = torch.arange(len(x), device=x.device)
        right = {f"right {d}": model(x, d, keys).argmax(1) == batch["labels"].argmax(1) for d in DROPS}
        return {"x": model.features(x), "y": batch["labels"], **right}

    return over(model, clips, forward, how)


def draw(runs: list[Path], out: Path, how: Reading) -> list[str]:
    """Draw what the runs give into `out`; -> captions. ValueError with the remedy where an extra or a run is missing."""
    plt = figures.pyplot()
    if not plt or not importlib.util.find_spec("sklearn"):
        raise ValueError("figures need matplotlib and scikit-learn: pip install -r requirements-extra.txt")
    out.mkdir(parents=True, exist_ok=True)
    said, classes, points, drops = [], {}, {}, {}
    for run in runs:
        model, folder = vatt.load(run).to(how.processes.device), files.folder(run)
        name = folder.name
        if isinstance(model, vatt.Classifier):
            x = classifier_features(folder, model, how)
            classes[name] = x["x"], x["y"].argmax(1), model.classes
            drops[f"top-1, {name}"] = [x[f"right {d}"].mean().item() for d in DROPS]
            continue
        clips = held(folder, model)
        points[name], z = (over(model, clips, partial(what, model), how) for what in (spaces, by_drop))
        drops[f"text to video, {name}"] = [recalls(z[f"vt text {d}"], z[f"vt video {d}"]) for d in DROPS]
        drops[f"video to audio, {name}"] = [recalls(z[f"va video {d}"], z[f"va audio {d}"]) for d in DROPS]
        if model.config.shared:
            nodes = over(model, clips, partial(activations, model), how)
            said.append(draw_activations(plt, {m: x.mean(0) for m, x in nodes.items()}, out))
        if len(points) == 1:
            some = torch.stack([torch.from_numpy(clips[i][0]["video"][0]) for i in range(min(2, len(clips)))])
            with torch.no_grad():
                share = attention(model, data.augment(some.to(how.processes.device))).cpu()
            said.append(draw_attention(plt, some, share, model.config.patch[0], model.config.fps, out))
    if classes:
        said.append(draw_classes(plt, classes, out))
    if points:
        said.append(draw_spaces(plt, points, out))
    return [*said, draw_drops(plt, drops, out)]
