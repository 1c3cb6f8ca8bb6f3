"""Pre-training (Sections 4.1, A.2.4): `python pretrain.py` is the demo, `torchrun ... pretrain.py --preset mbs` the paper.

What one step computes stands in `step.py`; here are the flags, the data, and the loop.
"""

import argparse
import dataclasses
import math
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import data
import losses
import vatt
from engine import loading, loop
from engine.errors import printable, user_errors
from engine.processes import Processes
from engine.run import Run
from engine.sampling import Sampler
from engine.step import Step
from evaluate import TASKS, retrieval, table
from sources import demo, index, layouts
from tools import dry_run, figures

# Sections 4.1, A.2.1 and A.2.4.
# Official: Gaussian noise of 0.01 of the largest amplitude in the sound (the paper is silent).
PAPER = dict(steps=500_000, batch=2048, lr=1e-4, lr_end=5e-5, warmup=10_000, drop=(0.5, 0.5), area=(0.08, 1.0),
             colour=(32 / 255, 0.4, 0.4, 0.2), noise=0.01, workers=8, cache=0.0, save_every=1000, eval_every=5000)
RECIPES = {
    **dict.fromkeys(("bbs", "mbs", "lbs", "ma"), PAPER),
    "sss": {**PAPER, "steps": 100_000, "batch": 128, "warmup": 2000},
    "demo": {**PAPER, "steps": 800, "batch": 64, "lr": 2e-3, "lr_end": 2e-5, "warmup": 40, "drop": (0.5, 0.75),
             "area": (0.8, 1.0), "colour": (32 / 255, 0.0, 0.0, 0.0), "noise": 0.0, "workers": 0, "cache": 1.0,
             "save_every": 200, "eval_every": 200},
}
DEMO = Path("demo-data")


def flags() -> argparse.ArgumentParser:
    """The command line; None stands for the preset's value"""
    p = argparse.ArgumentParser(usage="%(prog)s [flags]; --help lists them",
                                description="Pre-train VATT from video files. Without flags: the demo, in minutes on 2 cores.")
    g = p.add_argument_group("data")
    g.add_argument("--data", nargs="+", metavar="[KIND=]PATH", help="folders of videos; kinds: howto100m, audioset, folder, "
                   "shards (of data.py pack), found out where not given (default: the demo's data, written to demo-data/)")
    g.add_argument("--weights", nargs="+", type=float, metavar="W", help="share of each source in a batch (default: equal)")
    g.add_argument("--val", metavar="PATH", help="held-out videos (default: 2%% of the files of --data, 1 to 200)")
    g.add_argument("--control", choices=("captions", "audio"), help="take these from another file: nothing can be learned")
    g = p.add_argument_group("model (defaults: the preset's)")
    g.add_argument("--preset", choices=vatt.PRESETS, default="demo", help="sizes of the model and recipe of the training")
    g.add_argument("--init", metavar="RUN", help="start from the weights of this run; positions are resized")
    g.add_argument("--frames", type=int, help="of a clip")
    g.add_argument("--fps", type=float, help="frames per second")
    g.add_argument("--size", type=int, help="height and width of a frame, pixels")
    g.add_argument("--patch", type=int, nargs=3, metavar=("T", "H", "W"), help="frames, rows and columns of a video patch")
    g.add_argument("--audio-input", choices=("waveform", "spectrogram"), help="Table 10")
    g.add_argument("--rate", type=int, help="of the sound, Hz")
    g.add_argument("--dropout", type=float, help="in the Transformers")
    g.add_argument("--vocabulary", type=int, help="words at most")
    g = p.add_argument_group("optimisation (defaults: the preset's)")
    g.add_argument("--steps", type=int, help="batches in all")
    g.add_argument("--batch", type=int, help="clips in a batch, over all processes")
    g.add_argument("--lr", type=float, help="Adam's learning rate after the warm-up")
    g.add_argument("--lr-end", type=float, help="and at the last step")
    g.add_argument("--warmup", type=int, help="steps")
    g.add_argument("--drop", type=float, nargs="+", metavar="SHARE", help="DropToken's share, of video and of audio")
    g.add_argument("--area", type=float, nargs=2, metavar=("MIN", "MAX"), help="of a crop, as a fraction of the frame")
    g.add_argument("--colour", type=float, nargs=4, metavar=("B", "S", "C", "H"),
                   help="largest change of brightness, saturation, contrast, hue")
    g.add_argument("--noise", type=float, help="in the sound, as a fraction of its maximum")
    loop.run_flags(p, "runs/demo, or runs/pretrain with --data", "retrieval")
    return p


