"""The Transformer encoder, as in BERT and ViT (Section 3.2, Eq. 2, Table 7).

    z_in  = [x_AGG; x_0 W_P; ...; x_N W_P] + e_POS           tokens arrive with their positions, x_AGG holds its own
    z    <- z + MHA(LN(z)),  z <- z + MLP(LN(z))             pre-LN, GELU
    z_out = LN(z) at AGG                                     the representation of the whole sequence

    B sequences   N tokens   d width   h heads
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class Size(NamedTuple):
    """A row of Table 7."""

    layers: int
    d: int
    d_mlp: int
    heads: int


# Table 7.              layers     d  d_mlp  heads
SIZES = dict(
    small  = Size(           6,  512,  2048,     8),
    base   = Size(          12,  768,  3072,    12),
    medium = Size(          12, 1024,  4096,    16),
    large  = Size(          24, 1024,  4096,    16),
)  # fmt: skip


class Transformer(nn.Module):
    """Pre-LN encoder that returns z_out of AGG (Section 3.2).

    `aggs` is the number of AGG vectors: one a modality where the backbone is shared. `relative_bias` adds a learned bias to
    the attention scores of the first layer (the text model). With `recompute` set, the activations of a block are not kept
    but computed again in the backward pass.
    """

    def __init__(self, size: Size, aggs: int = 1, relative_bias: bool = False, dropout: float = 0.1):
        super().__init__()
        self.x_agg = nn.Parameter(torch.empty(aggs, size.d))
        self.relative_bias = RelativeBias(size.heads) if relative_bias else None
        self.blocks = nn.ModuleList(Block(size, dropout) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.d, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.recompute = False
        # Official: AGG is Glorot normal on one dimension, a truncated normal of standard deviation d^-0.5.
        truncated_normal_(self.x_agg, size.d**-0.5 / 0.87962566)  # what cutting at two leaves of it

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, agg: int = 0, all_tokens: bool = False):
        """x (B, N, d) -> z_out (B, d), or with `all_tokens` (B, 1 + N, d), AGG first.

        mask (B, N) bool: True where there is a token, False where there is padding; AGG is always seen.
        """
        # Paper: AGG is of width d and has a position of its own, which is a part of x_AGG (official: in the text model
        # AGG is put before the projection; in the others it has no position).
        x = torch.cat([self.x_agg[agg].to(x.dtype).expand(len(x), 1, -1), x], dim=1)     # (B, 1 + N, d)
        seen = None if mask is None else F.pad(mask, (1, 0), value=True)[:, None, None]  # (B, 1, 1, 1 + N)
        for i, block in enumerate(self.blocks):
            # Paper: a bias "to each attention score of the first layer" (official: all layers use the first one's).
            first = i == 0 and self.relative_bias is not None
            bias = self.relative_bias(x.shape[1], seen) if first else seen
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, bias, use_reentrant=False)
            else:
                x = block(x, bias)
        # Official: dropout also after the last LayerNorm (the paper does not speak of dropout).
        return self.dropout(self.norm(x if all_tokens else x[:, 0]))


class Block(nn.Module):
    """LN, multi-head attention, LN, MLP, each pair with a residual connection (Figure 1, middle)."""

    # Paper: one block for all modalities (official: in the text model RMS norms, no biases, scores not scaled).
    def __init__(self, size: Size, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(size.d, eps=1e-6)
        self.attention = Attention(size.d, size.heads, dropout)
        self.norm2 = nn.LayerNorm(size.d, eps=1e-6)
        self.mlp = nn.Sequential(glorot(nn.Linear(size.d, size.d_mlp)), nn.GELU(), nn.Dropout(dropout),
                                 glorot(nn.Linear(size.d_mlp, size.d)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """x (B, N, d), mask: see `Attention` -> (B, N, d)"""
        x = x + self.dropout(self.attention(self.norm1(x), mask))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q k / sqrt(d/h)) v, with q, k and v in one matmul (Section 3.2)."""

    def __init__(self, d: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.p = heads, dropout
        self.qkv = glorot(nn.Linear(d, 3 * d), parts=3)
        self.out = glorot(nn.Linear(d, d))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """x (B, N, d) -> (B, N, d); mask broadcasts to (B, h, N, N): bool, True is seen, or a bias added to the scores"""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)             # (B, h, N, d/h) each
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)
        x = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=self.p if self.training else 0.0)
        return self.out(x.transpose(1, 2).flatten(2))                                              # (B, N, d)


class RelativeBias(nn.Module):
    """T5's learned bias of relative positions: 32 buckets, exact up to 7 words, logarithmic up to 64 (Section 3.2)."""

    # Official: 64 as the largest distance (T5: 128), and U(-0.05, 0.05) at the start; the paper says "relative bias".
    def __init__(self, heads: int, buckets: int = 32, distance: int = 64):
        super().__init__()
        self.buckets, self.distance = buckets, distance
        self.table = nn.Parameter(torch.empty(buckets, heads).uniform_(-0.05, 0.05))

    def bucket(self, relative: torch.Tensor) -> torch.Tensor:
        """Position of key minus position of query, any shape -> bucket; the upper half is for keys after the query."""
        half = self.buckets // 2
        exact = half // 2
        r = relative.abs()
        far = exact + (torch.log(r.clamp(min=1) / exact) / math.log(self.distance / exact) * (half - exact)).long()
        return half * (relative > 0) + torch.where(r < exact, r, far.clamp(max=half - 1))

    def forward(self, n: int, seen: torch.Tensor | None) -> torch.Tensor:
        """n tokens, seen (B, 1, 1, n) bool -> bias of the scores (B or 1, h, n, n), -inf where a key is padding"""
        at = torch.arange(n, device=self.table.device)
        bias = self.table[self.bucket(at[None] - at[:, None])].permute(2, 0, 1)[None]  # (1, h, n, n)
        return bias if seen is None else bias.masked_fill(~seen, float("-inf"))


def glorot(linear: nn.Linear, parts: int = 1) -> nn.Linear:
    """Glorot uniform weight, zero bias; `parts` layers that share one matmul each get their own range."""
    # Official: the defaults of Keras; the paper is silent on initialisation.
    for weight in linear.weight.data.chunk(parts):
        nn.init.xavier_uniform_(weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def truncated_normal_(tensor: torch.Tensor, std: float) -> torch.Tensor:
    """Normal with standard deviation `std`, cut at two of them, as Keras draws it."""
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)
