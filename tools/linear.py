"""A classifier on a frozen backbone: features computed once, then a low-rank classifier or an SVM (Sections A.3.2, A.4).

    z (N, V, d)   z_out of V views of each of N files      y (N, C)   their classes, ones among zeros
"""

import contextlib
import signal
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import data
import losses
import vatt
from engine import arguments, loop
from engine.errors import fail, printable, user_errors
from engine.processes import GracefulShutdown, Stopped
from engine.run import check_zip, load_weights, write_whole
from engine.sampling import Sampler, generator
from tools.embed import Reading, digest, file_states, over_files, weights_digest


def train(task) -> tuple[dict, loop.FailureBudget]:
    """Train a classifier on features that are computed once -> its scores on the test files, the files that cannot be read.

    task: a `finetune.Task`.
    """
    s, processes, model = task.settings, task.processes, task.model
    model.backbone.requires_grad_(False)
    with user_errors(), loop.explained(task.run):
        if task.state:  # the features are those of the backbone that was saved
            load_weights(model, task.state["model"], str(task.run.out))
        # Official: one central view of a clip to train a low-rank classifier on (the paper is silent).
        known = (task.files(task.data.train, task.spec, RandomPasses) if s.classifier == "svm" else
                 task.files(task.data.train, task.spec._replace(windows=1, crops=1)))
        how = Reading(processes, s.batch, s.workers, timeout=s.timeout)
        known, test = (features(model, clips, task.run.out / f"features-{name}.npz", how) for clips, name in (
            (known, "train"), (task.files(task.data.test, task.spec), "test")))
        bad = loop.FailureBudget(s.max_bad)
        bad.add(len(known.z), known.failed)
        if bad.too_many:
            raise ValueError(f"{bad}, more than --max-bad {s.max_bad} of them: " + printable(str(known.failed[:10])))
        if s.classifier == "svm":
            fit_svm(model, known, s.svm_c, s.seed)
            if processes.first:
                task.run.describe(arguments.plain(s), model.describe())
                if not task.run.save(s.steps, {"model": model.state_dict()}):
                    fail(3, "the SVM could not be saved, so the run is not finished; the same command fits it again")
            return task.score(s.steps, logits(model, test), test.y, test.failed), bad
        # Official: eps 1e-7 (the paper names Adam and its learning rate).
        # Ours: torch adds eps after the correction of the second moment (official: before it, as Keras does).
        optimizer = torch.optim.Adam(model.classifier.parameters(), s.lr, eps=1e-7)
        training = loop.Training(task.run, processes, s, model, optimizer, task.state, model.describe())
    with loop.explained(task.run), training:
        for step, batch in training.steps(batches(known, s.batch, s.seed, training.first, s.steps, processes.device)):
            optimizer.zero_grad(set_to_none=True)
            row = loop.read(gradients(model, batch, step, s), model)
            if training.finite(row):
                optimizer.step()
            if training.due():
                scores = task.score(step + 1, logits(model, test), test.y, test.failed)
                row["held_out"] = {task.metric: scores[task.metric]}
            training.log(row, task.line(row))
            training.save()
        return task.score(s.steps, logits(model, test), test.y, test.failed), bad


class RandomPasses(data.TestDataset):
    """Item i -> `windows` random views of a row, as in as many passes over the data: place, square, flip, no colour (A.4)."""

    def views(self, media, row: data.Row, number: int) -> tuple[float, dict]:
        """A function of the row's number"""
        s, rng, clips = self.spec, generator(0, number), []
        for _ in range(s.windows):
            clip = data.read_clip(media, row, data.random_start(rng, row, media.duration, s), s, lambda w, h: square(rng, w, h))
            if rng.random() < s.flip:
                clip |= {name: np.flip(x, -2) for name, x in clip.items() if name in ("video", "image")}
            clips.append(clip)
        return 0.0, {name: np.stack([clip[name] for clip in clips]) for name in clips[0] if name != "has_audio"}


def square(rng: np.random.Generator, width: int, height: int) -> tuple[float, float, float, float]:
    """A random square of the whole shorter side: (left, top, right, bottom) in fractions"""
    side = min(width, height)
    left, top = rng.random() * (1 - side / width), rng.random() * (1 - side / height)
    return left, top, left + side / width, top + side / height


class Features(NamedTuple):
    """z_out of all views of the files that could be read, in the order of their numbers, and the files that could not."""

    z: torch.Tensor
    y: torch.Tensor
    number: torch.Tensor
    failed: list[tuple[str, str]]


