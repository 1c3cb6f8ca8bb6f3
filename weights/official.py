"""Google's released VATT: where it differs from the paper's model.

The classes here stand before the paper's (`vatt.VARIANTS`), so that each method shows one difference:

    words     frozen word2vec vectors, a linear layer and GELU; ASCII punctuation and capitals only
    tokens    the patch projection has a bias, the sum of positions a LayerNorm; AGG has no position
    text      T5: RMS norms, no biases, the relative bias in every layer, AGG before the first linear layer
    shared    a linear layer and GELU before and after the one backbone, of each modality
    heads     of audio and text a bias and no batch norm; a ReLU before g_v->vt
"""

import string

import torch
import torch.nn.functional as F
from torch import nn

import heads
from transformer import Transformer, truncated_normal_


class Words:
    """Before `tokenize.Vocabulary`: Google's ids and its way to cut a caption into words"""

    special = ("<pad>", "<bos>", "<eos>", "<unk>")
    fixed = True  # their vectors are frozen, so new ones could not be learned
    rules = str.maketrans(string.ascii_uppercase, string.ascii_lowercase, string.punctuation)

    @classmethod
    def split(cls, text: str) -> list[str]:
        """Caption -> words"""
        return text[:4096].translate(cls.rules).split()


class Around(nn.Module):
    """What stands around the backbone of one modality: a bias and positions' LayerNorm, and linear layers where it is shared"""

    def __init__(self, d_in: int, d: int, bias: bool, shared: bool):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(d)) if bias else None
        self.norm = nn.LayerNorm(d, eps=1e-6)
        self.before = nn.Sequential(nn.Linear(d_in, d), nn.GELU()) if shared else nn.Identity()
        self.after = nn.Sequential(nn.Linear(d, d), nn.GELU()) if shared else nn.Identity()


class Backbones:
    """Before `vatt.Backbones`"""

    def __init__(self, config, modalities=("video", "audio", "text")):
        super().__init__(config, modalities)
        c = config
        for modality in (m for m in modalities if m != "text"):
            d = getattr(c, modality).d
            setattr(self, f"{modality}_around", Around(d, d, bias=True, shared=c.shared))
        if "text" in modalities:
            del self.W_tp
            self.register_buffer("W_tp", torch.empty(c.vocabulary, c.word_vectors).uniform_(-0.05, 0.05))
            if c.shared:
                self.text_around = Around(c.word_vectors, c.text.d, bias=False, shared=True)
            else:
                self.text_transformer = TextTransformer(c.text, c.word_vectors, c.dropout)

    def text(self, text):
        """(B, K, L) ids -> z_out (B, K, d), each caption on its own"""
        flat = text.flatten(0, 1)                                                     # (B K, L)
        x = F.embedding(flat, self.W_tp)                                              # (B K, L, 300)
        if self.config.shared:
            x = self.dropout(self.text_around.before(x) + self.text_around.norm(self.e_text[: x.shape[1]]))
        return self.encode(x, "text", flat != 0).unflatten(0, text.shape[:2])         # (B, K, d)

    def tokens(self, patches, modality, positions, drop=0.0, keys=None):
        """GELU((x W_P + b) W) + LN(e_POS) in the shared backbone, x W_P + b + LN(e_POS) in the others"""
        return super().tokens(patches, modality, self.around(modality).norm(positions), drop, keys)

    def project(self, patches, modality):
        """(B, N, p) -> (B, N, d), without positions"""
        return self.around(modality).before(super().project(patches, modality) + self.around(modality).bias)

    def encode(self, tokens, modality, mask=None):
        """z_out of AGG, (B, N, d) -> (B, d)"""
        z = super().encode(tokens, modality, mask)
        return self.around(modality).after(z) if self.config.shared else z

    def around(self, modality: str) -> Around:
        """What stands around this modality's backbone"""
        return getattr(self, f"{modality}_around")


class TextTransformer(Transformer):
    """T5's encoder on word vectors (B, L, 300), of which AGG is one. Its scores are not scaled: q is kept times sqrt(d/h)."""

    def __init__(self, size, d_in: int, dropout: float):
        super().__init__(size, relative_bias=True, dropout=dropout)
        self.x_agg = nn.Parameter(truncated_normal_(torch.empty(1, d_in), d_in**-0.5))
        self.before = nn.Sequential(nn.Linear(d_in, size.d), nn.GELU())
        self.norm = RMSNorm(size.d, eps=1e-6)
        for block in self.blocks:
            block.norm1 = RMSNorm(size.d, eps=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.bias = None

    def forward(self, x: torch.Tensor, mask: torch.Tensor):
        """x (B, L, 300), mask (B, L) bool, True where there is a word -> z_out (B, d)"""
        x = torch.cat([self.x_agg.to(x.dtype).expand(len(x), 1, -1), x], dim=1)          # (B, 1 + L, 300)
        x = self.dropout(self.before(x))                                                 # (B, 1 + L, d)
        bias = self.relative_bias(x.shape[1], F.pad(mask, (1, 0), value=True)[:, None, None])
        for block in self.blocks:
            x = block(x, bias)
        return self.dropout(self.norm(x[:, 0]))


class RMSNorm(nn.RMSNorm):
    """x / rms(x) times a weight, in the weight's precision, as autocast runs LayerNorm"""

    def forward(self, x):
        return super().forward(x.to(self.weight.dtype))


class Heads(heads.Heads):
    """Of audio and text one linear layer each; in g_v->vt a ReLU comes first"""

    def __init__(self, d_video: int, d_audio: int, d_text: int, d_va: int, d_vt: int):
        super().__init__(d_video, d_audio, d_text, d_va, d_vt)
        self.v_to_vt = AfterReLU(d_va, d_vt)
        self.a_to_va, self.t_to_vt = Linear(d_audio, d_va), Linear(d_text, d_vt)


class AfterReLU(heads.Projection):
    """x (..., d_in) -> batch norm of relu(x) W"""

    def forward(self, x, valid=None):
        return super().forward(x.relu(), valid)


class Linear(nn.Linear):
    """A projection without batch norm, so that it need not know which rows are valid"""

    def forward(self, x, valid=None):
        return super().forward(x)
