"""Tasks handed to processes that decode strangers' files: one that dies or hangs costs its own task, and nothing else.

`multiprocessing.Pool` waits for ever for a process that was killed; `concurrent.futures` gives all tasks up and does not say
which one it was.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any, NamedTuple

from engine.processes import SIGNALS

AHEAD = 8  # results a worker may have waiting behind a slow task


class Failed(NamedTuple):
    """The result of a task whose process died or was stopped"""

    reason: str


@contextlib.contextmanager
def garbage_stays():
    """Around a fork: the new process does not collect this one's garbage, some of which waits for threads that it lacks."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Worker:
    """A process, and the number of the task that it has."""

    def __init__(self, function: Callable):
        self.pipe, other = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=serve, args=(function, other, os.getpid()), daemon=True)
        with garbage_stays():
            self.process.start()
        other.close()
        self.number, self.since = None, 0.0

    def give(self, number: int, task: Any) -> None:
        """Begin a task."""
        self.number, self.since = number, time.monotonic()
        self.pipe.send(task)

    def end(self) -> str:
        """Kill the process -> how it ended, in words"""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        return how_it_ended(self.process)


def how_it_ended(process: multiprocessing.Process) -> str:
    """The exit code of a process in words"""
    return signal.Signals(-process.exitcode).name if process.exitcode < 0 else f"exit code {process.exitcode}"


def serve(function: Callable, pipe, parent: int) -> None:
    """Do tasks until the process that started this one ends."""
    for number in SIGNALS:  # they come to the whole group; the first process decides
        signal.signal(number, signal.SIG_IGN)
    while True:
        while not pipe.poll(1):
            if os.getppid() != parent:
                return
        try:
            pipe.send((True, function(pipe.recv())))
        except (EOFError, BrokenPipeError):
            return
        except Exception as error:
            pipe.send((False, f"{type(error).__name__}: {error}"))


def map_isolated(function: Callable, tasks: Iterable, workers: int, timeout: float) -> Iterator[tuple[Any, Any]]:
    """(task, function(task)) in the order of the tasks, or (task, Failed) where it killed two processes or took > timeout s.

    RuntimeError for an exception in `function`, which is a bug: what files do to it is for it to return.
    """
    source, pool, given, done, first, again = enumerate(tasks), [], {}, {}, 0, set()
    try:
        pool = [Worker(function) for _ in range(workers)]
        while True:
            for worker in pool:
                if worker.number is None and len(given) < AHEAD * workers and (more := next(source, None)):
                    given[more[0]] = more[1]
                    worker.give(*more)
            busy = {worker.pipe: i for i, worker in enumerate(pool) if worker.number is not None}
            if not busy:
                return
            for pipe in connection.wait(list(busy), timeout=1):
                worker = pool[busy[pipe]]
                try:
                    right, result = pipe.recv()
                    if not right:
                        raise RuntimeError(f"{given[worker.number]}: {result}")
                    done[worker.number], worker.number = result, None
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    pool[busy[pipe]], number, how = Worker(function), worker.number, worker.end()
                    if number in again:
                        done[number] = Failed(f"killed the decoder ({how})")
                    else:  # it may have been somebody else's fault: memory, say
                        again.add(number)
                        pool[busy[pipe]].give(number, given[number])
            for i, worker in enumerate(pool):
                if worker.number is not None and time.monotonic() - worker.since > timeout:
                    worker.end()
                    done[worker.number] = Failed(f"took more than {timeout:g} s")
                    pool[i] = Worker(function)
            while first in done:
                yield given.pop(first), done.pop(first)
                first += 1
    finally:
        for worker in pool:
            worker.end()
