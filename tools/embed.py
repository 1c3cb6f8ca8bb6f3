"""Vectors of files in the common spaces, kept in one .npz (Section A.3.3).

    space "vt"   videos, images, sentences         space "va"   videos, images, audio

A file's vector is the mean of those of its windows; it is normalised after that, so that a dot product is a cosine similarity.
"""

import contextlib
import hashlib
import itertools
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

import data
import vatt
from engine import loading
from engine.errors import plural, printable, warn
from engine.processes import Processes
from engine.run import check_zip, lock, write_whole
from media import Media, Unreadable
from sources import index, layouts
from sources.files import TYPES, Files, lines
from sources.index import Row, starts, windows

SPACES = {"video": ("vt", "va"), "image": ("vt", "va"), "audio": ("va",), "text": ("vt",)}  # the first is taken unasked


class Reading(NamedTuple):
    """How files are read and sent through a model."""

    processes: Processes
    batch: int = 32                 # views that pass the model at a time
    workers: int = 0                # processes that decode
    precision: str = "fp32"         # of the Transformers
    timeout: float = 600            # seconds that a worker may take for a file

    def batches(self, clips: "data.TestDataset | Moments", shared: bool = True) -> loading.Batches:
        """Batches of every file once: this process's share, or all of them where they are not `shared`; as `eval_batches`"""
        return loading.eval_batches(clips, max(1, self.batch // clips.spec.views), self.processes, self.workers, self.timeout,
                                    shared)


@torch.no_grad()
def over_files(model: torch.nn.Module, forward: Callable[[dict], Any], batches: loading.Batches, device: torch.device,
               precision: str = "fp32") -> Iterator[tuple[dict | None, Any, list[tuple[str, str]]]]:
    """(batch on the device, forward(batch), what failed) of each batch of files to test on, in eval mode; an empty one is None.

    This is how towers run over files in every evaluation, embedding and search.
    """
    was_training = model.training
    model.eval()
    for batch, failed in batches:
        batch, found = batch and loading.to_device(batch, device), None
        if batch:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                found = forward(batch)
        yield batch, found, failed
    model.train(was_training)


def rows_of(model: torch.nn.Module, forward: Callable[[dict], torch.Tensor], width: int, clips: data.TestDataset,
            how: Reading) -> Iterator[tuple[torch.Tensor, list[tuple[str, str]]]]:
    """Batch by batch: forward(batch) (B, width) of the files of `clips`, NaN where unreadable; what failed, and why.

    Raises FloatingPointError where the model gives no numbers, WorkerError where a worker dies or hangs.
    """
    done, batches = 0, how.batches(clips, shared=False)
    for batch, z, failed in over_files(model, forward, batches, how.processes.device, how.precision):
        rows = torch.full((len(failed) + (len(z) if batch else 0), width), math.nan)
        if batch:
            if not z.isfinite().all():
                raise FloatingPointError("the run gives numbers that are not finite: name one whose training went well")
            rows[batch["number"].cpu() - done] = z.float().cpu()
        done += len(rows)
        yield rows, failed


class Moments(IterableDataset):
    """Moments of videos, in order: items as those of a TestDataset, but a worker decodes no part of a file twice.

    clips: rows of one length, those of a video one after the other. batch: moments that a worker takes at a time.
    """

    def __init__(self, clips: data.TestDataset, batch: int):
        self.clips, self.batch, self.spec, self.in_flight = clips, batch, clips.spec, clips.in_flight

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[tuple[dict | None, list[tuple[str, str]]]]:
        worker = get_worker_info()
        step, first = (self.batch * worker.num_workers, self.batch * worker.id) if worker else (self.batch, 0)
        total = len(self.clips)
        mine = [i for start in range(first, total, step) for i in range(start, min(start + self.batch, total))]
        for name, group in itertools.groupby(mine, key=lambda i: self.clips.row(i)[0].name(self.clips.row(i)[1])):
            items, done = list(group), 0
            try:
                for done, views in enumerate(self.views(name, items), 1):
                    yield dict(video=views, path=name, number=items[done - 1]), []
            except Unreadable as error:
                yield from [(None, [(str(error.path), error.reason)])] * (len(items) - done)

    def views(self, name: str, items: list[int]) -> Iterator[np.ndarray]:
        """The views (V, T, H, W, 3) uint8 of some moments of a video, from one pass over the file. Raises Unreadable."""
        spec, index, rows = self.spec, self.clips.row(items[0])[0], [self.clips.row(i)[1] for i in items]
        with self.in_flight.track(name):
            media = Media(*index.media(rows[0]))
        with media:
            places = sorted((start, k) for k, row in enumerate(rows)
                            for start in windows(*starts(index[row], media.duration, spec.seconds), spec.windows, spec.fps))
            length = min(index[rows[0]].end - index[rows[0]].start, spec.seconds)
            frames = max(1, math.floor(length * spec.fps + 1e-6))
            given = media.clips([start for start, _ in places], frames, spec.fps, central_square, (spec.size, spec.size))
            made: dict[int, list[np.ndarray]] = {}
            done = 0
            for _, k in places:
                with self.in_flight.track(name):
                    made.setdefault(k, []).append(next(given)[np.arange(spec.frames) % frames])
                while len(made.get(done, ())) == spec.windows:
                    yield np.stack(made.pop(done))
                    done += 1


def central_square(width: int, height: int) -> tuple[float, float, float, float]:
    """The box of the largest square in the middle of a frame"""
    x, y = (1 - min(width, height) / width) / 2, (1 - min(width, height) / height) / 2
    return x, y, 1 - x, 1 - y


def vectors(model: vatt.Trained, clips: data.TestDataset | Moments, space: str,
            how: Reading) -> Iterator[tuple[torch.Tensor, list[tuple[str, str]]]]:
    """`rows_of` vectors of length 1"""
    modality, = clips.spec.modalities
    embed = lambda batch: model.embed_views(batch[modality], space)
    return rows_of(model, embed, model.config.d_va if space == "va" else model.config.d_vt, clips, how)


def shares(rows: torch.Tensor, total: int, processes: Processes) -> torch.Tensor:
    """What each process has, rows rank, rank + world, .. of all -> all of them, (total, d)"""
    table = torch.empty(total, rows.shape[1])
    for rank, part in enumerate(processes.collect(rows)):
        table[rank :: processes.world] = part
    return table


class Wanted(NamedTuple):
    """What is to be embedded."""

    source: Path                    # a folder of media, or a text file of sentences
    kind: str | None = None         # "video", "audio", "image" or "text"; None: what most files are
    space: str | None = None        # None: the first of the kind's SPACES
    seconds: float | None = None    # videos in moments of that length, each overlapping half of the next
    windows: int | None = None      # of a file, 4 unasked, or of a moment, 1
    skip: frozenset[str] = frozenset()  # names of files to leave out


def embed(model: vatt.Trained, wanted: Wanted, out: Path, how: Reading) -> None:
    """Write `out`: ids (N,), vectors (N, d) of length 1, times (N, 2) in seconds, space, kind, source, unreadable (M,).

    Of a folder, ids are the paths of its files in order; of a text file, its lines. What is done stays beside `out` until all
    is, so that the same command goes on. ValueError, with the remedy, for what cannot be.
    """
    processes, source = how.processes, wanted.source
    kind, root, rows, problems = contents(wanted, model.config.fps, how.timeout)
    ids, in_moments = [row.path for row in rows], wanted.seconds and kind == "video"
    space = wanted.space or SPACES[kind][0]
    if space not in SPACES[kind]:
        raise ValueError(f"--space {space}: {kind} has vectors in {' and '.join(SPACES[kind])} alone")
    windows = wanted.windows or (1 if wanted.seconds else 4) if kind in ("video", "audio") else 1
    changed = [] if kind == "text" else file_states(root / path for path in dict.fromkeys(ids))
    key = digest(weights_digest(model), kind, space, windows, changed, *rows)
    if out.is_file() and read(out)["key"] == key:
        return processes.print(f"{out} holds all {len(ids)} already")
    width = model.config.d_va if space == "va" else model.config.d_vt
    unit = f"moments of {wanted.seconds:g} s" if in_moments else "sentences" if kind == "text" else f"{kind} files"
    processes.print(f"{source}: {len(ids)} {unit}, {plural(windows, 'window')} each, space {space}")
    with tempfile.TemporaryDirectory() as scratch:
        def parts(left: np.ndarray) -> Iterator:
            if kind == "text":
                return ((model.embed_texts([ids[i] for i in left[k : k + how.batch]]), [])
                        for k in range(0, len(left), how.batch))
            spec = model.spec("audio" if kind == "audio" else "video", windows)  # an image is a video that stands still
            clips = data.TestDataset([data.Source(index.write(Path(scratch) / "index", root, rows), left)], spec)
            return vectors(model, Moments(clips, max(1, how.batch // spec.views)) if in_moments else clips, space, how)

        with resumed(out, key, len(ids), width, parts, processes) as (table, failed):
            problems += [printable(f"{path}: {reason}") for path, reason in failed]
            if processes.first:
                good = ~np.isnan(table[:, 0])
                names, times = np.array(ids, str), np.array([(row.start, row.end) for row in rows])
                write_whole(out, lambda file: np.savez(
                    file, ids=names[good], vectors=table[good], times=times[good], space=space, kind=kind,
                    unreadable=names[~good], source=str(source), key=key))
                warn(dict.fromkeys(problems))
                print(f"{out}: ids and vectors ({good.sum()} x {width}); {(~good).sum()} could not be read")


def contents(wanted: Wanted, fps: float, timeout: float) -> tuple[str, Path, list[Row], list[str]]:
    """-> (kind, the folder that the rows lie in, rows, problems): a row a file, moment or sentence, which is its path"""
    source, kind, problems = wanted.source, wanted.kind, []
    if source.is_file() and source.suffix.lower() not in TYPES:
        texts = [line for _, line in lines(source)]
        if not texts or kind not in (None, "text"):
            raise ValueError(f"{source} holds no sentence" if not texts else f"--kind {kind}: {source} is a text file")
        return "text", source.parent, [Row(text, 0.0, math.inf, []) for text in texts], problems
    root, below = files_in(source, problems)
    below = [path for path in below if printable(os.path.abspath(root / path)) not in wanted.skip]
    kinds = [TYPES.get(os.path.splitext(path)[1].lower()) for path in below]
    if not any(kinds):
        raise ValueError(f"{source} holds no video, audio or image")
    kind = kind or max(set(kinds) - {None}, key=lambda k: (kinds.count(k), k))              # what most are
    takes = ("audio", "video") if kind == "audio" and "audio" not in kinds else (kind,)     # the audio of videos
    paths = [path for path, k in zip(below, kinds, strict=True) if k in takes]
    if not paths:
        raise ValueError(f"{source} holds no {kind}")
    if not wanted.kind and len(paths) < len(below):
        problems.append(f"{source}: {len(below) - len(paths)} files are no {kind} and left out: --kind takes others")
    if wanted.seconds and kind == "video":
        return kind, root, moments(root, paths, wanted.seconds, fps, problems, timeout), problems
    return kind, root, [Row(path, 0.0, math.inf, []) for path in paths], problems


def files_in(source: Path, problems: list[str]) -> tuple[Path, list[str]]:
    """A folder, or one media file -> (the folder, paths of media below it)"""
    if source.is_file():
        return source.parent, [source.name]
    if not source.is_dir():
        raise ValueError(f"there is no {source}: name a folder of videos, audio or images, one of them, or a text file")
    return source, Files(source, problems).media


def moments(source: Path, paths: list[str], seconds: float, fps: float, problems: list[str],
            timeout: float = 600) -> list[Row]:
    """Videos in parts of `seconds` that overlap by half, the last one at the end.

    They begin on whole frames, `fps` of them a second, so that those that overlap show the same frames. A video that cannot be
    opened, or whose process dies or takes more than `timeout` seconds, is named in `problems`.
    """
    rows = []
    found = layouts.look([source / path for path in paths], 1, timeout)
    for path, (length, _, reason) in zip(paths, found, strict=True):
        if reason:
            problems.append(f"{printable(path)}: {reason}")
            continue
        last = max(0.0, length - seconds)
        steps = min(math.ceil(2 * last / seconds), os.path.getsize(source / path))  # a length may be a lie
        begins = windows(0.0, last, max(1, steps) + 1, fps)[:steps + 1]
        rows += [Row(path, start, start + seconds, []) for start in begins]
    if not rows:
        raise ValueError(f"none of the {len(paths)} videos below {source} can be read, first {problems[-1]}")
    return rows


@contextlib.contextmanager
def resumed(out: Path, key: str, total: int, width: int, parts: Callable, processes: Processes):
    """(rows (total, width), what failed now) of all processes, where parts(numbers) gives some as `rows_of` does.

    What is done stays beside `out`, which the caller writes in the block, until that is done, so that the same command goes
    on: the file begins with `key`, which tells whether it is the same.
    """
    mine, failed, head = np.arange(processes.rank, total, processes.world), [], key.encode()
    path = out.with_name(f"{out.name}.{processes.rank}-of-{processes.world}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.with_suffix(".lock"), str(out)) as held, path.open("a+b") as file:
        file.seek(0)
        if file.read(len(head)) != head:        # new, or of other files or flags
            file.truncate(0)
            file.write(head)
            file.flush()
        done = (path.stat().st_size - len(head)) // (4 * width)
        file.truncate(len(head) + done * 4 * width)  # without a row that a kill cut short
        if done:
            processes.print(f"{done} done before")
        for rows, bad in parts(mine[done:]):
            file.write(rows.numpy().astype("<f4").tobytes())
            file.flush()
            failed += bad
        table = shares(torch.from_numpy(np.fromfile(path, "<f4", offset=len(head)).reshape(-1, width)), total, processes)
        yield table.numpy(), [pair for part in processes.collect(failed) for pair in part]
        processes.wait()
    for kept in (path, held.name):
        os.unlink(kept)


def read(path: Path) -> dict[str, np.ndarray]:
    """What `embed` wrote; ValueError where it is something else"""
    try:
        check_zip(path)
        with np.load(path, allow_pickle=False) as file:
            found = {**file, "key": str(file["key"])}
        if not len(found["ids"]) == len(found["vectors"]) == len(found["times"]):
            raise ValueError("arrays of different lengths")
        return found
    except (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not of this program ({error}): name another file") from None


def weights_digest(model: torch.nn.Module) -> str:
    """A digest of all weights: vectors of two models must not stand in one file"""
    return digest(*((name, hashlib.sha256(w.cpu().numpy().tobytes()).hexdigest()) for name, w in model.state_dict().items()))


def file_states(paths) -> list[tuple[int, int] | None]:
    """(size, time of the last change) of each file, None where it is not there: what a cache must know of files"""
    return [(path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else None for path in paths]


def digest(*things) -> str:
    """The same for the same things only"""
    total = hashlib.sha256()
    for thing in things:
        total.update(repr(thing).encode("utf-8", "backslashreplace"))
    return total.hexdigest()
