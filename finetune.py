"""Tasks with labels (Sections 4.2.1 to 4.2.3, A.2.5, A.3, A.4): `python finetune.py` goes on from the demo.

    video, audio, image    the whole backbone is trained, from a pre-trained run or from scratch
    linear                 the backbone is frozen: a low-rank classifier or an SVM on its features

`--init RUN` starts from a run of pretrain.py, `--scratch` takes that run's model with random weights.
"""

import argparse
import contextlib
import csv
import dataclasses
import math
import os
import tempfile
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

import evaluate
import losses
import vatt
from engine import loading, loop
from engine.errors import Problems, fail, printable, user_errors
from engine.processes import Processes
from engine.run import Run
from engine.sampling import generator, key
from sources import demo, official
from sources.labelled import Labelled
from tools import dry_run, linear, views
from tools.classifier import READS, Classifier, pretrained, start_from
from tools.recipes import DEMO_RECIPES, RECIPES, SMALL

# The demo's classes and how many labelled clips of each it trains on: few, as labels are, and the same for both arms.
DEMO = {"video": (("texture", "rhythm"), 12), "audio": (tuple(demo.HEARD.split("+")), 2)}


def flags() -> argparse.ArgumentParser:
    """The command line; None stands for the value of the task's recipe"""
    p = argparse.ArgumentParser(usage="%(prog)s [flags]; --help lists them",
                                description="Train VATT for a task with labels. Without flags: goes on from runs/demo.")
    g = p.add_argument_group("task")
    g.add_argument("--task", choices=RECIPES, help="video, audio, image: fine-tune; linear: on a frozen backbone")
    g.add_argument("--data", metavar="[KIND=]PATH", help=f"labelled files; kinds: {', '.join(official.KINDS)}, csv; "
                   "found out where not given")
    g.add_argument("--split", "--fold", dest="part", type=fold, default=1, metavar="N", help="of the official ones, or all: "
                   "each, and the mean (default: 1)")
    g.add_argument("--allow-outside", action="store_true", help="a csv may name files that do not lie below its folder")
    g.add_argument("--modality", choices=("video", "audio", "image"), help="of a linear task (default: what the files are)")
    g.add_argument("--classifier", choices=("low-rank", "svm"), default="low-rank", help="of a linear task")
    g = p.add_argument_group("model (defaults: those of --init, else of --preset)")
    g.add_argument("--init", metavar="RUN", help="start from the weights of this run; positions are resized")
    g.add_argument("--scratch", action="store_true", help="start from random weights, of the model of --init where given")
    g.add_argument("--preset", choices=vatt.PRESETS, help="sizes of a model from scratch; demo: also shorter recipes")
    g.add_argument("--frames", type=int, help="of a view; a view of sound is as long as so many frames")
    g.add_argument("--fps", type=float, help="frames per second")
    g.add_argument("--size", type=int, help="height and width of a frame, pixels")
    g.add_argument("--rate", type=int, help="of the sound, Hz")
    g.add_argument("--patch", type=int, nargs=3, metavar=("T", "H", "W"), help="frames, rows and columns of a video patch")
    g.add_argument("--audio-input", choices=("waveform", "spectrogram"), help="Table 10")
    g.add_argument("--dropout", type=float, help="in the Transformer")
    g.add_argument("--classifier-dropout", type=float, metavar="SHARE", help="of what the classifier sees")
    g = p.add_argument_group("optimisation (defaults: the task's recipe)")
    g.add_argument("--steps", type=int, help="batches in all")
    g.add_argument("--epochs", type=float, help="in place of --steps: passes through the files")
    g.add_argument("--batch", type=int, help="clips in a batch, over all processes")
    g.add_argument("--lr", type=float, help="learning rate after the warm-up: of SGD, half a cosine down to 0; linear: of Adam")
    g.add_argument("--warmup", type=int, help="steps")
    g.add_argument("--clip", type=float, metavar="NORM", help="largest gradient of the backbone; 0: any")
    g.add_argument("--drop", type=float, metavar="SHARE", help="DropToken's share (Table 6)")
    g.add_argument("--smoothing", type=float, help="of labels")
    g.add_argument("--mixup", type=float, metavar="A", help="mix clips and labels, with shares from Beta(A, A); 0: none")
    g.add_argument("--balance", action=argparse.BooleanOptionalAction, help="several labels a clip: rare ones weigh more")
    g.add_argument("--area", type=float, nargs=2, metavar=("MIN", "MAX"), help="of a crop, as a fraction of the frame")
    g.add_argument("--flip", type=float, metavar="SHARE", help="of the clips that are mirrored")
    g.add_argument("--colour", type=float, nargs=4, metavar=("B", "S", "C", "H"),
                   help="largest change of brightness, saturation, contrast, hue")
    g.add_argument("--components", type=int, help="n of the low-rank classifier U V")
    g.add_argument("--sampled", type=int, help="of them a step")
    g.add_argument("--l2", type=float, help="penalty on V")
    g.add_argument("--svm-c", type=float, metavar="C", help="of the SVM")
    g = p.add_argument_group("test")
    g.add_argument("--windows", type=int, help="views of a file in time")
    g.add_argument("--crops", type=int, help="and in space, for each of them")
    loop.run_flags(p, "runs/demo-finetune, or runs/TASK with --task", "scores")
    return p


