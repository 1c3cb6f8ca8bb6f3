"""From files to batches: what is in a clip (Sections 3.4, 4.1, A.2.1). Which clip fills a slot is in `sampling.py`.

    video (B, T, H, W, 3) uint8   audio (B, S) float32   text (B, K, L) int64   has_audio (B,) bool   has_text (B, K) bool
    flip (B,) bool   colour (B, 5) float32   keys (B, 2) int64 for DropToken of video and audio
"""

import argparse
import collections
import contextlib
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

import augment
from cache import Reader
from decode import Unreadable
from index import Index, Row, complement
from sampling import Slots, Steps, generator
from subtitles import nearest

PREFETCH = 2  # batches that a worker makes ahead; DataLoader's own default
PATH = 1024   # bytes of a path that are remembered
TRIES = 100  # files that one slot may try before the data are given up


class Recipe(NamedTuple):
    """How a clip is cut; the defaults are the paper's (Sections 4.1, A.2.1)."""

    frames: int = 32
    fps: float = 10.0
    size: int = 224
    rate: int = 48000
    samples: int = 153600
    captions: int = 5
    words: int = 16
    area: tuple[float, float] = (0.08, 1.0)
    colour: tuple[float, float, float, float] = (32 / 255, 0.4, 0.4, 0.2)  # brightness, saturation, contrast, hue
    noise: float = 0.01
    cache: float = 0.0             # GB of decoded clips that a process keeps
    control: str | None = None     # "captions" or "audio": taken from another file, so that there is nothing to learn


class Source(NamedTuple):
    """One of the data sets of a mixture: its rows, those held out (row numbers, ascending), and its share of the slots."""

    index: Index
    held: np.ndarray
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.index) - len(self.held)


class Bad:
    """Unreadable files: each named once, all counted by reason, and their share of the last thousand tries."""

    def __init__(self, most: float):
        self.most, self.reasons, self.names, self.recent = most, collections.Counter(), {}, collections.deque()

    def add(self, served: int, failed: list[tuple[str, str]]) -> None:
        """A step: clips served, files that failed on the way"""
        self.recent.append((served + len(failed), len(failed)))
        while sum(n for n, _ in self.recent) - self.recent[0][0] >= 1000:
            self.recent.popleft()
        for path, reason in failed:
            self.reasons[reason] += 1
            self.names.setdefault(path, reason)

    @property
    def too_many(self) -> bool:
        """True past `most`, judged once five are bad"""
        tried, bad = (sum(x) for x in zip(*self.recent, strict=True)) if self.recent else (0, 0)
        return bad >= 5 and bad > self.most * tried

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in self.reasons.most_common())
        return f"{sum(self.reasons.values())} draws of {len(self.names)} unreadable files ({reasons})"


class TooManyBad(RuntimeError):
    """The data cannot be trusted any more: names what failed and why."""


