"""`python data.py show PATH OUT.png`: what the model sees of a folder or of shards, with the words that it is told."""

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import torch

import data
import vatt
from engine import loading
from engine.errors import TooManyBad, fail, printable, user_errors
from engine.sampling import Sampler
from sources import index, layouts
from tools import augment
from tools.figures import pyplot

COLUMNS = 8             # pictures of a clip
ENOUGH = 100_000        # captions that words are taken from


def flags(commands) -> None:
    """The command line of `show`"""
    p = commands.add_parser("show", help="a picture of clips as the model sees them, with their words and sound")
    p.add_argument("path", metavar="[KIND=]PATH", help="a folder of films, as --data of pretrain.py takes it, or of shards")
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
        kind, root = layouts.parse_source(args.path)
        layouts.list_files(kind, root, Path(scratch) / "index", Path(scratch) / "problems")
        rows = index.Index(Path(scratch) / "index")
        recipe, words = of_run(args.run) if args.run else (data.Recipe(), None)
        if not (plt := pyplot()):
            raise ValueError("show needs matplotlib: pip install matplotlib")
        words = words or vatt.tokenize.Vocabulary.build(itertools.islice(rows.texts(), ENOUGH))
        source = data.Source(rows, index.held_out(rows, share=0, least=0))
        clips = data.Clips([source], Sampler([len(rows)], [1.0], args.clips, args.seed), recipe, words, args.seed)
        try:
            batch, failed = loading.collate([clips[0, slot] for slot in range(args.clips)])
        except TooManyBad as e:
            fail(3, printable(str(e)))
        figure, axes = plt.subplots(2 * args.clips, 2, figsize=(18, 2.4 * args.clips), height_ratios=[4, 1] * args.clips,
                                    width_ratios=[COLUMNS, 4], layout="constrained", squeeze=False)
        seen = (augment.augment(batch["video"], batch["flip"], batch["colour"]) + 1) / 2
        at = torch.linspace(0, recipe.frames - 1, min(COLUMNS, recipe.frames)).long()
        for i, (path, text, said) in enumerate(zip(batch["path"], batch["text"], batch["has_text"], strict=True)):
            (pictures, beside), (sound, nothing) = axes[2 * i : 2 * i + 2]
            pictures.imshow(torch.cat(list(seen[i, at]), 1).numpy())
            sound.plot(batch["audio"][i].numpy(), lw=0.4)
            sound.set(xlim=(0, recipe.samples), ylim=(-1, 1))
            lines = [" ".join(words.words[k] for k in row if k) for row in text[said].tolist()]
            lines = [Path(path).name, "", *(lines or ["(no captions)"]), *([] if batch["has_audio"][i] else ["(no sound)"])]
            beside.text(0, 1, printable("\n".join(lines)).replace("\ufffd", "\n"), va="top", fontsize=9, parse_math=False)
            for axis in (pictures, beside, sound, nothing):
                axis.set_axis_off()
        figure.savefig(args.out, dpi=80)
        plt.close(figure)
    for path, reason in failed:
        print(f"unreadable, another clip in its place: {printable(path)}: {reason}")
    print(f"{args.out}: {args.clips} of {len(rows)} clips, {recipe.frames} pictures at {recipe.fps:g} a second, of which "
          f"{len(at)} are shown")


def of_run(run: Path) -> tuple[data.Recipe, "vatt.tokenize.Vocabulary"]:
    """The recipe and the words of a run"""
    try:
        s = json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"]
        recipe = data.Recipe(s["frames"], s["fps"], s["size"], s["rate"], round(s["frames"] / s["fps"] * s["rate"]),
                             area=tuple(s["area"]), colour=tuple(s["colour"]), noise=s["noise"])
        return recipe, vatt.vocabulary(run)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ValueError(f"--run {run} is no run of pretrain.py ({e})") from None
