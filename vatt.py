"""VATT: three tokenizers, one or three Transformers, four heads (Figure 1).

    video (B, T, H, W, 3) in [-1, 1]    audio (B, S) in [-1, 1]    text (B, K, L) word ids, 0 is padding
    z_out (B, d) of video and audio, (B, K, d) of text: the output at AGG of each backbone

`python vatt.py` prints the parameters of every part beside Table 7's. `load(run)` gives a trained model.
"""

import dataclasses
import importlib
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import droptoken
import tokenize
from engine.run import Run, load_weights
from heads import Heads
from media import Media
from tools import augment
from transformer import SIZES, Size, Transformer, truncated_normal_
from weights import files, official
from weights.files import share  # noqa: F401

importlib.reload(tokenize)  # ours, even where pytest, a debugger or a notebook has already imported Python's


@dataclasses.dataclass(frozen=True)
class Config:
    """What a model is made of and what its inputs look like; the defaults are the paper's (Sections 4.1, A.2.1, A.2.3)."""

    video: Size
    audio: Size
    text: Size
    shared: bool = False                         # one backbone for all modalities (VATT-MA)
    frames: int = 32
    fps: float = 10.0
    size: int = 224                              # pixels
    patch: tuple[int, int, int] = (4, 16, 16)    # frames, rows, columns
    audio_input: str = "waveform"                # or "spectrogram"
    rate: int = 48000                            # Hz
    audio_patch: int = 128                       # amplitudes; a spectrogram's patch is 16 frames x 5 bins
    captions: int = 5
    words: int = 16                              # of a caption
    vocabulary: int = 2**16
    d_va: int = 512
    d_vt: int = 256
    dropout: float = 0.1
    position_std: float | None = None            # None: d^-0.5
    variant: str = "paper"                       # or "official", Google's released model; see VARIANTS
    word_vectors: int = 300                      # width of the frozen word vectors that the official model has

    @property
    def samples(self) -> int:
        """Sound as long as the frames: 153,600 amplitudes for 32 frames at 10 fps (Section 4.1)"""
        return round(self.frames / self.fps * self.rate)

    def to_json(self) -> dict:
        """A dictionary of plain numbers, strings and lists"""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, fields: dict) -> "Config":
        """The reverse of `to_json`"""
        if fields.get("variant", "paper") not in VARIANTS:
            raise ValueError(f"the model is of the variant {fields['variant']!r}; this version knows {' and '.join(VARIANTS)}")
        sizes = {k: Size(*fields[k]) for k in ("video", "audio", "text")}
        return cls(**{**fields, **sizes, "patch": tuple(fields["patch"])})


# Section A.2.2.                video            audio            text
PRESETS = dict(
    bbs  = Config(SIZES["base"],   SIZES["base"],   SIZES["small"]),
    mbs  = Config(SIZES["medium"], SIZES["base"],   SIZES["small"]),
    lbs  = Config(SIZES["large"],  SIZES["base"],   SIZES["small"]),
    ma   = Config(SIZES["medium"], SIZES["medium"], SIZES["medium"], shared=True),
    # What one GPU trains, and what two CPU cores train in minutes.
    sss  = Config(SIZES["small"],  SIZES["small"],  SIZES["small"]),
    demo = Config(Size(2, 128, 512, 2), Size(2, 128, 512, 2), Size(2, 64, 256, 1), frames=16, size=32, patch=(4, 8, 8),
                  rate=16000, vocabulary=2**12, d_va=128, d_vt=64, dropout=0.0, position_std=0.02),
)  # fmt: skip


