"""What the loops of pretrain.py and finetune.py call: all that stands around a step of training."""

import argparse
import collections
import contextlib
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator

import torch
from torch import nn
from tqdm import tqdm

from engine.errors import TooManyBad, WorkerError, fail, printable
from engine.loading import Batches
from engine.processes import GracefulShutdown, Processes, Stopped
from engine.run import Run, load_weights

# ------------------------------------------------------------------------------------------------------------------ model


def configure(model: nn.Module, settings: argparse.Namespace, device: torch.device) -> nn.Module:
    """The model on the device in its precision, with recomputation and compilation as the settings say."""
    torch.set_float32_matmul_precision("high" if settings.precision == "tf32" else "highest")
    if settings.compile:  # three towers share their code, and each has its number of tokens and the size of its last chunk
        torch._dynamo.config.recompile_limit = 32
    if settings.chunk:  # cuDNN's attention takes a learned mask only without gradients: the second pass would drop out others
        torch.backends.cuda.enable_cudnn_sdp(False)
    model.to(device, torch.float64 if settings.precision == "fp64" else torch.float32)
    for transformer in (m for m in model.modules() if hasattr(m, "recompute")):
        transformer.recompute = settings.recompute
        if settings.compile:
            transformer.compile(dynamic=False)
    return model


def read(parts: dict[str, torch.Tensor], model: nn.Module) -> dict[str, float]:
    """The scalars of a step and the norm of its gradients as numbers, in one read from the device"""
    norm = torch.nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
    parts = {**parts, "grad_norm": norm}
    return dict(zip(parts, torch.stack([x.double() for x in parts.values()]).tolist(), strict=True))


# --------------------------------------------------------------------------------------------------------------- training


class FailureBudget:
    """Files that could not be read, each named once and counted by reason; more than a share `most` of those seen end a run.

    files: how many there are in all; as many draws see each of them, since none comes again before all have come.
    """

    def __init__(self, most: float, files: int):
        self.most, self.files, self.reasons, self.names, self.draws = most, files, collections.Counter(), {}, 0

    def add(self, served: int, failed: list[tuple[str, str]]) -> None:
        """Count a step: clips served, files that failed on the way."""
        self.draws += served + len(failed)
        self.reasons.update(reason for _, reason in failed)
        for path, reason in failed:
            self.names.setdefault(path, reason)

    @property
    def too_many(self) -> str:
        """What to tell where more than `most` are bad, judged once five draws are, else ''"""
        if self.reasons.total() < 5 or len(self.names) <= self.most * (seen := min(self.draws, self.files)):
            return ""
        return (f"{len(self.names)} of some {seen} files seen could not be read, more than --max-bad {self.most} of them: "
                f"python data.py check DATA lists all in broken.csv, and --skip broken.csv leaves them out; "
                + "; ".join(f"{printable(path)}: {reason}" for path, reason in list(self.names.items())[:10]))

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in self.reasons.most_common())
        return f"{self.reasons.total()} draws of {len(self.names)} unreadable files ({reasons})"


@contextlib.contextmanager
def explained(run: Run) -> Iterator[None]:
    """Around work with files: what goes wrong with data, workers or the disk ends the process in one line."""
    try:
        yield
    except TooManyBad as error:
        fail(3 if any(run.rows()) else 2, str(error))
    except WorkerError as error:
        fail(3, f"{error}; {run.blame(error.path) if error.path else 'the same command goes on'}")
    except OSError as error:
        fail(3, f"{error}; when {run.out} can be written again, the same command goes on")


