"""What pretrain.py and finetune.py share: flags of a run, its resumption, and the loop with every way in which it may end."""

import argparse
import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

import data
from engine import loading
from engine.errors import fail, printable
from engine.processes import Processes
from engine.run import Run, load_weights
from transformer import Transformer

# ------------------------------------------------------------------------------------------------------------------ flags


def run_flags(p: argparse.ArgumentParser, out: str, scored: str) -> None:
    """The group of flags that say how a run goes, not what it learns"""
    g = p.add_argument_group("run")
    g.add_argument("--out", type=Path, help=f"folder of the run; the same command goes on in it (default: {out})")
    g.add_argument("--seed", type=int, default=0, help="of everything random")
    g.add_argument("--workers", type=int, help="processes that decode, for each process that trains")
    g.add_argument("--cache", type=float, metavar="GB", help="decoded videos kept in memory, in each of them; for small data")
    g.add_argument("--chunk", type=int, metavar="CLIPS", help="of a process that pass the backbones at a time; the batch may "
                   "then be larger than memory, with the same gradients")
    g.add_argument("--recompute", action="store_true", help="activations in the backward pass: less memory, more time")
    g.add_argument("--compile", action="store_true", help="torch.compile of the Transformers: a slow start, then faster")
    g.add_argument("--precision", choices=("bf16", "tf32", "fp32", "fp64"),
                   help="of the matmuls in the Transformers; tf32: of all (default: bf16 on a GPU that has it, else fp32)")
    g.add_argument("--save-every", type=int, metavar="STEPS", help="a checkpoint; the last two are kept")
    g.add_argument("--eval-every", type=int, metavar="STEPS", help=f"{scored} on the held-out clips")
    g.add_argument("--max-bad", type=float, default=0.05, metavar="SHARE", help="of unreadable files among the last thousand, "
                   "past which the run stops; 1: never")
    g.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="that a worker may take for its clips; then "
                   "the run ends and names the file")
    g.add_argument("--dry-run", action="store_true", help="build everything, decode some clips, print what the run "
                   "would take, and leave")


MAY_DIFFER = {"out", "allow_outside", "workers", "save_every", "eval_every", "max_bad", "compile", "recompute", "timeout"}


def fill(args: argparse.Namespace, *defaults: dict) -> None:
    """Gives each flag that is None the value of the first of `defaults` that has one"""
    for name, value in vars(args).items():
        if value is None:
            setattr(args, name, next((d[name] for d in defaults if name in d), None))


def check(p: argparse.ArgumentParser, args: argparse.Namespace, processes: Processes, least: dict, positive: tuple) -> None:
    """Ends with exit code 2 and one line where a number cannot be; chooses the precision where none is given."""
    if args.precision is None:
        native = processes.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        args.precision = "bf16" if native else "fp32"
    for name, value in vars(args).items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if not all(math.isfinite(x) for x in numbers if isinstance(x, float)):
            p.error(f"--{name.replace('_', '-')} must be finite, not {value}")
    least = {"steps": 1, "frames": 1, "size": 1, "rate": 1000, "warmup": 0, "workers": 0, "save_every": 1, "eval_every": 1,
             "cache": 0, "seed": 0, **least}
    for name, bound in least.items():
        if getattr(args, name) < bound:
            p.error(f"--{name.replace('_', '-')} must be at least {bound}, not {getattr(args, name)}")
    for name in (*positive, "timeout"):
        if getattr(args, name) <= 0:
            p.error(f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}")
    if (args.fps or 0) > 240 or args.seed >= 2**63:
        p.error(f"--fps is at most 240, --seed below 2^63, not {args.fps} and {args.seed}")
    if args.chunk is not None and args.chunk < 1:
        p.error(f"--chunk must be at least 1, not {args.chunk}")
    if args.batch % processes.world:
        p.error(f"--batch {args.batch} must divide by the {processes.world} processes")
    if not (0 <= args.dropout < 1 and 0 <= args.max_bad <= 1):
        p.error("--dropout must be at least 0 and below 1, --max-bad from 0 to 1")
    if not 0 < args.area[0] <= args.area[1] <= 1:
        p.error(f"--area must be 0 < MIN <= MAX <= 1, not {args.area}")
    if min(args.patch) < 1 or min(args.colour) < 0:
        p.error("--patch needs three sizes of at least 1, --colour four numbers of at least 0")


