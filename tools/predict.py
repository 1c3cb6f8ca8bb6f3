"""Labels of files that have none: by a classifier, or zero-shot, by the sentences nearest to them (Section A.3.3)."""

import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import data
import vatt
from engine.errors import fail, plural, printable
from sources import index
from sources.index import Row
from sources.labelled import TYPES, columns, lines
from tools import embed, tables

TEMPERATURE = 0.07  # of the loss that has made the common space (Section 3.4)


class Labels(NamedTuple):
    """Classes to choose from, and what scores files: forward(batch) -> logits (B, C), probabilities(logits) (N, C)."""

    classes: list[str]
    spec: data.ClipSpec
    takes: tuple[str, ...]          # kinds of files
    forward: Callable[[dict], torch.Tensor]
    probabilities: Callable[[torch.Tensor], torch.Tensor]


def of_classifier(model: vatt.Classifier, windows: int | None = None, crops: int | None = None) -> Labels:
    """Its own classes; what it says of all views of a file together (Section A.2.5)"""
    forward = lambda batch: model.over_views(vatt.each_view(model, batch[model.kind]))
    return Labels(model.classes, model.spec(windows, crops), vatt.READS[model.kind], forward, model.probabilities)


def of_sentences(model: vatt.Trained, classes: list[str], sentence: str, windows: int | None) -> Labels:
    """Any classes, by the cosines of a sentence about each; ValueError where the run knows no word of one"""
    sentences = [sentence.replace("{}", name) for name in classes]
    unknown = [name for name in classes if not any(word in model.vocabulary.ids for word in model.vocabulary.split(name))]
    if unknown:
        raise ValueError(f"the run knows no word of {len(unknown)} of the classes, first {printable(unknown[0])!r}: "
                         f"name them in words of its vocabulary.txt")
    text = model.embed_texts(sentences).to(model.device) / TEMPERATURE
    forward = lambda batch: model.embed_views(batch["video"], "vt") @ text.T
    return Labels(classes, model.spec("video", windows or 4), ("video", "image"), forward, lambda x: x.softmax(-1))


def predict(args, how: embed.Reading) -> None:
    """Print the best labels of files, and write the probabilities of all to a csv.

    What is done stays beside the csv until all is, so that the same command goes on. ValueError for what cannot be.
    """
    source, out, processes, problems = args.source, args.out, how.processes, []
    if out.suffix != ".csv":
        raise ValueError(f"{out}: the name of the file to write ends in .csv")
    if out.is_file() and not tables.is_of_files(out):
        raise ValueError(f"{out} is not of this program: name another file")
    model = vatt.load(args.run).to(processes.device)
    if isinstance(model, vatt.Classifier):
        if args.classes:
            raise ValueError(f"{args.run} has classes of its own: --classes is for a pre-trained run")
        model.precision, how = how.precision, how._replace(precision="fp32")    # it knows which part of it may be bf16
        labels = of_classifier(model, args.windows, args.crops)
    elif not args.classes:
        raise ValueError(f"{args.run} is pre-trained and has no classes: --classes names.txt gives it some, one a line")
    else:
        labels = of_sentences(model, [line for _, line in lines(args.classes)], args.sentence, args.windows)
    if source.is_file() and source.suffix.lower() not in TYPES:
        root, paths, ids = listed(source, args.allow_outside)
    else:
        root, below = embed.files_in(source, problems)
        ids = paths = [path for path in below if TYPES.get(os.path.splitext(path)[1].lower()) in labels.takes]
        if len(paths) < len(below):
            problems.append(f"{source}: {plural(len(below) - len(paths), 'file')} of other kinds left out")
    if not paths:
        raise ValueError(f"{source} holds no {' or '.join(labels.takes)}")
    key = embed.digest(embed.weights_digest(model), labels.classes, labels.spec, args.sentence, how.precision,
                       embed.file_states(root / path for path in paths), paths)
    processes.print(f"{source}: {plural(len(paths), 'file')}, {len(labels.classes)} classes")
    with tempfile.TemporaryDirectory() as scratch:
        rows = index.write(Path(scratch) / "index", root, [Row(path, 0.0, math.inf, []) for path in paths])
        parts = lambda left: embed.rows_of(model, labels.forward, len(labels.classes),
                                           data.TestDataset([data.Source(rows, left)], labels.spec), how)
        with embed.resumed(out, key, len(paths), len(labels.classes), parts, processes) as (logits, failed):
            if processes.first:
                probabilities, reasons = labels.probabilities(torch.from_numpy(logits)), dict(failed)
                why = [reasons.get(rows.name(i), "could not be read") if math.isnan(p[0]) else ""
                       for i, p in enumerate(probabilities.tolist())]
                tables.write_files(out, ids, labels.classes, probabilities, why)
                width = min(40, max(map(len, ids)))
                for name, p, reason in zip(ids, probabilities, why, strict=True):
                    best = [f"{printable(labels.classes[i])} {100 * p[i]:.1f}%" for i in p.argsort(descending=True)[: args.top]]
                    print(f"{printable(name):{width}}  {f'could not be read: {reason}' if reason else ', '.join(best)}")
    if processes.first:
        for line in problems[:10]:
            print(f"warning: {printable(line)}", file=sys.stderr)
        print(f"\n{out}: probabilities of {len(ids) - sum(map(bool, why))} of {plural(len(ids), 'file')}")
        if all(why):
            fail(3, f"none of them could be read, first {printable(f'{ids[0]}: {why[0]}')}")


def listed(path: Path, outside: bool) -> tuple[Path, list[str], list[str]]:
    """A path a line, or the column `path` of a csv -> (a folder, paths below it, paths as they are written)"""
    names = [row["path"] for _, row in columns(path, "path")] if path.suffix.lower() == ".csv" else [
        line for _, line in lines(path)]
    here = os.path.abspath(path.parent)
    whole = [os.path.normpath(os.path.join(here, name)) for name in names]
    away = [name for name, at in zip(names, whole, strict=True) if os.path.relpath(at, here).startswith(os.pardir)]
    if away and not outside:
        raise ValueError(f"{path}: {printable(away[0])!r} lies outside {path.parent}: put the list above its files, or give "
                         f"--allow-outside where you trust it")
    root = os.path.commonpath([here, *map(os.path.dirname, whole)])
    return Path(root), [os.path.relpath(at, root) for at in whole], names
