"""Multimodal contrastive learning (Section 3.4); at the end, what classification adds (Sections A.2.5, A.3).

    NCE      -log exp(z_v z_a / tau) / (exp(z_v z_a / tau) + sum_N exp(z'_v z'_a / tau))                  Eq. 4
    MIL-NCE  -log sum_P exp(z_v z_t / tau) / (sum_P exp(z_v z_t / tau) + sum_N exp(z'_v z'_t / tau))      Eq. 5
    L        NCE + lambda MIL-NCE                                                                         Eq. 6

P are the K = 5 captions nearest in time. N are all pairs of the batch that do not match and share the video or the captions
with the positive: its row and its column in the matrix of similarities.

    B clips of all processes   K captions of a clip   d width of the common space   tau = 0.07 temperature   C classes
"""

import math

import torch
import torch.nn.functional as F


def nce(z_v: torch.Tensor, z_a: torch.Tensor, temperature: float = 0.07, has_audio: torch.Tensor | None = None,
        rows: slice = slice(None)) -> torch.Tensor:
    """Eq. 4, mean over the clips with audio: MIL-NCE with one candidate.  z_v, z_a (B, d), has_audio (B,) bool -> scalar"""
    # Ours: clips without audio are no anchors and no negatives (official: all clips count as having audio; paper: all have).
    return mil_nce(z_v, z_a[:, None], has_audio, temperature, rows)


def mil_nce(z_v: torch.Tensor, z_t: torch.Tensor, has_text: torch.Tensor | None = None, temperature: float = 0.07,
            rows: slice = slice(None)) -> torch.Tensor:
    """Eq. 5, mean over the clips that have a caption; 0 where none has one.

    z_v (B, d), z_t (B, K, d), has_text (B,) or (B, K) bool -> scalar. The vectors are normalised here. A missing caption is
    neither a positive nor a negative; the video of a clip without captions remains a negative of the others' captions.
    `rows`: the b clips that this process scores, its share of the mean; over all clips the shares add up to it. Memory is
    O(b B K).
    """
    b, k = z_t.shape[:2]
    has_text = z_v.new_ones(b, k, dtype=torch.bool) if has_text is None else has_text.view(b, -1).expand(b, k)
    # fp32 or better: in bf16, similarities that differ by less than 1 in 256 would be the same.
    with torch.autocast(z_v.device.type, enabled=False):
        dtype = torch.promote_types(z_v.dtype, torch.float32)
        z_v, z_t = F.normalize(z_v.to(dtype), dim=-1), F.normalize(z_t.to(dtype), dim=-1)
        # Finite, so that a clip without any caption has a loss that is a number, which is then left out.
        nothing = torch.finfo(dtype).min
        mine = has_text[rows]
        own = torch.eye(b, dtype=torch.bool, device=z_v.device)[rows]                               # (b, B)
        row = torch.einsum("id,jkd->ijk", z_v[rows], z_t) / temperature                             # (b, B, K)
        column = torch.einsum("jd,ikd->ijk", z_v, z_t[rows]) / temperature                          # (b, B, K)
        positive = torch.einsum("id,ikd->ik", z_v[rows], z_t[rows]) / temperature                   # (b, K)
        positive = positive.masked_fill(~mine, nothing).logsumexp(1)                                # (b,) own captions
        row = row.masked_fill(~has_text | own[..., None], nothing).flatten(1).logsumexp(1)          # captions of others
        column = column.masked_fill(~mine[:, None] | own[..., None], nothing).flatten(1).logsumexp(1)  # videos of others
        # Paper: the positive counts once (official: twice, which is log(1 + e^loss), with ln 2 as its lowest value).
        # Official: negatives are row and column (Eq. 4 and 5 could also mean every pair off the diagonal).
        loss = torch.stack([positive, row, column]).logsumexp(0) - positive
        # Ours: one mean over the captioned clips of all processes (official: of each device, then over devices).
        return torch.where(mine.any(1), loss, 0).sum() / has_text.any(1).sum().clamp(min=1)


def total(nce_loss: torch.Tensor, mil_nce_loss: torch.Tensor, lam: float = 1.0) -> torch.Tensor:
    """Eq. 6: the sum of both losses, lambda = 1 (Section 4.1)."""
    # Paper: the sum (official: half of it).
    return nce_loss + lam * mil_nce_loss


def at_chance(b: int, n: int) -> float:
    """The loss where all similarities are equal: ln(n + B - 1), with n of B clips captioned (or with audio, for NCE)."""
    return math.log(n + b - 1) if n else 0.0


def smooth(y: torch.Tensor, alpha: float = 0.1) -> torch.Tensor:
    """Label smoothing: (1 - alpha) y + alpha / C (Sections A.2.5, A.3.1).  y (B, C) -> (B, C)"""
    return (1 - alpha) * y + alpha / y.shape[-1]


def mixup(x: torch.Tensor, y: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x = alpha x1 + (1 - alpha) x2, and so y: each clip with another of the batch (Section A.3).

    x (B, ...), y (B, C), alpha (B,), each from Beta(5, 5), B even -> the mixed x and y
    """
    # Ours: with the neighbour in the batch, whose clips are in random order, so that any number of processes mixes the same
    # pairs (official: with a random permutation of the batch of a device).
    mate = torch.arange(len(x), device=x.device) ^ 1
    mix = lambda v: torch.lerp(v[mate], v, alpha.to(v.dtype).view(-1, *[1] * (v.dim() - 1)))
    return mix(x), mix(y)


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """-sum_c y_c log softmax(logits)_c of each clip, for labels that may be smooth or mixed.  (B, C), (B, C) -> (B,)"""
    # Ours: of logits (official: of probabilities cut at 1e-7, so that a clip's loss ends at 16.1 and its gradient vanishes).
    return -(y * logits.log_softmax(-1)).sum(-1)


def balance(y: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """A clip's weight: the mean over its labels of the inverse of how often the batch has them (Section A.3).

    w_i = sum_c (y_ic / n_c) / sum_c y_ic.  y (B, C), counts n_c = sum_j y_jc (C,) -> (B,), 0 for a clip without labels
    """
    # Official: this formula of "the inverse of the per-batch number of repetitive labels it carries" (the paper has no other).
    # Ours: counts of the batch of all processes (official: of a device); a clip without labels weighs 0 (official: NaN).
    return (y / counts.clamp(min=1e-12)).sum(-1) / y.sum(-1).clamp(min=1e-12)


def multi_label(logits: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Binary cross-entropy, summed over the classes, of each clip (Section 4.2.2).  (B, C), (B, C), (B,) -> (B,)"""
    # Official: the sum over the classes (the paper is silent).
    loss = F.binary_cross_entropy_with_logits(logits, y, reduction="none").sum(-1)
    return loss if weight is None else loss * weight
