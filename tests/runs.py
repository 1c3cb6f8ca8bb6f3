"""Small runs as pretrain.py and finetune.py leave them, with random weights; and how tests read what scripts leave and say."""

import json
from pathlib import Path

import pytest
import torch

import data
import evaluate
import vatt
from engine.processes import Processes
from engine.run import Run
from engine.sampling import Sampler
from transformer import Size
from vatt import Classifier

SMALL = Size(1, 32, 64, 2)
CONFIG = vatt.Config(SMALL, SMALL, SMALL, frames=4, size=16, patch=(2, 8, 8), rate=8000, words=6, d_va=16, d_vt=8, dropout=0.0)
WORDS = ("a", "red", "blue", "cloth", "film", "begins")


class Rank(Processes):
    """One of several processes, where the others are not there"""

    def __init__(self, rank: int = 0, world: int = 1):
        super().__init__(solo=True)
        self.rank, self.world, self.store = rank, world, torch.distributed.HashStore()

    def meet(self) -> None:
        """There is nobody to meet"""


def pretrained(out: Path, seed: int = 0) -> Path:
    """A run of pretrain.py; its batch norms are given what they have not seen, so that vectors differ"""
    torch.manual_seed(seed)
    words = vatt.tokenize.Vocabulary(WORDS)
    config = vatt.dataclasses.replace(CONFIG, vocabulary=len(words))
    model = vatt.VATT(config)
    for name, buffer in model.named_buffers():
        buffer.copy_(torch.rand_like(buffer) * 0.1 + ("var" in name) * 0.01)
    run = Run(out)
    out.mkdir(parents=True)
    words.save(out / "vocabulary.txt")
    run.describe({}, config.to_json())
    run.save(1, {"model": model.state_dict()})
    return out


def finetuned(out: Path, kind: str, classes: list[str], multi: bool = False, head: str = "linear", **settings) -> Path:
    """A run of finetune.py"""
    torch.manual_seed(0)
    config = vatt.dataclasses.replace(CONFIG, frames=CONFIG.patch[0]) if kind == "image" else CONFIG
    model = Classifier(config, kind, classes, multi, head)
    for p in model.classifier.parameters():
        torch.nn.init.normal_(p)
    run = Run(out)
    out.mkdir(parents=True)
    run.describe({"windows": 2, "crops": 1, **settings}, model.describe())
    run.save(1, {"model": model.state_dict()})
    return out


def rows(out: Path) -> list[dict]:
    """metrics.jsonl but for what the clock decides"""
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in (out / "metrics.jsonl").open()]


def classify(model, batches, processes) -> dict:
    """The scores of a classifier on files"""
    return evaluate.score(model, *evaluate.answers(model, batches, processes)[1:])


def refused(main, argv: list[str], capsys, code: int = 2) -> str:
    """What is printed to somebody who starts the program wrongly: one line"""
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == code
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    return errors[0]


def clips_to_test(rows, classes: int, spec: data.ClipSpec, numbers=None, at=None) -> data.TestDataset:
    """All views of the rows of an index, or of those `at`"""
    source = data.Source.to_test(rows) if at is None else data.Source(rows, at)
    return data.TestDataset([source], spec, classes=classes, numbers=numbers)


def clips_to_train(rows, classes: int, spec: data.ClipSpec, batch: int, seed: int = 0) -> data.TrainDataset:
    """Random clips of the rows of an index"""
    sampler = Sampler([len(rows)], [1.0], batch, seed)
    return data.TrainDataset([data.Source.to_train(rows)], sampler, spec, seed, classes=classes)
