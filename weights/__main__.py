"""python -m weights official | vit | export: Google's checkpoints, image ViTs, and the way back"""

import argparse
import json
from pathlib import Path

import torch

import vatt
from engine.errors import user_errors
from engine.run import Run, write_text
from vatt import Classifier
from weights import bundle, files, vit
from weights.released import Released


def official(args: argparse.Namespace) -> None:
    """A released checkpoint of Google's -> a run"""
    prefix = args.source.with_suffix("") if args.source.suffix == ".index" else args.source
    variables = bundle.read(prefix)
    try:
        found = Released(variables)
        config = vatt.Config(**found.config(args.head_width))
        with torch.device("meta"):
            model = (Classifier(config, found.kind, listed(args.classes, found.classes), args.multi or found.classes == 527)
                     if found.kind else vatt.VATT(config))
        weights, left = found.weights(model.state_dict())
    except ValueError as e:
        raise ValueError(f"{prefix}: {e}") from None
    words = None if found.kind else vocabulary(args.vocabulary, config.vocabulary)
    write(args, config, model.describe(), weights, words)
    for name in left:
        print(f"left over: {name}")
    what = f"{found.classes} classes of {found.kind}" if found.kind else "a pre-trained model"
    print(f"{prefix}: {what}, {sum(p.numel() for p in model.parameters()):,} trainable parameters, {config.frames} frames of "
          f"{config.size} pixels; {args.out} is a run like any other")