class VATT(nn.Module):
    """Backbones, then heads. Between them lies the boundary where z_out is gathered from all processes."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.backbones = VARIANTS[config.variant].backbones(config)
        self.heads = VARIANTS[config.variant].heads(config.video.d, config.audio.d, config.text.d, config.d_va, config.d_vt)

    def forward(self, video, audio, text, drop=(0.0, 0.0), keys=None):
        """Raw inputs -> z_out of video (B, d), audio (B, d) and text (B, K, d); see `Backbones`."""
        return self.backbones(video, audio, text, drop, keys)

    def project(self, z_video, z_audio, z_text, has_audio=None, has_text=None):
        """Eq. 3: z_out -> z_v,va (B, d_va), z_a,va (B, d_va), z_v,vt (B, d_vt), z_t,vt (B, K, d_vt)"""
        return self.heads(z_video, z_audio, z_text, has_audio, has_text)


class Backbones(nn.Module):
    """From raw inputs to z_out: everything of Figure 1 that stands left of the common spaces."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = c = config
        t, h, w = c.patch
        self.W_vp = projection(c.video.d, 3, *c.patch)
        self.e_temporal = self.table(math.ceil(c.frames / t), c.video.d)
        self.e_vertical = self.table(math.ceil(c.size / h), c.video.d)
        self.e_horizontal = self.table(math.ceil(c.size / w), c.video.d)
        if c.audio_input == "spectrogram":
            self.W_ap = projection(c.audio.d, 1, 16, 5)
            frames = math.ceil(c.samples / round(c.rate * 1024 / 48000))
            self.e_audio = self.table(math.ceil(frames / 16), c.audio.d)
            self.e_frequency = self.table(math.ceil(80 / 5), c.audio.d)
        else:
            self.W_ap = projection(c.audio.d, 1, c.audio_patch)
            self.e_audio = self.table(math.ceil(c.samples / c.audio_patch), c.audio.d)
        # Paper: a learnable v x d projection of one-hot words (official: frozen word2vec, then a linear layer and GELU).
        self.W_tp = nn.Parameter(torch.empty(c.vocabulary, c.text.d).uniform_(-0.05, 0.05))
        if c.shared:
            # Official: absolute positions of words in the shared backbone (the paper's relative bias is the text model's).
            self.e_text = self.table(c.words, c.text.d)
            self.transformer = Transformer(c.video, aggs=3, dropout=c.dropout)
        else:
            self.video_transformer = Transformer(c.video, dropout=c.dropout)
            self.audio_transformer = Transformer(c.audio, dropout=c.dropout)
            # Paper: no position encoding of words, but a relative bias in the first layer.
            self.text_transformer = Transformer(c.text, relative_bias=True, dropout=c.dropout)
        # Official: dropout after the positions too (the paper does not speak of dropout).
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, video, audio, text, drop=(0.0, 0.0), keys=None):
        """Figure 1: z_out of the three modalities of the same clips; heads (3.3) and losses (3.4) come after.

        drop: the shares of video and audio tokens that DropToken leaves out; keys (B, 2) int64 choose which.
        """
        key_v, key_a = (None, None) if keys is None else keys.unbind(1)
        return self.video(video, drop[0], key_v), self.audio(audio, drop[1], key_a), self.text(text)

    def video(self, video, drop=0.0, keys=None):
        """(B, T, H, W, 3) -> z_out (B, d)"""
        x = tokenize.video_patches(video, *self.config.patch)                         # (B, N, t h w 3)    3.1
        e = tokenize.position_sum(self.e_temporal, self.e_vertical, self.e_horizontal)  # (N, d)           Eq. 1
        x = self.tokens(x, "video", e, drop, keys)                                    # (B, N', d)         3.1.1
        return self.encode(x, "video")                                                # (B, d)             3.2, Eq. 2

    def audio(self, audio, drop=0.0, keys=None):
        """(B, S) -> z_out (B, d)"""
        if self.config.audio_input == "spectrogram":
            with torch.autocast(audio.device.type, enabled=False):  # bf16 would round the logarithm to 1 in 256
                x = tokenize.spectrogram_patches(tokenize.mel_spectrogram(audio, self.config.rate))  # (B, N, t f)  A.5
            e = tokenize.position_sum(self.e_audio, self.e_frequency)                 # (N, d)
        else:
            x, e = tokenize.waveform_patches(audio, self.config.audio_patch), self.e_audio  # (B, N, t)    3.1
        x = self.tokens(x, "audio", e, drop, keys)                                    # (B, N', d)         3.1.1
        return self.encode(x, "audio")                                                # (B, d)             3.2, Eq. 2

    def text(self, text):
        """(B, K, L) ids -> z_out (B, K, d), each caption on its own"""
        flat = text.flatten(0, 1)                                                     # (B K, L)
        x = F.embedding(flat, self.W_tp)                                              # (B K, L, d)        3.1
        x = self.dropout(x + self.e_text[: x.shape[1]] if self.config.shared else x)
        return self.encode(x, "text", flat != 0).unflatten(0, text.shape[:2])         # (B, K, d)          3.2, Eq. 2

    def tokens(self, patches, modality, positions, drop=0.0, keys=None):
        """x W_P + e_POS of the patches that DropToken leaves (Eq. 2).  (B, N, p) -> (B, N', d)"""
        # Ours: raw patches are dropped, which gives the same tokens for less work (official: after projection, positions).
        if drop:
            kept = droptoken.keep(patches.shape[1], drop, keys)            # (B, N')
            patches, positions = droptoken.take(patches, kept), F.embedding(kept, positions)
        return self.dropout(self.project(patches, modality) + positions)

    def project(self, patches, modality):
        """x W_P.  (B, N, p) -> (B, N, d)"""
        # Paper: W_P has no bias in Eq. 2; it would be a part of every position (official: with bias).
        return patches @ (self.W_vp if modality == "video" else self.W_ap)

    def encode(self, tokens, modality, mask=None):
        """z_out of AGG; in the shared backbone each modality has an AGG of its own.  (B, N, d) -> (B, d)"""
        if not self.config.shared:
            return getattr(self, f"{modality}_transformer")(tokens, mask)
        # Paper: tokens go straight in (official: a linear layer and GELU before and after the shared backbone).
        return self.transformer(tokens, mask, agg=("video", "audio", "text").index(modality))

    def table(self, n, d):
        """A learned position table (n, d)"""
        # Official: a truncated normal of standard deviation d^-0.5 (the paper is silent).
        return nn.Parameter(truncated_normal_(torch.empty(n, d), self.config.position_std or d**-0.5))


