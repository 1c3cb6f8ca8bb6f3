"""Which clip fills slot k of step s: computed, not stored (Sections 3.4, A.1.1).

Every random choice of a run is a pure function of (seed, step, slot). So any number of processes and loader workers make the
same global batch, a run that goes on at step s sees what it would have seen, and a hundred million clips need no list.
"""

import functools
import math
from collections.abc import Iterator

import numpy as np


def generator(*numbers: int) -> np.random.Generator:
    """The random draws of one purpose: a pure function of the numbers, such as (seed, step, slot)"""
    return np.random.default_rng(numbers)


@functools.lru_cache(64)  # of a pass through the data, asked for each of its clips
def key(*numbers: int) -> int:
    """One 62-bit integer from the numbers, to seed what cannot take a generator"""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 2)


def permute(i: int, n: int, key: int) -> int:
    """Place i of a permutation of 0..n-1 without storing it: a Feistel network, walked until it comes out below n."""
    half = max(1, math.ceil(math.log2(max(n, 2)) / 2))
    while True:
        left, right = i >> half, i & (1 << half) - 1
        for turn in range(4):
            mixed = (right * 0x9E3779B97F4A7C15 + (key ^ turn) * 0xBF58476D1CE4E5B9) % 2**64
            mixed = (mixed ^ mixed >> 29) * 0x94D049BB133111EB % 2**64
            left, right = right, left ^ (mixed >> 40 & (1 << half) - 1)
        i = left << half | right
        if i < n:
            return i


class Sampler:
    """Which clip of which source fills a slot: a source passes through all of its clips before one of them repeats."""

    # Ours: each source has fixed slots, interleaved so that every process gets each (paper: a mini-batch holds samples of
    # both data sets; official: one of the two, drawn for each sample).
    def __init__(self, sizes: list[int], weights: list[float], batch: int, seed: int):
        self.sizes, self.seed = sizes, seed
        shares = np.asarray(weights, float) / sum(weights)
        self.counts, self.places = np.zeros(len(sizes), int), []
        for slot in range(batch):
            source = int(np.argmax(shares * (slot + 1) - self.counts))
            self.places.append((source, int(self.counts[source])))
            self.counts[source] += 1
        if not all(self.counts):
            raise ValueError(f"--weights {weights} leave a source without a place in a batch of {batch}: raise --batch")

    def __call__(self, step: int, slot: int) -> tuple[int, int]:
        """-> (source, number of the clip in it)"""
        source, place = self.places[slot]
        drawn, n = step * int(self.counts[source]) + place, self.sizes[source]
        return source, permute(drawn % n, n, key(self.seed, source, drawn // n))


def pieces(first: int, steps: int, slots: range, most: int | None = None) -> Iterator[list[tuple[int, int]]]:
    """For each step from `first` on, the (step, slot) pairs of one process, at most so many at a time: a batch sampler"""
    most = most or len(slots)
    for step in range(first, steps):
        for i in range(0, len(slots), most):
            yield [(step, slot) for slot in slots[i : i + most]]
