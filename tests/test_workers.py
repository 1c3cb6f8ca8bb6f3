"""Processes for strangers' files (workers.py): order, death, hanging, bugs, and that none is left behind."""

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from films import film

from engine import loading
from engine.workers import Failed, map_isolated
from media import Media


def task(what):
    if what == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hangs":
        time.sleep(60)
    if what == "bug":
        raise KeyError("x")
    if isinstance(what, str) and what.startswith("once"):  # the path of a file that says that it died before
        path = what.removeprefix("once")
        if not os.path.exists(path):
            open(path, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"
    time.sleep(0.02 * (what % 3))
    return what * 2


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_tasks(workers):
    assert list(map_isolated(task, range(40), workers, 30)) == [(i, 2 * i) for i in range(40)]


def test_no_task_is_no_result():
    assert list(map_isolated(task, [], 2, 30)) == []


def test_a_task_that_kills_its_process_or_hangs_costs_itself_alone():
    found = list(map_isolated(task, [1, "dies", 2, "hangs", 3, 4], 2, 1.0))
    assert found == [(1, 2), ("dies", Failed("killed the decoder (SIGSEGV)")), (2, 4), ("hangs", Failed("took more than 1 s")),
                     (3, 6), (4, 8)]


def test_a_process_that_somebody_else_kills_costs_nothing(tmp_path):
    what = f"once{tmp_path / 'died'}"
    assert list(map_isolated(task, [1, what, 2], 2, 30)) == [(1, 2), (what, "survived"), (2, 4)]


def test_an_exception_is_a_bug_and_is_not_hidden():
    with pytest.raises(RuntimeError, match="bug: KeyError"), contextlib.closing(map_isolated(task, ["bug"], 1, 30)) as found:
        list(found)


def test_tasks_are_taken_only_a_little_ahead_of_a_slow_one():
    taken = []

    def tasks():
        for i in range(1000):
            taken.append(i)
            yield i

    with contextlib.closing(map_isolated(task, tasks(), 2, 30)) as found:
        next(found)
        assert len(taken) <= 20


def test_a_forked_process_that_collects_what_its_parent_has_read_media_with_does_not_wait_for_ever(tmp_path):
    gc.collect()
    gc.disable()
    try:
        with Media(film(tmp_path / "a.mp4")) as media:
            media.video(0.0, 4, 10.0, size=(16, 16))
            media.audio(0.0, 8000, 8000)
        child = multiprocessing.get_context("fork").Process(target=gc.collect)
        child.start()
        child.join(30)
        ended = child.exitcode
        child.kill()
        child.join()
    finally:
        gc.enable()
    assert ended == 0


def collect(what):
    gc.collect()
    return what


class Garbage:
    """Refers to itself, and ends any other process that collects it"""

    def __init__(self):
        self.me, self.process = self, os.getpid()

    def __del__(self):
        if os.getpid() != self.process:
            os._exit(7)


class Collecting(torch.utils.data.Dataset):
    in_flight = loading.InFlight()

    def __getitem__(self, at):
        return {"number": collect(at[1])}, []


def test_workers_do_not_collect_the_garbage_of_the_process_that_they_come_from():
    gc.collect()
    gc.disable()
    try:
        Garbage()
        assert list(map_isolated(collect, [1], 1, 30)) == [(1, 1)]
        batch, _ = next(loading.first_clips(Collecting(), range(2)))
        assert batch["number"].tolist() == [0, 1]
    finally:
        gc.enable()


def test_a_batch_that_nobody_waits_for_does_not_abort_the_process_that_ends():
    """Its thread would be inside torch, without Python's lock, when Python ends: terminate called, exit code -6"""
    code = """
import sys, time, torch
from engine import loading
from engine.processes import Processes

class Slow(torch.utils.data.Dataset):
    in_flight = loading.InFlight()
    def __len__(self):
        return 8
    def __getitem__(self, i):
        with self.in_flight.track("a file"):
            time.sleep(i and 2)
        for _ in range(200 if i else 0):
            big @ big
        return {"number": i}, []

torch.set_num_threads(1)
big = torch.ones(2000, 2000)
clips = Slow()
batches = loading.prefetch(torch.utils.data.DataLoader(clips, batch_size=1, collate_fn=loading.collate), 1, Processes(), 60,
                           torch.device("cpu"))
next(batches)
time.sleep(0.5)
batches.close()
clips[0]  # goes on being read by others
time.sleep(1.5)
sys.exit(5)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True,
                          timeout=120, check=False)
    assert (done.returncode, done.stderr) == (5, "")
