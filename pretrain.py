"""Pre-training (Sections 4.1, A.2.4): `python pretrain.py` is the demo, `torchrun ... pretrain.py --preset mbs` the paper.

One step is the loss of the whole batch of all processes, and its gradients (Section 3.4):

    raw batch -> backbones -> z_out ==== gathered from all processes, with gradient ==== heads -> NCE + lambda MIL-NCE

Heads and losses see the whole batch, so W processes compute what one computes. The backbones may see it chunk by chunk: first
without gradients, for z_out; then, when the gradient at z_out is known, again with gradients, each chunk its own part (Gao et
al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021). That is exact, because the batch norms
stand behind z_out, DropToken's choices come from keys, and dropout is seeded anew before each chunk.
"""

import engine.threads  # noqa: F401

import argparse
import contextlib
import dataclasses
import math
import os
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import data
import losses
import vatt
from engine import arguments, loading, loop
from engine.errors import keep_speaking, user_errors
from engine.processes import Processes
from engine.run import Run, lock
from engine.sampling import Sampler, key
from evaluate import retrieval
from sources import census, demo, index, pack
from sources.check import broken_files
from tools import dry_run, figures, tables
from vatt import pretrained
from weights import files

# Sections 4.1, A.2.1 and A.2.4.
# Official: Gaussian noise of 0.01 of the largest amplitude in the waveform (the paper is silent).
PAPER = dict(steps=500_000, batch=2048, lr=1e-4, lr_end=5e-5, warmup=10_000, drop=(0.5, 0.5), area=data.AREA,
             colour=data.COLOUR, noise=0.01, workers=8, cache=0.0, save_every=1000, eval_every=5000)
RECIPES = {
    **dict.fromkeys(("bbs", "mbs", "lbs", "ma"), PAPER),
    "sss": {**PAPER, "steps": 100_000, "batch": 128, "warmup": 2000},
    "demo": {**PAPER, "steps": 800, "batch": 64, "lr": 2e-3, "lr_end": 2e-5, "warmup": 40, "drop": (0.5, 0.75),
             "area": (0.8, 1.0), "colour": (32 / 255, 0.0, 0.0, 0.0), "noise": 0.0, "workers": 0, "cache": 1.0,
             "save_every": 200, "eval_every": 200},
}
RECIPES["demo-ma"] = {**RECIPES["demo"], "steps": 400}
MODEL = ("frames", "fps", "size", "patch", "audio_input", "audio_patch", "rate", "dropout", "vocabulary")  # flags of the model
DEMO = Path("demo-data")


def flags(values: dict | None = None) -> argparse.ArgumentParser:
    """The command line; `values` are those of the flags that are not given, for --help"""
    p = argparse.ArgumentParser(usage="%(prog)s [flags]; --help lists them", allow_abbrev=False,
                                argument_default=argparse.SUPPRESS,
                                description="Pre-train VATT from video files. Without flags: the demo, in minutes on 2 cores.")
    g = p.add_argument_group("data")
    g.add_argument("--data", nargs="+", metavar="[KIND=]PATH", help="folders of videos; kinds: howto100m, audioset, folder, "
                   "shards (of data.py pack), found out where not given (default: the demo's data, written to demo-data/)")
    g.add_argument("--weights", nargs="+", type=arguments.positive, metavar="W", help="share of each source in a batch "
                   "(default: equal)")
    g.add_argument("--val", metavar="PATH", help="held-out videos (default: 2%% of the files of --data, 1 to 200)")
    g.add_argument("--language", default="", metavar="NAME", help="of captions, where a video has several (en, pt-BR ..)")
    g.add_argument("--control", choices=("captions", "audio"), help="take these from another file: nothing can be learned")
    g = p.add_argument_group("model")
    arguments.model_flags(g, vatt.PRESETS)
    g.add_argument("--audio-patch", type=arguments.count, metavar="N", help="amplitudes of a patch of a waveform (Table 10)")
    g.add_argument("--vocabulary", type=arguments.number(int, 3), help="largest number of words")
    g = p.add_argument_group("optimisation")
    arguments.optimisation_flags(g, 2)
    g.add_argument("--lr", type=arguments.positive, help="Adam's learning rate after the warm-up")
    g.add_argument("--lr-end", type=arguments.positive, help="learning rate at the last step")
    g.add_argument("--drop", type=arguments.share, nargs="+", metavar="SHARE", help="share of the tokens that DropToken "
                   "drops, of video and of audio (3.1.1)")
    g.add_argument("--noise", type=arguments.amount, help="noise in the audio, as a fraction of its largest amplitude")
    arguments.run_flags(p, "runs/demo, or runs/pretrain with --data", "retrieval")
    arguments.show_defaults(p, values or {})
    return p


