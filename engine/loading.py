"""Batches from files, by processes that decode ahead: what they hand over, and what happens when one dies or hangs.

A step's clips come in pieces of at most 64, each from one worker, so that a batch of thousands is decoded by all of them at
once and waits in pieces: what is in shared memory is a matter of workers, not of the batch.
"""

import atexit
import contextlib
import math
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info
from tqdm import tqdm

from engine import sampling
from engine.errors import Unreadable, WorkerError
from engine.processes import SIGNALS, Processes, Stopped
from engine.workers import garbage_stays, how_it_ended

PIECE = 64     # clips
HELD_OUT = 32  # clips of a batch of those
PREFETCH = 2   # pieces that a worker makes ahead; DataLoader's own default
TENSORS = 9    # of a piece, each handed over as an open file
PATH = 1024    # bytes of a path that are remembered
GRACE = 1.0    # seconds that a batch may still take after a signal

Batches = Iterator[tuple[dict | None, list[tuple[str, str]]]]  # clips, and (path, reason) of the files that could not be read


def train_batches(clips: Dataset, batch: int, processes: Processes, first: int, steps: int, workers: int = 0,
                  timeout: float = 0) -> Batches:
    """Batches on the device of steps first .. steps - 1; process `rank` of `world` has its slots of each, in order.

    clips[step, slot] -> (clip, what failed). Raises WorkerError where a worker dies or takes more than `timeout` seconds for
    a file (0: for ever), and Stopped where a signal came and the batch does not.
    """
    slots = range(processes.rank * batch // processes.world, (processes.rank + 1) * batch // processes.world)
    pieces = sampling.pieces(first, steps, slots, PIECE)
    loader = DataLoader(clips, batch_sampler=pieces, num_workers=workers, collate_fn=collate, worker_init_fn=start_worker,
                        pin_memory=processes.device.type == "cuda")
    return prefetch(loader, math.ceil(len(slots) / PIECE), processes, timeout, processes.device)


def eval_batches(clips: Dataset, batch: int, processes: Processes, workers: int = 0, timeout: float = 0,
                 shared: bool = True) -> Batches:
    """Batches on the CPU of every clip once, under a bar: over all processes, or in this one where the clips are not `shared`.

    Raises as `train_batches`; Stopped on all processes as soon as a signal has come to one.
    """
    mine = range(processes.rank, len(clips), processes.world) if shared else range(len(clips))
    # What is read in order, as an IterableDataset, shares itself out among workers.
    rows = None if isinstance(clips, IterableDataset) else mine
    # Ours: the last batch counts, however small (official: it is left out).
    loader = DataLoader(clips, batch_size=batch, sampler=rows, num_workers=workers, collate_fn=collate,
                        worker_init_fn=start_worker)
    pause = 1 if sys.stderr.isatty() else 30
    with contextlib.suppress(Stopped), tqdm(total=len(mine), unit="file", leave=False, delay=pause, mininterval=pause,
                                            disable=not processes.first) as bar:
        for made in prefetch(loader, 1, processes, timeout, torch.device("cpu"), grace=0):
            processes.alive()
            yield made
            bar.update(len(made[1]) + (len(made[0]["path"]) if made[0] else 0))
            if processes.asked_to_stop():
                break
    processes.meet()


def first_clips(clips: Dataset, *pieces: range) -> Batches:
    """Batches on the CPU of these slots of the first step, made by one process. Raises as `train_batches`."""
    loader = DataLoader(clips, batch_sampler=[[(0, slot) for slot in slots] for slots in pieces], num_workers=1,
                        collate_fn=collate, worker_init_fn=start_worker)
    return prefetch(loader, 1, Processes(solo=True), 600, torch.device("cpu"))


def prefetch(loader: DataLoader, n: int, processes: Processes, timeout: float, device: torch.device,
             grace: float = GRACE) -> Batches:
    """Batches of n pieces each, made by a thread, which copies them to a GPU, so that a file that hangs does not hang this one.

    It makes the next one while the last one is used, but without workers, a GPU or a core to spare: there it would take its
    core from the step.
    """
    loader.dataset.in_flight = in_flight = InFlight(max(1, loader.num_workers), loader.dataset.in_flight.skip)
    others = multiprocessing.active_children()
    with garbage_stays():
        pieces = iter(loader)  # starts the workers
    in_flight.workers = [child for child in multiprocessing.active_children() if child not in others]
    if in_flight.workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # DataLoader's handler would raise anywhere, in the middle of a step too
    made, wanted = queue.Queue(), threading.Semaphore(1)
    side = torch.cuda.Stream(device) if device.type == "cuda" else None
    ahead = side or loader.num_workers or torch.get_num_threads() < (os.cpu_count() or 1)

    def make() -> None:
        if not ahead:
            torch.set_num_threads(1)  # in this thread alone: with a second team OpenMP lets both sleep between their parts
        try:
            while wanted.acquire() and not in_flight.stopped:
                with torch.cuda.stream(side) if side else contextlib.nullcontext():
                    parts = [(to_device(clips, device) if side or n > 1 else clips, failed)
                             for clips, failed in islice(pieces, n)]
                    made.put(concatenate(parts) if parts else None)
        except BaseException as error:
            made.put(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            try:
                found = made.get(timeout=0.2)
            except queue.Empty:
                in_flight.check(timeout)
                if processes.asked_to_stop() and time.monotonic() - processes.shutdown.asked > grace:
                    raise Stopped from None
                continue
            if isinstance(found, OSError | EOFError | RuntimeError):  # a worker that dies breaks what it was handing over
                for _ in range(20 if in_flight.workers else 0):
                    in_flight.check(timeout)
                    time.sleep(0.05)
            if isinstance(found, RuntimeError) and "shared memory" in str(found):
                raise WorkerError("/dev/shm, the memory that workers share, is full: docker run --shm-size=8g", None)
            if isinstance(found, BaseException):
                raise found
            if found is None:
                return
            if ahead:
                wanted.release()
            if side:
                torch.cuda.current_stream(device).wait_stream(side)
                for tensor in filter(torch.is_tensor, found[0].values()):
                    tensor.record_stream(torch.cuda.current_stream(device))  # not reused while this step needs it
            yield found
            if not ahead:
                wanted.release()
    finally:
        in_flight.stopped = thread
        wanted.release()
        thread.join(GRACE)


def to_device(clips: dict, device: torch.device) -> dict:
    """Clips copied out of the memory that is shared with the workers, which may fill it again; to a GPU, while it computes"""
    return {k: v.to(device, non_blocking=True, copy=True) if torch.is_tensor(v) else v for k, v in clips.items()}


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
    """Kill the workers of a process that ends in the middle of its batches: SIGTERM is for the main process alone."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def start_worker(_worker: int) -> None:
    """Leave signals, which Ctrl-C, torchrun and Slurm send to every process, to the main one."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


def shared_memory(clip: int, clips: int, workers: int) -> int:
    """Bytes that what waits may take: of a clip of so many bytes, of so many clips a step, of all workers of both loaders"""
    return (PREFETCH + 1) * workers * (min(clips, PIECE) + HELD_OUT) * clip


def short_of_memory(need: int, workers: int) -> str | None:
    """A warning where so many bytes do not fit into the memory that processes share"""
    shm = Path("/dev/shm")
    if workers and shm.is_dir() and need > (free := shutil.disk_usage(shm).free):
        return (f"warning: the workers hold up to {need / 1e9:.1f} GB of clips in {shm}, which has {free / 1e9:.1f} GB: they "
                f"may die of a bus error. Give it more (docker run --shm-size={math.ceil(1.2 * need / 1e9)}g), or take fewer "
                f"--workers")


def check_open_files(workers: int) -> None:
    """Raise ValueError where this process may not open as many files as what its workers hand over takes."""
    with contextlib.suppress(ImportError):  # Windows has no such limit
        import resource

        allowed, need = resource.getrlimit(resource.RLIMIT_NOFILE)[0], 64 + 2 * TENSORS * (PREFETCH + 1) * workers
        if workers and allowed < need and allowed != resource.RLIM_INFINITY:
            raise ValueError(f"a process may open {allowed} files here: take fewer --workers, or say ulimit -n {need}")


class InFlight:
    """The file that each worker works on, known to all processes should one die; those that have killed workers are skipped."""

    def __init__(self, rows: int = 0, skip: frozenset[str] = frozenset()):
        self.skip, self.workers, self.stopped = skip, [], None                       # the processes; none: a thread of ours
        self.table = torch.zeros(rows, 2, dtype=torch.float64).share_memory_()       # process, since (s; 0: no file)
        self.paths = torch.zeros(rows, PATH, dtype=torch.uint8).share_memory_()

    def __getstate__(self) -> dict:
        return {**vars(self), "workers": [], "stopped": None}  # a process cannot be sent to another

    @contextlib.contextmanager
    def track(self, path: str) -> Iterator[None]:
        """Around all that a worker does with a file; Unreadable where it is one of those to skip"""
        if path in self.skip:
            raise Unreadable(path, "killed or hung its worker twice")
        row = getattr(get_worker_info(), "id", 0)
        if row < len(self.table):
            text = np.frombuffer(path.encode("utf-8", "replace")[:PATH].ljust(PATH, b"\0"), np.uint8)
            self.paths[row] = torch.from_numpy(text.copy())
            self.table[row] = torch.tensor([os.getpid(), time.monotonic()], dtype=torch.float64)
        try:
            yield
        finally:
            if threading.current_thread() is self.stopped:  # were it inside torch when Python ends, the process would abort
                raise Stopped
            self.table[row : row + 1, 1] = 0

    def check(self, timeout: float) -> None:
        """Raise WorkerError where a worker has died, or has had one file in hand for more than `timeout` seconds (0: never)."""
        files = {int(pid): (since, bytes(path).rstrip(b"\0").decode("utf-8", "replace"))
                 for (pid, since), path in zip(self.table.tolist(), self.paths.tolist(), strict=True) if since}
        for worker in self.workers:
            if worker.exitcode:
                file = files.get(worker.pid, (0, None))[1]
                raise WorkerError(f"a process of the loader died ({how_it_ended(worker)})", file)
        for since, path in files.values():
            if timeout and time.monotonic() - since > timeout:
                end_workers()  # one that hangs would not end by itself
                raise WorkerError(f"a process of the loader took more than --timeout {timeout:g} s for a file", path)