def features(model: vatt.Classifier, clips: data.TestDataset, cached: Path, how: Reading) -> Features:
    """z_out of all views of the files of `clips`, from the file `cached` where that is of these weights, files and views.

    ValueError where no file can be read.
    """
    listed = [clips.row(i) for i in range(len(clips))]
    names = [index.name(number) for index, number in listed]
    key = digest(type(clips).__name__, clips.spec._replace(cache=0.0), model.precision, weights_digest(model.backbone),
                 file_states(map(Path, names)), names, [index[number] for index, number in listed])
    rows, failed = {}, []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, zipfile.BadZipFile):
        check_zip(cached)
        with np.load(cached, allow_pickle=False) as saved:  # else they are computed anew
            if str(saved["digest"]) == key:
                z, y, number, bad = (saved[name] for name in ("z", "y", "number", "failed"))
                rows = dict(zip(number.tolist(), zip(torch.from_numpy(z), torch.from_numpy(y), strict=True), strict=True))
                failed = [(str(path), str(reason)) for path, reason in bad]
    unread = {path for path, _ in failed}
    left = [i for i, name in enumerate(names) if i not in rows and name not in unread]
    if left:
        stopped = compute(model, clips.part(left), left, how, rows, failed)
        rows = {i: row for part in how.processes.collect(rows) for i, row in part.items()}
        failed = sorted({tuple(pair) for part in how.processes.collect(failed) for pair in part})
        if how.processes.first and rows:
            write_whole(cached, lambda file: np.savez(
                file, digest=key, number=np.array(sorted(rows)), z=np.stack([rows[i][0] for i in sorted(rows)]),
                y=np.stack([rows[i][1] for i in sorted(rows)]), failed=np.array(failed, dtype=str).reshape(-1, 2)))
        how.processes.wait()
        if stopped:
            how.processes.print(f"stopped with {len(rows)} of {len(clips)} files in {cached}; the same command goes on")
            sys.exit(stopped)
    if not rows:
        raise ValueError(f"none of the {len(clips)} files could be read, first {failed[0][0]}: {failed[0][1]}" if failed
                         else "there are no files to compute features of")
    number = sorted(rows)
    return Features(torch.stack([rows[i][0] for i in number]), torch.stack([rows[i][1] for i in number]), torch.tensor(number),
                    failed)


def compute(model: vatt.Classifier, clips: data.TestDataset, left: list[int], how: Reading, rows: dict,
            failed: list) -> int:
    """Add this process's share of the files `left` to `rows`, number -> (z, y), or to `failed` -> 0, or a signal's code."""
    processes = how.processes
    views = lambda batch: vatt.each_view(model.features, batch[model.kind])
    processes.shutdown = shutdown = GracefulShutdown(processes.first)
    try:
        for batch, z, bad in over_files(model, views, how.batches(clips), processes.device):
            failed += bad
            if batch:
                rows.update((left[i], (zi.clone(), yi.clone())) for i, zi, yi in zip(
                    batch["number"].tolist(), z.float().cpu(), batch["labels"].cpu(), strict=True))
    except Stopped:
        return shutdown.code or 128 + signal.SIGTERM
    finally:
        shutdown.end()
    return 0


def batches(found: Features, batch: int, seed: int, first: int, steps: int,
            device: torch.device) -> Iterator[tuple[dict, list]]:
    """One random view of each clip of steps first .. steps - 1, as `loop.Training.steps` takes them"""
    slots = Sampler([len(found.z)], [1.0], batch, seed)
    z, y = found.z.to(device), found.y.to(device)
    for step in range(first, steps):
        k = torch.tensor([slots(step, slot)[1] for slot in range(batch)])
        v = torch.from_numpy(generator(seed, step).integers(z.shape[1], size=batch))
        yield {"z": z[k, v], "y": y[k], "path": [str(i) for i in found.number[k].tolist()]}, []


def gradients(model: vatt.Classifier, batch: dict, step: int, settings) -> dict[str, torch.Tensor]:
    """The loss and the norm of the classifier, scalars; gradients of the sampled components are left in it (A.3.2)."""
    U, V = model.classifier.U, model.classifier.V
    draws = generator(settings.seed, step, 1)
    components = torch.from_numpy(draws.choice(len(V), settings.sampled, replace=False)).to(V.device)
    logits, y = model.classifier(batch["z"].to(V.dtype), components), batch["y"].to(V.dtype)
    loss = (losses.multi_label if model.multi else losses.cross_entropy)(logits, y).mean()
    # Official: an L2 penalty on V (the paper is silent).
    (loss + settings.l2 * V.square().sum()).backward()
    return {"loss": loss.detach(), "norm": (U @ V).detach().norm()}


@torch.no_grad()
def logits(model: vatt.Classifier, found: Features) -> torch.Tensor:
    """What the classifier says of all views of each file together.  (N, C), on the CPU"""
    was_training = model.training
    model.eval()
    z = found.z.to(next(model.classifier.parameters()).device, model.dtype)
    together = model.over_views(model.classifier(z.flatten(0, 1)).unflatten(0, z.shape[:2]))
    model.train(was_training)
    return together.float().cpu()


def fit_svm(model: vatt.Classifier, found: Features, c: float, seed: int) -> None:
    """A linear SVM on standardised features of all passes (A.4), written into the model's linear classifier."""
    try:
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC
    except ImportError:
        raise ValueError("--classifier svm needs scikit-learn: pip install scikit-learn") from None
    z, y = found.z.flatten(0, 1).double().numpy(), found.y.argmax(1).repeat_interleave(found.z.shape[1]).numpy()
    seen = np.unique(y)
    if len(seen) < 2:
        raise ValueError("--classifier svm needs files of two classes at least to train on")
    # Paper: the pipeline of MMV (A.4): 10 random passes to train on, 10 windows to test on, standardised, C 1e-3 (official: C
    # 6e-5, no scaling).
    scale = StandardScaler().fit(z)
    svm = LinearSVC(C=c, random_state=seed, max_iter=10_000).fit(scale.transform(z), y)
    W, b = svm.coef_ / scale.scale_, svm.intercept_ - svm.coef_ @ (scale.mean_ / scale.scale_)
    if len(seen) == 2:
        W, b = np.concatenate([-W, W]), np.concatenate([-b, b])
    with torch.no_grad():
        linear = model.classifier.linear
        linear.weight.zero_()
        linear.bias.fill_(-1e4)  # a class that has no clip to train on
        linear.weight[seen], linear.bias[seen] = torch.from_numpy(W).to(linear.weight), torch.from_numpy(b).to(linear.bias)