def settings(argv: list[str] | None, processes: Processes) -> argparse.Namespace:
    """The flags, filled up from the preset and checked; ends with exit code 2 and one line where one cannot be"""
    p = flags()
    args = p.parse_args(argv)
    config, recipe = vatt.PRESETS[args.preset], RECIPES[args.preset]
    if args.lr is not None and args.lr_end is None:
        args.lr_end = args.lr * recipe["lr_end"] / recipe["lr"]
    if args.steps is not None and args.warmup is None:
        args.warmup = min(recipe["warmup"], args.steps // 10)
    loop.fill(args, {**recipe, "workers": min(recipe["workers"], os.cpu_count() or 1)}, vars(config))
    args.drop = tuple(args.drop) * (2 if len(args.drop) == 1 else 1)
    args.out = args.out or Path("runs/pretrain" if args.data else "runs/demo")
    loop.check(p, args, processes, {"batch": 2, "vocabulary": 3, "noise": 0}, ("fps", "lr", "lr_end"))
    if args.lr_end > args.lr:
        p.error(f"--lr-end {args.lr_end} is above --lr {args.lr}")
    if len(args.drop) != 2 or not all(0 <= d < 1 for d in args.drop):
        p.error(f"--drop takes one share or two (video, audio), each at least 0 and below 1, not {args.drop}")
    if args.weights and (len(args.weights) != len(args.data or [1]) or min(args.weights) <= 0):
        p.error(f"--weights needs one number above 0 for each of the {len(args.data or [1])} sources of --data")
    return args


# ------------------------------------------------------------------------------------------------------------------- data


def sources(args, run: Run, processes: Processes) -> tuple[list[data.Source], list[data.Source]]:
    """The training sources and those of the held-out clips; the first process writes their index beside the run"""
    if args.data is None and processes.first:
        demo.write(DEMO)
    processes.wait()
    trained = args.data or [str(DEMO / "train")]
    held = args.val or (None if args.data else str(DEMO / "val"))
    folders = []
    for number, text in enumerate([*trained, *([held] if held else [])]):
        folder = run.out / "index" / str(number)
        if processes.first and not (folder / "index.json").is_file():
            kind, root = layouts.parse_source(text)
            roots = [layouts.parse_source(other)[1].resolve() for other in trained]
            if number == len(trained) and any(other in root.resolve().parents for other in roots):
                raise ValueError(f"--val {held} lies inside --data and would be trained on: move it out")
            if number == len(trained) and any(root.resolve() in (other, *other.parents) for other in roots):
                print(f"warning: --val {held} holds films that are trained on: its scores are no held-out scores",
                      file=sys.stderr, flush=True)
            layouts.list_films(kind, root, folder, run.out / f"problems-{number}.txt")
        folders.append(folder)
    processes.wait()
    indexes = [index.Index(folder) for folder in folders]
    empty = np.empty(0, np.int64)
    weights = args.weights or [1.0] * len(trained)
    if held:
        train = [data.Source(i, empty, w) for i, w in zip(indexes, weights, strict=False)]
        whole = indexes[-1]
        return train, [data.Source(whole, np.arange(len(whole)))]
    train = [data.Source(i, index.held_out(i), w) for i, w in zip(indexes, weights, strict=True)]
    return train, train


def vocabulary(args, run: Run, train: list[data.Source], processes: Processes):
    """All words of the training captions, most frequent first (Section 3.1); written beside the run"""
    path = run.out / "vocabulary.txt"
    if processes.first and not path.is_file():
        texts = (text for source in train for text in source.index.texts(source.held))
        vatt.tokenize.Vocabulary.build(texts, args.vocabulary).save(path)
    processes.wait()
    return vatt.tokenize.Vocabulary.load(path)


# ------------------------------------------------------------------------------------------------------------------- main


def learning_rate(step: int, steps: int, lr: float, lr_end: float, warmup: int) -> float:
    """Linear warm-up to `lr`, then a quarter period of a cosine down to `lr_end` (Sections 4.1, A.2.4)."""
    # Paper: quarter period, the steps of the warm-up counted among all steps (official: half a period, 5k steps of warm-up).
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return lr_end + (lr - lr_end) * math.cos(math.pi / 2 * progress)


def main(argv: list[str] | None = None) -> None:
    """Set up, then one flat loop over the steps."""
    processes = Processes()
    args = settings(argv, processes)
    rank, world, device = processes.rank, processes.world, processes.device
    if args.dry_run and not processes.alone():
        return None
    scratch = tempfile.TemporaryDirectory() if args.dry_run else None

    with user_errors():
        # data
        run = Run(Path(scratch.name) if scratch else args.out)
        if processes.first:
            run.begin(loop.plain(args), loop.MAY_DIFFER)
        if run.results():
            processes.print(f"{args.out} is finished; another --out makes another run\n\n{table(run.results(), beside(args))}")
            return processes.end()
        train, held = sources(args, run, processes)
        words = vocabulary(args, run, train, processes)
        recipe = data.Recipe(args.frames, args.fps, args.size, args.rate, round(args.frames / args.fps * args.rate),
                             area=args.area, colour=args.colour, noise=args.noise, cache=args.cache, control=args.control)
        slots = Sampler([len(s) for s in train], [s.weight for s in train], args.batch, args.seed)
        clips = data.Clips(train, slots, recipe, words, args.seed)
        held_out = data.HeldOut(held, recipe._replace(control=None), words)

        # model
        torch.manual_seed(args.seed)
        names = ("frames", "fps", "size", "audio_input", "rate", "dropout")
        config = dataclasses.replace(vatt.PRESETS[args.preset], vocabulary=len(words), patch=tuple(args.patch),
                                     **{name: getattr(args, name) for name in names})
        model = vatt.VATT(config)
        state = run.newest()
        if args.init and not state:
            vatt.initialise(model, words, Path(args.init))
        loop.place(model, args, device)
        gradients = Step(model, processes, args.drop, args.chunk, args.precision, args.seed)
        # Official: eps 1e-7, no weight decay (the paper names Adam and its learning rate).
        optimizer = torch.optim.Adam(model.parameters(), args.lr, eps=1e-7, fused=device.type == "cuda" or None)
        first, bad = loop.resume(run, args, processes, model, optimizer, state, config.to_json())

    processes.print(f"{args.preset}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {args.precision} on "
                    f"{world} x {device.type}; {sum(map(len, train))} clips to train on, {len(held_out)} held out, "
                    f"{len(words)} words; batch {args.batch}, steps {first} to {args.steps}; {args.out}")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    waiting = local * loading.shared_memory(recipe.nbytes, args.batch // world, args.workers)
    if short := processes.first and loading.short_of_memory(waiting, args.workers):
        print(short, file=sys.stderr, flush=True)
    batches = loading.train_batches(clips, args.batch, rank, world, first, args.steps, args.workers, device, args.timeout)
    loader = lambda: loading.eval_batches(held_out, loading.HELD_OUT, rank, world, args.workers, args.timeout)
    if args.batch > sum(map(len, train)):
        processes.print("a batch is larger than the data: it holds some videos twice, and they are negatives of themselves")


    def held_out_recall(_step):
        scores = retrieval(model, loader(), processes, args.precision)
        return {task: scores[task]["R@10"] for task in TASKS}

    rate = lambda step: learning_rate(step, args.steps, args.lr, args.lr_end, args.warmup)
    with loop.reading(run, clips, held_out):
        if args.dry_run:
            batch, failed = loading.collate([clips[0, slot] for slot in range(min(8, args.batch))])
            for path, reason in failed:
                print(f"unreadable: {printable(path)}: {reason}")
            batch = loading.to_device(batch, device)
            return print(dry_run.report(gradients, batch, args.batch // world, args.steps, world, waiting))
        loop.train(args, run, processes, batches, first, bad, model, optimizer, rate, gradients, optimizer.step,
                   held_out_recall, lambda row: summary(row, args.batch))
        with loop.uncompiled(args):
            results = retrieval(model, loader(), processes, args.precision)
        if processes.first:
            run.add_results(results)
            print(f"\n{table(results, beside(args))}")
            if bad.names:
                print(bad)
            more = figures.curves(args.out) + vatt.share(model, args.out)
            print(f"\n{args.out}: results.json, metrics.jsonl, checkpoints{more}")
    processes.end()


def beside(args) -> dict[str, dict]:
    """For the demo, what knowing some attributes of a clip would give, to stand beside the scores"""
    if args.data or args.val or not (DEMO / "labels.csv").is_file():
        return {}
    return {name: scores for name, scores in demo.ceilings(demo.labels(DEMO)).items() if name.count("+") < 3}


def summary(row: dict, batch: int) -> str:
    """One line: each loss beside its value at chance, cosines of positive and negative pairs, scores where there are some"""
    chance = [losses.at_chance(batch, int(row[k] or 0)) for k in ("sounding", "captioned")]
    number = lambda k: "   nan" if row[k] is None else f"{row[k]:.2f}"
    line = (f"NCE {number('nce')} (chance {chance[0]:.2f}) MIL-NCE {number('mil_nce')} ({chance[1]:.2f}) "
            f"cos va {number('pos_va')}/{number('neg_va')} vt {number('pos_vt')}/{number('neg_vt')}")
    if "held_out" in row:
        line += " | held-out R@10 " + " ".join(f"{k} {100 * v:.0f}%" for k, v in row["held_out"].items()) + " |"
    return line


if __name__ == "__main__":
    main()
