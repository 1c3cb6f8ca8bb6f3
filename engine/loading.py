"""Batches from files, by processes of their own that decode ahead: what they hand over, and what happens when one dies.

A step's clips come in pieces of at most 64, each from one worker, so that a batch of thousands is decoded by all of them at
once and waits in pieces: what is in shared memory is a matter of workers, not of the batch.
"""

import atexit
import contextlib
import math
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from engine.sampling import BatchSampler

PIECE = 64     # clips
HELD_OUT = 32  # clips of a batch of those
PREFETCH = 2   # pieces that a worker makes ahead; DataLoader's own default
PATH = 1024    # bytes of a path that are remembered


def train_batches(clips: Dataset, batch: int, rank: int, world: int, first: int, steps: int, workers: int,
                  device: torch.device | str = "cpu", timeout: float = 0) -> Iterator[tuple[dict, list[tuple[str, str]]]]:
    """(batch on the device, what failed) of steps first .. steps - 1; process `rank` of `world` has its slots, in order.

    clips[step, slot] -> (clip, what failed). A piece that takes more than `timeout` seconds (0: for ever), or a worker that
    dies, raises RuntimeError: see `worker_error`.
    """
    slots, device = range(rank * batch // world, (rank + 1) * batch // world), torch.device(device)
    clips.in_flight = InFlight(workers)
    pieces = DataLoader(clips, batch_sampler=BatchSampler(first, steps, slots, PIECE), num_workers=workers, collate_fn=collate,
                        pin_memory=device.type == "cuda", worker_init_fn=ignore_signals, timeout=timeout if workers else 0)
    with clips.in_flight.watchdog(timeout):
        yield from prefetch(iter(pieces), math.ceil(len(slots) / PIECE), device)


def eval_batches(clips: Dataset, batch: int, rank: int, world: int, workers: int,
                    timeout: float = 0) -> Iterator[tuple[dict | None, list[tuple[str, str]]]]:
    """Batches on the CPU of every held-out clip once, over all processes; raises as `train_batches`"""
    clips.in_flight = InFlight(workers)
    loader = DataLoader(clips, batch_size=batch, sampler=range(rank, len(clips), world), num_workers=workers,
                        collate_fn=collate, worker_init_fn=ignore_signals, timeout=timeout if workers else 0)
    with clips.in_flight.watchdog(timeout):
        yield from loader


def prefetch(pieces: Iterator, n: int, device: torch.device) -> Iterator[tuple[dict, list[tuple[str, str]]]]:
    """Batches of n pieces each; on a GPU each is copied on a side stream while the one before it is computed."""
    if device.type != "cuda":
        while parts := [(clone(clips) if n > 1 else clips, failed) for clips, failed in islice(pieces, n)]:
            yield concatenate(parts)
        return
    side = torch.cuda.Stream(device)

    def copied():
        with torch.cuda.stream(side):
            parts = [(to_device(clips, device), failed) for clips, failed in islice(pieces, n)]
            return concatenate(parts) if parts else None

    following = copied()
    while following:
        torch.cuda.current_stream(device).wait_stream(side)
        batch, failed = following
        for tensor in filter(torch.is_tensor, batch.values()):
            tensor.record_stream(torch.cuda.current_stream(device))  # its memory is not reused while this step needs it
        following = copied()
        yield batch, failed


def clone(clips: dict) -> dict:
    """A copy in the process's own memory: that which is shared is free for the workers' next pieces"""
    return {k: v.clone() if torch.is_tensor(v) else v for k, v in clips.items()}


def concatenate(parts: list[tuple[dict, list]]) -> tuple[dict, list]:
    """Pieces of a batch, in order -> the batch, and all that failed"""
    if len(parts) == 1:
        return parts[0]
    batches, failed = zip(*parts, strict=True)
    whole = {k: torch.cat([b[k] for b in batches]) if torch.is_tensor(v) else [x for b in batches for x in b[k]]
             for k, v in batches[0].items()}
    return whole, [f for fs in failed for f in fs]


def collate(items: list[tuple[dict | None, list]]) -> tuple[dict | None, list[tuple[str, str]]]:
    """Clips -> a batch of tensors (None where no clip is left), and all that failed"""
    clips = [clip for clip, _ in items if clip is not None]
    failed = [f for _, fs in items for f in fs]
    return default_collate(clips) if clips else None, failed  # a worker's go straight into shared memory


@atexit.register  # before multiprocessing's own handler, which sends SIGTERM to the workers, and waits for them
def end_workers() -> None:
    """Kills the workers of a process that ends in the middle of its batches: SIGTERM is for the main process alone"""
    children = [child for child in multiprocessing.active_children() if child.daemon]
    if children and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # DataLoader's handler would raise what nobody can catch any more
    for child in children:
        child.kill()


def ignore_signals(_worker: int) -> None:
    """Ctrl-C, torchrun and Slurm signal every process; only the main one decides when to stop"""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


def to_device(batch: dict, device: torch.device) -> dict:
    """The tensors of a batch, copied while the device computes"""
    return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}