def plain(args: argparse.Namespace) -> dict:
    """The flags as JSON holds them"""
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}


# ------------------------------------------------------------------------------------------------------- how a run ends


class GracefulShutdown:
    """SIGTERM or Ctrl-C asks the loop to save and leave; a second Ctrl-C leaves at once."""

    def __init__(self):
        self.code = 0
        self.before = {s: signal.signal(s, self.ask) for s in (signal.SIGTERM, signal.SIGINT)}

    def end(self) -> None:
        """Signals do again what they did before: nothing is left to save"""
        for s, handler in self.before.items():
            signal.signal(s, handler)

    def ask(self, number, _frame) -> None:
        """The handler; it only sets a flag, because a checkpoint needs the end of a step"""
        # torchrun and the terminal may both send the first one, and torchrun sends SIGTERM again to those that still save.
        if self.code and number == signal.SIGINT and time.monotonic() - self.asked > 0.2:
            os._exit(128 + number)
        if not self.code:
            self.code, self.asked = 128 + number, time.monotonic()


# -------------------------------------------------------------------------------------------------------------- a run


def place(model: nn.Module, args: argparse.Namespace, device: torch.device) -> None:
    """Moves the model to the device in its precision; recomputation and compilation as the flags say"""
    torch.set_float32_matmul_precision("high" if args.precision == "tf32" else "highest")
    if args.compile:  # three towers share their code, and each has its number of tokens and the size of its last chunk
        torch._dynamo.config.recompile_limit = 32
    if args.chunk:  # cuDNN's attention takes a learned mask only without gradients: the second pass would drop out others
        torch.backends.cuda.enable_cudnn_sdp(False)
    model.to(device, torch.float64 if args.precision == "fp64" else torch.float32)
    for transformer in (m for m in model.modules() if isinstance(m, Transformer)):
        transformer.recompute = args.recompute
        if args.compile:
            transformer.compile(dynamic=False)


def uncompiled(args: argparse.Namespace):
    """Around evaluations, whose batches have other sizes: what is compiled for training runs as it is written"""
    return torch.compiler.set_stance("force_eager") if args.compile else contextlib.nullcontext()


def resume(run: Run, args: argparse.Namespace, processes: Processes, model: nn.Module, optimizer, state: dict | None,
           description: dict) -> tuple[int, data.Bad]:
    """Puts model, optimizer and log where the checkpoint `state` has them -> the first step, the unreadable files so far"""
    first, bad = 0, data.Bad(args.max_bad)
    if state:
        load_weights(model, state["model"], str(run.out))
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    if len(set(processes.collect(first))) > 1:
        raise ValueError(f"--out {args.out}: processes read different checkpoints; name a folder that all machines share")
    if processes.first:
        run.forget(first)
        run.describe(plain(args), description)
    processes.wait()
    for row in run.rows():
        bad.add(args.batch, row.get("bad", []))
    return first, bad


@contextlib.contextmanager
def reading(run: Run, *loaded):
    """Around all that loads batches: data that cannot be trusted, and workers that die or hang, end the process in one line.

    loaded: the data sets of the loaders, which know what the workers had in hand.
    """
    try:
        yield
    except data.TooManyBad as e:
        why = printable(str(e).strip().splitlines()[-1].removeprefix("data.TooManyBad: "))
        fail(3 if any(run.rows()) else 2, why)
    except RuntimeError as e:
        if why := loading.worker_error(e, *loaded):
            fail(3, f"{printable(why)}. The same command goes on; without that file, if it is to blame")
        raise
    except OSError as e:
        fail(3, f"{e}; when {run.out} can be written again, the same command goes on from its last checkpoint")


