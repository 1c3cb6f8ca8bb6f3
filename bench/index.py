"""What a list of N clips costs a run: `python -m bench data --index N` writes one that is made up, and measures.

Which clip fills a slot is computed (`sampling.py`) and what it is called lies in mapped files (`index.py`), so that N costs a
worker nothing but pages of the operating system's one copy of them.
"""

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

import data
from engine.sampling import BatchSampler, Sampler
from sources.index import FORMAT, PLACES, TYPES, Index, complement, held_out, types_of

AT_ONCE = 1 << 20   # rows written together
SHARD = 8000        # clips of a made-up shard


def write(folder: Path, n: int) -> None:
    """The index of n packed clips that do not exist, one caption each: what `index.write` would write of them, much faster"""
    folder.mkdir(parents=True)
    path, text = (np.frombuffer(word, np.uint8) for word in (b"000000000.mp4", b"stir slowly until it is number 000000000"))
    files = {name: (folder / name).open("wb") for name in types_of(packed=True, labels=False)}
    for name in ("path_ends", "cue_ends", "text_ends"):
        files[name].write(np.zeros(1, TYPES[name]).tobytes())
    for first in range(0, n, AT_ONCE):
        i = np.arange(first, min(first + AT_ONCE, n))
        digits = (i[:, None] // 10 ** np.arange(8, -1, -1) % 10 + ord("0")).astype(np.uint8)
        paths, texts, places = np.tile(path, (len(i), 1)), np.tile(text, (len(i), 1)), np.zeros(len(i), PLACES)
        paths[:, :9], texts[:, -9:] = digits, digits
        places["shard"], places["offset"], places["size"] = i // SHARD, i % SHARD * 131_072, 130_000
        spans, times = np.tile([0, np.inf], (len(i), 1)), np.tile(np.float32([1, 3]), (len(i), 1))
        hashes = i.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        hashes = (hashes ^ hashes >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9)
        columns = dict(paths=paths, path_ends=(i + 1) * len(path), hashes=hashes, spans=spans, cue_ends=i + 1, times=times,
                       texts=texts, text_ends=(i + 1) * len(text), places=places)
        for name, values in columns.items():
            files[name].write(values.tobytes())
    for file in files.values():
        file.flush()
        os.fsync(file.fileno())  # what the disk does not have yet would count as a worker's own
        file.close()
    head = {"format": FORMAT, "root": os.pardir, "packed": True, "rows": n, "cues": n, "crc": 0}
    (folder / "index.json").write_text(json.dumps(head))


class Probe(Dataset):
    """Chooses and looks up as `data.Clips` does, and decodes nothing: item (step, slot) -> seconds, and the worker's memory"""

    def __init__(self, source: data.Source, slots: Sampler, last: int):
        self.source, self.slots, self.last = source, slots, last

    def __getitem__(self, at: tuple[int, int]) -> tuple[float, float, float]:
        began = time.perf_counter()
        number = int(complement(self.slots(*at)[1], self.source.held))
        chosen = time.perf_counter()
        row, _ = self.source.index[number], self.source.index.media(number)
        looked = time.perf_counter()
        assert row.captions
        return chosen - began, looked - chosen, private_dirty() if at[1] == self.last else 0.0


def measure(n: int, batch: int = 2048, steps: int = 20, folder: Path | None = None) -> list[dict]:
    """Figures of a thousand clips and of n, each read by a worker of a loader; the lists are written to `folder`, or to /tmp"""
    rows = []
    for clips in (1000, n):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            began = time.perf_counter()
            write(Path(scratch) / "index", clips)
            written = time.perf_counter()
            index = Index(Path(scratch) / "index")
            held = held_out(index)
            found = time.perf_counter()
            source = data.Source(index, held)
            probe = Probe(source, Sampler([len(source)], [1.0], batch, 0), batch - 1)
            loader = DataLoader(probe, batch_sampler=BatchSampler(0, steps, range(batch)), num_workers=1, collate_fn=np.array,
                                multiprocessing_context="spawn")                # a forked one shares pages with this process
            seen = np.array(list(loader))                                       # (steps, batch, 3)
            choose, look = np.median(seen[..., :2].sum(1), 0).tolist()
            rows.append({
                "name": "index", "clips": clips, "batch": batch, "bytes": sum(f.stat().st_size for f in index.folder.iterdir()),
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
