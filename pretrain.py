"""Pre-training (Sections 4.1, A.2.4): `python pretrain.py` is the demo, `torchrun ... pretrain.py --preset mbs` the paper.

What one step computes stands in `step.py`; here are the flags, the data, and the loop.
"""

import argparse
import dataclasses
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import data
import datasets
import demo
import figures
import index
import losses
import vatt
from evaluate import TASKS, retrieval, table
from sampling import Slots
from step import Step
from subtitles import printable
from training import Processes, Run, Stop, fail, learning_rate, load_weights, mendable
from transformer import Transformer

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
MAY_DIFFER = {"out", "workers", "save_every", "eval_every", "max_bad", "compile", "recompute", "timeout"}


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
    g = p.add_argument_group("run")
    g.add_argument("--out", type=Path, help="folder of the run; the same command goes on in it (default: runs/demo, "
                   "or runs/pretrain with --data)")
    g.add_argument("--seed", type=int, default=0, help="of everything random")
    g.add_argument("--workers", type=int, help="processes that decode, for each process that trains")
    g.add_argument("--cache", type=float, metavar="GB", help="decoded videos kept in memory, in each of them; for small data")
    g.add_argument("--chunk", type=int, metavar="CLIPS", help="of a process that pass the backbones at a time; the batch may "
                   "then be larger than memory, with the same gradients")
    g.add_argument("--recompute", action="store_true", help="activations in the backward pass: less memory, more time")
    g.add_argument("--compile", action="store_true", help="torch.compile of the Transformers: a slow start, then faster")
    g.add_argument("--precision", choices=("fp32", "bf16", "fp64"), help="default: bf16 on a GPU that has it, else fp32")
    g.add_argument("--save-every", type=int, metavar="STEPS", help="a checkpoint; the last two are kept")
    g.add_argument("--eval-every", type=int, metavar="STEPS", help="retrieval on the held-out clips")
    g.add_argument("--max-bad", type=float, default=0.05, metavar="SHARE", help="of unreadable files among the last thousand, "
                   "past which the run stops; 1: never")
    g.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="that the workers may take for a batch; then "
                   "the run ends and names the file")
    g.add_argument("--dry-run", action="store_true", help="build everything, decode one batch, print it and leave")
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
    for name, value in vars(args).items():
        if value is None:
            if name in recipe:
                setattr(args, name, recipe[name])
            elif hasattr(config, name):
                setattr(args, name, getattr(config, name))
    args.drop = tuple(args.drop) * (2 if len(args.drop) == 1 else 1)
    args.out = args.out or Path("runs/pretrain" if args.data else "runs/demo")
    if args.precision is None:
        native = processes.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        args.precision = "bf16" if native else "fp32"
    for name, value in vars(args).items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if not all(math.isfinite(x) for x in numbers if isinstance(x, float)):
            p.error(f"--{name.replace('_', '-')} must be finite, not {value}")
    for name, least in (("steps", 1), ("batch", 2), ("frames", 1), ("size", 1), ("rate", 1), ("warmup", 0), ("workers", 0),
                        ("save_every", 1), ("eval_every", 1), ("vocabulary", 3), ("cache", 0), ("noise", 0), ("seed", 0)):
        if getattr(args, name) < least:
            p.error(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(args, name)}")
    for name in ("fps", "lr", "lr_end", "timeout"):
        if getattr(args, name) <= 0:
            p.error(f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}")
    if args.chunk is not None and args.chunk < 1:
        p.error(f"--chunk must be at least 1, not {args.chunk}")
    if args.batch % processes.world:
        p.error(f"--batch {args.batch} must divide by the {processes.world} processes")
    if args.lr_end > args.lr:
        p.error(f"--lr-end {args.lr_end} is above --lr {args.lr}")
    if len(args.drop) != 2 or not all(0 <= d < 1 for d in args.drop):
        p.error(f"--drop takes one share or two (video, audio), each at least 0 and below 1, not {args.drop}")
    if not 0 < args.area[0] <= args.area[1] <= 1:
        p.error(f"--area must be 0 < MIN <= MAX <= 1, not {args.area}")
    if not (0 <= args.dropout < 1 and 0 <= args.max_bad <= 1):
        p.error("--dropout must be at least 0 and below 1, --max-bad from 0 to 1")
    if min(args.patch) < 1 or min(args.colour) < 0:
        p.error("--patch needs three sizes of at least 1, --colour four numbers of at least 0")
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
            kind, root = datasets.parse_source(text)
            roots = [datasets.parse_source(other)[1].resolve() for other in trained]
            if text is held and any(other in root.resolve().parents for other in roots):
                raise ValueError(f"--val {held} lies inside --data and would be trained on: move it out")
            datasets.list_films(kind, root, folder, run.out / f"problems-{number}.txt")
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


