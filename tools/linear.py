"""A classifier on a frozen backbone: features computed once, then a low-rank classifier or an SVM (Sections A.3.2, A.4).

    z (N, V, d)   z_out of V views of each of N files      y (N, C)   their classes, ones among zeros
"""

import signal
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import data
import losses
import vatt
from engine import loop
from engine.errors import fail, user_errors
from engine.processes import GracefulShutdown, Stopped
from engine.run import load_weights
from engine.sampling import Sampler, generator
from tools.embed import Reading, digest, file_states, over_files, weights_digest


def train(task) -> tuple[dict, loop.FailureBudget]:
    """Train a classifier on features, by a `finetune.Task` -> its scores on the test files, the files that cannot be read."""
    s, processes, model = task.settings, task.processes, task.model
    with user_errors(), loop.explained(task.run):
        if task.state:  # the features are those of the backbone that was saved
            load_weights(model, task.state["model"], str(task.run.out))
        # Official: one central view of a clip to train a low-rank classifier on (the paper is silent).
        known = (task.files(task.data.train, task.spec, RandomPasses) if s.classifier == "svm" else
                 task.files(task.data.train, task.spec._replace(windows=1, crops=1)))
        how = Reading(processes, s.batch, s.workers, timeout=s.timeout)
        known, test = (features(model, clips, task.features, how) for clips in (known, task.files(task.data.test, task.spec)))
        bad = loop.FailureBudget(s.max_bad, len(known.z) + len(known.failed))
        bad.add(len(known.z), known.failed)
        if bad.too_many:
            raise ValueError(bad.too_many)
        if s.classifier == "svm":
            fit_svm(model, known, s.svm_c, s.seed)
            if processes.first:
                task.run.describe(vars(s), model.describe())
                if not task.run.save(s.steps, {"model": model.state_dict()}):
                    fail(3, "the SVM could not be saved, so the run is not finished; the same command fits it again")
            return task.score(s.steps, logits(model, test), test.y, test.failed), bad
        # Official: eps 1e-7 (the paper names Adam and its learning rate).
        # Ours: torch adds eps after the correction of the second moment (official: before it, as Keras does).
        optimizer = torch.optim.Adam(model.classifier.parameters(), s.lr, eps=1e-7)
        training = loop.Training(task.run, processes, s, model, optimizer, task.state, len(known.z))
    with loop.explained(task.run), training:
        for step, batch in training.steps(batches(known, s.batch, s.seed, training.first, s.steps, processes.device)):
            optimizer.zero_grad(set_to_none=True)
            row = loop.read(backward(model, batch, step, s), model)
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
        """A function of the row's path and place in it"""
        s, rng, clips = self.spec, generator(0, zlib.crc32(repr((row.path, row.start)).encode("utf-8", "replace"))), []

        def square(width: int, height: int) -> data.Box:  # of the whole shorter side
            side = min(width, height)
            left, top = rng.random() * (1 - side / width), rng.random() * (1 - side / height)
            return left, top, left + side / width, top + side / height

        for _ in range(s.windows):
            clip = data.read_clip(media, row, data.random_start(rng, row, media.duration, s), s, square)
            if rng.random() < s.flip:
                clip |= {name: np.flip(x, -2) for name, x in clip.items() if name in ("video", "image")}
            clips.append(clip)
        return 0.0, {name: np.stack([clip[name] for clip in clips]) for name in clips[0] if name != "has_audio"}


class Features(NamedTuple):
    """z_out of all views of the files that could be read, in the order of their numbers, and the files that could not."""

    z: torch.Tensor
    y: torch.Tensor
    number: torch.Tensor
    failed: list[tuple[str, str]]


