"""Tasks handed to processes that decode strangers' files: one that dies or hangs costs its own task, and nothing else.

`multiprocessing.Pool` waits for ever for a process that was killed; `concurrent.futures` gives all tasks up and does not say
which one it was.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any, NamedTuple

AHEAD = 8  # results a worker may have waiting behind a slow task


class Failed(NamedTuple):
    """The result of a task whose process died or was stopped"""

    reason: str


class Worker:
    """A process, and the number of the task that it has."""

    def __init__(self, function: Callable):
        self.pipe, other = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=serve, args=(function, other, os.getpid()), daemon=True)
        self.process.start()
        other.close()
        self.number, self.since = None, 0.0

    def give(self, number: int, task: Any) -> None:
        """Begins a task"""
        self.number, self.since = number, time.monotonic()
        self.pipe.send(task)

    def end(self) -> int:
        """Kills the process -> its exit code"""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        return self.process.exitcode


def serve(function: Callable, pipe, parent: int) -> None:
    """The life of a worker: it ends with the process that started it, whatever ended that one."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they come to the whole group; the first process decides
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


def map_isolated(function: Callable, tasks: Iterable, workers: int, patience: float) -> Iterator[tuple[Any, Any]]:
    """(task, function(task)) in the order of the tasks, or (task, Failed) where it killed two processes or took > patience s.

    RuntimeError for an exception in `function`, which is a bug: what files do to it is for it to return.
    """
    source, crew, given, done, first, again = enumerate(tasks), [], {}, {}, 0, set()
    try:
        crew = [Worker(function) for _ in range(workers)]
        while True:
            for worker in crew:
                if worker.number is None and len(given) < AHEAD * workers and (more := next(source, None)):
                    given[more[0]] = more[1]
                    worker.give(*more)
            busy = {worker.pipe: i for i, worker in enumerate(crew) if worker.number is not None}
            if not busy:
                return
            for pipe in connection.wait(list(busy), timeout=1):
                worker = crew[busy[pipe]]
                try:
                    right, result = pipe.recv()
                    if not right:
                        raise RuntimeError(f"{given[worker.number]}: {result}")
                    done[worker.number], worker.number = result, None
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    crew[busy[pipe]], number, code = Worker(function), worker.number, worker.end()
                    if number in again:
                        done[number] = Failed(f"killed the decoder ({death(code)})")
                    else:  # it may have been somebody else's fault: memory, say
                        again.add(number)
                        crew[busy[pipe]].give(number, given[number])
            for i, worker in enumerate(crew):
                if worker.number is not None and time.monotonic() - worker.since > patience:
                    worker.end()
                    done[worker.number] = Failed(f"took more than {patience:g} s")
                    crew[i] = Worker(function)
            while first in done:
                yield given.pop(first), done.pop(first)
                first += 1
    finally:
        for worker in crew:
            worker.end()


def death(code: int) -> str:
    """An exit code in words"""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