class OfficialBackbones(official.Backbones, Backbones):
    """Those of Google's released model; what is different stands in weights/official.py"""


class OfficialVocabulary(official.Words, tokenize.Vocabulary):
    """That of Google's released model"""


class Variant(NamedTuple):
    """The classes that a model is made of"""

    backbones: type[Backbones]
    heads: type[Heads]
    vocabulary: type


VARIANTS = {"paper": Variant(Backbones, Heads, tokenize.Vocabulary),
            "official": Variant(OfficialBackbones, official.Heads, OfficialVocabulary)}


class Trained(VATT):
    """VATT that embeds files and sentences, normalised, so that a dot product is the cosine similarity (Section A.3.3)."""

    @torch.no_grad()
    def embed_video(self, path: str | Path, space: str = "vt", windows: int = 4) -> torch.Tensor:
        """A video file -> (d_vt,), or (d_va,) for space "va": the mean over `windows` clips spread over the film.

        Raises media.Unreadable. Compare "vt" with `embed_text`, "va" with `embed_audio`.
        """
        c = self.config
        with Media(path) as media:
            box = augment.centre_box(media.width, media.height)
            clips = [media.video(s, c.frames, c.fps, box, (c.size, c.size)) for s in self.starts(media, windows)]
        z = self.backbones.video(augment.augment(torch.from_numpy(np.stack(clips)).to(self.device)))
        return F.normalize(self.heads.video(z)[("va", "vt").index(space)].mean(0), dim=0)

    @torch.no_grad()
    def embed_audio(self, path: str | Path, windows: int = 4) -> torch.Tensor:
        """A sound or video file -> (d_va,). Raises media.Unreadable, ValueError where it has no sound."""
        c = self.config
        with Media(path) as media:
            clips = [media.audio(s, c.samples, c.rate) for s in self.starts(media, windows)]
        z = self.backbones.audio(torch.from_numpy(np.stack(clips)).to(self.device))
        return F.normalize(self.heads.audio(z).mean(0), dim=0)

    @torch.no_grad()
    def embed_text(self, text: str) -> torch.Tensor:
        """A sentence -> (d_vt,)"""
        ids = torch.tensor([[self.vocabulary.encode(text, self.config.words)]], device=self.device)
        return F.normalize(self.heads.text(self.backbones.text(ids))[0, 0], dim=0)

    @property
    def device(self) -> torch.device:
        """Where the weights are"""
        return self.backbones.W_vp.device

    def starts(self, media: Media, windows: int) -> list[float]:
        """Seconds at which evenly spread clips begin, on whole frames"""
        last = max(0.0, media.duration - self.config.frames / self.config.fps)
        return [math.floor(last * i / max(1, windows - 1) * self.config.fps + 1e-6) / self.config.fps for i in range(windows)]


def projection(d: int, channels: int, *patch: int) -> nn.Parameter:
    """W_P (patch x channels, d), rows in the order of `video_patches`, at the range that Keras gives a convolution."""
    # Official: Glorot uniform where the fan-out counts every amplitude of the patch, so it starts small.
    weight = nn.init.xavier_uniform_(torch.empty(d, channels, *patch))  # (d, c, t, h, w)
    return nn.Parameter(weight.movedim(1, -1).flatten(1).T.contiguous())  # (t h w c, d)


def resize_table(table: torch.Tensor, n: int) -> torch.Tensor:
    """A position table for another number of places (Section A.2.5).  (m, d) -> (n, d)"""
    # Paper: bicubic, here on one table at a time, as torch does it (official: a natural cubic spline).
    if len(table) == n:
        return table
    x = table.detach().T[None, :, :, None].to(torch.promote_types(table.dtype, torch.float32))  # (1, d, m, 1)
    x = F.interpolate(x, size=(n, 1), mode="bicubic", align_corners=False)
    return x[0, :, :, 0].T.to(table.dtype).contiguous()