class Clips(Dataset):
    """The training clips: item (step, slot) -> (a dictionary of one clip's arrays, what failed on the way to it)."""

    def __init__(self, sources: list[Source], slots: Slots, recipe: Recipe, vocabulary, seed: int = 0):
        self.sources, self.slots, self.recipe, self.vocabulary, self.seed = sources, slots, recipe, vocabulary, seed
        self.reader = Reader(recipe.size, recipe.fps, recipe.rate, recipe.cache)
        self.hands = Hands(0)

    def __getitem__(self, at: tuple[int, int]) -> tuple[dict, list[tuple[str, str]]]:
        step, slot = at
        place, k = self.slots(step, slot)
        source = self.sources[place]

        def clip(k: int, rng: np.random.Generator) -> dict:
            number = int(complement(k, source.held))
            with self.hands.hold(name(source.index, number)):
                return self.clip(source, k, number, rng)

        return attempts(clip, k, len(source), (self.seed, step, slot))

    def clip(self, source: Source, k: int, number: int, rng: np.random.Generator) -> dict:
        """A random place of file k, row `number`: frames, the sound in sync with them, the captions nearest in time (3.4)"""
        r, index, other = self.recipe, source.index, number
        row = words = index[number]
        if r.control:
            other = int(complement((k + len(source) // 2) % len(source), source.held))
            words = index[other] if r.control == "captions" else row
        with self.reader.open(*find(index, number)) as media:
            start = random_start(rng, row, media.duration, r)
            video = media.video(start, r.frames, r.fps, lambda w, h: augment.random_box(rng, w, h, r.area), (r.size, r.size))
            has_audio = media.has_audio
            audio = media.audio(start, r.samples, r.rate) if has_audio and r.control != "audio" else None
        if r.control == "audio":
            with self.reader.open(*find(index, other)) as media:
                has_audio = media.has_audio
                audio = media.audio(start, r.samples, r.rate) if has_audio else None
        if not has_audio:
            audio = np.zeros(r.samples, np.float32)
        elif r.noise:
            audio = augment.audio_noise(audio, rng, r.noise)
        text, has_text = captions(words, start, r, self.vocabulary)
        return dict(video=video, audio=audio, has_audio=has_audio, text=text, has_text=has_text,
                    flip=bool(rng.random() < 0.5), colour=augment.colour_draws(rng, *r.colour),
                    keys=rng.integers(2**62, size=2), path=name(index, number))


def attempts(clip: Callable[[int, np.random.Generator], dict], k: int, n: int, numbers: tuple[int, ...]):
    """clip(k, rng), or that of another of n files for as long as one is Unreadable: all draws are a function of `numbers`.

    -> (what `clip` returned, what failed on the way to it)
    """
    failed: list[tuple[str, str]] = []
    for attempt in range(TRIES):
        rng = generator(*numbers, attempt)
        if attempt:
            k = int(rng.integers(n))
        try:
            return clip(k, rng), failed
        except Unreadable as e:
            failed.append((str(e.path), e.reason))
    reasons = collections.Counter(reason for _, reason in failed).most_common()
    raise TooManyBad(f"{TRIES} files in a row could not be read ({', '.join(f'{r}: {n}' for r, n in reasons)}): check "
                     f"--data; they are {', '.join(list(dict.fromkeys(path for path, _ in failed))[:10])}")


class HeldOut(Dataset):
    """The held-out clips: the middle of each held-out row, the central square, no augmentation; None where unreadable."""

    def __init__(self, sources: list[Source], recipe: Recipe, vocabulary):
        self.sources, self.recipe, self.vocabulary = sources, recipe, vocabulary
        self.ends = np.cumsum([len(source.held) for source in sources])
        self.reader = Reader(recipe.size, recipe.fps, recipe.rate, recipe.cache)
        self.hands = Hands(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> tuple[dict | None, list[tuple[str, str]]]:
        k = int(np.searchsorted(self.ends, i, side="right"))
        r, index, number = self.recipe, self.sources[k].index, int(self.sources[k].held[i - self.ends[k]])  # from the end
        row = index[number]
        try:
            with self.hands.hold(name(index, number)), self.reader.open(*find(index, number)) as media:
                first, last = starts(row, media.duration, r)
                start = math.floor((first + last) / 2 * r.fps) / r.fps
                video = media.video(start, r.frames, r.fps, augment.centre_box, (r.size, r.size))
                has_audio = media.has_audio
                audio = media.audio(start, r.samples, r.rate) if has_audio else np.zeros(r.samples, np.float32)
            text, has_text = captions(row, start, r, self.vocabulary)
        except Unreadable as e:
            return None, [(str(e.path), e.reason)]
        return dict(video=video, audio=audio, has_audio=has_audio, text=text, has_text=has_text, path=name(index, number)), []


def find(index: Index, number: int) -> tuple:
    """The arguments of `Media` for a row; raises Unreadable where its path leaves the folder of the data"""
    try:
        return index.media(number)
    except ValueError:
        raise Unreadable(index.name(number), "path leaves its folder") from None


def name(index: Index, number: int) -> str:
    """What a row is called in messages"""
    path, _, _, inside = find(index, number)
    return inside or str(path)


class Hands:
    """What each worker of a loader has in hand, in memory that all processes share: so it is known when one dies or hangs."""

    def __init__(self, workers: int):
        self.table = torch.zeros(workers, 2, dtype=torch.float64).share_memory_()       # process, since (s; 0: nothing in hand)
        self.paths = torch.zeros(workers, PATH, dtype=torch.uint8).share_memory_()

    @contextlib.contextmanager
    def hold(self, path: str) -> Iterator[None]:
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

    def read(self) -> list[tuple[int, float, str]]:
        """(process, since, path) of each worker"""
        return [(int(pid), since, bytes(path).rstrip(b"\0").decode("utf-8", "replace"))
                for (pid, since), path in zip(self.table.tolist(), self.paths.tolist(), strict=True)]


def lost(error: RuntimeError, *loaded: Dataset) -> str | None:
    """What a loader's failed workers had in hand, in one line; None for an error that says nothing of workers.

    It ends them all: one that hangs would not end by itself.
    """
    died = re.search(r"DataLoader worker \(pid(?:\(s\))? ([0-9, ]+)\)(.*)", str(error))
    if not died and "DataLoader timed out" not in str(error):
        return None
    workers = [worker for clips in loaded for worker in clips.hands.read()]
    busy = sorted((worker for worker in workers if worker[1]), key=lambda worker: worker[1])
    if died:
        pids = set(map(int, died[1].split(",")))
        busy, what = [worker for worker in busy if worker[0] in pids], f"process {died[1]} of the loader{died[2].rstrip('. ')}"
    else:
        busy, what = busy[:1], f"a process of the loader took more than --timeout for a batch ({error})"
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for pid, *_ in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL) if pid else None
    files = [path for *_, path in busy]
    return f"{what}; it had in hand: {', '.join(files) or 'no file (is memory short? try fewer --workers)'}"


def starts(row: Row, duration: float, r: Recipe) -> tuple[float, float]:
    """The first and the last second at which a clip of this row may begin"""
    first, end = row.start, min(row.end, duration)
    if first >= duration:
        raise Unreadable(row.path, "start past the end")
    return first, max(first, end - r.frames / r.fps)


def random_start(rng: np.random.Generator, row: Row, duration: float, r: Recipe) -> float:
    """Uniform on the frames of the row from which a whole clip follows; 0 where the row is too short (it loops)"""
    first, last = starts(row, duration, r)
    return first + int(rng.integers(math.floor((last - first) * r.fps + 1e-6) + 1)) / r.fps


def captions(row: Row, start: float, r: Recipe, vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """The K captions nearest in time to the clip (Eq. 5), the nearest first -> ids (K, L) int64, which are there (K,) bool"""
    text = np.zeros((r.captions, r.words), np.int64)
    near = nearest([(c.start, c.end) for c in row.cues], start, start + r.frames / r.fps, r.captions)
    for k, i in enumerate(near):
        text[k] = vocabulary.encode(row.cues[i].text, r.words)
    # Ours: a caption with no known word says nothing, so it counts as missing (official: it is kept).
    return text, (text > 1).any(1)


def collate(items: list[tuple[dict | None, list]]) -> tuple[dict | None, list[tuple[str, str]]]:
    """Clips -> a batch of tensors (None where no clip is left), and all that failed"""
    clips = [clip for clip, _ in items if clip is not None]
    failed = [f for _, fs in items for f in fs]
    return default_collate(clips) if clips else None, failed  # a worker's go straight into shared memory


def ignore_signals(_worker: int) -> None:
    """Ctrl-C, torchrun and Slurm signal every process; only the main one decides when to stop"""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


def train_loader(clips: Clips, batch: int, rank: int, world: int, first: int, steps: int, workers: int, pin: bool,
                 timeout: float = 0):
    """The batches of steps first .. steps - 1; process `rank` of `world` has as many slots as any other, in order.

    A batch that takes more than `timeout` seconds (0: for ever), or a worker that dies, raises RuntimeError: see `lost`.
    """
    slots = range(rank * batch // world, (rank + 1) * batch // world)
    clips.hands = Hands(workers)
    return DataLoader(clips, batch_sampler=Steps(first, steps, slots), num_workers=workers, collate_fn=collate,
                      pin_memory=pin, worker_init_fn=ignore_signals, timeout=timeout if workers else 0)


def held_out_loader(clips: HeldOut, batch: int, rank: int, world: int, workers: int, timeout: float = 0) -> DataLoader:
    """Every held-out clip once, over all processes; raises as `train_loader`"""
    clips.hands = Hands(workers)
    return DataLoader(clips, batch_size=batch, sampler=range(rank, len(clips), world), num_workers=workers,
                      collate_fn=collate, worker_init_fn=ignore_signals, timeout=timeout if workers else 0)


def shared_memory(recipe: Recipe, clips: int, workers: int, processes: int = 1) -> str | None:
    """A warning where the batches that wait, of `clips` each, do not fit into the memory that processes share"""
    shm = Path("/dev/shm")
    if not (workers and shm.is_dir()):
        return None
    clip = 3 * recipe.frames * recipe.size**2 + 4 * recipe.samples + 8 * recipe.captions * recipe.words
    need, free = (PREFETCH + 1) * workers * processes * clips * clip, shutil.disk_usage(shm).free
    return None if need < free else (
        f"warning: {workers} workers hold up to {need / 1e9:.1f} GB of batches in {shm}, which has {free / 1e9:.1f} GB: they "
        f"may die of a bus error. Give it more (docker run --shm-size={math.ceil(1.2 * need / 1e9)}g), or take fewer --workers")


def to_device(batch: dict, device: torch.device) -> dict:
    """The tensors of a batch, copied while the device computes"""
    return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}


def ahead(batches, device: torch.device):
    """The batches on the device, each copied on a side stream while the one before it is computed."""
    if device.type != "cuda":
        yield from batches
        return
    side, batches = torch.cuda.Stream(device), iter(batches)

    def copied(item):
        with torch.cuda.stream(side):
            return item and (to_device(item[0], device), item[1])

    following = copied(next(batches, None))
    while following:
        torch.cuda.current_stream(device).wait_stream(side)
        batch, failed = following
        for tensor in filter(torch.is_tensor, batch.values()):
            tensor.record_stream(torch.cuda.current_stream(device))  # its memory is not reused while this step needs it
        following = copied(next(batches, None))
        yield batch, failed


def main(argv: list[str] | None = None) -> None:
    """`python data.py pack`, `check` or `show`"""
    import check
    import pack
    import show

    p = argparse.ArgumentParser(description="Films, outside of training: pack them, check them, look at them.")
    commands = p.add_subparsers(required=True)
    for command in (pack, check, show):
        command.flags(commands)
    args = p.parse_args(argv)
    args.command(p, args)


if __name__ == "__main__":
    main()
