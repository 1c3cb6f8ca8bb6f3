"""A classifier on a frozen backbone: features computed once, then a low-rank classifier or an SVM (Sections A.3.2, A.4).

    z (N, V, d)   z_out of V views of each of N files      y (N, C)   their classes, ones among zeros
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import data
import losses
from engine import loop
from engine.errors import printable
from engine.processes import Processes
from engine.run import load_weights, write_whole
from engine.sampling import Sampler, generator
from tools import views
from tools.classifier import Classifier


def frozen(args, run, processes, found, recipe, model, state) -> loop.Fit:
    """A classifier on features that are computed once (Sections A.3.2, A.4)"""
    model.backbone.requires_grad_(False)
    if state:  # the features are those of the backbone that was saved
        load_weights(model, state["model"], str(run.out))

    def get(items, recipe, name):
        files = views.Testing(items, len(found.classes), recipe)
        with loop.reading(run, files):
            return features(model, files, args.batch, args.workers, processes, run.out / name, args.timeout)

    # Official: one central view of a clip to train on (the paper is silent).
    train = get(found.train, recipe._replace(windows=1, crops=1), "features-train.npz")
    test = get(found.test, recipe, "features-test.npz")
    tested, bad = OnFeatures(model), data.Bad(args.max_bad)
    bad.add(len(train.z), train.failed)
    if bad.too_many:
        raise ValueError(f"{bad}, more than --max-bad {args.max_bad} of them: " + printable(str(train.failed[:10])))
    loader = lambda: tested.loader(test, processes)
    if args.classifier == "svm":
        if found.multi:
            raise ValueError("--classifier svm takes one class a file, and the data have several: --classifier low-rank")
        fit_svm(model, train, args.svm_c, args.seed)
        if processes.first:
            run.describe(loop.plain(args), model.describe())
            run.save(args.steps, {"model": model.state_dict()})
        return loop.Fit(tested, loader, (), bad, {})
    # Official: eps 1e-7 (the paper names Adam and its learning rate).
    optimizer = torch.optim.Adam(model.classifier.parameters(), args.lr, eps=1e-7)
    first, _ = loop.resume(run, args, processes, model, optimizer, state, model.describe())
    return loop.Fit(tested, loader, (), bad, dict(
        batches=batches(train, args.batch, args.seed, first, args.steps, processes.device), first=first,
        bad=data.Bad(1.0), optimizer=optimizer, gradients=low_rank_step(model, args.sampled, args.l2, args.seed),
        update=optimizer.step, rate=lambda _step: args.lr))


class Features(NamedTuple):
    """z_out of all views of the files that could be read, in the order of their numbers, and the files that could not."""

    z: torch.Tensor
    y: torch.Tensor
    number: torch.Tensor
    failed: list[tuple[str, str]]


@torch.no_grad()
def features(model: Classifier, dataset: views.Testing, batch: int, workers: int, processes: Processes,
             cached: Path, timeout: float = 0) -> Features:
    """z_out of all views of the files of `dataset`, from the file `cached` where that is of these weights, files and views."""
    digest = hashlib.sha256(repr((dataset.recipe._replace(cache=0.0), model.precision)).encode())
    for k in dataset.rows:
        with contextlib.suppress(OSError):
            status = os.stat(dataset.index.name(k))
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        digest.update(repr((dataset.index.name(k), dataset.index[k])).encode("utf-8", "surrogateescape"))
    for name, weight in model.backbone.state_dict().items():
        digest.update(name.encode() + weight.cpu().numpy().tobytes())
    if cached.is_file():
        with np.load(cached, allow_pickle=False) as saved:
            if str(saved["digest"]) == digest.hexdigest():
                z, y, number = (torch.from_numpy(saved[name]) for name in ("z", "y", "number"))
                return Features(z, y, number, [(str(path), str(reason)) for path, reason in saved["failed"]])
    model.eval()
    rows, failed = [], []
    loader = views.loader(dataset, batch, processes.rank, processes.world, workers, timeout)
    for found, bad in tqdm(loader, cached.stem, unit="batch", disable=not (processes.first and sys.stderr.isatty())):
        failed += bad
        if found is not None:
            x = views.inputs(found["x"].flatten(0, 1).to(processes.device))
            z = model.features(x).float().cpu().unflatten(0, found["x"].shape[:2])
            rows += list(zip(found["number"].tolist(), z, found["y"], strict=True))
    rows = sorted((row for part in processes.collect(rows) for row in part), key=lambda row: row[0])
    failed = sorted(tuple(pair) for part in processes.collect(failed) for pair in part)
    if not rows:
        raise ValueError(f"none of the {len(dataset)} files could be read, first {failed[0][0]}: {failed[0][1]}" if failed
                         else "there are no files to compute features of")
    number, z, y = zip(*rows, strict=True)
    all_of_it = Features(torch.stack(z), torch.stack(y), torch.tensor(number), failed)
    if processes.first:
        arrays = dict(z=all_of_it.z.numpy(), y=all_of_it.y.numpy(), number=np.array(number), digest=digest.hexdigest(),
                      failed=np.array(failed, dtype=str).reshape(-1, 2))
        write_whole(cached, lambda file: np.savez(file, **arrays))
    processes.wait()
    return all_of_it


def batches(found: Features, batch: int, seed: int, first: int, steps: int,
            device: torch.device) -> Iterator[tuple[dict, list]]:
    """One random view of each clip of steps first .. steps - 1, as `loop.train` takes them"""
    slots = Sampler([len(found.z)], [1.0], batch, seed)
    z, y = found.z.to(device), found.y.to(device)
    for step in range(first, steps):
        k = torch.tensor([slots(step, slot)[1] for slot in range(batch)])
        v = torch.from_numpy(generator(seed, step).integers(z.shape[1], size=batch))
        yield {"z": z[k, v], "y": y[k], "path": [str(i) for i in found.number[k].tolist()]}, []


def low_rank_step(model: Classifier, sampled: int, l2: float, seed: int):
    """-> gradients(batch, step) for `loop.train`: of the classifier alone, with `sampled` of its components (A.3.2)"""
    U, V = model.classifier.U, model.classifier.V

    def gradients(batch: dict, step: int) -> dict[str, torch.Tensor]:
        components = torch.from_numpy(generator(seed, step, 1).choice(len(V), sampled, replace=False)).to(V.device)
        logits, y = model.classifier(batch["z"].to(V.dtype), components), batch["y"].to(V.dtype)
        loss = (losses.multi_label if model.multi else losses.cross_entropy)(logits, y).mean()
        # Official: an L2 penalty on V (the paper is silent).
        (loss + l2 * V.square().sum()).backward()
        return {"loss": loss.detach(), "norm": (U @ V).detach().norm()}

    return gradients


def fit_svm(model: Classifier, found: Features, c: float, seed: int) -> None:
    """A linear SVM on standardised features of all views (A.4), written into the model's linear classifier."""
    try:
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC
    except ImportError:
        raise ValueError("--classifier svm needs scikit-learn: pip install scikit-learn") from None
    z, y = found.z.flatten(0, 1).double().numpy(), found.y.argmax(1).repeat_interleave(found.z.shape[1]).numpy()
    seen = np.unique(y)
    if len(seen) < 2:
        raise ValueError("--classifier svm needs files of two classes at least to train on")
    # Ours: standardised, one against all others, C a flag; the pipeline of MMV, which A.4 names (official: C 6e-5, no scaling).
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


class OnFeatures(nn.Module):
    """A classifier that is given z_out instead of files, for `evaluate.classify`."""

    def __init__(self, model: Classifier):
        super().__init__()
        self.inner, self.classes, self.multi, self.over_views = model, model.classes, model.multi, model.over_views

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """z_out (B, d) -> logits (B, C)"""
        return self.inner.classifier(z.to(self.inner.dtype))

    def loader(self, found: Features, processes: Processes) -> list[tuple[dict, list]]:
        """This process's share of the features, as `views.loader` has its share of the files"""
        mine = slice(processes.rank, None, processes.world)
        batch = {"x": found.z[mine], "y": found.y[mine], "number": found.number[mine]}
        return [(batch if len(batch["x"]) else None, found.failed if processes.first else [])]
