"""Scores of trained runs (Sections 4.2.1 to 4.2.4). `python evaluate.py` prints what the demo's runs have left.

    predict RUN FILE|FOLDER|LIST the best labels of files that have none
    classify RUN [DATA]          classes of videos, audio files or images: several views each, their logits averaged
    retrieve RUN DATA            videos by their captions, without having trained on any of them (zero-shot)
    embed RUN FOLDER OUT.npz     vectors of videos, audio files, images or sentences
    figures [RUN ...]            Figures 2 to 4 of the paper and more, of these runs
    search RUN "words" --in FOLDER   the moments of videos nearest to the words

Under torchrun each process takes its share of the files, and every file counts once.
"""

import engine.threads  # noqa: F401

import argparse
import collections
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import data
import vatt
from engine.arguments import count, positive, whole
from engine.errors import fail, plural, printable, user_errors, warn
from engine.loading import Batches
from engine.processes import Processes
from engine.run import Run, write_text
from sources import official
from sources.check import broken_files
from sources.labelled import Labelled
from tools import embed, figures, paper_figures, predict, tables
from tools.search import search
from weights import files

KS = (1, 5, 10)  # of R@k
OFFICIAL_FPS = {"youcook2": 12.5, "msrvtt": 12.5}                           # A.3.3: 25 fps, every other frame


# ---------------------------------------------------------------------------------------------------------------------
# Metrics. All are fractions of 1. Where scores are equal the right answer ranks last, so that a model which says the same of
# everything gets what it deserves; a score that is not a number ranks where it does most harm.

def retrieval_metrics(similarity: torch.Tensor) -> dict[str, float]:
    """Recall at 1, 5 and 10 as fractions, and the median rank (Section 4.2.4).

    similarity (N, N): rows are queries, columns the pool, the match stands on the diagonal. The best rank is 1. Ties rank
    last, so a model that gives every pair the same score gets 0; a score that is not a number ranks last too.
    """
    n = len(similarity)
    if n == 0:
        return {**{f"R@{k}": 0.0 for k in KS}, "MedR": 0.0, "N": 0}
    rank = ranks(similarity, torch.arange(n)).double()
    scores = {f"R@{k}": ((rank <= k).double().mean()).item() for k in KS}
    return {**scores, "MedR": rank.quantile(0.5).item(), "N": n}


def retrieval_chance(n: int) -> dict[str, float]:
    """What a random order of a pool of n gives: R@k = k/n, the median rank is (n + 1)/2"""
    return {**{f"R@{k}": min(1.0, k / n) for k in KS}, "MedR": (n + 1) / 2} if n else {}


