"""DropToken: train on a random share of the tokens (Section 3.1.1).

    N tokens of a clip   drop share to drop (0.5 for video and audio, never text)   N' = N - round(N drop) tokens kept

Another choice for each clip, and each choice a pure function of an integer key: the same key drops the same tokens, on any
device, with any number of processes, before and after a resume. No random generator is involved.
"""

import torch


def keep(n: int, drop: float, keys: torch.Tensor) -> torch.Tensor:
    """Uniform sampling without replacement of the tokens that survive (Section 3.1.1).

    n tokens, keys (B,) int64 -> indices (B, N') in ascending order, N' = n - round(n drop), at least one.
    Raises ValueError unless 0 <= drop < 1.
    """
    if not 0 <= drop < 1:
        raise ValueError(f"DropToken: the share to drop must be at least 0 and below 1, not {drop}")
    # Ours: another choice for each clip (official: one for all clips of a device).
    # Ours: the dropped tokens are rounded (official: the kept ones are cut to whole numbers; one token apart at 0.3 or 0.9).
    kept = max(1, n - round(n * drop))
    order = _mix(_mix(keys)[:, None] + torch.arange(n, device=keys.device)).argsort(dim=1)  # (B, N)
    return order[:, :kept].sort(dim=1).values                                               # (B, N')


def take(x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The tokens that survive.  x (B, N, ...), kept (B, N') -> (B, N', ...)"""
    return x[torch.arange(len(x), device=x.device)[:, None], kept]


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A hash of 64-bit integers, one to one, so that no two tokens of a clip tie (SplitMix64: Steele et al., OOPSLA 2014)."""
    x = x * -7046029254386353131                              # multiplication wraps around: arithmetic modulo 2^64
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -4658895280553007687
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -7723592293110705685
    return x ^ (x >> 31 & (1 << 33) - 1)