class Fit(NamedTuple):
    """How a classifier is trained and tested."""

    tested: nn.Module       # what `evaluate.classify` tests
    loader: Callable        # () -> the batches that it tests on
    loaded: tuple           # the data sets of its loaders
    bad: data.Bad           # files that could not be read
    steps: dict             # what `train` is given; nothing where there are no steps


def train(args: argparse.Namespace, run: Run, processes: Processes, batches: Iterator, first: int, bad: data.Bad,
          model: nn.Module, optimizer, rate: Callable[[int], float], gradients: Callable, update: Callable[[], object],
          held_out: Callable[[int], dict], summary: Callable[[dict], str]) -> None:
    """One flat loop over the steps `first` to args.steps; the last one is saved.

    rate(step): the learning rate. gradients(batch, step): leaves them in the model -> what the log says, scalars. update():
    changes the weights. held_out(steps done): scores for the log. summary(row): a line for people. Ends the process after a
    signal and where data or numbers went wrong.
    """
    stop = GracefulShutdown()
    bar = tqdm(total=args.steps, initial=first, unit="step", disable=not (processes.first and sys.stderr.isatty()))
    say = processes.print if bar.disable else bar.write
    in_a_row, started, last_said = 0, time.perf_counter(), time.perf_counter()
    model.train()
    for step in range(first, args.steps):
        began = time.perf_counter()
        batch, failed = next(batches)
        waited = time.perf_counter() - began
        lr = rate(step)
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
            update()
        if any_failed:
            row["bad"] = [pair for part in processes.collect(failed) for pair in part]
            for path, reason in dict(row["bad"]).items():
                if path not in bad.names:
                    say(f"unreadable, another clip in its place: {printable(path)}: {reason}")
        bad.add(args.batch, row.get("bad", []))
        in_a_row = in_a_row + 1 if not_finite else 0

        end = step + 1
        if end % args.eval_every == 0 and end < args.steps:
            with uncompiled(args):
                row["held_out"] = held_out(end)
            asked += processes.sum(stop.code > 0)[0]
        took = time.perf_counter() - began
        row["time"] = {"clips_per_s": args.batch / took, "data_wait": waited / took}
        if processes.first:
            run.log(row)
        line = summary(row) + (f" {row['time']['clips_per_s']:.0f} clips/s, waiting {100 * row['time']['data_wait']:.0f}%"
                               + (" (for data: raise --workers)" if row["time"]["data_wait"] > 0.5 else ""))
        bar.set_postfix_str(line)
        bar.update()
        now = time.perf_counter()
        if "held_out" in row or (bar.disable and now - last_said > 15):
            last_said, left = now, (now - started) / (end - first) * (args.steps - end)
            say(f"step {end}/{args.steps}, {left / 60:.1f} min left, {line}")
        if in_a_row == 10:
            fail(3, f"ten losses or gradients in a row were not finite; the clips are in {run.out}/metrics.jsonl. "
                    f"Try a lower --lr than {args.lr} or a longer --warmup than {args.warmup}")
        if bad.too_many:
            fail(3, f"{bad}, more than --max-bad {args.max_bad} of the last thousand: "
                    + "; ".join(f"{printable(p)}: {r}" for p, r in list(bad.names.items())[:10]))
        saved = True
        if (end % args.save_every == 0 or end == args.steps or asked) and processes.first:
            saved = run.save(end, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        if asked:
            bar.close()
            processes.wait()  # torchrun ends all as soon as one has ended
            if not saved:
                fail(3, f"stopped at step {end} and NOT saved; {run.out} goes on from its last checkpoint")
            say(f"stopped at step {end}, saved in {run.out}; the same command goes on")
            processes.end()
            sys.exit(stop.code or 143)
    batches.close()  # its workers have nothing left to do
    bar.close()
    stop.end()
