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
from engine.sampling import Sampler, pieces
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
        assert self.source.index[number].captions
        self.source.index.media(number)
        return chosen - began, time.perf_counter() - chosen, private_dirty() if at[1] == self.last else 0.0


def measure(n: int, batch: int = 2048, steps: int = 20, folder: Path | None = None) -> list[dict]:
    """Rows for a thousand clips and for n, each read by a worker of a loader, also printed; lists lie in `folder` meanwhile"""
    return [figures(clips, batch, steps, folder) for clips in (1000, n)]


def figures(clips: int, batch: int, steps: int, folder: Path | None) -> dict:
    """The row of a list of `clips` clips"""
    made_up = (index.Row(f"{i:09}.mp4", 0.0, math.inf, [Caption(1.0, 3.0, f"stir until it is {i:09}")]) for i in range(clips))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        began = time.perf_counter()
        opened = index.write(Path(scratch) / "index", Path(scratch), made_up)
        written = time.perf_counter()
        os.sync()  # what the disk does not have yet would count as a worker's own
        source = data.Source(opened, index.held_out(opened))
        found = time.perf_counter()
        loader = DataLoader(Probe(source, Sampler([len(source)], [1.0], batch, 0), batch - 1), collate_fn=np.array,
                            batch_sampler=pieces(0, steps, range(batch)), num_workers=1,
                            multiprocessing_context="spawn")                    # a forked one shares pages with this process
        seen = np.array(list(loader))                                           # (steps, batch, 3)
        size = sum(file.stat().st_size for file in opened.folder.iterdir())
    choose, look = np.median(seen[..., :2].sum(1), 0).tolist()
    first, last = seen[[0, -1], -1, 2].tolist()
    print(f"index of {clips:,} clips ({size / 1e9:.2f} GB on disk): batch of {batch} chosen in {1e3 * choose:.1f} ms and "
          f"looked up in {1e3 * look:.1f} ms; a worker has {last / 1e6:.1f} MB of its own, {(last - first) / 1e6:+.2f} MB "
          f"since its first batch; held-out clips found in {found - written:.1f} s", flush=True)
    return {"name": "index", "clips": clips, "batch": batch, "bytes": size, "write_s": written - began,
            "held_out_s": found - written, "choose_s": choose, "look_up_s": look, "worker_bytes": last,
            "worker_grew_bytes": last - first}


def private_dirty() -> float:
    """Bytes of memory that this process alone has and has written to; NaN where the system does not tell"""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.nan
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