def main(argv: list[str] | None = None) -> None:
    """Set up, then one flat loop over the steps."""
    processes = Processes()
    args = settings(argv, processes)
    rank, world, device = processes.rank, processes.world, processes.device
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}

    with mendable():
        # data
        scratch = tempfile.TemporaryDirectory()
        run = Run(Path(processes.collect(scratch.name)[0]) if args.dry_run else args.out)
        if processes.first:
            run.begin(plain, MAY_DIFFER)
        if run.results():
            processes.print(f"{args.out} is finished; another --out makes another run\n\n{table(run.results(), beside(args))}")
            return processes.end()
        train, held = sources(args, run, processes)
        words = vocabulary(args, run, train, processes)
        recipe = data.Recipe(args.frames, args.fps, args.size, args.rate, round(args.frames / args.fps * args.rate),
                             area=args.area, colour=args.colour, noise=args.noise, cache=args.cache, control=args.control)
        slots = Slots([len(s) for s in train], [s.weight for s in train], args.batch, args.seed)
        clips = data.Clips(train, slots, recipe, words, args.seed)
        held_out = data.HeldOut(held, recipe._replace(control=None), words)

        # model
        torch.manual_seed(args.seed)
        names = ("frames", "fps", "size", "audio_input", "rate", "dropout")
        config = dataclasses.replace(vatt.PRESETS[args.preset], vocabulary=len(words), patch=tuple(args.patch),
                                     **{name: plain[name] for name in names})
        model = vatt.VATT(config)
        state, first, bad = run.newest(), 0, data.Bad(args.max_bad)
        if args.init and not state:
            vatt.initialise(model, words, Path(args.init))
        model.to(device, torch.float64 if args.precision == "fp64" else torch.float32)
        for transformer in (m for m in model.modules() if isinstance(m, Transformer)):
            transformer.recompute = args.recompute
            if args.compile:
                transformer.compile()
        gradients = Step(model, processes, args.drop, args.chunk, args.precision, args.seed)
        # Official: eps 1e-7, no weight decay (the paper names Adam and its learning rate).
        optimizer = torch.optim.Adam(model.parameters(), args.lr, eps=1e-7, fused=device.type == "cuda" or None)

        # resume
        if state:
            load_weights(model, state["model"], str(args.out))
            optimizer.load_state_dict(state["optimizer"])
            first = state["step"]
        if len(set(processes.collect(first))) > 1:
            raise ValueError(f"--out {args.out}: processes read different checkpoints; name a folder that all machines share")
        if processes.first:
            run.forget(first)
            run.describe(plain, config.to_json())
        processes.wait()
        for row in run.rows():
            bad.add(args.batch, row.get("bad", []))

    processes.print(f"{args.preset}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {args.precision} on "
                    f"{world} x {device.type}; {sum(map(len, train))} clips to train on, {len(held_out)} held out, "
                    f"{len(words)} words; batch {args.batch}, steps {first} to {args.steps}; {args.out}")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if short := processes.first and data.shared_memory(recipe, args.batch // world, args.workers, local):
        print(short, file=sys.stderr, flush=True)
    batches = data.train_loader(clips, args.batch, rank, world, first, args.steps, args.workers, device.type == "cuda",
                                args.timeout)
    batches = data.ahead(batches, device)
    stop = Stop()
    loader = lambda: data.held_out_loader(held_out, 32, rank, world, args.workers, args.timeout)
    if args.batch > sum(map(len, train)):
        processes.print("a batch is larger than the data: it holds some videos twice, and they are negatives of themselves")
    bar = tqdm(total=args.steps, initial=first, unit="step", disable=not (processes.first and sys.stderr.isatty()))
    say = processes.print if bar.disable else bar.write
    in_a_row, started, last_said = 0, time.perf_counter(), time.perf_counter()
    model.train()
    try:
        for step in range(first, args.steps):
            began = time.perf_counter()
            batch, failed = next(batches)
            waited = time.perf_counter() - began
            if args.dry_run:
                processes.print("\n".join(f"{k:10} {tuple(v.shape)} {v.dtype}" for k, v in batch.items() if torch.is_tensor(v)))
                return processes.end()
            lr = learning_rate(step, args.steps, args.lr, args.lr_end, args.warmup)
            for group in optimizer.param_groups:
                group["lr"] = lr

            statistics = [b.clone() for b in model.buffers()]
            optimizer.zero_grad(set_to_none=True)
            parts = gradients({k: v for k, v in batch.items() if k != "path"}, step)
            parts["grad_norm"] = torch.nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
            row = dict(zip(parts, torch.stack([p.double() for p in parts.values()]).tolist(), strict=True))  # one read
            finite = all(map(math.isfinite, row.values()))
            asked, not_finite, any_failed = processes.sum(stop.code > 0, not finite, len(failed))

            row = {"step": step, "lr": lr, **{k: v if math.isfinite(v) else None for k, v in row.items()}}
            if not_finite:  # nothing changes on any process
                for b, before in zip(model.buffers(), statistics, strict=True):
                    b.copy_(before)
                row["not_finite"] = [path for part in processes.collect(batch["path"]) for path in part]
            else:
                optimizer.step()
            if any_failed:
                row["bad"] = [pair for part in processes.collect(failed) for pair in part]
                for path, reason in dict(row["bad"]).items():
                    if path not in bad.names:
                        say(f"unreadable, another clip in its place: {printable(path)}: {reason}")
            bad.add(args.batch, row.get("bad", []))
            in_a_row = in_a_row + 1 if not_finite else 0

            end = step + 1
            if end % args.eval_every == 0 and end < args.steps:
                scores = retrieval(model, loader(), processes, args.precision)
                row["held_out"] = {task: scores[task]["R@10"] for task in TASKS}
            took = time.perf_counter() - began
            row["time"] = {"clips_per_s": args.batch / took, "data_wait": waited / took}
            if processes.first:
                run.log(row)
            line = summary(row, args.batch)
            bar.set_postfix_str(line)
            bar.update()
            now = time.perf_counter()
            if "held_out" in row or (bar.disable and now - last_said > 15):
                last_said, left = now, (now - started) / (end - first) * (args.steps - end)
                say(f"step {end}/{args.steps}, {left / 60:.1f} min left, {line}")
            if in_a_row == 10:
                fail(3, f"ten losses or gradients in a row were not finite; the clips are in {args.out}/metrics.jsonl. "
                        f"Try a lower --lr than {args.lr} or a longer --warmup than {args.warmup}")
            if bad.too_many:
                fail(3, f"{bad}, more than --max-bad {args.max_bad} of the last thousand: "
                        + "; ".join(f"{printable(p)}: {r}" for p, r in list(bad.names.items())[:10]))
            saved = True
            if (end % args.save_every == 0 or end == args.steps or asked) and processes.first:
                saved = run.save(end, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
            if asked:
                bar.close()
                if not saved:
                    fail(3, f"stopped at step {end} and NOT saved; {args.out} goes on from its last checkpoint")
                say(f"stopped at step {end}, saved in {args.out}; the same command goes on")
                processes.end()
                sys.exit(stop.code or 143)
        results = retrieval(model, loader(), processes, args.precision)
    except data.TooManyBad as e:
        why = printable(str(e).strip().splitlines()[-1].removeprefix("data.TooManyBad: "))
        fail(2 if run.rows() == [] else 3, why)
    except RuntimeError as e:
        if why := data.lost(e, clips, held_out):
            fail(3, f"{printable(why)}. The same command goes on; without that file, if it is to blame")
        raise
    bar.close()

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
    """One line: each loss beside its value at chance, cosines of positive and negative pairs, speed, time spent waiting"""
    chance = [losses.at_chance(batch, int(row[k] or 0)) for k in ("sounding", "captioned")]
    number = lambda k: "   nan" if row[k] is None else f"{row[k]:.2f}"
    line = (f"NCE {number('nce')} (chance {chance[0]:.2f}) MIL-NCE {number('mil_nce')} ({chance[1]:.2f}) "
            f"cos va {number('pos_va')}/{number('neg_va')} vt {number('pos_vt')}/{number('neg_vt')} "
            f"{row['time']['clips_per_s']:.0f} clips/s, waiting {100 * row['time']['data_wait']:.0f}%"
            + (" (for data: raise --workers)" if row["time"]["data_wait"] > 0.5 else ""))
    if "held_out" in row:
        line += " | held-out R@10 " + " ".join(f"{k} {100 * v:.0f}%" for k, v in row["held_out"].items())
    return line


if __name__ == "__main__":
    main()