def vocabulary(path: Path | None, size: int):
    """Google's list of words, one a line or each behind its id; ValueError where it does not belong to `size` vectors"""
    if path is None:
        raise ValueError("--vocabulary howto100m_en.txt, from Google's misc_data.tgz, says which word is which")
    rows = [line.split() or [""] for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    if all(len(row) == 2 and row[0].isdecimal() for row in rows):
        rows.sort(key=lambda row: int(row[0]))
    words, kind = [row[-1] for row in rows], vatt.VARIANTS["official"].vocabulary
    n = len(kind.special)
    if tuple(words[:n]) != kind.special or len(set(words)) != len(words) or len(words) != size:
        raise ValueError(f"{path} is not the vocabulary of this checkpoint: it has {len(words)} lines and begins with "
                         f"{' '.join(words[:n])}; the checkpoint has {size} words, the first {' '.join(kind.special)}")
    return kind(words[n:])


def listed(path: Path | None, n: int) -> list[str]:
    """Names of n classes, one a line in the order of Google's numbers; the numbers where there is no list"""
    names = [str(i) for i in range(n)] if path is None else path.read_text(encoding="utf-8").splitlines()
    if len(names) != n or len(set(names)) != n:
        raise ValueError(f"{path} has {len(names)} lines, {len(set(names))} of them different, and the checkpoint {n} classes")
    return names


def from_vit(args: argparse.Namespace) -> None:
    """An image ViT -> a run to start from; what an image ViT does not have is random"""
    try:
        fields, tower, error = vit.from_image(files.read(args.source), 4, args.head_width or 64)
    except ValueError as e:
        raise ValueError(f"{args.source}: {e}") from None
    sizes = vatt.SIZES
    config = vatt.Config(audio=fields["video"] if args.audio else sizes["base"], text=sizes["small"], vocabulary=2, **fields)
    torch.manual_seed(0)
    weights = vatt.VATT(config).state_dict()
    for name, tensor in tower.items():
        weights[f"backbones.{name}"] = tensor.expand(weights[f"backbones.{name}"].shape)
        if args.audio and name.startswith("video_transformer"):
            weights[f"backbones.{name.replace('video', 'audio')}"] = tensor
    write(args, config, config.to_json(), weights, vatt.tokenize.Vocabulary([]))
    beside = args.source.with_name("config.json")
    eps = json.loads(beside.read_text(encoding="utf-8")).get("layer_norm_eps", 1e-6) if beside.is_file() else 1e-6
    if eps != 1e-6:
        print(f"warning: LayerNorms add {eps} to the variance, as {beside} says, and ours 1e-6: outputs may differ")
    print(f"{args.source}: {config.video}, {config.size} pixels; a row and a column table leave {100 * error:.1f}% of its "
          f"positions\n{args.out} is a run to start from (--init); what an image has not is random")


def write(args: argparse.Namespace, config: vatt.Config, model: dict, weights: dict, words) -> None:
    """A run folder: config.json, vocabulary.txt, model.safetensors. ValueError where it holds something else"""
    run, settings = Run(args.out), {"preset": preset(config), "from": f"weights {args.command} {args.source}"}
    run.begin(settings, set())
    run.describe(settings, model)
    if words:
        words.save(args.out / "vocabulary.txt")
    files.write(args.out / "model.safetensors", weights)


def preset(c: vatt.Config) -> str:
    """The preset whose recipe a training from this model takes unasked"""
    same = (name for name, p in vatt.PRESETS.items() if (p.video, p.audio, p.text) == (c.video, c.audio, c.text))
    return next(same, "demo" if c.size < 224 else "sss")


def export(args: argparse.Namespace) -> None:
    """The Transformer of a run -> a file of another library"""
    config = vatt.pretrained(args.run)[0]
    weights = {name.removeprefix("backbones.").removeprefix("backbone."): w for name, w in files.of_run(args.run).items()}
    c = getattr(config, args.modality)
    tensors = vit.to_image(weights, args.to, config.patch, args.modality)
    out = args.out or files.folder(args.run) / f"{args.modality}-{args.to}"
    out.mkdir(parents=True, exist_ok=True)
    files.write(out / "model.safetensors", tensors)
    if args.to == "transformers":
        write_text(out / "config.json", json.dumps(dict(
            model_type="vit", architectures=["ViTModel"], hidden_size=c.d, num_hidden_layers=c.layers,
            num_attention_heads=c.heads, intermediate_size=c.d_mlp, image_size=config.size, patch_size=config.patch[1],
            layer_norm_eps=1e-6, hidden_act="gelu", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, qkv_bias=True)))
    load = {"timm": f"timm.models.VisionTransformer(img_size={config.size}, patch_size={config.patch[1]}, embed_dim={c.d}, "
                    f"depth={c.layers}, num_heads={c.heads}, mlp_ratio={c.d_mlp / c.d:g}, num_classes=0)",
            "transformers": f"transformers.ViTModel.from_pretrained({str(out)!r}, add_pooling_layer=False)",
            "torch": f"nn.TransformerEncoder(nn.TransformerEncoderLayer({c.d}, {c.heads}, {c.d_mlp}, 0.0, 'gelu', 1e-6, "
                     f"batch_first=True, norm_first=True), {c.layers}, nn.LayerNorm({c.d}, 1e-6))"}
    print(f"{out}/model.safetensors is for\n{load[args.to]}")


def flags() -> argparse.ArgumentParser:
    """The command line"""
    p = argparse.ArgumentParser(prog="python -m weights", description="Weights from elsewhere, and for elsewhere.")
    commands = p.add_subparsers(dest="command", required=True)
    c = commands.add_parser("official", help="a checkpoint that Google released, as a run")
    c.add_argument("source", type=Path, metavar="PREFIX", help="of its files, as in ckpt-500000")
    c.add_argument("--vocabulary", type=Path, metavar="FILE", help="howto100m_en.txt of misc_data.tgz; a classifier needs none")
    c.add_argument("--classes", type=Path, metavar="FILE", help="of a classifier, their names, one a line")
    c.add_argument("--multi", action="store_true", help="a file may have several classes (taken for 527, which is AudioSet)")
    v = commands.add_parser("vit", help="an image ViT as the start of a video tower, in a run")
    v.add_argument("source", type=Path, metavar="FILE", help="a .safetensors of timm or transformers")
    v.add_argument("--audio", action="store_true", help="its blocks for the audio tower too")
    for command in (c, v):
        command.add_argument("--head-width", type=int, help="numbers that one attention head reads (default: 64, or as found)")
        command.add_argument("--out", type=Path, required=True, metavar="RUN", help="the folder to write")
    c = commands.add_parser("export", help="the Transformer of a run, for another library")
    c.add_argument("run", type=Path, metavar="RUN")
    c.add_argument("--to", choices=("timm", "transformers", "torch"), required=True)
    c.add_argument("--modality", choices=("video", "audio", "text"), default="video")
    c.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUN/MODALITY-TO")
    return p


def main(argv: list[str] | None = None) -> None:
    """One command"""
    args = flags().parse_args(argv)
    with user_errors():
        {"official": official, "vit": from_vit, "export": export}[args.command](args)


if __name__ == "__main__":
    main()
