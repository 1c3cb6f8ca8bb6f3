"""Multimodal contrastive learning (Section 3.4).

    NCE      -log exp(z_v z_a / tau) / (exp(z_v z_a / tau) + sum_N exp(z'_v z'_a / tau))                  Eq. 4
    MIL-NCE  -log sum_P exp(z_v z_t / tau) / (sum_P exp(z_v z_t / tau) + sum_N exp(z'_v z'_t / tau))      Eq. 5
    L        NCE + lambda MIL-NCE                                                                         Eq. 6

P are the K = 5 captions nearest in time. N are all pairs of the batch that do not match and share the video or the captions
with the positive: its row and its column in the matrix of similarities.

    B clips of all processes   K captions of a clip   d width of the common space   tau = 0.07 temperature
"""

import math

import torch
import torch.nn.functional as F


def nce(z_v: torch.Tensor, z_a: torch.Tensor, temperature: float = 0.07, has_audio: torch.Tensor | None = None):
    """Eq. 4, mean over the clips with sound: MIL-NCE with one candidate.  z_v, z_a (B, d), has_audio (B,) bool -> scalar"""
    return mil_nce(z_v, z_a[:, None], has_audio, temperature)


def mil_nce(z_v: torch.Tensor, z_t: torch.Tensor, has_text: torch.Tensor | None = None, temperature: float = 0.07):
    """Eq. 5, mean over the clips that have a caption; 0 where none has one.

    z_v (B, d), z_t (B, K, d), has_text (B,) or (B, K) bool -> scalar. The vectors are normalised here. A missing caption is
    neither a positive nor a negative; the video of a clip without captions remains a negative of the others' captions.
    """
    b, k = z_t.shape[:2]
    has_text = z_v.new_ones(b, k, dtype=torch.bool) if has_text is None else has_text.view(b, -1).expand(b, k)
    # fp32 or better: in bf16, similarities that differ by less than 1 in 256 would be the same.
    with torch.autocast(z_v.device.type, enabled=False):
        dtype = torch.promote_types(z_v.dtype, torch.float32)
        z_v, z_t = F.normalize(z_v.to(dtype), dim=-1), F.normalize(z_t.to(dtype), dim=-1)
        s = torch.einsum("id,jkd->ijk", z_v, z_t) / temperature                           # (B, B, K) video i, caption j k
        # Finite, so that a clip without any caption has a loss that is a number, which is then left out.
        nothing = torch.finfo(s.dtype).min
        s = s.masked_fill(~has_text, nothing)
        others = s.masked_fill(torch.eye(b, dtype=torch.bool, device=s.device)[..., None], nothing)
        positive = s.diagonal().transpose(0, 1).logsumexp(1)                              # (B,) own captions
        row = others.flatten(1).logsumexp(1)                                              # (B,) captions of others
        column = others.transpose(0, 1).flatten(1).logsumexp(1)                           # (B,) videos of others
        # Paper: the positive counts once (official: twice, which is log(1 + e^loss), with ln 2 as its lowest value).
        # Official: negatives are row and column (Eq. 4 and 5 could also mean every pair off the diagonal).
        loss = torch.stack([positive, row, column]).logsumexp(0) - positive
        # Ours: one mean over the captioned clips of all processes (official: of each device, then over devices).
        counts = has_text.any(1)
        return torch.where(counts, loss, 0).sum() / counts.sum().clamp(min=1)


def total(nce_loss: torch.Tensor, mil_nce_loss: torch.Tensor, lam: float = 1.0) -> torch.Tensor:
    """Eq. 6: the sum of both losses, lambda = 1 (Section 4.1)."""
    # Paper: the sum (official: half of it).
    return nce_loss + lam * mil_nce_loss


def at_chance(b: int, n: int) -> float:
    """The loss where all similarities are equal: ln(n + B - 1), with n of B clips captioned (sounding, for NCE: ln(2B - 1))."""
    return math.log(n + b - 1) if n else 0.0