def features(model: vatt.Classifier, clips: data.TestDataset, folder: Path, how: Reading) -> Features:
    """z_out of all views of the files of `clips`; those of these weights, files and views that `folder` keeps are not computed.

    ValueError where no file can be read; a signal ends the process, and the same command goes on.
    """
    rows = [clips.row(i) for i in range(len(clips))]
    views = clips.spec.windows if isinstance(clips, RandomPasses) else clips.spec.views
    of = digest(type(clips).__name__, clips.spec._replace(cache=0.0), model.precision, weights_digest(model.backbone))
    keys = [digest(index.name(number), index[number]._replace(labels=()), file_states([Path(index.name(number))])).encode()
            for index, number in rows]
    record = np.dtype([("key", "S64"), ("crc", "<u4"), ("z", "<f4", (views, model.width))])
    cached, failed = folder / f"features-{of[:16]}", []
    kept = read(cached, record)
    left = [i for i, key in enumerate(keys) if key not in kept]
    how.processes.wait()  # all have read, before one writes
    if left:
        failed = compute(model, clips.part(left), [keys[i] for i in left], cached, record, how)
        kept = read(cached, record)
    number = [i for i, key in enumerate(keys) if key in kept]
    if not number:
        raise ValueError(f"none of the {len(keys)} files could be read" + "".join(f", first {p}: {r}" for p, r in failed[:1]))
    y = [clips.text_and_labels(index[number], 0.0)["labels"] for index, number in (rows[i] for i in number)]
    z = np.stack([kept[keys[i]] for i in number])
    return Features(torch.from_numpy(z), torch.from_numpy(np.stack(y)), torch.tensor(number), failed)


def compute(model: vatt.Classifier, clips: data.TestDataset, keys: list[bytes], cached: Path, record: np.dtype,
            how: Reading) -> list[tuple[str, str]]:
    """Append features of `clips` to a file of this process as they come -> what could not be read, by all processes"""
    processes, failed, done = how.processes, [], 0
    processes.shutdown = shutdown = GracefulShutdown(processes.first)
    views = lambda batch: vatt.each_view(model.features, batch[model.kind])
    try:
        with open(f"{cached}.{processes.rank}", "ab", buffering=0) as file:
            file.truncate(file.tell() // record.itemsize * record.itemsize)  # what a kill cut short
            for batch, z, bad in over_files(model, views, how.batches(clips), processes.device):
                failed += bad
                for i, one in zip(batch["number"].tolist(), z.float().cpu().numpy(), strict=True) if batch else ():
                    file.write(np.array([(keys[i], checksum(keys[i], one), one)], record).tobytes())
                    done += 1
    except Stopped:
        processes.print(f"stopped with {int(processes.sum(done)[0])} files of {len(clips)} done; the same command goes on")
        sys.exit(shutdown.code or 128 + signal.SIGTERM)
    finally:
        shutdown.end()
    return sorted({tuple(pair) for part in processes.collect(failed) for pair in part})


def checksum(key: bytes, z: np.ndarray) -> int:
    """The CRC-32 of a record of features"""
    return zlib.crc32(z.tobytes(), zlib.crc32(key))


def read(cached: Path, record: np.dtype) -> dict[bytes, np.ndarray]:
    """The whole records that all processes have written, but for altered ones: key -> z"""
    found = (np.fromfile(path, record) for path in cached.parent.glob(f"{cached.name}.*"))
    return {one["key"]: one["z"] for part in found for one in part if checksum(one["key"], one["z"]) == one["crc"]}


def batches(found: Features, batch: int, seed: int, first: int, steps: int,
            device: torch.device) -> Iterator[tuple[dict, list]]:
    """One random view of each clip of steps first .. steps - 1, as `loop.Training.steps` takes them"""
    slots = Sampler([len(found.z)], [1.0], batch, seed)
    z, y = found.z.to(device), found.y.to(device)
    for step in range(first, steps):
        k = torch.tensor([slots(step, slot)[1] for slot in range(batch)])
        v = torch.from_numpy(generator(seed, step).integers(z.shape[1], size=batch))
        yield {"z": z[k, v], "y": y[k], "path": [str(i) for i in found.number[k].tolist()]}, []


def backward(model: vatt.Classifier, batch: dict, step: int, settings) -> dict[str, torch.Tensor]:
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
    model.eval()
    z = found.z.to(next(model.classifier.parameters()).device, model.dtype)
    together = model.over_views(model.classifier(z.flatten(0, 1)).unflatten(0, z.shape[:2]))
    model.train()
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