def shared_memory(clip: int, clips: int, workers: int) -> int:
    """Bytes that what waits may take: of a clip of so many bytes, of so many clips a step, of all workers of both loaders"""
    return (PREFETCH + 1) * workers * (min(clips, PIECE) + HELD_OUT) * clip


def short_of_memory(need: int, workers: int) -> str | None:
    """A warning where so many bytes do not fit into the memory that processes share"""
    shm = Path("/dev/shm")
    if not (workers and shm.is_dir()) or need < (free := shutil.disk_usage(shm).free):
        return None
    return (f"warning: the workers hold up to {need / 1e9:.1f} GB of clips in {shm}, which has {free / 1e9:.1f} GB: they may "
            f"die of a bus error. Give it more (docker run --shm-size={math.ceil(1.2 * need / 1e9)}g), or take fewer --workers")


class InFlight:
    """What each worker of a loader has in hand, in memory that all processes share: so it is known when one dies or hangs."""

    def __init__(self, workers: int):
        self.table = torch.zeros(workers, 2, dtype=torch.float64).share_memory_()       # process, since (s; 0: nothing in hand)
        self.paths = torch.zeros(workers, PATH, dtype=torch.uint8).share_memory_()

    @contextlib.contextmanager
    def track(self, path: str) -> Iterator[None]:
        """Around all that a worker does with a file"""
        worker = get_worker_info()
        if worker:
            text = np.frombuffer(path.encode("utf-8", "replace")[:PATH].ljust(PATH, b"\0"), np.uint8)
            self.paths[worker.id] = torch.from_numpy(text.copy())
            self.table[worker.id] = torch.tensor([os.getpid(), time.monotonic()], dtype=torch.float64)
        try:
            yield
        finally:
            if worker:
                self.table[worker.id, 1] = 0

    @contextlib.contextmanager
    def watchdog(self, patience: float) -> Iterator[None]:
        """Kills a worker that has had a file in hand for more than `patience` seconds (0: for ever).

        DataLoader's own time-out does not do it: in the middle of a piece it waits for ever for a worker that is frozen.
        """
        done = threading.Event()

        def look() -> None:
            while not done.wait(min(1.0, patience / 2)):
                for pid, since, _ in self.read():
                    if since and time.monotonic() - since > 1 + patience:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)

        if patience and len(self.table):
            threading.Thread(target=look, daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def read(self) -> list[tuple[int, float, str]]:
        """(process, since, path) of each worker"""
        return [(int(pid), since, bytes(path).rstrip(b"\0").decode("utf-8", "replace"))
                for (pid, since), path in zip(self.table.tolist(), self.paths.tolist(), strict=True)]


def worker_error(error: RuntimeError, *loaded: Dataset) -> str | None:
    """What a loader's failed workers had in hand, in one line; None for an error that says nothing of workers.

    It ends them all: one that hangs would not end by itself.
    """
    died = re.search(r"DataLoader worker \(pid(?:\(s\))? ([0-9, ]+)\)(.*)", str(error))
    if not died and "DataLoader timed out" not in str(error):
        return None
    workers = [worker for clips in loaded for worker in clips.in_flight.read()]
    busy = sorted((worker for worker in workers if worker[1]), key=lambda worker: worker[1])
    if died:
        pids = set(map(int, died[1].split(",")))
        busy, what = [worker for worker in busy if worker[0] in pids], f"process {died[1]} of the loader{died[2].rstrip('. ')}"
    else:
        busy, what = busy[:1], f"a process of the loader took more than --timeout for a batch ({error})"
    end_workers()
    files = [path for *_, path in busy]
    return f"{what}; it had in hand: {', '.join(files) or 'no file (is memory short? try fewer --workers)'}"
