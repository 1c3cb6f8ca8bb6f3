"""What a list of N clips costs a run: `python -m bench data --index N` writes one that is made up, and measures.

Which clip fills a slot is computed (`engine/sampling.py`) and what it is called lies in mapped files (`sources/index.py`), so
that N costs a worker nothing but pages of the operating system's one copy of them.
"""

import math
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

import data
from engine.sampling import BatchSampler, Sampler
from media.captions import Caption
from sources import index


class Probe(Dataset):
    """Item (step, slot) -> seconds to choose and look up a row as `data.TrainDataset` does, and bytes of this worker alone."""

    def __init__(self, source: data.Source, slots: Sampler, last: int):
        self.source, self.slots, self.last = source, slots, last

    def __getitem__(self, at: tuple[int, int]) -> tuple[float, float, float]:
        began = time.perf_counter()
        number = int(index.complement(self.slots(*at)[1], self.source.held))
        chosen = time.perf_counter()
        row, _ = self.source.index[number], self.source.index.media(number)
        looked = time.perf_counter()
        assert row.captions
        return chosen - began, looked - chosen, private_dirty() if at[1] == self.last else 0.0


def measure(n: int, batch: int = 2048, steps: int = 20, folder: Path | None = None) -> list[dict]:
    """Figures of a thousand clips and of n, each read by a worker of a loader; the lists are written to `folder`, or to /tmp"""
    rows = []
    for clips in (1000, n):
        made_up = (index.Row(f"{i:09}.mp4", 0.0, math.inf, [Caption(1.0, 3.0, f"stir until it is {i:09}")])
                   for i in range(clips))
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            began = time.perf_counter()
            opened = index.write(Path(scratch) / "index", Path(scratch), made_up)
            written = time.perf_counter()
            os.sync()  # what the disk does not have yet would count as a worker's own
            source = data.Source(opened, index.held_out(opened))
            found = time.perf_counter()
            probe = Probe(source, Sampler([len(source)], [1.0], batch, 0), batch - 1)
            loader = DataLoader(probe, batch_sampler=BatchSampler(0, steps, range(batch)), num_workers=1, collate_fn=np.array,
                                multiprocessing_context="spawn")                # a forked one shares pages with this process
            seen = np.array(list(loader))                                       # (steps, batch, 3)
            choose, look = np.median(seen[..., :2].sum(1), 0).tolist()
            size = sum(file.stat().st_size for file in opened.folder.iterdir())
            rows.append({
                "name": "index", "clips": clips, "batch": batch, "bytes": size,
                "write_s": written - began, "held_out_s": found - written, "choose_s": choose, "look_up_s": look,
                "worker_bytes": float(seen[-1, -1, 2]), "worker_grew_bytes": float(seen[-1, -1, 2] - seen[0, -1, 2])})
    return rows


def private_dirty() -> float:
    """Bytes of memory that this process alone has and has written to; NaN where the system does not tell"""
    try:
        with open("/proc/self/smaps_rollup", encoding="utf-8") as file:
            return 1024.0 * next(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))
    except (OSError, StopIteration):
        return float("nan")


def report(rows: list[dict]) -> str:
    """The figures, for people"""
    return "\n".join(
        f"index of {r['clips']:,} clips ({r['bytes'] / 1e9:.2f} GB on disk): batch of {r['batch']} chosen in "
        f"{1e3 * r['choose_s']:.1f} ms and looked up in {1e3 * r['look_up_s']:.1f} ms; a worker has "
        f"{r['worker_bytes'] / 1e6:.1f} MB of its own, {r['worker_grew_bytes'] / 1e6:+.2f} MB since its first "
        f"batch; held-out clips found in {r['held_out_s']:.1f} s" for r in rows)