def start(init: str | None, preset: str) -> vatt.Config:
    """The model of --init where there is one, else the preset's; ValueError where --init is no run"""
    return pretrained(Path(init))[0] if init else vatt.PRESETS[preset]


def settings(argv: list[str] | None, processes: Processes) -> argparse.Namespace:
    """All flags, those not given with the preset's values; ends with exit code 2 and one line where one cannot be"""
    init = arguments.peek(argv, "--init", None)
    preset = arguments.peek(argv, "--preset", pretrained(Path(init))[1] if init else "demo", choices=vatt.PRESETS)
    recipe = RECIPES[preset]
    values = {**arguments.RUN, **dict.fromkeys(("data", "weights", "val", "control", "init")), **recipe,
              "preset": preset, **{name: getattr(start(init, preset), name) for name in MODEL},
              "vocabulary": vatt.PRESETS[preset].vocabulary, "workers": min(recipe["workers"], os.cpu_count() or 1)}
    if arguments.peek(argv, "--data", None, nargs="+"):  # a file of others may crash the process that decodes it
        values["workers"] = max(1, values["workers"])
    p = flags(values)
    given = vars(p.parse_args(argv))
    if "lr" in given:
        values["lr_end"] = given["lr"] * recipe["lr_end"] / recipe["lr"]
    if "steps" in given:
        values["warmup"] = min(recipe["warmup"], given["steps"] // 10)
    args = argparse.Namespace(**{"out": Path("runs/pretrain" if "data" in given else f"runs/{preset}"), **values, **given})
    args.drop = tuple(args.drop) * (2 if len(args.drop) == 1 else 1)
    args.precision = args.precision or arguments.native_precision(processes.device)
    if args.batch % processes.world:
        p.error(f"--batch {args.batch} must divide by the {processes.world} processes")
    if args.patch[0] > args.frames or max(args.patch[1:]) > args.size:
        p.error(f"--patch {' '.join(map(str, args.patch))} is larger than a clip of --frames {args.frames}, --size {args.size}")
    if args.audio_patch > args.frames / args.fps * args.rate or ("audio_patch" in given and args.audio_input != "waveform"):
        p.error(f"--audio-patch {args.audio_patch} is a part of a waveform of --frames / --fps x --rate amplitudes")
    if args.lr_end > args.lr:
        p.error(f"--lr-end {args.lr_end} is above --lr {args.lr}")
    if not 0 < args.area[0] <= args.area[1]:
        p.error(f"--area must be 0 < MIN <= MAX <= 1, not {args.area}")
    if len(args.drop) != 2:
        p.error(f"--drop takes one share or two (video, audio), not {args.drop}")
    if args.weights and len(args.weights) != len(args.data or [1]):
        p.error(f"--weights needs one number for each of the {len(args.data or [1])} sources of --data")
    return args


# ------------------------------------------------------------------------------------------------------------------- data


def sources(args, run: Run, processes: Processes) -> tuple[list[data.Source], list[data.Source]]:
    """The training sources and those of the held-out clips; the first process writes their index beside the run"""
    if args.data is None and processes.first:
        with lock(DEMO.with_name("demo-data.lock"), str(DEMO), wait=True):
            demo.write(DEMO)
    processes.wait()
    trained = args.data or [str(DEMO / "train")]
    held = args.val or (None if args.data else str(DEMO / "val"))
    if processes.first:
        census.settle(run.out, trained, held, args.language)
    processes.wait()
    indexes = list(map(index.Index, census.folders(run.out, trained, held)))
    weights, skip = args.weights or [1.0] * len(trained), broken_files(args.skip)
    if held:
        train = [data.Source(i, i.among(skip), w) for i, w in zip(indexes, weights, strict=False)]
        return train, [data.Source.to_test(indexes[-1], skip)]
    parts = [(i, index.held_out(i), i.among(skip), w) for i, w in zip(indexes, weights, strict=True)]
    return ([data.Source(i, np.union1d(rows, broken), w) for i, rows, broken, w in parts],
            [data.Source(i, np.setdiff1d(rows, broken)) for i, rows, broken, _ in parts])


def vocabulary(args, run: Run, train: list[data.Source], processes: Processes):
    """All words of the training captions, most frequent first (Section 3.1); written beside the run"""
    path, kind = run.out / "vocabulary.txt", vatt.VARIANTS[start(args.init, args.preset).variant].vocabulary
    if processes.first and not path.is_file():
        texts = (text for source in train for text in source.index.texts(source.held))
        (vatt.vocabulary(Path(args.init)) if kind.fixed else kind.build(texts, args.vocabulary)).save(path)
    processes.wait()
    return kind.load(path)


def datasets(args: argparse.Namespace, run: Run, processes: Processes) -> tuple:
    """-> the clips to train on, the held-out clips, the vocabulary"""
    train, held = sources(args, run, processes)
    words = vocabulary(args, run, train, processes)
    processes.agree({f"source {i} of --data, in rows and their checksum,": (len(s.index), zlib.crc32(s.index.data["hashes"]))
                     for i, s in enumerate(train)})
    c = start(args.init, args.preset)
    spec = data.ClipSpec(frames=args.frames, fps=args.fps, size=args.size, rate=args.rate, captions=c.captions, words=c.words,
                         area=args.area, colour=args.colour, noise=args.noise, cache=args.cache, control=args.control)
    sampler = Sampler([len(s) for s in train], [s.weight for s in train], args.batch, args.seed)
    more = {"vocabulary": words, "skip": run.killers()}
    return (data.TrainDataset(train, sampler, spec, args.seed, **more),
            data.TestDataset(held, spec._replace(control=None), **more), words)


# --------------------------------------------------------------------------------------------------------------------- one step


class Step:
    """Computes loss and gradients for a model on this process; wraps it for several processes where there are some."""

    def __init__(self, model: nn.Module, processes: Processes, drop: tuple[float, float], chunk: int | None = None,
                 precision: str = "fp32", seed: int = 0):
        self.model, self.processes, self.drop, self.chunk = model, processes, drop, chunk
        self.precision, self.seed = precision, seed
        wrap = lambda m: DistributedDataParallel(m, gradient_as_bucket_view=True) if processes.world > 1 else m
        self.backbones, self.heads = wrap(model.backbones), wrap(model.heads)

    def __call__(self, batch: dict, step: int) -> dict[str, torch.Tensor]:
        """This process's part of the batch, on the device -> what the log says, scalars; gradients are left in the model."""
        n = len(batch["video"])
        chunk = self.chunk or n
        starts = range(0, n, chunk)
        encode = lambda start: self.encode({k: v[start : start + chunk] for k, v in batch.items()}, step, start)
        if len(starts) == 1:
            loss, parts = self.contrast(*encode(0), batch["has_audio"], batch["has_text"])
            loss.backward()
            return parts
        with torch.no_grad():
            z = [torch.cat(part).requires_grad_() for part in zip(*map(encode, starts), strict=True)]
        loss, parts = self.contrast(*z, batch["has_audio"], batch["has_text"])
        loss.backward()
        for start in starts:
            last = start == starts[-1]  # gradients are averaged over processes once, after all chunks
            with contextlib.nullcontext() if last or self.processes.world == 1 else self.backbones.no_sync():
                torch.autograd.backward(encode(start), [part.grad[start : start + chunk] for part in z])
        return parts

    def encode(self, batch: dict, step: int, start: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Raw clips -> z_out of video (b, d), audio (b, d), text (b, K, d), the same whenever it is called for these clips"""
        torch.manual_seed(key(self.seed, step, self.processes.rank, start))  # dropout has no generator of its own
        dtype = self.model.heads.dtype
        video = data.augment(batch["video"], batch["flip"], batch["colour"]).to(dtype)
        with torch.autocast(video.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.backbones(video, batch["audio"].to(dtype), batch["text"], self.drop, batch["keys"])

    def contrast(self, z_video, z_audio, z_text, has_audio, has_text) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """z_out of this process -> this process's share of the loss, ready for backward, and the loss of all for the log"""
        p, b = self.processes, len(z_video)
        rows = slice(p.rank * b, (p.rank + 1) * b)
        z = [p.gather(x) for x in (z_video, z_audio, z_text)]                             # (B, d), (B, d), (B, K, d)
        has_audio, has_text = (p.gather(x.float()) > 0 for x in (has_audio, has_text))    # (B,), (B, K)
        z_v_va, z_a_va, z_v_vt, z_t_vt = self.heads(*z, has_audio, has_text)
        nce = losses.nce(z_v_va, z_a_va, has_audio=has_audio, rows=rows)
        mil_nce = losses.mil_nce(z_v_vt, z_t_vt, has_text, rows=rows)
        loss = losses.total(nce, mil_nce)
        with torch.no_grad():
            pos_va, neg_va = cosines(z_v_va, z_a_va[:, None], has_audio[:, None])
            pos_vt, neg_vt = cosines(z_v_vt, z_t_vt, has_text)
            shares = p.add(torch.stack([loss, nce, mil_nce]))
        parts = dict(zip(("loss", "nce", "mil_nce"), shares, strict=True), pos_va=pos_va, neg_va=neg_va, pos_vt=pos_vt,
                     neg_vt=neg_vt, sounding=has_audio.sum(), captioned=has_text.any(1).sum())
        return loss * p.world, parts  # DistributedDataParallel takes the mean over processes, the loss is the sum


def cosines(z_v: torch.Tensor, z: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cosine of positive and of negative pairs: equal where nothing is learned, both near 1 in a collapse.

    z_v (B, d), z (B, K, d), valid (B, K) bool -> two scalars
    """
    z_v, z = F.normalize(z_v, dim=-1), F.normalize(z, dim=-1) * valid[..., None]
    positive, n = torch.einsum("id,ikd->", z_v, z), valid.sum()
    every = z_v.sum(0) @ z.sum((0, 1))
    return positive / n.clamp(min=1), (every - positive) / (n * (len(z_v) - 1)).clamp(min=1)


def learning_rate(step: int, steps: int, lr: float, lr_end: float, warmup: int) -> float:
    """Linear warm-up to `lr`, then a quarter period of a cosine down to `lr_end` (Sections 4.1, A.2.4)."""
    # Paper: quarter period, the steps of the warm-up counted among all steps (official: half a period, 5k steps of warm-up).
    # Ours: the first step has a rate, too: (step + 1) / warmup of it (official: step / warmup, 0 at first).
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return lr_end + (lr - lr_end) * math.cos(math.pi / 2 * progress)


# ------------------------------------------------------------------------------------------------------------------------- main


def main(argv: list[str] | None = None) -> None:
    """One run, from the flags to its scores."""
    keep_speaking()
    with user_errors():
        processes = Processes(arguments.peek(argv, "--timeout", arguments.RUN["timeout"], type=arguments.positive))
        args = settings(argv, processes)
        if args.dry_run and not processes.alone():
            return
        scratch = tempfile.TemporaryDirectory() if args.dry_run else None
        run = Run(Path(scratch.name) if scratch else args.out)
        processes.agree({f"--{name.replace('_', '-')}": value for name, value in vars(args).items()})
        if processes.first:
            run.begin(vars(args), arguments.MAY_DIFFER | {"data", "val"})
        if run.results():
            processes.print(f"{args.out} is finished; another --out makes another run\n\n"
                            f"{tables.retrieval(run.results(), beside(args))}")
            return processes.end()
        loading.check_open_files(args.workers)
        if processes.device.type == "cpu" and not args.preset.startswith("demo"):
            processes.print(f"without a GPU --preset demo fits; --dry-run says how many days {args.preset} takes here")
        clips, held_out, words = datasets(args, run, processes)
        if args.dry_run:
            return dry_run.preview(lambda: build(args, words), clips, args, processes)
        model, state = build(args, words), run.newest()
        if args.init and not state:
            vatt.start_from(model, Path(args.init), words)
        loop.configure(model, args, processes.device)
        backward = Step(model, processes, args.drop, args.chunk, args.precision, args.seed)
        waiting = processes.local * loading.shared_memory(clips.spec.nbytes, args.batch // processes.world, args.workers)
        # Official: eps 1e-7, no weight decay (the paper names Adam and its learning rate).
        # Ours: torch adds eps after the correction of the second moment (official: before it, as Keras does).
        optimizer = torch.optim.Adam(model.parameters(), args.lr, eps=1e-7, fused=processes.device.type == "cuda" or None)
        training = loop.Training(run, processes, args, model, optimizer, state, sum(map(len, clips.sources)))
    introduce(args, processes, model, clips, held_out, words, training.first, waiting)

    def score_held_out() -> dict:
        batches = loading.eval_batches(held_out, loading.HELD_OUT, processes, args.workers, args.timeout)
        return retrieval(model, batches, processes, args.precision)

    batches = loading.train_batches(clips, args.batch, processes, training.first, args.steps, args.workers, args.timeout)
    with loop.explained(run), training:
        for step, batch in training.steps(batches):
            optimizer.param_groups[0]["lr"] = learning_rate(step, args.steps, args.lr, args.lr_end, args.warmup)
            optimizer.zero_grad(set_to_none=True)
            row = loop.read(backward(batch, step), model)
            if training.finite(row):  # on all processes, or nothing changes on any
                optimizer.step()
            if training.due():
                with training.evaluation():
                    row["held_out"] = {task: scores["R@10"] for task, scores in score_held_out().items()
                                       if task in tables.TASKS and scores["N"]}
            training.log(row, summary(row, args.batch))
            training.save()
        with training.evaluation():
            results = score_held_out()
        finish(args, run, processes, model, results, training.bad)


def build(args: argparse.Namespace, words: vatt.tokenize.Vocabulary) -> vatt.VATT:
    """The model, with random weights"""
    torch.manual_seed(args.seed)
    names = (name for name in MODEL if name not in ("patch", "vocabulary"))
    return vatt.VATT(dataclasses.replace(start(args.init, args.preset), vocabulary=len(words), patch=tuple(args.patch),
                                         **{name: getattr(args, name) for name in names}))


def introduce(args, processes: Processes, model: nn.Module, clips, held_out, words, first: int, waiting: int) -> None:
    """Say what is trained on what, and what of it may go wrong."""
    total, indexes = sum(map(len, clips.sources)), [source.index for source in clips.sources]
    processes.print(f"{args.preset}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {args.precision} on "
                    f"{processes.world} x {processes.device.type}; {total} clips to train on, {len(held_out)} held out, "
                    f"{len(words)} words; batch {args.batch}, steps {first} to {args.steps}; {args.out}")
    processes.print(census.captions(indexes))
    if processes.first:
        for line in filter(None, (loading.short_of_memory(waiting, args.workers), pack.advice(indexes))):
            print(line, file=sys.stderr, flush=True)
    if args.batch > total:
        processes.print("a batch is larger than the data: it holds some videos twice, and they are negatives of themselves")


def finish(args, run: Run, processes: Processes, model: vatt.VATT, results: dict, bad: loop.FailureBudget) -> None:
    """Write results.json, pictures and the weights to share; print the scores."""
    if processes.first:
        run.add_results(results)
        print(f"\n{tables.retrieval(results, beside(args))}")
        if bad.names:
            print(bad)
        files.share(model, args.out)
        curves = "curves.png" if figures.curves(args.out) else "pip install matplotlib draws curves.png too"
        print(f"\n{args.out}: results.json, metrics.jsonl, checkpoints, model.safetensors, {curves}")
    processes.end()


def beside(args) -> dict[str, dict]:
    """What the most telling one, two and three attributes of a clip of the demo would give; nothing for other data"""
    if args.data or args.val or not (DEMO / "labels.csv").is_file():
        return {}
    found = demo.ceilings(demo.labels(DEMO))
    most = {name.count("+"): name for name in sorted(found, key=lambda name: found[name]["R@1"])}
    return {most[n]: found[most[n]] for n in sorted(most)}


def summary(row: dict, batch: int) -> str:
    """One line: each loss beside its value at chance | cosines of positive and negative pairs, and scores in a second"""
    chance = [losses.at_chance(batch, int(row[k] or 0)) for k in ("sounding", "captioned")]
    number = lambda k: "nan" if row[k] is None else f"{row[k]:.2f}"
    line = (f"NCE {number('nce')}/{chance[0]:.2f}, MIL-NCE {number('mil_nce')}/{chance[1]:.2f} chance "
            f"| cos va {number('pos_va')}/{number('neg_va')} vt {number('pos_vt')}/{number('neg_vt')}")
    if row.get("held_out"):
        line += "\nheld-out R@10 " + " ".join(f"{k} {100 * v:.0f}%" for k, v in row["held_out"].items())
    return line


if __name__ == "__main__":
    main()
