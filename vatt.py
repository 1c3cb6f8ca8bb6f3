"""VATT: three tokenizers, one or three Transformers, four heads (Figure 1).

    video (B, T, H, W, 3) in [-1, 1]    audio (B, S) in [-1, 1]    text (B, K, L) word ids, 0 is padding
    z_out (B, d) of video and audio, (B, K, d) of text: the output at AGG of each backbone

`load(run)` gives a trained model, or a classifier on one of the backbones. `python -m bench audit` counts the parameters.
"""

import dataclasses
import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import data
import droptoken
import tokenize
from engine.run import Run, check_weights, load_weights
from heads import Heads, LinearClassifier, LowRankClassifier
from media import Media
from sources.index import Row
from transformer import SIZES, Size, Transformer, truncated_normal_
from weights import files, official

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
importlib.reload(tokenize)  # ours, even where Python's is found first, or pytest, a debugger or a notebook has imported it
sys.path.remove(str(HERE))
if hidden := [module.__file__ for module in (data, droptoken) if Path(module.__file__).resolve().parent != HERE]:
    raise ImportError(f"{hidden[0]} hides the file of that name in {HERE}: put {HERE} first, sys.path.insert(0, {str(HERE)!r})")


@dataclasses.dataclass(frozen=True)
class Config:
    """What a model is made of and what its inputs look like; the defaults are the paper's (Sections 4.1, A.2.1, A.2.3)."""

    video: Size
    audio: Size
    text: Size
    shared: bool = False                         # one backbone for all modalities (VATT-MA)
    # Paper: 32 frames at 10 fps of both data sets (A.2.1; official: 12.5 fps of AudioSet).
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
        """Amplitudes of audio as long as the frames: 153,600 for 32 frames at 10 fps (Section 4.1)"""
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
        if not all(0 < size.layers <= 1000 and min(size) > 0 for size in sizes.values()):
            raise ValueError("sizes of a Transformer are 1 or more, and at most 1000 layers")
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
# The demo with one backbone, deep enough for Figure 4 to have early and late layers.
PRESETS["demo-ma"] = dataclasses.replace(
    PRESETS["demo"], **dict.fromkeys(("video", "audio", "text"), Size(4, 128, 512, 2)), shared=True)


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

    def describe(self) -> dict:
        """What `load` needs to build it again"""
        return self.config.to_json()


class Backbones(nn.Module):
    """Raw inputs to z_out: all of Figure 1 that stands left of the common spaces, or of it the towers asked for."""

    def __init__(self, config: Config, modalities: tuple[str, ...] = ("video", "audio", "text")):
        super().__init__()
        self.config = c = config
        if "video" in modalities:
            t, h, w = c.patch
            self.W_vp = projection(c.video.d, 3, *c.patch)
            self.e_temporal = self.table(math.ceil(c.frames / t), c.video.d)
            self.e_vertical = self.table(math.ceil(c.size / h), c.video.d)
            self.e_horizontal = self.table(math.ceil(c.size / w), c.video.d)
        if "audio" in modalities and c.audio_input == "spectrogram":
            self.W_ap = projection(c.audio.d, 1, 16, 5)
            frames = math.ceil(c.samples / round(c.rate * 1024 / 48000))
            self.e_audio = self.table(math.ceil(frames / 16), c.audio.d)
            self.e_frequency = self.table(math.ceil(80 / 5), c.audio.d)
        elif "audio" in modalities:
            self.W_ap = projection(c.audio.d, 1, c.audio_patch)
            self.e_audio = self.table(math.ceil(c.samples / c.audio_patch), c.audio.d)
        if "text" in modalities:
            # Paper: a learnable v x d projection of one-hot words (official: frozen word2vec, then a linear layer and GELU).
            # Ours: it starts uniform within a twentieth, as Keras starts an embedding (official: from word2vec).
            self.W_tp = nn.Parameter(torch.empty(c.vocabulary, c.text.d).uniform_(-0.05, 0.05))
        if c.shared:
            if "text" in modalities:
                # Official: absolute positions of words in the shared backbone (the paper's relative bias is the text model's).
                self.e_text = self.table(c.words, c.text.d)
            self.transformer = Transformer(c.video, aggs=3, dropout=c.dropout)
        for modality in () if c.shared else modalities:
            # Paper: no position encoding of words, but a relative bias in the first layer.
            tower = Transformer(getattr(c, modality), relative_bias=modality == "text", dropout=c.dropout)
            setattr(self, f"{modality}_transformer", tower)
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
            # Ours: the tower is the waveform's (official: no biases, no DropToken, positions in another order).
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
        # Ours: AGG passes no dropout before the first layer, that of text neither (official: that of text does).
        # Paper: tokens go straight in (official: a linear layer and GELU before and after the shared backbone).
        return self.transformer(tokens, mask, agg=("video", "audio", "text").index(modality))

    def table(self, n, d):
        """A learned position table (n, d)"""
        # Official: a truncated normal of standard deviation d^-0.5 (the paper is silent).
        return nn.Parameter(truncated_normal_(torch.empty(n, d), self.config.position_std or d**-0.5))


