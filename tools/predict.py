"""Labels of files that have none: by a classifier, or zero-shot, by the sentences nearest to them (Section A.3.3)."""

import math
import os
import tempfile
from pathlib import Path

import torch

import data
import vatt
from engine.errors import fail, plural, printable, warn
from sources import index
from sources.files import TYPES, columns, lines, within
from sources.index import Row
from tools import embed, tables

TEMPERATURE = 0.07  # of the loss that has made the common space (Section 3.4)


def predict(args, how: embed.Reading) -> None:
    """Print the best labels of files, and write the probabilities of all to a csv.

    What is done stays beside the csv until all is, so that the same command goes on. ValueError for what cannot be.
    """
    source, out, processes, problems = args.source, args.out, how.processes, []
    if out.suffix != ".csv":
        raise ValueError(f"{out}: the name of the file to write ends in .csv")
    if out.is_file() and not next(lines(out), (0, ""))[1].startswith(",".join(tables.FILES)):
        raise ValueError(f"{out} is not of this program: name another file")
    model = vatt.load(args.run).to(processes.device)
    if isinstance(model, vatt.Classifier):
        if args.classes:
            raise ValueError(f"{args.run} has classes of its own: --classes is for a pre-trained run")
        model.precision, how = how.precision, how._replace(precision="fp32")    # it knows which part of it may be bf16
        classes, takes, spec = model.classes, vatt.READS[model.kind], model.spec(args.windows, args.crops)
        forward, probabilities = model.answer, model.probabilities
    elif not args.classes:
        raise ValueError(f"{args.run} is pre-trained and has no classes: --classes names.txt gives it some, one a line")
    else:
        classes, takes = [line for _, line in lines(args.classes)], ("video", "image")
        spec = model.spec("video", args.windows or 4)
        text = sentences(model, classes, args.sentence).to(processes.device)
        forward = lambda batch: model.embed_views(batch["video"], "vt") @ text.T / TEMPERATURE
        probabilities = lambda logits: logits.softmax(-1)
    if source.is_file() and source.suffix.lower() not in TYPES:
        root, paths, ids = listed(source, args.allow_outside)
    else:
        root, below = embed.files_in(source, problems)
        ids = paths = [path for path in below if TYPES.get(os.path.splitext(path)[1].lower()) in takes]
        if len(paths) < len(below):
            problems.append(f"{source}: {plural(len(below) - len(paths), 'file')} of other kinds left out")
    if not paths:
        raise ValueError(f"{source} holds no {' or '.join(takes)}")
    key = embed.digest(embed.weights_digest(model), classes, spec, args.sentence, how.precision,
                       embed.file_states(root / path for path in paths), paths)
    processes.print(f"{source}: {plural(len(paths), 'file')}, {len(classes)} classes")
    with tempfile.TemporaryDirectory() as scratch:
        rows = index.write(Path(scratch) / "index", root, [Row(path, 0.0, math.inf, []) for path in paths])
        parts = lambda left: embed.rows_of(model, forward, len(classes),
                                           data.TestDataset([data.Source(rows, left)], spec), how)
        with embed.resumed(out, key, len(paths), len(classes), parts, processes) as (logits, failed):
            if processes.first:
                reasons, good = dict(failed), [not math.isnan(row[0]) for row in logits]
                read = [name for name, there in zip(ids, good, strict=True) if there]
                bad = [(name, reasons.get(rows.name(i), "could not be read")) for i, name in enumerate(ids) if not good[i]]
                p = probabilities(torch.from_numpy(logits[good]))
                tables.write_files(out, read, classes, p, bad)
                width = min(40, max(map(len, ids)))
                for name, row in zip(read, p, strict=True):
                    best = [f"{printable(classes[i])} {100 * row[i]:.1f}%" for i in row.argsort(descending=True)[: args.top]]
                    print(f"{printable(name):{width}}  {', '.join(best)}")
                for name, reason in bad:
                    print(f"{printable(name):{width}}  could not be read: {reason}")
    if processes.first:
        warn(problems)
        print(f"\n{out}: probabilities of {len(read)} of {plural(len(ids), 'file')}")
        if not read:
            fail(3, f"none of them could be read, first {': '.join(bad[0])}")


def sentences(model: vatt.Trained, classes: list[str], sentence: str) -> torch.Tensor:
    """Vectors of a sentence about each class, {} is its name; ValueError where the run knows no word of one"""
    unknown = [name for name in classes if not any(word in model.vocabulary.ids for word in model.vocabulary.split(name))]
    if unknown:
        raise ValueError(f"the run knows no word of {len(unknown)} of the classes, first {printable(unknown[0])!r}: name them "
                         f"in words of its vocabulary.txt")
    return model.embed_texts([sentence.replace("{}", name) for name in classes])


def listed(path: Path, outside: bool) -> tuple[Path, list[str], list[str]]:
    """A path a line, or the column `path` of a csv -> (a folder, paths below it, paths as they are written)"""
    names = [row["path"] for _, row in columns(path, "path")] if path.suffix.lower() == ".csv" else [
        line for _, line in lines(path)]
    whole = [within(str(path), path.parent, name, outside) for name in names]
    root = os.path.commonpath([os.path.abspath(path.parent), *map(os.path.dirname, whole)])
    return Path(root), [os.path.relpath(at, root) for at in whole], names
