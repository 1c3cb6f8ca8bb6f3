"""`python data.py show PATH OUT.png`: what the model sees of a folder or of shards, with the words that it is told."""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

import torch

import data
import vatt
from engine import arguments, loading
from engine.errors import printable, user_errors
from engine.run import Run
from engine.sampling import Sampler
from sources import check, layouts, pack
from tools.figures import pyplot, save

COLUMNS = 8             # frames of a clip
ENOUGH = 100_000        # captions that words are taken from


def flags(commands) -> None:
    """The command line of `show`"""
    p = commands.add_parser("show", help="a figure of clips as the model sees them, with their captions and audio")
    p.add_argument("path", metavar="[KIND=]PATH", help="a folder of videos, as --data of pretrain.py takes it, or of shards")
    p.add_argument("out", type=Path, metavar="OUT.png")
    p.add_argument("--run", type=Path, metavar="RUN", help="with the words, sizes and augmentation of this run (default: the "
                   "paper's, and all words of the captions)")
    p.add_argument("--clips", type=arguments.count, default=8, help="how many (default: %(default)s)")
    p.add_argument("--seed", type=arguments.whole, default=0, help="another one chooses others")
    p.set_defaults(command=run)


def run(_p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """`python data.py show`: exit code 2 for what the user can mend, 3 where no clip can be read"""
    with user_errors(), tempfile.TemporaryDirectory() as scratch:
        if not args.out.parent.is_dir():
            raise ValueError(f"there is no folder for {args.out}")
        rows = layouts.list_files(*layouts.parse_source(args.path), Path(scratch) / "index", Path(scratch) / "problems")
        spec, words = of_run(args.run) if args.run else (data.ClipSpec(noise=0.01), None)
        if not pyplot():
            raise ValueError("show needs matplotlib: pip install matplotlib")
        words = words or vatt.tokenize.Vocabulary.build(itertools.islice(rows.texts(), ENOUGH))
        sampler = Sampler([len(rows)], [1.0], args.clips, args.seed)
        clips = data.TrainDataset([data.Source.to_train(rows)], sampler, spec, args.seed, vocabulary=words)
        batch, failed = next(loading.first_clips(clips, range(args.clips)))
        draw(batch, words, args.out)
    for path, reason in dict(failed).items():
        print(f"unreadable, another clip in its place: {printable(path)}: {reason}")
    print(f"{args.out}: {args.clips} of {len(rows)} clips, {spec.frames} frames at {spec.fps:g} a second, of which "
          f"{min(COLUMNS, spec.frames)} are shown")


def draw(batch: dict, words: "vatt.tokenize.Vocabulary", out: Path) -> None:
    """Draw some frames of each clip, its words beside them and its waveform below."""
    n, (_, samples) = len(batch["path"]), batch["audio"].shape
    seen = (data.augment(batch["video"], batch["flip"], batch["colour"]) + 1) / 2
    at = torch.linspace(0, seen.shape[1] - 1, min(COLUMNS, seen.shape[1])).long()
    figure, axes = pyplot().subplots(2 * n, 2, figsize=(18, 2.4 * n), height_ratios=[4, 1] * n, width_ratios=[COLUMNS, 4],
                                layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, ((frames, beside), (audio, _)) in enumerate(zip(axes[::2], axes[1::2], strict=True)):
        frames.imshow(torch.cat(list(seen[i, at]), 1).numpy())
        audio.plot(batch["audio"][i].numpy(), lw=0.4)
        audio.set(xlim=(0, samples), ylim=(-1, 1))
        said = batch["text"][i][batch["has_text"][i]].tolist()
        lines = [Path(batch["path"][i]).name, "", *(" ".join(words.words[k] for k in row if k) for row in said)]
        lines += ["(no captions)"] * (not said) + ["(no audio)"] * (not batch["has_audio"][i])
        beside.text(0, 1, "\n".join(map(printable, lines)), va="top", fontsize=9, parse_math=False)
    save(figure, out)


def of_run(run: Path) -> tuple[data.ClipSpec, "vatt.tokenize.Vocabulary"]:
    """The spec and the words of a run"""
    try:
        saved = Run(run).read_config()["settings"]
        same = {name: saved[name] for name in ("frames", "fps", "size", "rate", "noise")}
        return data.ClipSpec(**same, area=tuple(saved["area"]), colour=tuple(saved["colour"])), vatt.vocabulary(run)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ValueError(f"--run {run} is no run of pretrain.py ({e})") from None


def flags_of_data() -> argparse.ArgumentParser:
    """The command line of `python data.py pack | check | show`"""
    p = argparse.ArgumentParser(description="Videos, outside of training: pack them, check them, look at them.")
    commands = p.add_subparsers(required=True)
    for command in (pack, check, sys.modules[__name__]):
        command.flags(commands)
    return p


def main(argv: list[str] | None = None) -> None:
    """Run one of the commands of data.py."""
    p = flags_of_data()
    args = p.parse_args(argv)
    args.command(p, args)
