"""Tasks with labels (Sections 4.2.1 to 4.2.3, A.2.5, A.3, A.4): `python finetune.py` goes on from the demo.

    video, audio, image    the whole backbone is trained, from a pre-trained run or from scratch
    linear                 the backbone is frozen: a low-rank classifier or an SVM on its features

`--init RUN` starts from a run of pretrain.py, `--scratch` takes that run's model with random weights.
"""

import engine.threads  # noqa: F401

import argparse
import contextlib
import dataclasses
import math
import os
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import evaluate
import losses
import vatt
from data import AREA, COLOUR, ClipSpec, Source, TestDataset, TrainDataset, augment
from engine import arguments, loading, loop
from engine.errors import fail, keep_speaking, printable, report, user_errors
from engine.processes import Processes
from engine.run import Run
from engine.sampling import Sampler, key
from sources import demo, official, pack
from sources.check import broken_files
from sources.index import Index
from sources.labelled import Labelled
from tools import dry_run, linear, tables
from tools.embed import Reading
from vatt import READS, Classifier, pretrained, start_from
from weights import files

# Official: gradients of the backbone clipped at 0.75, classifier dropout 0.5, and 2.5k steps of warm-up for images (the paper
# is silent).
PAPER = dict(clip=0.75, drop=0.0, smoothing=0.0, mixup=0.0, balance=False, area=AREA, flip=0.5,
             colour=COLOUR, windows=4, crops=1, workers=8, cache=0.0, save_every=1000, eval_every=10_000)
RECIPES = {
    # Section A.2.5.
    # Paper: 320 pixels and no token dropped (A.2.1; official: the defaults are 224, and half of the tokens dropped).
    # Paper: 100k steps on Moments in Time as on Kinetics (official: the released checkpoint of it had 150k).
    "video": {**PAPER, "steps": 100_000, "warmup": 2500, "batch": 64, "lr": 0.005, "smoothing": 0.1, "classifier_dropout": 0.5,
              "crops": 3, "frames": 32, "fps": 12.5, "size": 320},
    # Paper: a learning rate of 0.2 (A.3, in its published form; official: 0.005, that of video).
    # Ours: audio at 24 kHz is filtered before it is resampled (official: every other sample of 48 kHz).
    "audio": {**PAPER, "steps": 50_000, "warmup": 5000, "batch": 1024, "lr": 0.2, "mixup": 5.0, "balance": True,
              "classifier_dropout": 0.0, "frames": 64, "fps": 10.0, "rate": 24_000},
    # Section A.3.1.
    "image": {**PAPER, "epochs": 50.0, "warmup": 2500, "batch": 512, "lr": 0.08, "smoothing": 0.1, "classifier_dropout": 0.5,
              "size": 384},
    # Section A.3.2.
    # Paper: 50k steps (official: 1000 epochs).
    "linear": {**PAPER, "steps": 50_000, "warmup": 0, "batch": 64, "lr": 5e-4, "classifier_dropout": 0.0, "components": 128,
               "sampled": 13, "l2": 0.1, "svm_c": 1e-3},
}
# What the demo's model learns in a minute, from views as large and as long as those of its pre-training.
SMALL = dict(warmup=20, batch=32, clip=0.75, mixup=0.0, area=(0.6, 1.0), colour=(32 / 255, 0.0, 0.0, 0.0), windows=2, crops=1,
             workers=1, cache=1.0, save_every=100, eval_every=100, smoothing=0.1)
DEMO_RECIPES = {
    "video": {**RECIPES["video"], **SMALL, "steps": 300, "lr": 0.05},
    "audio": {**RECIPES["audio"], **SMALL, "steps": 300, "lr": 0.05},
    "image": {**RECIPES["image"], **SMALL, "epochs": None, "steps": 300, "lr": 0.05},
    "linear": {**RECIPES["linear"], **SMALL, "steps": 2000, "batch": 64, "warmup": 0, "eval_every": 2000, "save_every": 1000},
}
# The demo's classes and how many labelled clips of each it trains on: few, as labels are, and the same for both arms.
DEMO = {"video": (("texture", "rhythm"), 12), "audio": (tuple(demo.HEARD.split("+")), 2)}

MODEL = ("frames", "fps", "size", "rate", "patch", "audio_input", "dropout")  # flags of the model
CHOICES = dict.fromkeys(("task", "data", "init", "modality", "epochs", "components", "sampled", "l2", "svm_c")) | dict(
    part=1, scratch=False, allow_outside=False, classifier="low-rank")