class Training:
    """A training that goes on where the run's last checkpoint ends: its steps, its log, its checkpoints, and how it may end.

    As a context it ends the process after a signal, with what was saved.
    settings: steps, batch and the flags of a run. state: the checkpoint, or None. files: to train on.
    """

    def __init__(self, run: Run, processes: Processes, settings: argparse.Namespace, model: nn.Module,
                 optimizer: torch.optim.Optimizer, state: dict | None, files: int):
        self.run, self.processes, self.settings, self.model, self.optimizer = run, processes, settings, model, optimizer
        self.bad, self.in_a_row, self.saved = FailureBudget(settings.max_bad, files), 0, None
        if state:
            load_weights(model, state["model"], str(run.out))
            optimizer.load_state_dict(state["optimizer"])
        self.done = self.first = state["step"] if state else 0  # steps
        if len(set(processes.collect(self.first))) > 1:
            raise ValueError(f"--out {run.out}: processes read different checkpoints; name a folder that all machines share")
        if processes.first:
            run.forget(self.first)
            run.describe(vars(settings), model.describe())
        processes.wait()

    def __enter__(self) -> "Training":
        self.processes.shutdown = self.shutdown = GracefulShutdown(self.processes.first)
        quiet = not (self.processes.first and sys.stderr.isatty())
        self.bar = tqdm(total=self.settings.steps, initial=self.first, disable=quiet, dynamic_ncols=True,
                        bar_format="{desc}{n_fmt}/{total_fmt}, {remaining} left{postfix}")
        self.began = self.started = self.last_said = time.perf_counter()
        return self

    def __exit__(self, _type, error: BaseException | None, _traceback) -> None:
        self.bar.close()
        if isinstance(error, Stopped):
            self.leave()
        lost = isinstance(error, RuntimeError) and not isinstance(error, WorkerError | TooManyBad) and self.processes.world > 1
        if lost and self.shutdown.code:  # another process has left before this step was computed
            self.restore()
            self.leave()
        self.shutdown.end()

    def steps(self, batches: Batches) -> Iterator[tuple[int, dict]]:
        """(step, batch) of every step that is still to do; the model's buffers are kept, for a loss that is not finite."""
        self.model.train()
        for step in range(self.first, self.settings.steps):
            self.began = time.perf_counter()
            self.batch, self.failed = next(batches)
            self.waited = time.perf_counter() - self.began
            self.buffers = [buffer.clone() for buffer in self.model.buffers()]
            yield step, {k: v for k, v in self.batch.items() if k != "path"}
        batches.close()  # its workers have nothing left to do

    def finite(self, row: dict[str, float | None]) -> bool:
        """True where all numbers are finite on all processes; else the buffers are put back, and NaN becomes None in `row`."""
        not_finite, = self.processes.sum(not all(map(math.isfinite, row.values())))
        self.in_a_row = self.in_a_row + 1 if not_finite else 0
        if not_finite:
            # Ours: a gradient that is no number changes nothing (official: it is set to 0, and the step is taken).
            row.update({k: v if math.isfinite(v) else None for k, v in row.items()})
            self.restore()
            row["not_finite"] = [path for part in self.processes.collect(self.batch["path"]) for path in part]
        return not not_finite

    def restore(self) -> None:
        """Put the model's buffers back, as they were before this step."""
        for buffer, before in zip(self.model.buffers(), self.buffers, strict=True):
            buffer.copy_(before)

    def due(self) -> bool:
        """True where the held-out clips are to be scored after this step; after the last one they are scored anyway"""
        return (self.done + 1) % self.settings.eval_every == 0 and self.done + 1 < self.settings.steps

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Around an evaluation: nothing is compiled for its sizes, and a signal ends it, so that its row has no score."""
        began = time.perf_counter()
        if self.done == self.settings.steps:
            self.bar.close()
        with torch.compiler.set_stance("force_eager") if self.settings.compile else contextlib.nullcontext():
            try:
                yield
            except Stopped:
                self.model.train()
                if self.done == self.settings.steps:
                    raise
        self.began += time.perf_counter() - began  # no part of the step's time

    def log(self, row: dict, line: str) -> None:
        """Write the row of a step, with the files that could not be read and the time; show the line now and then."""
        self.asked, any_failed = self.processes.sum(self.processes.asked_to_stop(), len(self.failed))
        if any_failed:
            row["bad"] = [pair for part in self.processes.collect(self.failed) for pair in part]
            for path, reason in dict(row["bad"]).items():
                if path not in self.bad.names:
                    self.say(f"unreadable, another clip in its place: {printable(path)}: {reason}")
        self.bad.add(self.settings.batch, row.get("bad", []))
        took = time.perf_counter() - self.began
        row = {"step": self.done, "lr": self.optimizer.param_groups[0]["lr"], **row}
        row["time"] = {"clips_per_s": self.settings.batch / took, "data_wait": self.waited / took}
        self.done += 1
        if self.processes.first:
            self.run.log(row)
            self.show(row, line)
        if self.in_a_row == 10:
            fail(3, f"ten losses or gradients in a row were not finite; the clips are in {self.run.out}/metrics.jsonl. "
                    f"Try a lower --lr than {self.settings.lr} or a longer --warmup than {self.settings.warmup}")
        if self.bad.too_many:
            fail(3, self.bad.too_many)

    def show(self, row: dict, line: str) -> None:
        """Put the line on the bar, or print it every 15 seconds where there is none; with a second line, a score, always."""
        (line, _, score), wait, now = line.partition("\n"), row["time"]["data_wait"], time.perf_counter()
        slow = wait > 0.5 and not self.settings.cache and self.settings.workers < (os.cpu_count() or 1)
        loss, bar, rest = line.partition(" | ")
        shown = (f"{loss}, {row['time']['clips_per_s']:.0f} clips/s | waiting {100 * wait:.0f}%"
                 f"{' for data: raise --workers' * slow}{bar}{rest}")
        room = shutil.get_terminal_size().columns - 30  # beside the steps and the time left
        while len(shown) > room and " | " in shown:
            shown = shown.rpartition(" | ")[0]
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()
        if score or (self.bar.disable and now - self.last_said > 15):
            left = (now - self.started) / (self.done - self.first) * (self.settings.steps - self.done)
            left, self.last_said = f"{left / 3600:.1f} h" if left > 7200 else f"{left / 60:.1f} min", now
            self.say(f"{self.done}/{self.settings.steps}, {left} left, {shown}" + f"\n  {score}" * bool(score))

    def say(self, text: str) -> None:
        """Print on the first process, above the bar."""
        self.processes.print(text) if self.bar.disable else self.bar.write(text)

    def save(self) -> None:
        """Save where this step is to be saved; save and end the process where it was asked to stop."""
        last = self.done == self.settings.steps
        if self.done % self.settings.save_every == 0 or last:
            self.checkpoint()
        if self.asked:
            self.leave(together=True)
        if last and self.processes.collect(self.saved)[0] != self.done:
            fail(3, f"step {self.done} could not be saved, so the run is not finished; the same command goes on from the last "
                    f"checkpoint of {self.run.out}")

    def checkpoint(self) -> None:
        """Save on the first process, where that has not been done since the last step."""
        if self.processes.first and self.saved != self.done:
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
            if self.run.save(self.done, state, self.settings.keep, self.settings.keep_every):
                self.saved = self.done

    def leave(self, together: bool = False) -> None:
        """Save and end the process, after a signal; together: all processes are here, and none ends before it is saved."""
        self.checkpoint()
        self.bar.close()
        if together:
            self.processes.wait()  # torchrun ends all as soon as one has ended
        if self.processes.first and self.saved != self.done:
            fail(3, f"stopped at step {self.done} and NOT saved; {self.run.out} goes on from its last checkpoint")
        self.say(f"stopped at step {self.done}, saved in {self.run.out}; the same command goes on")
        if together:
            self.processes.end()
        sys.exit(self.shutdown.code or 128 + signal.SIGTERM)
