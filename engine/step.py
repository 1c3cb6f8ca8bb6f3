"""One step of pre-training: the loss of the whole batch of all processes, and its gradients (Section 3.4).

    raw batch -> backbones -> z_out ==== gathered from all processes, with gradient ==== heads -> NCE + lambda MIL-NCE

Heads and losses see the whole batch, so W processes compute what one computes. The backbones may see it chunk by chunk: first
without gradients, for z_out; then, when the gradient at z_out is known, again with gradients, each chunk its own part (Gao et
al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021). That is exact, because the batch norms
stand behind z_out, DropToken's choices come from keys, and dropout is seeded anew before each chunk.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import losses
from engine.processes import Processes
from engine.sampling import key
from tools import augment


class Step:
    """Computes loss and gradients for a model on this process; wraps it for several processes where there are some."""

    def __init__(self, model: nn.Module, processes: Processes, drop: tuple[float, float], chunk: int | None = None,
                 precision: str = "fp32", seed: int = 0):
        self.model, self.processes, self.drop, self.chunk = model, processes, drop, chunk
        self.precision, self.seed = precision, seed
        wrap = lambda m: DistributedDataParallel(m, gradient_as_bucket_view=True) if processes.world > 1 else m
        self.backbones, self.heads = wrap(model.backbones), wrap(model.heads)

    def __call__(self, batch: dict, step: int) -> dict[str, torch.Tensor]:
        """This process's part of the batch, on the device -> what the log says, scalars; gradients are left in the model."""
        n = len(batch["video"])
        chunk = self.chunk or n
        starts = range(0, n, chunk)
        encode = lambda start: self.encode({k: v[start : start + chunk] for k, v in batch.items()}, step, start)
        if len(starts) == 1:
            loss, parts = self.contrast(*encode(0), batch["has_audio"], batch["has_text"])
            loss.backward()
            return parts
        with torch.no_grad():
            z = [torch.cat(part).requires_grad_() for part in zip(*map(encode, starts), strict=True)]
        loss, parts = self.contrast(*z, batch["has_audio"], batch["has_text"])
        loss.backward()
        for start in starts:
            last = start == starts[-1]  # gradients are averaged over processes once, after all chunks
            with contextlib.nullcontext() if last or self.processes.world == 1 else self.backbones.no_sync():
                torch.autograd.backward(encode(start), [part.grad[start : start + chunk] for part in z])
        return parts

    def encode(self, batch: dict, step: int, start: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Raw clips -> z_out of video (b, d), audio (b, d), text (b, K, d), the same whenever it is called for these clips"""
        torch.manual_seed(key(self.seed, step, self.processes.rank, start))  # dropout has no generator of its own
        dtype = self.model.heads.dtype
        video = augment.augment(batch["video"], batch["flip"], batch["colour"]).to(dtype)
        with torch.autocast(video.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.backbones(video, batch["audio"].to(dtype), batch["text"], self.drop, batch["keys"])

    def contrast(self, z_video, z_audio, z_text, has_audio, has_text) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """z_out of this process -> this process's share of the loss, ready for backward, and the loss of all for the log"""
        p, b = self.processes, len(z_video)
        rows = slice(p.rank * b, (p.rank + 1) * b)
        z = [p.gather(x) for x in (z_video, z_audio, z_text)]                             # (B, d), (B, d), (B, K, d)
        has_audio, has_text = (p.gather(x.float()) > 0 for x in (has_audio, has_text))    # (B,), (B, K)
        z_v_va, z_a_va, z_v_vt, z_t_vt = self.heads(*z, has_audio, has_text)
        nce = losses.nce(z_v_va, z_a_va, has_audio=has_audio, rows=rows)
        mil_nce = losses.mil_nce(z_v_vt, z_t_vt, has_text, rows=rows)
        loss = losses.total(nce, mil_nce)
        with torch.no_grad():
            pos_va, neg_va = cosines(z_v_va, z_a_va[:, None], has_audio[:, None])
            pos_vt, neg_vt = cosines(z_v_vt, z_t_vt, has_text)
            shares = p.add(torch.stack([loss, nce, mil_nce]))
        parts = dict(zip(("loss", "nce", "mil_nce"), shares, strict=True), pos_va=pos_va, neg_va=neg_va, pos_vt=pos_vt,
                     neg_vt=neg_vt, sounding=has_audio.sum(), captioned=has_text.any(1).sum())
        return loss * p.world, parts  # DistributedDataParallel takes the mean over processes, the loss is the sum


def cosines(z_v: torch.Tensor, z: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cosine of positive and of negative pairs: equal where nothing is learned, both near 1 in a collapse.

    z_v (B, d), z (B, K, d), valid (B, K) bool -> two scalars
    """
    z_v, z = F.normalize(z_v, dim=-1), F.normalize(z, dim=-1) * valid[..., None]
    positive, n = torch.einsum("id,ikd->", z_v, z), valid.sum()
    every = z_v.sum(0) @ z.sum((0, 1))
    return positive / n.clamp(min=1), (every - positive) / (n * (len(z_v) - 1)).clamp(min=1)