def flags(values: dict | None = None) -> argparse.ArgumentParser:
    """The command line; `values` are those of the flags that are not given, for --help"""
    p = argparse.ArgumentParser(usage="%(prog)s [flags]; --help lists them", allow_abbrev=False,
                                argument_default=argparse.SUPPRESS,
                                description="Train VATT for a task with labels. Without flags: goes on from runs/demo.",
                                epilog="--task TASK --help shows the defaults of a task.")
    g = p.add_argument_group("task")
    g.add_argument("--task", choices=RECIPES, help="video, audio, image: fine-tune; linear: on a frozen backbone")
    g.add_argument("--data", metavar="[KIND=]PATH", help=f"labelled files; kinds: {', '.join(official.KINDS)}, "
                   "found out where not given")
    g.add_argument("--split", "--fold", dest="part", metavar="N", help="official split or fold; all: each, and "
                   "the mean")
    g.add_argument("--allow-outside", action="store_true", help="a csv may name files that do not lie below its folder")
    g.add_argument("--modality", choices=("video", "audio", "image"), help="what is read (default: what the files are)")
    g.add_argument("--classifier", choices=("low-rank", "svm"), help="what is trained on the features (A.3.2, A.4)")
    g = p.add_argument_group("model (defaults: those of --init, else of --preset)")
    arguments.model_flags(g, vatt.PRESETS)
    g.add_argument("--scratch", action="store_true", help="start from random weights, of the model of --init where given")
    g.add_argument("--classifier-dropout", type=arguments.share, metavar="SHARE", help="dropout before the classifier, a share")
    g = p.add_argument_group("optimisation")
    arguments.optimisation_flags(g, 1)
    g.add_argument("--epochs", type=arguments.positive, help="passes through the files, in place of --steps")
    g.add_argument("--lr", type=arguments.positive, help="learning rate of SGD after the warm-up; linear: of Adam, throughout")
    g.add_argument("--clip", type=arguments.amount, metavar="NORM", help="largest norm of the backbone's gradient; 0: any")
    g.add_argument("--drop", type=arguments.share, metavar="SHARE", help="share of the tokens that DropToken drops (Table 6)")
    g.add_argument("--smoothing", type=arguments.share, help="share of the labels that is spread over all classes")
    g.add_argument("--mixup", type=arguments.amount, metavar="A", help="mix clips and labels, shares from Beta(A, A); 0: none")
    g.add_argument("--balance", action=argparse.BooleanOptionalAction, help="of several labels, rare ones weigh more")
    g.add_argument("--flip", type=arguments.fraction, metavar="SHARE", help="share of the clips that are mirrored")
    g.add_argument("--components", type=arguments.count, help="components n of the low-rank classifier U V (A.3.2)")
    g.add_argument("--sampled", type=arguments.count, help="components that a step draws (A.3.2)")
    g.add_argument("--l2", type=arguments.amount, help="weight of the penalty on V")
    g.add_argument("--svm-c", type=arguments.positive, metavar="C", help="C of the SVM: the larger, the less regular (A.4)")
    g = p.add_argument_group("test")
    g.add_argument("--windows", type=arguments.count, help="views of a file in time (A.2.5)")
    g.add_argument("--crops", type=arguments.count, help="views in space, of each of those in time (A.2.5)")
    arguments.run_flags(p, "runs/demo-finetune, or runs/TASK with --task", "score")
    arguments.show_defaults(p, values or {})
    return p


def parse(argv: list[str] | None) -> dict:
    """The flags that are given; ends with exit code 2 and one line where one of them cannot be"""
    early = {"task": dict(choices=RECIPES), "preset": dict(choices=vatt.PRESETS), "init": {}}
    known = {name: value for name, how in early.items() if (value := arguments.peek(argv, f"--{name}", None, **how))}
    values = {}
    with contextlib.suppress(ValueError, KeyError):  # `settings` says what is wrong with --init
        values = defaults(known)
    p = flags(values)
    given = vars(p.parse_args(argv))
    if "task" not in known and (wrong := [name for name in given if name not in ("out", "seed")]):
        p.error(f"--{wrong[0].replace('_', '-')} needs --task, one of {', '.join(RECIPES)}; without flags it is the demo")
    return given