def ranks(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The rank of the right column in each row: how many scores are not below it, its own counted.  (N, C), (N,) -> (N,)"""
    # Ours: ties rank last (official: an unstable sort, so that ties fall as they may).
    match = scores.gather(1, right.to(scores.device)[:, None])
    return (~(scores < match)).sum(1)


def classification_metrics(scores: torch.Tensor, targets: torch.Tensor, per_class: bool = False) -> dict:
    """Top-1 and top-5 accuracy (Section 4.2.1): the share of samples whose class is among the k highest of their row.

    scores (N, C), targets (N,) ints in 0 .. C - 1 -> {"top-1", "top-5", "N", "chance": {"top-1", "top-5", "most frequent"}},
    where "most frequent" is the top-1 of one who always names the class that is most frequent here; with `per_class` also
    "samples", "recall" and "precision" (lists of C; None where there is nothing to divide by) and "confusion" (C lists of C
    counts; rows are the true classes, columns the highest scores). ValueError for a target outside the classes.
    """
    n, c = scores.shape
    if n and not 0 <= int(targets.min()) <= int(targets.max()) < c:
        raise ValueError(f"classes {int(targets.min())} to {int(targets.max())}, but the model has 0 to {c - 1}")
    scores, targets = scores.double().cpu(), targets.long().cpu()
    rank, samples = ranks(scores, targets), torch.bincount(targets, minlength=c)
    top = lambda k: (rank <= k).double().mean().item() if n else 0.0
    chance = {"top-1": 1 / c, "top-5": min(1.0, 5 / c), "most frequent": samples.max().item() / max(n, 1)}
    metrics = {"top-1": top(1), "top-5": top(5), "N": n, "chance": chance}
    if per_class:
        others = scores.scatter(1, targets[:, None], -torch.inf).nan_to_num(torch.inf, torch.inf, -torch.inf)
        named = torch.where(rank == 1, targets, others.argmax(1)) if n else targets
        confusion = torch.bincount(targets * c + named, minlength=c * c).view(c, c)
        share = lambda total: [confusion[k, k].item() / int(total[k]) if total[k] else None for k in range(c)]
        metrics |= {"samples": samples.tolist(), "recall": share(samples), "precision": share(confusion.sum(0)),
                    "confusion": confusion.tolist()}
    return metrics


def multilabel_metrics(scores: torch.Tensor, targets: torch.Tensor, per_class: bool = False) -> dict:
    """Mean average precision, mean area under the ROC curve, and d' (Section 4.2.2), each the plain mean over classes.

    scores (N, C), targets (N, C) 0 or 1. Average precision is the sum over thresholds of (R_n - R_n-1) P_n, the area is the
    share of pairs of a positive and a negative in which the positive is higher, and a tie is half a pair: both as in
    scikit-learn. d' = sqrt(2) Phi^-1(area): "d'" is the mean of each class's, as in the paper's Table 2; "d' of AUC" is that of
    the mean area, as others report it, and is smaller. Classes without a positive or without a negative sample are in none of
    the means: "left_out" lists their numbers. "chance" is what random scores give these files: AUC 1/2, d' 0, mAP the mean of
    `chance_precision`. With `per_class` also "samples", "AP" and "AUC of each" (lists of C, None for classes left out).
    """
    scores, targets = scores.double().cpu(), targets.bool().cpu()
    n, c = scores.shape
    positives = targets.sum(0)
    # Ours: classes without a positive or a negative are left out and named (official: AUC and d' of all become NaN).
    kept = [k for k in range(c) if 0 < positives[k] < n]
    precision, area = [None] * c, [None] * c
    for k in kept:
        precision[k], area[k] = areas(scores[:, k], targets[:, k])
    mean = lambda x: sum(x[k] for k in kept) / len(kept) if kept else 0.0
    pairs = positives * (n - positives)
    primes = [d_prime(area[k], int(pairs[k])) if area[k] is not None else None for k in range(c)]
    metrics = {"mAP": mean(precision), "AUC": mean(area), "d'": mean(primes),
               "d' of AUC": d_prime(mean(area), int(pairs.sum())) if kept else 0.0, "N": n,
               "left_out": [k for k in range(c) if area[k] is None],
               "chance": {"mAP": mean([chance_precision(p, n) for p in positives.tolist()]), "AUC": 0.5, "d'": 0.0}}
    if per_class:
        metrics |= {"samples": positives.tolist(), "AP": precision, "AUC of each": area}
    return metrics


def chance_precision(positives: int, n: int) -> float:
    """The average precision to expect of a random order of n files: more than the share of positives where they are few

    A hit at rank k has on average 1 + (k - 1)(positives - 1)/(n - 1) hits at or above it; the mean over k has a closed form.
    """
    first = sum(1 / k for k in range(1, n + 1)) / max(n, 1)
    return first + (1 - first) * (positives - 1) / max(n - 1, 1)


def areas(scores: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
    """(average precision, area under the ROC curve) of one class with positives and negatives; (N,), (N,) bool"""
    scores = torch.where(scores.isnan(), torch.where(targets, -torch.inf, torch.inf), scores)
    order = scores.argsort(descending=True, stable=True)
    scores, right = scores[order], targets[order].double()
    last = torch.ones(len(scores), dtype=torch.bool)        # of those with one score: all pass a threshold, or none
    last[:-1] = scores[1:] != scores[:-1]
    zero = torch.zeros(1, dtype=torch.float64)
    hits = torch.cat([zero, right.cumsum(0)[last]])         # positives at or above each threshold
    misses = torch.cat([zero, (1 - right).cumsum(0)[last]])
    precision = hits.diff() @ (hits[1:] / (hits[1:] + misses[1:])) / hits[-1]
    area = misses.diff() @ (hits[1:] + hits[:-1]) / 2 / (hits[-1] * misses[-1])
    return precision.item(), area.item()


def d_prime(area: float, pairs: int) -> float:
    """sqrt(2) Phi^-1(area under the ROC curve of so many pairs of a positive and a negative)"""
    # Ours: an area of 0 or 1 counts as half a pair away from it (official: an infinite d', and then their mean too).
    area = min(max(area, 0.5 / pairs), 1 - 0.5 / pairs)
    return 2**0.5 * torch.special.ndtri(torch.tensor(area, dtype=torch.float64)).item()


# ---------------------------------------------------------------------------------------------------------------------
# What the trainings call

def retrieval(model: vatt.VATT, batches: Batches, processes: Processes, precision: str) -> dict:
    """Retrieval among the held-out clips, each clip's nearest caption as the query; a pool holds the clips that have both.

    batches: of a `data.TestDataset` with one view, each process its own; every clip counts once with any number of processes.
    """
    dtype = model.heads.dtype
    first = lambda batch: (data.augment(batch["video"][:, 0]).to(dtype), batch["audio"][:, 0].to(dtype), batch["text"][:, :1])
    rows, failed = [], []
    for batch, z, bad in embed.over_files(model, lambda batch: model(*first(batch)), batches, processes.device, precision):
        failed += bad
        if batch:
            z_v_va, z_a_va, z_v_vt, z_t_vt = (x.float().cpu() for x in model.project(*z))
            # clones, not views of a batch
            rows += [{"path": path, "has_audio": bool(batch["has_audio"][i]), "has_text": bool(batch["has_text"][i, 0]),
                      "z_v_va": z_v_va[i].clone(), "z_a_va": z_a_va[i].clone(),
                      "z_v_vt": z_v_vt[i].clone(), "z_t_vt": z_t_vt[i, 0].clone()} for i, path in enumerate(batch["path"])]
    rows = sorted((row for part in processes.collect(rows) for row in part), key=lambda row: row["path"])
    results = {"unreadable": sorted(pair for part in processes.collect(failed) for pair in part)}
    for name, has, query, item in (("text_to_video", "has_text", "z_t_vt", "z_v_vt"),
                                   ("video_to_audio", "has_audio", "z_v_va", "z_a_va"),
                                   ("audio_to_video", "has_audio", "z_a_va", "z_v_va")):
        pool, similarity = [row for row in rows if row[has]], torch.zeros(0, 0)
        if pool:
            queries, items = (F.normalize(torch.stack([row[z] for row in pool]), dim=1) for z in (query, item))
            similarity = queries @ items.T
        results[name] = {**retrieval_metrics(similarity), "chance": retrieval_chance(len(pool))}
    return results


def answers(model: vatt.Classifier, batches: Batches,
            processes: Processes) -> tuple[list[str], torch.Tensor, torch.Tensor, list[tuple[str, str]]]:
    """Paths, logits (N, C) of all views together and classes (N, C) of the files of all processes, and those not to be read.

    batches: of a `data.TestDataset`, each process its own; every file counts once with any number of processes.
    """
    none = torch.zeros(0, len(model.classes))
    paths, logits, labels, failed = [], [none], [none], []
    for batch, found, bad in embed.over_files(model, model.answer, batches, processes.device):
        failed += bad
        if batch:
            paths += batch["path"]
            logits.append(found.float().cpu())
            labels.append(batch["labels"].cpu())
    logits, labels = (torch.cat(processes.collect(torch.cat(parts))) for parts in (logits, labels))
    paths, failed = ([x for part in processes.collect(each) for x in part] for each in (paths, failed))
    return paths, logits, labels, failed


def score(model, scores: torch.Tensor, targets: torch.Tensor, failed: list, per_class: bool = False) -> dict:
    """Metrics of what a classifier says (N, C) of files with classes (N, C), and "unreadable", the files it says nothing of"""
    if model.multi:
        metrics = multilabel_metrics(scores, targets, per_class)
    else:
        metrics = classification_metrics(scores, targets.argmax(1), per_class)
    return {**metrics, "unreadable": sorted([str(x) for x in pair] for pair in failed)}


# ---------------------------------------------------------------------------------------------------------------------
# Commands

def classify_command(args: argparse.Namespace, how: embed.Reading) -> None:
    """Scores of a run of finetune.py on a data set, tables of its classes and of the files, its confusion matrix."""
    processes = how.processes
    model = vatt.load(args.run, vatt.Classifier).to(processes.device)
    model.precision = how.precision
    saved = Run(files.folder(args.run)).read_config()["settings"]
    trained = saved.get("part") if isinstance(saved.get("part"), int) else 1
    part, args.data = args.part or trained, args.data or str(saved.get("data", ""))
    found = source(args, part, processes)
    if not found.classes:
        raise ValueError(f"{args.data} has captions, not classes: python evaluate.py retrieve takes it")
    if found.kind not in vatt.READS[model.kind]:
        raise ValueError(f"{args.data} has files of kind {found.kind}, and {args.run} was trained on {model.kind}")
    if found.multi != model.multi:
        raise ValueError(f"{args.data} has {'several classes' if found.multi else 'one class'} a file, and {args.run} was "
                         f"trained on data with {'several' if model.multi else 'one'}")
    spec = model.spec(args.windows, args.crops)._replace(cache=saved.get("cache") or 0.0)
    numbers = renumbered(found, model.classes, args)
    clips = data.TestDataset([data.Source.to_test(found.test)], spec, classes=len(model.classes), numbers=numbers)
    paths, logits, labels, failed = answers(model, how.batches(clips), processes)
    if not processes.first:
        return
    scores = score(model, logits, labels, failed, per_class=True)
    if not paths:
        fail(3, f"none of the {len(found.test)} files could be read, first {': '.join(failed[0])}")
    if saved.get("data") == args.data and part != trained:
        print(f"warning: {args.run} was trained on part {trained}, so that some of these files trained it", file=sys.stderr)
    in_time = f"{plural(spec.windows, 'window')} of {spec.seconds:g} s"
    in_space = f"{plural(spec.crops, 'crop')} of {spec.size} pixels"
    seen = {"video": f"{in_time} x {in_space}", "audio": in_time, "image": in_space}[model.kind]
    print(f"{seen} a file, {'probabilities' if model.head == 'low-rank' else 'logits'} averaged; N = {scores['N']} "
          f"files, {len(model.classes)} classes; ties count against the model\n\n{tables.classes(scores)}")
    tables.warn_unreadable(scores["unreadable"])
    name = found.name + (f"-{part}" if official.parts(args.data) > 1 else "")
    ends = tables.write_classes(scores, model.classes, args.out / f"{name}-classes.csv")
    true = ["|".join(model.classes[k] for k in row.nonzero()[:, 0]) for row in labels]
    tables.write_files(args.out / f"{name}-files.csv", paths, model.classes, model.probabilities(logits), failed, true)
    written = ["evaluate.json", f"{name}-classes.csv", f"{name}-files.csv"]
    if not model.multi:
        drawn = figures.confusion(scores["confusion"], list(map(printable, model.classes)), args.out / f"{name}-confusion.png")
        written.append(f"{name}-confusion.png" if drawn else "pip install matplotlib draws the confusion matrix too")
    short = {k: v for k, v in scores.items() if not isinstance(v, list) or k == "left_out"}
    tables.keep(args.out, f"classify_{name}", {**short, "unreadable": len(scores["unreadable"])})
    print(f"\n{ends}\n\n{args.out}: {', '.join(written)}")


def retrieve_command(args: argparse.Namespace, how: embed.Reading) -> None:
    """Zero-shot retrieval of videos, or of parts of them, by their captions (Section A.3.3)."""
    processes = how.processes
    model = vatt.load(args.run, vatt.Trained).to(processes.device)
    found = source(args, 1, processes)
    if found.classes:
        raise ValueError(f"{args.data} has classes, not captions: python evaluate.py classify takes it")
    spec = model.spec("video", args.windows or 4)
    spec = spec._replace(fps=args.fps or OFFICIAL_FPS.get(found.name, spec.fps))
    mine = data.Source(found.test, np.arange(processes.rank, len(found.test), processes.world))
    rows, failed = [torch.zeros(0, model.config.d_vt)], []
    for z, bad in embed.vectors(model, data.TestDataset([mine], spec), "vt", how):
        rows.append(z)
        failed += bad
    videos = embed.shares(torch.cat(rows), len(found.test), processes)
    failed = [pair for part in processes.collect(failed) for pair in part]
    if not processes.first:
        return
    read = ~videos[:, 0].isnan()
    texts = [text for text, good in zip(found.test.texts(), read.tolist(), strict=True) if good]
    if not texts:
        fail(3, f"none of the {len(found.test)} videos could be read, first {': '.join(failed[0])}")
    known = sum(any(word in model.vocabulary.ids for word in model.vocabulary.split(text)) for text in texts)
    again = sum(count for count in collections.Counter(texts).values() if count > 1)
    similarity = model.embed_texts(texts) @ videos[read].T
    scores = {**retrieval_metrics(similarity), "chance": retrieval_chance(len(texts))}
    print(f"{plural(spec.windows, 'window')} of {spec.frames} frames at {spec.fps:g} fps, central crops of {spec.size} pixels; "
          f"their mean vector, normalised\npool of N = {len(texts)}; ties count against the model; {again} captions stand at "
          f"more than one clip, and only their own is right; {len(texts) - known} hold no word that the run knows\n")
    print(tables.retrieval({"text_to_video": scores, "unreadable": []}, {}, "retrieval, percent", "name more videos"))
    tables.warn_unreadable(failed)
    tables.keep(args.out, f"retrieve_{found.name}", {**scores, "unreadable": len(failed)})


def figures_command(args: argparse.Namespace, how: embed.Reading) -> None:
    """The paper's figures of runs"""
    if not (runs := args.runs or [run for run in paper_figures.DEMO if (run / "config.json").is_file()]):
        raise ValueError("there is no run of the demos: python pretrain.py and python pretrain.py --preset demo-ma make them")
    for line in paper_figures.draw(runs, args.out, how):
        print(line)


def embed_command(args: argparse.Namespace, how: embed.Reading) -> None:
    """Vectors of files or sentences by a run of pretrain.py, written to an .npz (Section A.3.3)"""
    if args.out.suffix != ".npz":
        raise ValueError(f"{args.out}: the name of the file to write ends in .npz")
    model = vatt.load(args.run, vatt.Trained).to(how.processes.device)
    wanted = embed.Wanted(args.source, args.kind, args.space, args.seconds, args.windows, broken_files(args.skip))
    embed.embed(model, wanted, args.out, how)


def source(args, part: int, processes: Processes) -> Labelled:
    """Loads a data set and says how much of its test is there; the list of what is not is written beside the run"""
    text, out, problems = args.data, args.out, []
    load = lambda: official.load(text, out / "index" / "evaluate", problems, part, args.allow_outside)
    data = processes.collect(load() if processes.first else None)[0]
    which = f" {part} of {official.parts(text)}" if official.parts(text) > 1 else ""
    processes.print(f"{data.name}{which}: {len(data.test)} of {data.listed[1]} test clips found")
    if processes.first:
        warn(problems)
        if data.missing:
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / f"{data.name}-missing.txt", "\n".join(data.missing) + "\n")
            print(f"warning: {len(data.missing)} listed files are not there, first {printable(data.missing[0])}; all are in "
                  f"{out / f'{data.name}-missing.txt'}", file=sys.stderr)
    if not data.test:
        raise ValueError(f"{text} has nothing to test on: " + (
            f"none of its {data.listed[1]} test clips is there" if data.listed[1] else "all that it lists is for training"))
    return data


