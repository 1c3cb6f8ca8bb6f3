"""What stands on a backbone: the hierarchy of common spaces (Section 3.3, Eq. 3) or a classifier (Sections A.2.5, A.3.2).

    z_v,va = g_v->va(z_out video)   two linear layers, ReLU between      z_a,va = g_a->va(z_out audio)   linear
    z_v,vt = g_v->vt(z_v,va)        linear                               z_t,vt = g_t->vt(z_out text)    linear

A batch norm follows every linear layer. It sees the batch of all processes, because z_out is gathered before it comes here.

    logits = dropout(z_out) W + b   to fine-tune                         logits = z_out U V            on a frozen backbone

    B clips   K captions of a clip   d_va = 512, d_vt = 256 widths of the two common spaces (Section 4.1)   C classes
"""

import math

import torch
from torch import nn


class BatchNorm(nn.Module):
    """Batch norm whose statistics are those of the valid rows; below two of them, the running statistics serve."""

    # Official: momentum 0.9 of Keras, which is 0.1 here, and eps 1e-5 (the paper is silent).
    def __init__(self, d: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))
        self.register_buffer("running_mean", torch.zeros(d))
        self.register_buffer("running_var", torch.ones(d))

    def forward(self, x: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """x (..., d), valid (...) bool -> (..., d)"""
        mean, var = self.running_mean, self.running_var
        if self.training:
            # Ours: statistics of the clips that have the modality (official: of all rows; text and audio have none).
            weight = x.new_ones(x.shape[:-1]) if valid is None else valid.to(x.dtype)
            rows, weight = x.flatten(0, -2), weight.flatten()[:, None]
            n = weight.sum()
            batch_mean = (rows * weight).sum(0) / n.clamp(min=1)
            batch_var = ((rows - batch_mean).square() * weight).sum(0) / n.clamp(min=1)
            enough = n >= 2
            with torch.no_grad():
                share = self.momentum * enough.to(self.running_mean)
                self.running_mean.lerp_(batch_mean.to(self.running_mean), share)
                # Ours: unbiased, as torch keeps it (official: biased, as Keras does; n / (n - 1) apart).
                unbiased = batch_var * n / (n - 1).clamp(min=1)
                self.running_var.lerp_(unbiased.to(self.running_var), share)
            mean, var = torch.where(enough, batch_mean, mean), torch.where(enough, batch_var, var)
        return (x - mean) * (var + self.eps).rsqrt() * self.weight + self.bias


class Projection(nn.Module):
    """A linear layer and its batch norm: "a batch normalization is used after each linear layer" (Section 3.3)."""

    # Paper: after each of them (official: on the video heads only; those of audio and text have a bias instead).
    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.linear, self.norm = nn.Linear(d_in, d_out, bias=False), BatchNorm(d_out)
        # Official: Glorot uniform, the default of Keras (the paper is silent).
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, x: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """x (..., d_in), valid (...) bool -> (..., d_out)"""
        return self.norm(self.linear(x), valid)


class Heads(nn.Module):
    """The four projections of Eq. 3, in fp32 or better whatever the autocast."""

    def __init__(self, d_video: int, d_audio: int, d_text: int, d_va: int = 512, d_vt: int = 256):
        super().__init__()
        self.v_to_va1, self.v_to_va2 = Projection(d_video, d_va), Projection(d_va, d_va)
        self.a_to_va = Projection(d_audio, d_va)
        self.v_to_vt = Projection(d_va, d_vt)
        self.t_to_vt = Projection(d_text, d_vt)

    def forward(self, z_video, z_audio, z_text, has_audio=None, has_text=None):
        """Eq. 3: z_out -> z_v,va (B, d_va), z_a,va (B, d_va), z_v,vt (B, d_vt), z_t,vt (B, K, d_vt)"""
        z_v_va, z_v_vt = self.video(z_video)
        return z_v_va, self.audio(z_audio, has_audio), z_v_vt, self.text(z_text, has_text)

    def video(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z_out of video (B, d) -> z_v,va (B, d_va), z_v,vt (B, d_vt)"""
        with torch.autocast(z.device.type, enabled=False):
            z_va = self.v_to_va2(self.v_to_va1(z.to(self.dtype)).relu())
            # Paper: g_v->vt is linear (official: a ReLU comes before it).
            return z_va, self.v_to_vt(z_va)

    def audio(self, z: torch.Tensor, has_audio: torch.Tensor | None = None) -> torch.Tensor:
        """z_out of audio (B, d), has_audio (B,) bool -> z_a,va (B, d_va)"""
        with torch.autocast(z.device.type, enabled=False):
            return self.a_to_va(z.to(self.dtype), has_audio)

    def text(self, z: torch.Tensor, has_text: torch.Tensor | None = None) -> torch.Tensor:
        """z_out of text (B, K, d), has_text (B, K) bool -> z_t,vt (B, K, d_vt)"""
        with torch.autocast(z.device.type, enabled=False):
            return self.t_to_vt(z.to(self.dtype), has_text)

    @property
    def dtype(self) -> torch.dtype:
        """fp32, or fp64 where the model is; z_out may come in bf16"""
        return self.v_to_vt.linear.weight.dtype


class LinearClassifier(nn.Module):
    """Dropout, then one linear layer on z_out: what is fine-tuned with the backbone (Sections 4.2.1 to 4.2.3)."""

    def __init__(self, d: int, classes: int, dropout: float = 0.5, multi: bool = False):
        super().__init__()
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(d, classes)
        # Official: Glorot normal and no bias at first; where a clip has several labels, Glorot uniform, and each label starts
        # at a probability of 1 / C (the paper is silent).
        nn.init.xavier_uniform_(self.linear.weight) if multi else nn.init.xavier_normal_(self.linear.weight)
        nn.init.constant_(self.linear.bias, -math.log(max(1, classes - 1)) if multi else 0.0)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """z_out (B, d) -> logits (B, C), in fp32 or better"""
        with torch.autocast(z.device.type, enabled=False):
            return self.linear(self.dropout(z.to(self.linear.weight.dtype)))


class LowRankClassifier(nn.Module):
    """logits = z U V, U (d, n) and V (n, C): a step of training sees only some of the n components (Section A.3.2)."""

    def __init__(self, d: int, classes: int, n: int = 128):
        super().__init__()
        # Paper: C = U V, so no biases (official: one in each of the two layers).
        self.U, self.V = nn.Parameter(torch.empty(d, n)), nn.Parameter(torch.empty(n, classes))
        # Official: Glorot normal (the paper is silent).
        nn.init.xavier_normal_(self.U)
        nn.init.xavier_normal_(self.V)

    def forward(self, z: torch.Tensor, components: torch.Tensor | None = None) -> torch.Tensor:
        """z_out (B, d), components (k,) int64, those of this step, or None for all n -> logits (B, C)"""
        if components is None:
            return z @ self.U @ self.V
        # Paper: a subset of the components a step (official: dropout 0.9, each component of each clip on its own).
        # Official: n / k times what is left, so that its mean is what all of them give (the paper is silent).
        return z @ self.U[:, components] @ self.V[components] * (len(self.V) / len(components))
