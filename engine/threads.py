"""How the threads of torch wait for each other. To be imported before torch, whose OpenMP reads it once.

By default they spin: where cores are idle that is quickest, but a thread that spins keeps its core from the one that it waits
for, and beside other programs a step takes twenty times as long. So they sleep where, at the start, others use the cores.
"""

import contextlib
import os
import time


def idle_share(seconds: float = 0.1) -> float:
    """The share of this machine's cores that nobody used for a moment; 0 where the system does not tell"""
    ticks = []
    with contextlib.suppress(OSError, ValueError):
        for wait in (0.0, seconds):
            time.sleep(wait)
            with open("/proc/stat", encoding="ascii") as file:
                ticks.append(list(map(int, file.readline().split()[1:9])))
    if len(ticks) < 2:
        return 0.0
    spent = [after - before for before, after in zip(*ticks, strict=True)]
    return spent[3] / max(sum(spent), 1)


if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys() and idle_share() < 0.8:
    os.environ["OMP_WAIT_POLICY"] = "passive"