class OfficialBackbones(official.Backbones, Backbones):
    """Those of Google's released model; what is different stands in weights/official.py"""


class OfficialVocabulary(official.Words, tokenize.Vocabulary):
    """The vocabulary of Google's released model"""


class Variant(NamedTuple):
    """The classes that a model is made of"""

    backbones: type[Backbones]
    heads: type[Heads]
    vocabulary: type


VARIANTS = {"paper": Variant(Backbones, Heads, tokenize.Vocabulary),
            "official": Variant(OfficialBackbones, official.Heads, OfficialVocabulary)}
READS = {"video": ("video",), "audio": ("audio", "video"), "image": ("image",)}  # kinds of files


class Trained(VATT):
    """VATT that embeds files and sentences, normalised, so that a dot product is the cosine similarity (Section A.3.3)."""

    def embed_video(self, path: str | Path, space: str = "vt", windows: int = 4) -> torch.Tensor:
        """A video file -> (d_vt,), or (d_va,) for space "va": the mean over `windows` clips spread over the video.

        Raises Unreadable. Compare "vt" with `embed_text`, "va" with `embed_audio`.
        """
        return self.embed_file(path, self.spec("video", windows), space)

    def embed_audio(self, path: str | Path, windows: int = 4) -> torch.Tensor:
        """An audio or video file -> (d_va,). Raises Unreadable, also where it has no audio."""
        return self.embed_file(path, self.spec("audio", windows), "va")

    def embed_text(self, text: str) -> torch.Tensor:
        """A sentence -> (d_vt,)"""
        return self.embed_texts([text])[0]

    @torch.no_grad()
    def embed_texts(self, texts: list[str], batch: int = 256) -> torch.Tensor:
        """Sentences -> (N, d_vt), on the CPU"""
        ids = torch.tensor([self.vocabulary.encode(text, self.config.words) for text in texts])
        z = [self.heads.text(self.backbones.text(part[None].to(self.device)))[0].float().cpu() for part in ids.split(batch)]
        return F.normalize(torch.cat(z), dim=1)

    @torch.no_grad()
    def embed_file(self, path: str | Path, spec: data.ClipSpec, space: str) -> torch.Tensor:
        """One file, cut as `spec` says -> (d,)"""
        return self.embed_views(read_file(path, spec).to(self.device), space)[0]

    def embed_views(self, x: torch.Tensor, space: str) -> torch.Tensor:
        """Views of video (B, V, T, H, W, 3) or audio (B, V, S) -> (B, d), the mean of their vectors, normalised"""
        if x.dim() == 3:
            z = each_view(lambda x: self.heads.audio(self.backbones.audio(x)), x)
        else:
            z = each_view(lambda x: self.heads.video(self.backbones.video(x))[("va", "vt").index(space)], x)
        return F.normalize(z.mean(1), dim=1)

    def spec(self, modality: str, windows: int = 4) -> data.ClipSpec:
        """Clips as this model takes them: central crops, `windows` over the file (A.3.3)"""
        c = self.config
        return data.ClipSpec((modality,), c.frames, c.fps, c.size, c.rate, windows=windows)

    @property
    def device(self) -> torch.device:
        """Where the weights are"""
        return self.backbones.W_vp.device


def read_file(path: str | Path, spec: data.ClipSpec) -> torch.Tensor:
    """All views of one file, as a batch of one: (1, V, ..)"""
    with Media(path) as media:
        _, views = data.read_views(media, Row(str(path), 0.0, math.inf, []), spec)
    return torch.from_numpy(views[spec.modalities[0]])[None]