def renumbered(data: Labelled, classes: list[str], args) -> list[int]:
    """The numbers that the data's classes have in the model; ValueError where the model lacks one"""
    number = {name: i for i, name in enumerate(classes)}
    if lacking := [name for name in data.classes if name not in number]:
        raise ValueError(f"{args.data} has {len(lacking)} classes that {args.run} was not trained on, first "
                         f"{printable(lacking[0])!r}: name data with the classes of its training")
    return [number[name] for name in data.classes]


# ---------------------------------------------------------------------------------------------------------------------

def flags() -> argparse.ArgumentParser:
    """The command line"""
    p = argparse.ArgumentParser(description="Scores of trained runs. Without a command: those that the demo's runs have left.")
    commands = p.add_subparsers(dest="command", metavar="COMMAND")

    def command(call: Callable, name: str, text: str, **positional: str | None) -> argparse.ArgumentParser:
        c = commands.add_parser(name, help=text, description=text)
        c.set_defaults(call=call)
        for what, meaning in {"run": "folder of a trained run, or its best.pt or model.safetensors", **positional}.items():
            if meaning is None:
                continue
            c.add_argument(what, type=str if what in ("data", "words") else Path, help=meaning, nargs="?" if (
                name == "classify" and what == "data") else None)
        c.add_argument("--windows", type=count,
                       help="in time, spread over a file (default: a classifier's own, 1 of a moment, else 4)")
        c.add_argument("--batch", type=count, default=32, help="views that pass the model at a time (default 32)")
        c.add_argument("--workers", type=whole, default=1, help="processes that decode, for each process (default 1; without "
                       "any, a file that crashes FFmpeg ends the command without a word)")
        c.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the Transformers")
        c.add_argument("--timeout", type=positive, default=600.0, metavar="SECONDS",
                       help="that a file, or another process, may take; then the command names it and ends (default 600)")
        return c

    outside = lambda c: c.add_argument("--allow-outside", action="store_true", help="a list may name files outside its folder")
    crops = lambda c: c.add_argument("--crops", type=count, help="in space, along the longer side (default: the run's own)")
    dataset = "[KIND=]PATH of a data set; see docs/data.md"
    c = command(predict.predict, "predict", "the best labels of files that have none, with their probabilities",
                source="a video, audio file or image, a folder of them, or a list: a path a line, or a csv with a column path")
    c.add_argument("--classes", type=Path, metavar="FILE", help="for a pre-trained run: names to choose from, one a line")
    c.add_argument("--sentence", default="{}", help="what is said of each of them, {} is its name (default {})")
    c.add_argument("--top", type=count, default=3, help="labels to print of a file (default 3); the csv has all")
    c.add_argument("--out", type=Path, default=Path("predictions.csv"), help="csv to write (default predictions.csv)")
    crops(c)
    outside(c)
    c = command(classify_command, "classify", "top-1 and top-5, or mAP, AUC and d-prime, of a run of finetune.py",
                data=f"{dataset} (default: the run's own)")
    crops(c)
    c.add_argument("--split", "--fold", dest="part", type=count, metavar="N", help="official one (default: the run's own)")
    c.add_argument("--out", type=Path, help="folder for tables and pictures (default: the run)")
    outside(c)
    c = command(retrieve_command, "retrieve", "zero-shot retrieval of videos by their captions: R@1, R@5, R@10, median rank",
                data=dataset)
    c.add_argument("--fps", type=positive, help="frames per second (default: 12.5 for YouCook2, MSR-VTT, else the run's own)")
    c.add_argument("--out", type=Path, help="folder for evaluate.json (default: the run)")
    outside(c)
    c = command(embed_command, "embed", "vectors of all files of a folder, or of all lines of a text file, in one .npz",
                source="a folder of videos, audio or images, one of them, or a text file", out="the .npz to write")
    c.add_argument("--kind", choices=("video", "audio", "image", "text"), help="of files (default: what most are)")
    c.add_argument("--space", choices=("vt", "va"), help="common space (default: vt, with text; audio has only va)")
    c.add_argument("--seconds", type=positive, help="cut videos into moments of this length (default: whole ones)")
    c.add_argument("--skip", type=Path, metavar="CSV", help="leave out the files of this list, as data.py check writes it")
    c = command(search, "search", "the moments of videos that are nearest to some words, as a table, a picture and a page",
                words="what to look for, in quotes")
    c.add_argument("--in", dest="source", type=Path, required=True, metavar="FOLDER", help="folder of videos, or one")
    c.add_argument("--top", type=count, default=8, help="moments to show (default 8)")
    c.add_argument("--per-video", type=count, default=2, metavar="N", help="at most so many of one video (default 2)")
    c.add_argument("--json", type=Path, metavar="FILE", help="write them as JSON, too")
    c.add_argument("--out", type=Path, default=Path("search.png"), help="picture to draw; the page lies beside it (default "
                   "search.png)")
    c = command(figures_command, "figures", "Figures 2 to 4 of the paper, attention, scores by drop rate, of runs", run=None)
    c.add_argument("runs", nargs="*", type=Path, metavar="run", help="of pretrain.py and of finetune.py, to be drawn beside "
                   "each other (default: those that the demos have left)")
    c.add_argument("--out", type=Path, default=Path("figures"), help="folder for .svg and .png (default figures)")
    return p


def main(argv: list[str] | None = None) -> None:
    """Runs one command"""
    args = flags().parse_args(argv)
    with user_errors("stopped" + "; the same command goes on" * (args.command in ("embed", "search", "predict"))):
        if not args.command:
            return print(tables.left())
        how = embed.Reading(Processes(args.timeout), args.batch, args.workers, args.precision, args.timeout)
        if args.command in ("classify", "retrieve"):
            args.out = args.out or files.folder(args.run)
        args.call(args, how)
    how.processes.end()


if __name__ == "__main__":
    main()
