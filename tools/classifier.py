"""One backbone of VATT and a classifier on it, for a task with labels (Sections 4.2.1 to 4.2.3, A.2.5, A.3, A.4).

    video (B, T, H, W, 3), image (B, H, W, 3), both in [-1, 1], or audio (B, S) -> z_out (B, d) -> logits (B, C)

An image is a clip of t equal frames, one patch deep. `load(run)` gives a classifier that finetune.py trained.
"""

import dataclasses
import math
from pathlib import Path

import torch
from torch import nn

import vatt
from engine.run import Run, load_weights
from heads import LinearClassifier, LowRankClassifier
from weights import files

PARTS = {
    "video": {"W_vp", "e_temporal", "e_vertical", "e_horizontal", "video_transformer", "video_around",
              "transformer", "dropout"},
    "audio": {"W_ap", "e_audio", "e_frequency", "audio_transformer", "audio_around", "transformer", "dropout"},
}
PARTS["image"] = PARTS["video"]
READS = {"video": ("video",), "audio": ("audio", "video"), "image": ("image",)}  # kinds of files


class Classifier(nn.Module):
    """A backbone for `kind`, "video", "audio" or "image", and logits of `classes`; `multi`: a clip may have several.

    head: "linear" to fine-tune, "low-rank" for a frozen backbone. `precision` is that of the backbone: fp32, bf16 or fp64.
    """

    def __init__(self, config: vatt.Config, kind: str, classes: list[str], multi: bool = False, head: str = "linear",
                 dropout: float = 0.5, components: int = 128):
        super().__init__()
        self.config, self.kind, self.classes, self.multi, self.head = config, kind, classes, multi, head
        self.components = components
        self.precision = "fp32"
        self.backbone = vatt.VARIANTS[config.variant].backbones(dataclasses.replace(config, vocabulary=1))
        for name in [*self.backbone._modules, *self.backbone._parameters, *self.backbone._buffers]:
            if name not in PARTS[kind]:
                delattr(self.backbone, name)
        d = (config.audio if kind == "audio" else config.video).d
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
                x = vatt.tokenize.image_clip(x, self.config.patch[0])
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

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights"""
        return next(self.parameters()).dtype

    def describe(self) -> dict:
        """What `load` needs to build it again"""
        return {"config": self.config.to_json(), "kind": self.kind, "classes": list(self.classes), "multi": self.multi,
                "head": self.head, "components": self.components}


def pretrained(run: Path) -> tuple[vatt.Config, str]:
    """The model of a run of pretrain.py or finetune.py, and the preset of its flags; ValueError where it is none"""
    folder = files.folder(run)
    if not (folder / "config.json").is_file():
        raise ValueError(f"--init {run} is no run: it has no config.json (python pretrain.py makes runs/demo)")
    saved = Run(folder).read_config()
    return vatt.Config.from_json(saved["model"].get("config", saved["model"])), saved["settings"].get("preset") or "demo"


def start_from(model: Classifier, run: Path) -> None:
    """Gives the backbone the weights of a pre-trained run; position tables of other sizes are resized (Section A.2.5).

    Raises ValueError where the run has no such backbone, or one of another shape.
    """
    start = {}
    for name, weight in files.of_run(run).items():
        prefix, _, name = name.partition(".")
        if prefix in ("backbones", "backbone") and name.split(".")[0] in PARTS[model.kind]:
            start[name] = weight
    W = "W_ap" if model.kind == "audio" else "W_vp"
    if W not in start:
        raise ValueError(f"--init {run} has no {model.kind} backbone: name a run of pretrain.py, or of this task")
    if model.kind == "image":
        # Official: an image stands at the first place in time (the paper is silent).
        start["e_temporal"] = start["e_temporal"][:1]
    vatt.resize_tables(start, model.backbone.state_dict())
    load_weights(model.backbone, start, f"--init {run}")


def load(run: str | Path) -> Classifier:
    """The classifier of a run of finetune.py, or of its model.safetensors, in eval mode; of a run, the last checkpoint.

    Raises ValueError where `run` is none.
    """
    run, given = (Path(run).parent, Path(run)) if str(run).endswith(".safetensors") else (Path(run), Path(run))
    if not (run / "config.json").is_file():
        inner = sorted(path.parent.name for path in run.glob("*/config.json"))
        raise ValueError(f"{run} is no run of finetune.py: it has no config.json"
                         + (f"; its folders are: {', '.join(inner)}" if inner else ""))
    saved = Run(run).read_config()["model"]
    if "classes" not in saved:
        raise ValueError(f"{run} is pre-trained and has no classifier: python finetune.py --init {run} trains one")
    model = Classifier(vatt.Config.from_json(saved["config"]), saved["kind"], saved["classes"], saved["multi"], saved["head"],
                       components=saved["components"])
    load_weights(model, files.of_run(given), str(given))
    return model.eval()
