"""Random crops, flips and colours of a clip, noise on its sound, and the range of both (Section A.2.1).

    box       (left, top, right, bottom)   the part of the pictures that is kept, in fractions; one for a whole clip
    colour    (B, 5)                       whether at all, brightness, saturation, contrast, hue; a row for a whole clip
    augment   (B, T, H, W, 3) uint8 -> (B, T, H, W, 3) float32 in [-1, 1], on whatever device the clips are

The paper gives the ranges; what they are ranges of is said by TensorFlow's operations, which the official code calls
(those of torchvision follow other laws). All draws come from the caller's generator.
"""

import math

import numpy as np
import torch

UNCHANGED = (0.0, 1.0, 1.0, 0.0)  # brightness, saturation, contrast, hue
AT_ONCE = 8                       # clips: a change of colour needs some four copies of what it works on


def random_box(rng: np.random.Generator, width: int, height: int, area: tuple[float, float] = (0.08, 1.0),
               aspect: tuple[float, float] = (0.5, 2.0)) -> tuple[float, float, float, float]:
    """A random part of a picture of width x height pixels (A.2.1): (left, top, right, bottom) in fractions.

    tf.image.sample_distorted_bounding_box: w / h uniform in `aspect`, then h uniform among the whole pixels for which
    w h is in `area` (a share of the picture) and fits in; the whole picture after 100 that do not.
    """
    for _ in range(100):
        ratio = rng.uniform(*aspect)
        low, high = (round(math.sqrt(share * width * height / ratio)) for share in area)
        high = min(high, height, int((width + 0.5) / ratio))
        h = int(rng.integers(low, high, endpoint=True)) if low < high else high
        w = round(h * ratio)
        # Official: never less than a tenth of the picture (min_object_covered), whatever `area` (paper: 0.08 of it).
        least = max(area[0], 0.1) * width * height
        if 0 < w <= width and 0 < h <= height and least <= w * h <= area[1] * width * height:
            x = int(rng.integers(width - w)) if w < width else 0
            y = int(rng.integers(height - h)) if h < height else 0
            return x / width, y / height, (x + w) / width, (y + h) / height
    return 0.0, 0.0, 1.0, 1.0


def centre_box(width: int, height: int) -> tuple[float, float, float, float]:
    """The largest square in the middle (the central crop of A.3.3): (left, top, right, bottom) in fractions."""
    side = min(width, height)
    x, y = (1 - side / width) / 2, (1 - side / height) / 2
    return x, y, 1 - x, 1 - y


def colour_draws(rng: np.random.Generator, brightness: float = 32 / 255, saturation: float = 0.4, contrast: float = 0.4,
                 hue: float = 0.2, p: float = 0.8) -> np.ndarray:
    """A clip's row of `colour` (A.2.1): uniform within each strength of no change; (5,) float32."""
    strengths = np.array((brightness, saturation, contrast, hue))
    draws = UNCHANGED + rng.uniform(-strengths, strengths)
    # Official: one clip in five keeps its colours (paper: not said).
    return np.array((1, *draws) if rng.random() < p else (0, *UNCHANGED), np.float32)


def audio_noise(wave: np.ndarray, rng: np.random.Generator, strength: float = 0.01) -> np.ndarray:
    """A waveform plus Gaussian noise, whose deviation is `strength` times the loudest sample: (S,) -> (S,) float32."""
    # Official: so in pre-training, 0 in fine-tuning (paper: no noise).
    deviation = strength * float(np.abs(wave).max(initial=0.0))
    return wave + np.float32(deviation) * rng.standard_normal(wave.shape, np.float32)


def augment(video: torch.Tensor, flip: torch.Tensor | None = None, colour: torch.Tensor | None = None) -> torch.Tensor:
    """Clips as the model takes them (A.2.1): (B, T, H, W, 3) uint8 -> float32 in [-1, 1].

    flip: (B,) bool; colour: (B, 5).
    """
    out = torch.empty(video.shape, dtype=torch.float32, device=video.device)
    for i in range(0, len(video), AT_ONCE):
        x = video[i:i + AT_ONCE]
        if flip is not None:
            x = torch.where(_each(flip[i:i + AT_ONCE], x), x.flip(3), x)
        x = x / 255.0
        if colour is not None:
            x = jitter(x, colour[i:i + AT_ONCE])
        out[i:i + AT_ONCE] = x.mul_(2).sub_(1)
    return out


def jitter(x: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """Changes each clip's colours by its row of `colour`: (B, T, H, W, 3) in [0, 1] -> the same shape in [0, 1].

    A row that changes nothing leaves its clip as it was, to the bit.
    """
    on, *draws = _each(colour, x).unbind(-1)
    brightness, saturation, contrast, hue = (torch.where(on > 0, a, b) for a, b in zip(draws, UNCHANGED, strict=True))
    # Official: in this order, cut to [0, 1] only at the end (paper: no order; also cut).
    x = x + brightness
    if x.is_cuda or (saturation != 1).any():  # a GPU does it in any case: to look would be to wait for it
        x = saturate(x, saturation)
    x = x + (contrast - 1) * (x - x.mean((2, 3), keepdim=True))  # about the mean of each channel of each picture
    if x.is_cuda or (hue != 0).any():
        x = torch.where(hue == 0, x, turn(x, hue))
    return x.clamp_(0, 1)


def saturate(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """In HSV, S times `factor`, at most 1: the channels move to or from the largest of them. (.., 3) -> (.., 3)."""
    v = x.amax(-1, keepdim=True)
    spread = v - x.amin(-1, keepdim=True)                           # S is spread / v
    k = (v / spread.clamp_min(1e-12)).clamp_min(0).minimum(factor)  # what S is multiplied by in the end
    return x + (1 - k) * (v - x)


def turn(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """In HSV, H plus `by`, where 1 is the full circle; the largest and smallest value are kept. (.., 3) -> (.., 3)."""
    v = x.amax(-1, keepdim=True)
    spread = v - x.amin(-1, keepdim=True)
    r, g, b = x.split(1, -1)
    h = torch.where(v == r, g - b, torch.where(v == g, b - r, r - g)) / spread.clamp_min(1e-12)
    h = h + torch.where(v == r, 0.0, torch.where(v == g, 2.0, 4.0)) + 6 * by  # sixths of the circle, from red
    h = (h + torch.arange(5, 0, -2, device=x.device)) % 6               # for red, green and blue: 5, 3, 1 on
    return v - spread * torch.minimum(h, 4 - h).clamp_(0, 1)


def _each(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One or more values a clip, (B, ..), where they fit to clips: (B, 1, 1, 1, 1, ..) on the device of x."""
    return values.to(x.device, non_blocking=True)[:, None, None, None, None]