def defaults(given: dict) -> dict:
    """The values of all flags, by the task, and by the model of --init or --preset, of those given"""
    start = given.get("init")
    config, preset = pretrained(Path(start)) if start else (vatt.PRESETS[given.get("preset", "demo")], "demo")
    preset, model = given.get("preset", preset), {name: getattr(config, name) for name in MODEL}
    recipe = dict((DEMO_RECIPES if preset.startswith("demo") else RECIPES)[given["task"]])
    if preset.startswith("demo"):
        recipe = {name: value for name, value in recipe.items() if name not in ("frames", "fps", "size", "rate")}
    elif given["task"] == "linear":
        model["fps"] = None  # known when it is known what the files are
    if given.get("classifier") == "svm" and not preset.startswith("demo"):
        recipe["windows"] = 10  # and as many passes to train on (A.4)
    return {**CHOICES, **arguments.RUN, "out": Path("runs") / given["task"], "steps": None, **model, **recipe, "preset": preset,
            "workers": min(recipe["workers"], os.cpu_count() or 1)}


def settings(given: dict, processes: Processes) -> argparse.Namespace:
    """The values of all flags; ValueError where those given do not go together. Some are None until the files are known."""
    values, name = defaults(given), f"--task {given['task']}"
    if "steps" in given:
        values |= {"epochs": None, "warmup": min(values["warmup"], given["steps"] // 10)}
    elif given.get("epochs") or values["epochs"]:
        values |= {"steps": None, "warmup": None}
    s = argparse.Namespace(**{**values, **given})
    s.precision = s.precision or arguments.native_precision(processes.device)
    s.part = int(s.part) if str(s.part).isdecimal() else s.part
    wrong = {
        f"--split {s.part} is no split or fold: write a number or all": s.part != "all" and not isinstance(s.part, int),
        f"{name} needs --data, a folder or csv of labelled files": not s.data,
        "--steps and --epochs both say how long: give one of them": "steps" in given and "epochs" in given,
        f"--modality is of --task linear; {name} says it itself": s.modality and s.task != "linear",
        "--task linear needs --init, the run whose backbone is frozen": s.task == "linear" and not s.init,
        f"--batch {s.batch} must divide by the {processes.world} processes": s.batch % processes.world,
        f"--mixup mixes neighbours: --batch {s.batch} must divide by {2 * processes.world}":
            s.mixup and s.batch // processes.world % 2,
        f"--area must be 0 < MIN <= MAX <= 1, not {s.area}": not 0 < s.area[0] <= s.area[1],
        "--sampled must be from 1 to --components": s.task == "linear" and s.sampled > s.components,
    }
    for problem in (problem for problem, there in wrong.items() if there):
        raise ValueError(problem)
    return s


# --------------------------------------------------------------------------------------------------------------------- one run


def half_cosine(step: int, steps: int, lr: float, warmup: int) -> float:
    """Linear warm-up to `lr`, then half a period of a cosine down to 0 (Sections A.2.5, A.3)."""
    # Ours: at 0 from the end on (official: the cosine would climb again).
    # Ours: the first step has a rate, too (official: step / warmup, 0 at first).
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


class Task(NamedTuple):
    """What a training is given."""

    settings: argparse.Namespace
    run: Run
    processes: Processes
    data: Labelled
    spec: ClipSpec
    model: Classifier
    state: dict | None       # the newest checkpoint
    features: Path           # the folder that keeps those of a frozen backbone

    @property
    def metric(self) -> str:
        """The score that the best weights are chosen by"""
        return "mAP" if self.data.multi else "top-1"

    def files(self, rows: Index, spec: ClipSpec, kind: type[TestDataset] = TestDataset) -> TestDataset:
        """All views of the files of `rows`, but for those that have killed workers"""
        source = Source.to_test(rows, broken_files(self.settings.skip))
        return kind([source], spec, classes=len(self.data.classes), skip=self.run.killers())

    def clips(self) -> TrainDataset:
        """Random clips of the files to train on, but for those that have killed workers"""
        s, files = self.settings, Source.to_train(self.data.train, broken_files(self.settings.skip))
        return TrainDataset([files], Sampler([len(files)], [1.0], s.batch, s.seed), self.spec, s.seed,
                            classes=len(self.data.classes), skip=self.run.killers())

    def best(self, step: int, scores: dict) -> dict:
        """The scores after `step` steps, with the best one so far; its weights are kept in best.pt."""
        best = max((row["held_out"][self.metric] for row in self.run.rows() if "held_out" in row), default=-1.0)
        if scores[self.metric] > best and self.processes.first:
            self.run.write("best.pt", {"step": step, "model": self.model.state_dict()})
        return {**scores, "best": max(best, scores[self.metric])}

    def score(self, step: int, logits: torch.Tensor, targets: torch.Tensor, failed: list) -> dict:
        """`best` of what the classifier says (N, C) of the test files, whose classes are (N, C)"""
        return self.best(step, evaluate.score(self.model, logits, targets, failed))

    def line(self, row: dict) -> str:
        """The loss, and the score, where there is one, in a second line"""
        held = f"\nheld-out {self.metric} {100 * row['held_out'][self.metric]:.1f}%" if "held_out" in row else ""
        return f"loss {'nan' if row['loss'] is None else round(row['loss'], 3)}" + held


def train(s: argparse.Namespace, processes: Processes, features: Path | None = None) -> dict:
    """One run, from the settings to its scores; `features`: as of a Task, unasked that of the run."""
    with user_errors(), tempfile.TemporaryDirectory() if s.dry_run else contextlib.nullcontext(s.out) as out:
        processes.agree({f"--{name.replace('_', '-')}": value for name, value in vars(s).items()})
        run = Run(Path(out))
        if processes.first:
            run.claim()
        found = listed(s, run, processes)
        if s.task in run.results():
            scores = run.results()[s.task]
            processes.print(f"{s.out} is finished; another --out makes another run\n{tables.classes(scores)}\n")
            return scores
        loading.check_open_files(s.workers)
        spec = ClipSpec((found.kind,), s.frames, s.fps, s.size, s.rate, area=tuple(s.area), colour=tuple(s.colour),
                        flip=s.flip, mixup=s.mixup, windows=s.windows, crops=s.crops, cache=s.cache)
        if s.dry_run:
            if s.task == "linear":  # what takes time are the features, once
                train = spec.windows if s.classifier == "svm" else 1
                s.steps = math.ceil((train * len(found.train) + spec.views * len(found.test)) / s.batch)
            task = Task(s, run, processes, found, spec, None, None, run.out)
            dry_run.preview(lambda: build(s, found), task.clips(), s, processes)
            return {}
        task = Task(s, run, processes, found, spec, build(s, found), run.newest(), features or run.out)
        processes.print(f"{s.task} {s.data}: {sum(p.numel() for p in task.model.parameters()) / 1e6:.1f} M parameters, "
                        f"{'pre-trained' if s.init and not s.scratch else 'random'} at first, {s.precision} on "
                        f"{processes.world} x {processes.device.type}; {len(found.train)} of {found.listed[0]} listed clips to "
                        f"train on, {len(found.test)} of {found.listed[1]} to test on, {len(found.classes)} classes; {s.out}")
        if task.state and run.read_config()["model"]["classes"] != list(found.classes):
            raise ValueError(f"--out {s.out} was trained on other classes than --data {s.data} has: name another folder")
        if s.init and not s.scratch and not task.state:
            start_from(task.model, Path(s.init))
        loop.configure(task.model, s, processes.device)
        if processes.first and (slow := pack.advice([found.train])):
            processes.print(slow)
    return finish(task, *(linear.train if s.task == "linear" else fine_tune)(task))


def listed(s: argparse.Namespace, run: Run, processes: Processes) -> Labelled:
    """The labelled files, listed by the first process; completes the settings. ValueError where they will not do."""
    problems: list[str] = []
    found = official.load(s.data, run.out / "index", problems, s.part, s.allow_outside) if processes.first else None
    processes.wait()
    found = processes.collect(found)[0]
    kind = found.kind if s.task == "linear" and not s.modality else s.modality or s.task
    if not found.classes:
        raise ValueError(f"--data {s.data} has captions, not classes: name data with labels")
    if not found.train or not found.test:
        raise ValueError(f"--data {s.data}: found {len(found.train)} files to train on and {len(found.test)} to test on, of "
                         f"{found.listed[0]} and {found.listed[1]} listed: it needs both")
    if found.kind not in READS[kind]:
        raise ValueError(f"--data {s.data} is {found.kind}, and --task {s.task} was to learn from {kind}: name other "
                         f"data, or another --task or --modality")
    if s.steps is None:
        s.steps = max(1, math.ceil(s.epochs * len(found.train) / s.batch))
    if s.warmup is None:  # the recipe's is meant for more steps
        s.warmup = min(defaults(vars(s))["warmup"], s.steps // 10)
    if s.fps is None:  # Section A.2.1: of video a stride of 2 at 25 fps, of audio what it was
        s.fps = 12.5 if kind == "video" else pretrained(Path(s.init))[0].fps
    if kind == "image":
        s.frames = s.patch[0]
    s.files = found.digest
    if processes.first:
        if found.missing:
            problems += [f"{len(found.missing)} of {sum(found.listed)} listed files are missing:", *found.missing]
        saved = run.read_config()["settings"] if run.began else {"files": s.files}
        if saved.get("files", s.files) != s.files:
            problems.append(f"{s.data}: files, labels or times changed since the run began; it goes on with those of now")
        moved = saved.get("files") == s.files or os.path.realpath(saved.get("data") or "") == os.path.realpath(s.data)
        run.begin(vars(s), arguments.MAY_DIFFER | {"files"} | ({"data"} if moved else set()))
        report(list(map(printable, problems)), run.out / "problems.txt")
    processes.agree({"the checksum of --data": [zlib.crc32(rows.data["hashes"]) for rows in (found.train, found.test)]})
    return found._replace(kind=kind)


def build(s: argparse.Namespace, found: Labelled) -> Classifier:
    """The classifier, with random weights"""
    torch.manual_seed(s.seed)
    config = pretrained(Path(s.init))[0] if s.init else vatt.PRESETS[s.preset]
    config = dataclasses.replace(config, **{name: getattr(s, name) for name in MODEL if name != "patch"}, patch=tuple(s.patch))
    head = "low-rank" if s.task == "linear" and s.classifier == "low-rank" else "linear"
    model = Classifier(config, found.kind, found.classes, found.multi, head, s.classifier_dropout, s.components or 128)
    model.precision = s.precision
    model.backbone.requires_grad_(s.task != "linear")
    return model


def fine_tune(task: Task) -> tuple[dict, loop.FailureBudget]:
    """Train the whole model by SGD on random views (Sections A.2.5, A.3) -> its scores on the test files, the bad files"""
    s, run, processes, model = task.settings, task.run, task.processes, task.model
    clips, test = task.clips(), task.files(task.data.test, task.spec)
    with user_errors():
        net = DistributedDataParallel(model, gradient_as_bucket_view=True) if processes.world > 1 else model
        optimizer = SGD(model.parameters(), s.lr)
        training = loop.Training(run, processes, s, model, optimizer, task.state, len(task.data.train))
    batches = loading.train_batches(clips, s.batch, processes, training.first, s.steps, s.workers, s.timeout)
    how = Reading(processes, max(1, s.batch // processes.world), s.workers, timeout=s.timeout)
    score = lambda: evaluate.score(model, *evaluate.answers(model, how.batches(test), processes)[1:])
    with loop.explained(run), training:
        for step, batch in training.steps(batches):
            optimizer.param_groups[0]["lr"] = half_cosine(step, s.steps, s.lr, s.warmup)
            optimizer.zero_grad(set_to_none=True)
            row = loop.read({"loss": backward(net, batch, step, task)}, model)
            if training.finite(row):  # on all processes, or nothing changes on any
                if s.clip:
                    # Ours: after their mean over processes (official: those of each process).
                    nn.utils.clip_grad_norm_(model.backbone.parameters(), s.clip)
                optimizer.step()
            if training.due():
                with training.evaluation():
                    row["held_out"] = {task.metric: task.best(step + 1, score())[task.metric]}
            training.log(row, task.line(row))
            training.save()
        with training.evaluation():
            scores = task.best(s.steps, score())
    return scores, training.bad


def backward(net: nn.Module, batch: dict, step: int, task: Task) -> torch.Tensor:
    """The loss, a scalar, over all processes; its gradients are left in the model, chunk by chunk where --chunk says so."""
    s, processes, dtype = task.settings, task.processes, task.model.dtype
    x, y = augment(batch[task.model.kind], batch["flip"], batch["colour"]), batch["labels"].to(dtype)
    if s.mixup:
        x, y = losses.mixup(x, y, batch["mix"])
    weight = losses.balance(y, processes.add(y.sum(0))) if s.balance and task.data.multi else torch.ones_like(y[:, 0])
    total = torch.zeros((), dtype=dtype, device=processes.device)
    for start in range(0, len(x), s.chunk or len(x)):
        part = slice(start, start + (s.chunk or len(x)))
        torch.manual_seed(key(s.seed, step, processes.rank, start))  # dropout has no generator of its own
        # Gradients are averaged over processes once, after all chunks.
        with net.no_sync() if processes.world > 1 and part.stop < len(x) else contextlib.nullcontext():
            logits = net(x[part], s.drop, batch["keys"][part, 0])
            if task.data.multi:
                each = losses.multi_label(logits, y[part], weight[part])
            else:
                each = losses.cross_entropy(logits, losses.smooth(y[part], s.smoothing))
            loss = each.sum() / len(x)
            loss.backward()
        total += loss.detach()
    return processes.add(total) / processes.world


def finish(task: Task, scores: dict, bad: loop.FailureBudget) -> dict:
    """Write results.json and the weights to share, and print the scores; exit code 3 where no file could be tested on."""
    if not scores["N"]:
        fail(3, f"none of the {len(task.data.test)} files to test on could be read, first "
                + ": ".join(scores["unreadable"][0]))
    if task.processes.first:
        out = task.settings.out
        task.run.add_results({task.settings.task: scores})
        files.share(task.model, out)
        print(tables.classes(scores))
        tables.warn_unreadable(scores["unreadable"])
        print(f"{out}: results.json, metrics.jsonl, checkpoints, model.safetensors\n", flush=True)
        if bad.names:
            print(bad)
    return scores


# ------------------------------------------------------------------------------------------------------------------------ main


def main(argv: list[str] | None = None) -> None:
    """The demo, one run, or one for each official split or fold and their mean."""
    keep_speaking()
    with user_errors():
        processes = Processes(arguments.peek(argv, "--timeout", arguments.RUN["timeout"], type=arguments.positive))
        given = parse(argv)
        s = settings(given, processes) if "task" in given else None
        parts = range(1, official.parts(s.data) + 1) if s and s.part == "all" else []
    if s and s.dry_run and not processes.alone():
        return
    if not s:
        run_demo(given.get("out", Path("runs/demo-finetune")), given.get("seed", 0), processes)
    elif s.part != "all":
        train(s, processes)
    else:
        each = [train(argparse.Namespace(**{**vars(s), "part": n, "out": s.out / f"part-{n}"}), processes, s.out)
                for n in parts]
        if processes.first and all(each):
            name = "mAP" if "mAP" in each[0] else "top-1"
            scores = [one[name] for one in each]
            mean = sum(scores) / len(scores)
            Run(s.out).add_results({s.task: {name: mean, "parts": scores, "chance": each[0]["chance"]}})
            print(f"{name} of each part: {', '.join(f'{100 * x:.1f}' for x in scores)}; their mean {100 * mean:.1f}")
    processes.end()


def run_demo(out: Path, seed: int, processes: Processes) -> None:
    """Linear classifiers and fine-tuning, each pre-trained beside not, of what is seen and of what is heard in the demo."""
    source, root = Path("runs/demo"), Path("demo-data")
    if not (source / "results.json").is_file() or not (root / "labels.csv").is_file():
        fail(2, f"there is no finished {source} with its {root}: python pretrain.py makes them")
    results = {}
    for task in ("linear", "finetune"):
        for kind, (names, each) in DEMO.items():
            path = out / f"{kind}.csv"
            if processes.first:
                out.mkdir(parents=True, exist_ok=True)
                demo.write_labels(path, root, names, each, seed)
            processes.wait()
            given = {"data": f"csv={path}", "allow_outside": True, "init": str(source), "seed": seed, "workers": 0}
            given |= {"task": "linear", "modality": kind} if task == "linear" else {"task": kind}
            scores = results[f"{task}_{kind}"] = {}
            for arm in ("pretrained", "random" if task == "linear" else "scratch"):
                chosen = {**given, "out": out / f"{task}-{kind}-{arm}", "scratch": arm != "pretrained"}
                done = train(settings(chosen, processes), processes)
                scores[arm] = done["top-1"]
            scores["chance"] = done["chance"]["top-1"]
    if not processes.first:
        return
    Run(out).add_results(results)
    print(tables.tasks(results))
    for kind, (names, each) in DEMO.items():
        print(f"{kind}: {' x '.join(names)}, at most {each} labelled clips of each combination, the same for both")
    print(f"{out}: results.json, a folder a run")


if __name__ == "__main__":
    main()