def fold(text: str) -> int | str:
    """A number of a split or fold, or "all" """
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no split or fold: write a number or all")
    return text if text == "all" else int(text)


def settings(argv: list[str] | None, processes: Processes) -> argparse.Namespace:
    """The flags, filled up from the task's recipe and the model, and checked; exit code 2 and one line where one cannot be"""
    p = flags()
    args = p.parse_args(argv)
    if not args.task:
        given = [name for name in vars(args) if getattr(args, name) != p.get_default(name) and name not in ("out", "seed")]
        if given:
            p.error(f"--{given[0].replace('_', '-')} needs --task, one of {', '.join(RECIPES)}; without flags it is the demo")
        return args
    if not args.data:
        p.error(f"--task {args.task} needs --data, a folder or csv of labelled files")
    if args.steps is not None and args.epochs is not None:
        p.error("--steps and --epochs both say how long: give one of them")
    if args.modality and args.task != "linear":
        p.error(f"--modality is of --task linear; --task {args.task} says it itself")
    if args.task == "linear" and not args.init:
        p.error("--task linear needs --init, the run whose backbone is frozen")
    with user_errors():
        config, preset = pretrained(Path(args.init)) if args.init else (vatt.PRESETS[args.preset or "demo"], "demo")
    args.preset = args.preset or preset
    recipe = dict((DEMO_RECIPES if args.preset == "demo" else RECIPES)[args.task])
    model = vars(config)
    if args.preset == "demo":
        for name in ("frames", "fps", "size", "rate"):
            recipe.pop(name, None)
    elif args.task == "linear":
        model = {k: v for k, v in model.items() if k != "fps"}  # known when it is known what the files are
    if args.steps is not None:
        recipe["epochs"] = None
        if args.warmup is None:
            args.warmup = min(recipe["warmup"], args.steps // 10)
    loop.fill(args, {**recipe, "workers": min(recipe["workers"], os.cpu_count() or 1)}, model)
    if args.epochs is not None:
        args.steps = 1  # known when the files are counted
    args.out = args.out or Path("runs") / args.task
    positive = ["lr", *(name for name in ("fps", "epochs") if getattr(args, name) is not None)]
    loop.check(p, args, processes, {"batch": 1, "windows": 1, "crops": 1, "clip": 0, "mixup": 0}, positive)
    for name in ("drop", "smoothing", "classifier_dropout", "flip"):
        if not 0 <= getattr(args, name) < 1 and not (name == "flip" and args.flip == 1):
            p.error(f"--{name.replace('_', '-')} must be at least 0 and below 1, not {getattr(args, name)}")
    if args.mixup and args.batch // processes.world % 2:
        p.error(f"--mixup mixes neighbours: --batch {args.batch} must divide by {2 * processes.world}")
    if args.task == "linear" and not (1 <= args.sampled <= args.components and args.l2 >= 0 and args.svm_c > 0):
        p.error("--sampled must be from 1 to --components, --l2 at least 0, --svm-c above 0")
    return args


# --------------------------------------------------------------------------------------------------------------- one run


def half_cosine(step: int, steps: int, lr: float, warmup: int) -> float:
    """Linear warm-up to `lr`, then half a period of a cosine down to 0 (Sections A.2.5, A.3)."""
    # Ours: at 0 from the end on (official: the cosine would climb again).
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr / 2 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


class SGD(torch.optim.Optimizer):
    """v <- momentum v - lr g, w <- w + v (Section A.2.5)."""

    # Official: the learning rate is inside of the momentum, as in Keras (torch has it outside: they part while it changes).
    def __init__(self, parameters, lr: float, momentum: float = 0.9):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        """One update of all parameters that have a gradient"""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                if "v" not in self.state[p]:
                    self.state[p]["v"] = torch.zeros_like(p)
                v = self.state[p]["v"]
                p.add_(v.mul_(group["momentum"]).sub_(p.grad, alpha=group["lr"]))


def listed(args: argparse.Namespace, out: Path, processes: Processes) -> tuple[Labelled, list[str]]:
    """The labelled files, listed by the first process, and what is wrong with the list; ValueError where they will not do"""
    problems: list[str] = []
    load = lambda: official.load(args.data, out / "index", problems, args.part, args.allow_outside)
    found = processes.collect(load() if processes.first else None)[0]
    if found.missing:
        problems.append(f"{len(found.missing)} of {sum(found.listed)} listed files are missing:")
    kind = found.kind if args.task == "linear" and not args.modality else args.modality or args.task
    if not found.classes:
        raise ValueError(f"--data {args.data} has captions, not classes: name data with labels")
    if not found.train or not found.test:
        raise ValueError(f"--data {args.data}: found {len(found.train)} files to train on and {len(found.test)} to test on, of "
                         f"{found.listed[0]} and {found.listed[1]} listed: it needs both")
    if found.kind not in READS[kind]:
        raise ValueError(f"--data {args.data} is {found.kind}, and --task {args.task} was to learn from {kind}: name other "
                         f"data, or another --task or --modality")
    return found._replace(kind=kind), [*problems, *found.missing]


def train(args: argparse.Namespace, processes: Processes) -> dict:
    """One run, from the flags to its scores"""
    world, device = processes.world, processes.device
    scratch = tempfile.TemporaryDirectory() if args.dry_run else None
    with user_errors():
        run = Run(Path(scratch.name) if scratch else args.out)
        if processes.first:
            run.claim()
        found, problems = listed(args, run.out, processes)
        config = pretrained(Path(args.init))[0] if args.init else vatt.PRESETS[args.preset]
        if args.epochs is not None:
            args.steps = max(1, math.ceil(args.epochs * len(found.train) / args.batch))
            if args.warmup in (RECIPES[args.task]["warmup"], SMALL["warmup"]):  # not chosen, and meant for more steps
                args.warmup = min(args.warmup, args.steps // 10)
        if args.fps is None:  # Section A.2.1: of video a stride of 2 at 25 fps, of sound what it was
            args.fps = 12.5 if found.kind == "video" else config.fps
        if found.kind == "image":
            args.frames = args.patch[0]
        if processes.first:
            run.begin(loop.plain(args), loop.MAY_DIFFER)
            told = Problems(run.out / "problems.txt")
            for line in problems:
                told.append(printable(line))
            told.warn()
        if args.task in run.results():
            scores = run.results()[args.task]
            processes.print(f"{args.out} is finished; another --out makes another run\n{table(scores, found)}\n")
            return scores
        kind, classes = found.kind, len(found.classes)
        recipe = views.Recipe(kind, args.frames, args.fps, args.size, args.rate, args.windows, args.crops, tuple(args.area),
                              tuple(args.colour), args.flip, args.mixup, args.cache)
        torch.manual_seed(args.seed)
        config = dataclasses.replace(config, patch=tuple(args.patch), **{name: getattr(args, name) for name in (
            "frames", "fps", "size", "audio_input", "rate", "dropout")})
        head = "low-rank" if args.task == "linear" and args.classifier == "low-rank" else "linear"
        model = Classifier(config, kind, found.classes, found.multi, head, args.classifier_dropout, args.components or 128)
        model.precision = args.precision
        state = run.newest()
        if state and run.read_config()["model"]["classes"] != list(found.classes):
            raise ValueError(f"--out {args.out} was trained on other classes than --data {args.data} has: name another folder")
        if args.init and not args.scratch and not state:
            start_from(model, Path(args.init))
        loop.place(model, args, device)
        fit = (linear.frozen if args.task == "linear" else fine_tune)(args, run, processes, found, recipe, model, state)

    processes.print(f"{args.task} {args.data}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, "
                    f"{'pre-trained' if args.init and not args.scratch else 'random'} at first, {args.precision} on {world} x "
                    f"{device.type}; {len(found.train)} of {found.listed[0]} listed clips to train on, "
                    f"{len(found.test)} of {found.listed[1]} to test on, {classes} classes; {args.out}")
    name = "mAP" if found.multi else "top-1"
    best = max((row["held_out"][name] for row in run.rows() if "held_out" in row), default=-1.0)

    def held_out(step):
        nonlocal best
        scores = evaluate.classify(fit.tested, fit.loader(), processes)
        if scores[name] > best:
            best = scores[name]
            if processes.first:
                run.save_best(step, model.state_dict())
        return {**scores, "best": best}

    with loop.reading(run, *fit.loaded):
        if args.dry_run:
            processes.print(dry_run.shapes(next(fit.steps["batches"])[0]) if fit.steps else "an SVM has no steps")
            return {}
        if fit.steps:
            loop.train(args, run, processes, model=model, summary=lambda row: summary(row, name), **fit.steps,
                       held_out=lambda step: {name: held_out(step)[name]})
        with loop.uncompiled(args):
            scores = held_out(args.steps)
    if not scores["N"]:
        fail(3, f"none of the {len(found.test)} files to test on could be read, first "
                + printable(": ".join(scores["unreadable"][0])))
    if processes.first:
        run.add_results({args.task: scores})
        more = vatt.share(model, args.out)
        print(table(scores, found) + f"\n{args.out}: results.json, metrics.jsonl, checkpoints{more}\n", flush=True)
        if fit.bad.names:
            print(fit.bad)
    return scores


def fine_tune(args, run, processes, found, recipe, model, state) -> loop.Fit:
    """The whole model by SGD on random views (Sections A.2.5, A.3)"""
    rank, world, device = processes.rank, processes.world, processes.device
    classes = len(found.classes)
    test = views.Testing(found.test, classes, recipe)
    loader = lambda: views.loader(test, max(1, args.batch // world), rank, world, args.workers, args.timeout)
    net = DistributedDataParallel(model, gradient_as_bucket_view=True) if world > 1 else model
    optimizer = SGD(model.parameters(), args.lr)
    first, bad = loop.resume(run, args, processes, model, optimizer, state, model.describe())
    training = views.Training(found.train, classes, recipe, args.batch, args.seed)
    batches = loading.train_batches(training, args.batch, rank, world, first, args.steps, args.workers, device, args.timeout)

    def gradients(batch: dict, step: int) -> dict[str, torch.Tensor]:
        x, y = views.inputs(batch["x"], batch["flip"], batch["colour"]), batch["y"].to(model.dtype)
        if args.mixup:
            x, y = losses.mixup(x, y, batch["mix"])
        weight = losses.balance(y, processes.add(y.sum(0))) if args.balance and found.multi else torch.ones_like(y[:, 0])
        total = torch.zeros((), dtype=model.dtype, device=device)
        for start in range(0, len(x), args.chunk or len(x)):
            part = slice(start, start + (args.chunk or len(x)))
            torch.manual_seed(key(args.seed, step, rank, start))  # dropout has no generator of its own
            # Gradients are averaged over processes once, after all chunks.
            with net.no_sync() if world > 1 and part.stop < len(x) else contextlib.nullcontext():
                logits = net(x[part], args.drop, batch["key"][part])
                if found.multi:
                    each = losses.multi_label(logits, y[part], weight[part])
                else:
                    each = losses.cross_entropy(logits, losses.smooth(y[part], args.smoothing))
                loss = each.sum() / len(x)
                loss.backward()
            total += loss.detach()
        return {"loss": processes.add(total) / world}

    def update():
        if args.clip:
            # Ours: after their mean over processes (official: those of each process).
            torch.nn.utils.clip_grad_norm_(model.backbone.parameters(), args.clip)
        optimizer.step()

    return loop.Fit(model, loader, (training, test), bad, dict(
        batches=batches, first=first, bad=bad, optimizer=optimizer, gradients=gradients, update=update,
        rate=lambda step: half_cosine(step, args.steps, args.lr, args.warmup)))


def summary(row: dict, name: str) -> str:
    """One line: the loss, and the score where there is one"""
    held = f" | held-out {name} {100 * row['held_out'][name]:.1f}% |" if "held_out" in row else ""
    return f"loss {'nan' if row['loss'] is None else round(row['loss'], 3)}" + held


def table(scores: dict, found: Labelled) -> str:
    """Scores in percent beside chance"""
    percent = lambda names, of: ", ".join(f"{k} {of[k] if 'prime' in k or k[:1] == 'd' else 100 * of[k]:.1f}" for k in names)
    names = ["mAP", "AUC", "d'", "d' of AUC"] if found.multi else ["top-1", "top-5"]
    line = f"{percent(names, scores)} of N = {scores['N']} (chance {percent(names[:2], scores['chance'])})"
    if scores["unreadable"]:
        path, reason = scores["unreadable"][0]
        line += f"; {len(scores['unreadable'])} could not be read and are not among them, first {printable(path)}: {reason}"
    return line


# ------------------------------------------------------------------------------------------------------------------- main


def main(argv: list[str] | None = None) -> None:
    """The demo, one run, or one for each official split or fold and their mean"""
    processes = Processes()
    args = settings(argv, processes)
    if args.dry_run and not processes.alone():
        return
    if not args.task:
        run_demo(args.out or Path("runs/demo-finetune"), args.seed, processes)
    elif args.part != "all":
        train(args, processes)
    else:
        with user_errors():
            parts = range(1, official.parts(args.data) + 1)
        each = [train(argparse.Namespace(**{**vars(args), "part": n, "out": args.out / f"part-{n}"}), processes) for n in parts]
        if processes.first and all(each):
            name = "mAP" if "mAP" in each[0] else "top-1"
            scores = [one[name] for one in each]
            mean = sum(scores) / len(scores)
            Run(args.out).add_results({args.task: {name: mean, "parts": scores, "chance": each[0]["chance"]}})
            print(f"{name} of each part: {', '.join(f'{100 * x:.1f}' for x in scores)}; their mean {100 * mean:.1f}")
    processes.end()


def run_demo(out: Path, seed: int, processes: Processes) -> None:
    """Linear classifiers and fine-tuning, each pre-trained beside not, of what is seen and of what is heard in the demo"""
    source, root = Path("runs/demo"), Path("demo-data")
    if not (source / "results.json").is_file() or not (root / "labels.csv").is_file():
        fail(2, f"there is no finished {source} with its {root}: python pretrain.py makes them")
    results = {}
    for task in ("linear", "finetune"):
        for kind, (names, each) in DEMO.items():
            path = out / f"{kind}.csv"
            if processes.first:
                out.mkdir(parents=True, exist_ok=True)
                write_demo(path, root, names, each, seed)
            processes.wait()
            start, scores = ["--data", f"csv={path}", "--allow-outside", "--init", str(source), "--seed", str(seed)], {}
            start += ["--task", "linear", "--modality", kind] if task == "linear" else ["--task", kind]
            other = "random" if task == "linear" else "scratch"
            for arm in ("pretrained", other):
                argv = [*start, "--out", str(out / f"{task}-{kind}-{arm}")] + ["--scratch"] * (arm == other)
                done = train(settings(argv, processes), processes)
                scores |= {arm: done["top-1"], "chance": done["chance"]["top-1"]}
            results[f"{task}_{kind}"] = {arm: scores[arm] for arm in ("pretrained", other, "chance")}
    if not processes.first:
        return
    Run(out).add_results(results)
    print(f"{'top-1 on held-out clips, percent':34}{'pre-trained':>12}{'not':>8}{'chance':>8}")
    for name, s in results.items():
        print(f"{name.replace('_', ' '):34}" + "".join(f"{100 * x:{12 if k == 'pretrained' else 8}.1f}" for k, x in s.items()))
    for kind, (names, each) in DEMO.items():
        print(f"{kind}: {' x '.join(names)}, at most {each} labelled clips of each combination, the same for both")
    print(f"not: features of a random network (linear), training from scratch (finetune)\n{out}: results.json, a folder a run")


def write_demo(path: Path, root: Path, names: tuple[str, ...], each: int, seed: int) -> None:
    """The demo's events as a csv of labels: all held-out ones, and `each` to train on of each combination of `names`"""
    rows = demo.labels(root)
    order = generator(seed).permutation(len(rows))
    taken: dict[str, int] = {}
    with open(path, "w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["path", "label", "start", "end", "split"])
        for row in (rows[i] for i in order):
            label = ", ".join(row[name] for name in names)
            if row["split"] == "train":
                taken[label] = taken.get(label, 0) + 1
                if taken[label] > each:
                    continue
            lines.writerow([os.path.relpath(root / row["path"], path.parent), label, row["start"], row["end"], row["split"]])


if __name__ == "__main__":
    main()
