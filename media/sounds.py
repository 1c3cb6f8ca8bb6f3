"""Decoded blocks of sound to one channel at one rate, each in its place in time (Section A.2.1).

    mix = Mixer(start, samples, rate)    the interval, in seconds and in samples at `rate` Hz
    mix(seconds, block)                  False once the blocks are past its end
    mix.wave()                           (samples,) float32 in [-1, 1], 0 where nothing was heard
"""

import av
import numpy as np

MARGIN, GAP = 0.05, 0.05  # seconds: kept on both sides of the interval, taken for a break


class Mixer:
    """Collects runs of blocks that follow each other, and lays each run into the interval as one piece."""

    def __init__(self, start: float, samples: int, rate: int):
        self.start, self.rate, self.out = start, rate, np.zeros(samples, np.float32)
        self.run, self.heard, self.until = [], False, 0.0

    def __call__(self, time: float, block: av.AudioFrame) -> bool:
        if block.sample_rate < 1000:  # a lie that would make a few samples hours
            return True
        self.heard, seconds = True, block.samples / block.sample_rate
        if time > self.start + len(self.out) / self.rate + MARGIN:
            return False
        if time + seconds >= self.start - MARGIN:
            if self.run and (abs(time - self.until) > GAP or _kind(block) != _kind(self.run[0][1])):
                self._lay()
            self.run.append((time, block))
            self.until = time + seconds
        return True

    def wave(self) -> np.ndarray:
        """What was heard in the interval"""
        if self.run:
            self._lay()
        return np.clip(np.nan_to_num(self.out, posinf=1.0, neginf=-1.0), -1.0, 1.0)

    def _lay(self):
        """Mixes the run to one channel at the rate and fills its place."""
        # Loud channels together are scaled to stay within 1, as a mix in integers is, not cut off.
        resampler = av.AudioResampler("flt", "mono", self.rate, options={"rematrix_maxval": "1.0"})
        blocks = [block for _, block in self.run]
        mixed = [part for block in [*blocks, None] for part in resampler.resample(block) if part is not None]
        wave = np.concatenate([np.frombuffer(part.planes[0], np.float32, part.samples) for part in mixed])
        # Their times may be rounded to a millisecond, or jitter: samples just follow each other, from the median of all.
        elapsed = np.cumsum([0.0, *(block.samples / block.sample_rate for block in blocks[:-1])])
        begin = round((float(np.median([time for time, _ in self.run] - elapsed)) - self.start) * self.rate)
        wave, begin = wave[max(-begin, 0):], max(begin, 0)
        wave = wave[:max(len(self.out) - begin, 0)]
        self.out[begin:begin + len(wave)] = wave
        self.run = []


def _kind(block) -> tuple:
    return block.format.name, block.layout.name, block.sample_rate