def load(run: str | Path) -> "Trained":
    """The model of a run (or of a model.safetensors in a folder with its config.json and vocabulary.txt), in eval mode.

    Raises ValueError where `run` is none, or its checkpoint is of another model.
    """
    run = Path(run)
    folder = files.folder(run)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no run: it has no config.json (python pretrain.py makes runs/demo)")
    config = Run(folder).read_config()["model"]
    if "classes" in config:
        raise ValueError(f"{folder} is fine-tuned for classes and has no common space: name the run that it started from")
    model = Trained(Config.from_json(config))
    load_weights(model, files.of_run(run), str(run))
    model.vocabulary = vocabulary(run)
    return model.eval()


def vocabulary(run: Path) -> "tokenize.Vocabulary":
    """The words of a pre-trained run. Raises ValueError or OSError where it has none"""
    saved = Run(files.folder(run)).read_config()["model"]
    variant = VARIANTS[saved.get("config", saved).get("variant", "paper")]
    return variant.vocabulary.load(files.folder(run) / "vocabulary.txt")


def initialise(model: VATT, words: "tokenize.Vocabulary", run: Path) -> None:
    """Starts `model`, whose vocabulary is `words`, from the weights of a run.

    Position tables of other sizes are resized (Section A.2.5); words are found by their spelling, new ones start at random.
    """
    start, own = files.of_run(run), model.state_dict()
    known = vocabulary(run)
    ids = torch.tensor([known.ids.get(word, -1) for word in words.words])
    name = "backbones.W_tp"
    if name in start and start[name].shape[1:] == own[name].shape[1:]:
        start[name] = torch.where((ids >= 0)[:, None], start[name][ids.clamp(min=0)], own[name])
    resize_tables(start, own)
    load_weights(model, start, f"--init {run}")


def resize_tables(start: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> None:
    """Gives the position tables of the weights `start` as many places as those of `own`, in place (Section A.2.5)."""
    for name in own:
        if name.split(".")[-1].startswith("e_") and name in start and start[name].shape[1:] == own[name].shape[1:]:
            start[name] = resize_table(start[name], len(own[name]))


def parameter_table() -> str:
    """The parameters of every part of every preset in millions, beside Table 7's"""
    printed = {"small": 20.9, "base": 87.9, "medium": 155.0, "large": 306.1}
    names = {size: name for name, size in SIZES.items()}
    lines = [f"{'preset':7}{'part':22}{'ours':>10}{'Table 7':>10}"]
    for preset, config in PRESETS.items():
        with torch.device("meta"):
            model = VATT(config)
        sizes = parts(model)
        for part, n in sizes.items():
            name = names.get(getattr(config, part.split()[0].replace("shared", "video"), None))
            beside = f"{printed[name]:10.1f}  {name}" if part.endswith("Transformer") and name else ""
            lines.append(f"{preset:7}{part:22}{n / 1e6:10.3f}{beside}")
        lines.append(f"{preset:7}{'whole':22}{sum(sizes.values()) / 1e6:10.3f}")
    return "\n".join(lines)


def parts(model: VATT) -> dict[str, int]:
    """How many parameters each part of Figure 1 has"""
    sizes: dict[str, int] = {}
    for name, p in model.named_parameters():
        if "transformer" in name:
            modality = name.removeprefix("backbones.").split(".")[0].removesuffix("transformer").rstrip("_")
            part = f"{modality or 'shared'} Transformer"
        else:
            part = "heads" if name.startswith("heads") else f"tokens: {name.split('.')[1]}"
        sizes[part] = sizes.get(part, 0) + p.numel()
    return sizes


WHY = """
Table 7's figures are larger than the Transformer of their size. The encoder alone, L (4 d^2 + 2 d d_mlp + 9 d + d_mlp) + 2 d,
plus a video patch projection (3072 d), one linear layer d -> 512 and one 512 -> 256 round to all four of them, so they
seem to count those too, for every modality. The paper's totals (BBS 197, MBS 264, LBS 415 M) are sums of that table: audio
counted as the video Base, text as the generic Small. MA's 155 M is the row of Medium. Ours adds W_tp, 2^16 words x d, which
the official code freezes: its models hold 193.9 (BBS), 260.9 (MBS) and 412.1 M (LBS) trainable parameters."""


if __name__ == "__main__":
    print(parameter_table() + WHY)
