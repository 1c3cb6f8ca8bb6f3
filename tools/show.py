"""`python data.py show PATH OUT.png`: what the model sees of a folder or of shards, with the words that it is told."""

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path

import torch

import data
import vatt
from engine import loading
from engine.errors import TooManyBad, fail, printable, user_errors
from engine.sampling import Sampler
from sources import check, layouts, pack
from tools.figures import pyplot

COLUMNS = 8             # frames of a clip
ENOUGH = 100_000        # captions that words are taken from


def flags(commands) -> None:
    """The command line of `show`"""
    p = commands.add_parser("show", help="a picture of clips as the model sees them, with their captions and audio")
    p.add_argument("path", metavar="[KIND=]PATH", help="a folder of videos, as --data of pretrain.py takes it, or of shards")
    p.add_argument("out", type=Path, metavar="OUT.png")
    p.add_argument("--run", type=Path, metavar="RUN", help="with the words, sizes and augmentation of this run (default: the "
                   "paper's, and all words of the captions)")
    p.add_argument("--clips", type=int, default=8, help="how many (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="another one chooses others")
    p.set_defaults(command=run)


def run(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """`python data.py show`: exit code 2 for what the user can mend, 3 where no clip can be read"""
    if args.clips < 1 or args.seed < 0:
        p.error("--clips must be at least 1, --seed at least 0")
    if not args.out.parent.is_dir():
        p.error(f"there is no folder for {args.out}")
    with user_errors(), tempfile.TemporaryDirectory() as scratch:
        rows = layouts.list_files(*layouts.parse_source(args.path), Path(scratch) / "index", Path(scratch) / "problems")
        spec, words = of_run(args.run) if args.run else (data.ClipSpec(noise=0.01), None)
        if not (plt := pyplot()):
            raise ValueError("show needs matplotlib: pip install matplotlib")
        words = words or vatt.tokenize.Vocabulary.build(itertools.islice(rows.texts(), ENOUGH))
        sampler = Sampler([len(rows)], [1.0], args.clips, args.seed)
        clips = data.TrainDataset([data.Source.to_train(rows)], sampler, spec, args.seed, vocabulary=words)
        try:
            batch, failed = loading.collate([clips[0, slot] for slot in range(args.clips)])
        except TooManyBad as e:
            fail(3, printable(str(e)))
        figure, axes = plt.subplots(2 * args.clips, 2, figsize=(18, 2.4 * args.clips), height_ratios=[4, 1] * args.clips,
                                    width_ratios=[COLUMNS, 4], layout="constrained", squeeze=False)
        seen = (data.augment(batch["video"], batch["flip"], batch["colour"]) + 1) / 2
        at = torch.linspace(0, spec.frames - 1, min(COLUMNS, spec.frames)).long()
        for i, (path, text, said) in enumerate(zip(batch["path"], batch["text"], batch["has_text"], strict=True)):
            (frames, beside), (audio, nothing) = axes[2 * i : 2 * i + 2]
            frames.imshow(torch.cat(list(seen[i, at]), 1).numpy())
            audio.plot(batch["audio"][i].numpy(), lw=0.4)
            audio.set(xlim=(0, spec.samples), ylim=(-1, 1))
            lines = [" ".join(words.words[k] for k in row if k) for row in text[said].tolist()]
            lines = [Path(path).name, "", *(lines or ["(no captions)"]), *([] if batch["has_audio"][i] else ["(no audio)"])]
            beside.text(0, 1, printable("\n".join(lines)).replace("\ufffd", "\n"), va="top", fontsize=9, parse_math=False)
            for axis in (frames, beside, audio, nothing):
                axis.set_axis_off()
        figure.savefig(args.out, dpi=80)
        plt.close(figure)
    for path, reason in failed:
        print(f"unreadable, another clip in its place: {printable(path)}: {reason}")
    print(f"{args.out}: {args.clips} of {len(rows)} clips, {spec.frames} frames at {spec.fps:g} a second, of which "
          f"{len(at)} are shown")


def of_run(run: Path) -> tuple[data.ClipSpec, "vatt.tokenize.Vocabulary"]:
    """The spec and the words of a run"""
    try:
        s = json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"]
        spec = data.ClipSpec(frames=s["frames"], fps=s["fps"], size=s["size"], rate=s["rate"],
                             area=tuple(s["area"]), colour=tuple(s["colour"]), noise=s["noise"])
        return spec, vatt.vocabulary(run)
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