def each_view(function: Callable, x: torch.Tensor) -> torch.Tensor:
    """`function` of each view, as the model takes it.  (B, V, ...) -> (B, V, ...)"""
    return function(data.augment(x.flatten(0, 1))).unflatten(0, x.shape[:2])


class Classifier(nn.Module):
    """A backbone for `kind`, "video", "audio" or "image", and logits of `classes`; `multi`: a clip may have several.

    head: "linear" to fine-tune, "low-rank" for a frozen backbone. `precision` is that of the backbone: fp32, bf16 or fp64;
    `windows` and `crops` are the views of a file to test on.
    """

    def __init__(self, config: Config, kind: str, classes: list[str], multi: bool = False, head: str = "linear",
                 dropout: float = 0.5, components: int = 128):
        super().__init__()
        self.config, self.kind, self.classes, self.multi, self.head = config, kind, classes, multi, head
        self.components = components
        self.precision, self.windows, self.crops = "fp32", 1, 1
        self.backbone = VARIANTS[config.variant].backbones(config, ("audio" if kind == "audio" else "video",))
        self.width = d = (config.audio if kind == "audio" else config.video).d
        if head == "linear":
            self.classifier = LinearClassifier(d, len(classes), dropout, multi)
        else:
            self.classifier = LowRankClassifier(d, len(classes), components)

    def features(self, x: torch.Tensor, drop: float = 0.0, keys: torch.Tensor | None = None) -> torch.Tensor:
        """Inputs of `kind` -> z_out (B, d); drop and keys (B,) are DropToken's share and choice (Table 6)"""
        x = x.to(self.dtype)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if self.kind == "audio":
                return self.backbone.audio(x, drop, keys)
            if self.kind == "image":
                x = tokenize.image_clip(x, self.config.patch[0])
            return self.backbone.video(x, drop, keys)

    def forward(self, x: torch.Tensor, drop: float = 0.0, keys: torch.Tensor | None = None) -> torch.Tensor:
        """Inputs of `kind` -> logits (B, C)"""
        return self.classifier(self.features(x, drop, keys))

    def over_views(self, logits: torch.Tensor) -> torch.Tensor:
        """What several views of a clip say together (Section A.2.5).  (B, views, C) -> (B, C)"""
        if self.head == "low-rank" and not self.multi:
            # Official: a frozen backbone's views are averaged as probabilities (paper: not said).
            return logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])
        return logits.mean(1)

    @torch.no_grad()
    def predict(self, path: str | Path, top: int = 5) -> list[tuple[str, float]]:
        """The `top` best labels of a file and their probabilities, the best first. Raises Unreadable."""
        x = read_file(path, self.spec()).to(next(self.parameters()).device)
        best = self.probabilities(self.answer({self.kind: x}))[0].topk(min(top, len(self.classes)))
        return [(self.classes[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def answer(self, batch: dict) -> torch.Tensor:
        """A batch of files -> logits (B, C) of all views of each together"""
        return self.over_views(each_view(self, batch[self.kind]))

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """(.., C) -> (.., C); each by itself where a file may have several classes, else their sum is 1"""
        return logits.float().sigmoid() if self.multi else logits.float().softmax(-1)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights"""
        return next(self.parameters()).dtype

    def spec(self, windows: int | None = None, crops: int | None = None) -> data.ClipSpec:
        """Views of a file as this model takes them"""
        c = self.config
        return data.ClipSpec((self.kind,), c.frames, c.fps, c.size, c.rate, windows=windows or self.windows,
                             crops=crops or self.crops)

    def describe(self) -> dict:
        """What `load` needs to build it again"""
        return {"config": self.config.to_json(), "kind": self.kind, "classes": list(self.classes), "multi": self.multi,
                "head": self.head, "components": self.components}


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


def load(run: str | Path, kind: type | None = None) -> "Trained | Classifier":
    """The model of a run, in eval mode: of pretrain.py one that embeds, of finetune.py a classifier; its last checkpoint.

    run: a folder, or its model.safetensors, best.pt or checkpoint, beside config.json (and vocabulary.txt). kind: Trained or
    Classifier, where only one of them will do. Raises ValueError where `run` is none, or of the other kind, or its weights are
    of another model.
    """
    run = Path(run)
    folder = files.folder(run)
    config = read_config(run, str(folder))
    fine_tuned = "classes" in config["model"]
    if kind is Trained and fine_tuned:
        raise ValueError(f"{run} is fine-tuned for classes and has no common space: name the run that it started from")
    if kind is Classifier and not fine_tuned:
        raise ValueError(f"{run} is pre-trained and has no classifier: python finetune.py --init {run} trains one")
    weights = files.of_run(run)
    try:
        with torch.device("meta"):  # a config may claim any size: nothing is built before the weights are seen to be of it
            claimed = build(config)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise ValueError(f"{folder / 'config.json'} describes no model of this program ({e})") from None
    check_weights(claimed, weights, str(run))
    model = build(config)
    if not fine_tuned:
        model.vocabulary = vocabulary(run)
        if len(model.vocabulary) > model.config.vocabulary:
            raise ValueError(f"{folder / 'vocabulary.txt'} has more words than the model: it is another run's")
    load_weights(model, weights, str(run))
    return model.eval()


def build(config: dict) -> "Trained | Classifier":
    """The model that a config.json describes, with random weights"""
    saved, settings = config["model"], config["settings"]
    if "classes" not in saved:
        return Trained(Config.from_json(saved))
    model = Classifier(Config.from_json(saved["config"]), saved["kind"], saved["classes"], saved["multi"], saved["head"],
                       components=saved["components"])
    model.windows, model.crops = int(settings.get("windows") or 1), int(settings.get("crops") or 1)
    return model


def vocabulary(run: Path) -> "tokenize.Vocabulary":
    """The words of a pre-trained run. Raises ValueError or OSError where it has none"""
    saved = Run(files.folder(run)).read_config()["model"]
    variant = VARIANTS[saved.get("config", saved).get("variant", "paper")]
    return variant.vocabulary.load(files.folder(run) / "vocabulary.txt")


def read_config(run: Path, what: str) -> dict:
    """config.json of a run, which may be named by a file of weights; ValueError, about `what`, where there is none"""
    folder = files.folder(run)
    if not (folder / "config.json").is_file():
        inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
        raise ValueError(f"{what} is no run: it has no config.json (python pretrain.py makes runs/demo)"
                         + (f"; its folders are: {', '.join(inner)}" if inner else ""))
    return Run(folder).read_config()


def pretrained(run: Path) -> tuple[Config, str]:
    """The model of a run of pretrain.py or finetune.py, and the preset of its flags; ValueError where it is none"""
    saved = read_config(run, f"--init {run}")
    return Config.from_json(saved["model"].get("config", saved["model"])), saved["settings"].get("preset") or "demo"


def start_from(model: "VATT | Classifier", run: Path, words: "tokenize.Vocabulary | None" = None) -> None:
    """Gives a model the weights of a run, of which a classifier takes those of its backbone.

    Position tables of other sizes are resized (Section A.2.5). words: the vocabulary of the model; its words are found in the
    run's by their spelling, and new ones start at random. Raises ValueError where the weights are not of such a model.
    """
    start, own = files.of_run(run), model.state_dict()
    if isinstance(model, Classifier):
        model, kind = model.backbone, model.kind
        own = model.state_dict()
        of_backbone = {name.partition(".")[2]: w for name, w in start.items() if name.startswith(("backbones.", "backbone."))}
        start = {name: w for name, w in of_backbone.items() if name in own}
        if ("W_ap" if kind == "audio" else "W_vp") not in start:
            raise ValueError(f"--init {run} has no {kind} backbone: name a run of pretrain.py, or of this task")
        if kind == "image":
            # Official: an image stands at the first place in time (the paper is silent).
            start["e_temporal"] = start["e_temporal"][:1]
    same = lambda name: name in start and start[name].shape[1:] == own[name].shape[1:]
    if words and same("backbones.W_tp"):
        known, table = vocabulary(run), start["backbones.W_tp"]
        ids = torch.tensor([known.ids.get(word, -1) for word in words.words])
        start["backbones.W_tp"] = torch.where((ids >= 0)[:, None], table[ids.clamp(min=0)], own["backbones.W_tp"])
    for name in own:
        if name.split(".")[-1].startswith("e_") and same(name):
            start[name] = resize_table(start[name], len(own[name]))
    load_weights(model, start, f"--init {run}")
