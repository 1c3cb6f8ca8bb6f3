"""Scores of trained runs (Sections 4.2.1 to 4.2.4). `python evaluate.py` prints what the demo's runs have left.

    classify RUN [DATA]          classes of films, sounds or images: several views each, their logits averaged
    retrieve RUN DATA            films by their captions, without having trained on any of them (zero-shot)
    embed RUN FOLDER OUT.npz     vectors of films, sounds, images or sentences
    search RUN "words" --in FOLDER   the moments of films nearest to the words

What is counted stands in `metrics.py`. Under torchrun each process takes its share of the files, and every file counts once.
"""

import argparse
import collections
import contextlib
import csv
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import vatt
from engine.errors import fail, printable, user_errors
from engine.loading import to_device
from engine.processes import Processes
from engine.run import Run, write_text
from sources import official
from sources.labelled import Labelled
from tools import augment, classifier, embed, figures, views
from tools.metrics import classification_metrics, multilabel_metrics, retrieval_chance, retrieval_metrics
from weights import files

TASKS = ("text_to_video", "video_to_audio", "audio_to_video")
DEMO = (Path("runs/demo"), Path("runs/demo-finetune"))
OFFICIAL_FPS = {"youcook2": 12.5, "msrvtt": 12.5}                           # A.3.3: 25 fps, every other frame


# ---------------------------------------------------------------------------------------------------------------------
# What the trainings call


@torch.no_grad()
def retrieval(model, loader, processes, precision: str) -> dict:
    """Retrieval among the held-out clips, each clip's nearest caption as the query; a pool holds the clips that have both.

    loader: batches of `loading.eval_batches`, each process its own; every clip counts once with any number of processes.
    """
    model.eval()
    rows, failed = [], []
    for batch, bad in loader:
        failed += bad
        if batch is None:
            continue
        batch = to_device(batch, processes.device)
        dtype = model.heads.dtype
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=precision == "bf16"):
            z = model(augment.augment(batch["video"], None, None).to(dtype), batch["audio"].to(dtype), batch["text"][:, :1])
        z_v_va, z_a_va, z_v_vt, z_t_vt = model.project(*z)
        z_t_vt = z_t_vt[:, 0]
        vectors = ([row.clone() for row in x.float().cpu()] for x in (z_v_va, z_a_va, z_v_vt, z_t_vt))  # not views of a batch
        rows += list(zip(*vectors, batch["has_audio"].tolist(), batch["has_text"][:, 0].tolist(), batch["path"], strict=True))
    model.train()
    rows = sorted((row for part in processes.collect(rows) for row in part), key=lambda row: row[-1])
    results = {"unreadable": sorted(pair for part in processes.collect(failed) for pair in part)}
    sounding, captioned = [r for r in rows if r[4]], [r for r in rows if r[5]]
    for name, pool, query, item in zip(TASKS, (captioned, sounding, sounding), (3, 0, 1), (2, 1, 0), strict=True):
        n = len(pool)
        similarity = torch.zeros(0, 0)
        if n:
            q, i = (F.normalize(torch.stack([row[x] for row in pool]), dim=1) for x in (query, item))
            similarity = q @ i.T
        results[name] = {**retrieval_metrics(similarity), "chance": retrieval_chance(n)}
    return results


def table(results: dict, beside: dict[str, dict], title: str = "held-out retrieval") -> str:
    """Scores in percent beside chance and, for the demo, beside what knowing a part of the attributes would give"""
    lines = [f"{title:30}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MedR':>7}{'N':>6}"]
    row = lambda name, s, n="": f"{name:30}" + "".join(
        f"{100 * s[k]:7.1f}" if k in s else f"{'':7}" for k in ("R@1", "R@5", "R@10")) + f"{s.get('MedR', ''):>7}{n:>6}"
    for name in (task for task in TASKS if task in results):
        if results[name]["N"]:
            lines.append(row(name.replace("_", " "), results[name], results[name]["N"]))
            lines.append(row("  chance", results[name]["chance"]))
        else:
            lines.append(f"{name.replace('_', ' '):30}  no held-out clip has both (--val names others)")
    for name, scores in beside.items():
        lines.append(row(f"  knowing {name} alone", scores))
    if results["unreadable"]:
        named = "; ".join(f"{printable(path)}: {reason}" for path, reason in results["unreadable"][:5])
        lines.append(f"{len(results['unreadable'])} held-out clips could not be read and are not in the pools, first {named}")
    return "\n".join(lines)


@torch.no_grad()
def classify(model, loader, processes, per_class: bool = False) -> dict:
    """Metrics of a `classifier.Classifier` on files with classes: what it says of all views of a file together.

    loader: batches of `views.loader`, each process its own; every file counts once with any number of processes, and
    those that cannot be read are "unreadable", with the reason, and in no score.
    """
    was_training = model.training
    model.eval()
    scores, targets, failed = [torch.zeros(0, len(model.classes))], [torch.zeros(0, len(model.classes))], []
    for batch, bad in loader:
        failed += bad
        if batch is None:
            continue
        x = views.inputs(batch["x"].flatten(0, 1).to(processes.device))
        logits = model(x).unflatten(0, batch["x"].shape[:2])                # (B, V, C)
        scores.append(model.over_views(logits).float().cpu())
        targets.append(batch["y"])
    model.train(was_training)
    scores, targets = (torch.cat(processes.collect(torch.cat(parts))) for parts in (scores, targets))
    return score(model, scores, targets, [pair for part in processes.collect(failed) for pair in part], per_class)


def score(model, scores: torch.Tensor, targets: torch.Tensor, failed: list, per_class: bool = False) -> dict:
    """Metrics of what a classifier says (N, C) of files with classes (N, C), and "unreadable", the files it says nothing of"""
    if model.multi:
        metrics = multilabel_metrics(scores, targets, per_class)
    else:
        metrics = classification_metrics(scores, targets.argmax(1), per_class)
    return {**metrics, "unreadable": sorted([str(x) for x in pair] for pair in failed)}


# ---------------------------------------------------------------------------------------------------------------------
# Commands

def classify_command(args, processes: Processes) -> None:
    """Scores of a run of finetune.py on a data set, a table of its classes, and its confusion matrix"""
    with user_errors():
        model = classifier.load(args.run).to(processes.device)
        model.precision = args.precision
        saved = Run(args.run).read_config()["settings"]
        trained = saved.get("part") if isinstance(saved.get("part"), int) else 1
        args.allow_outside |= not args.data and saved.get("allow_outside", False)
        part, args.data = args.part or trained, args.data or saved.get("data", "")
        data = source(args, part, processes)
        if not data.classes:
            raise ValueError(f"{args.data} has captions, not classes: python evaluate.py retrieve takes it")
        if data.kind not in classifier.READS[model.kind]:
            raise ValueError(f"{args.data} has files of kind {data.kind}, and {args.run} was trained on {model.kind}")
        if data.multi != model.multi:
            raise ValueError(f"{args.data} has {'several classes' if data.multi else 'one class'} a file, and {args.run} was "
                             f"trained on data with {'several' if model.multi else 'one'}")
        numbers, c = renumbered(data, model.classes, args), model.config
        windows, crops = (getattr(args, name) or saved.get(name) or 1 for name in ("windows", "crops"))
        recipe = views.Recipe(model.kind, c.frames, c.fps, c.size, c.rate, windows, crops, cache=saved.get("cache") or 0.0)
        dataset = views.Testing(data.test, len(model.classes), recipe, numbers=numbers)
    loader = views.loader(dataset, args.batch, processes, args.workers)
    scores = classify(model, embed.survived(loader, dataset), processes, per_class=True)
    if not processes.first:
        return
    if not scores["N"]:
        fail(3, f"none of the {len(data.test)} files could be read, first {printable(': '.join(scores['unreadable'][0]))}")
    if saved.get("data") == args.data and part != trained:
        print(f"warning: {args.run} was trained on part {trained}, so that some of these files trained it", file=sys.stderr)
    windows = f"{windows} windows of {c.frames / c.fps:g} s"
    squares = f"{crops} crops of {c.size} pixels"
    seen = {"video": f"{windows} x {squares}", "audio": windows, "image": squares}[model.kind]
    print(f"{seen} a file, {'probabilities' if model.head == 'low-rank' else 'logits'} averaged; N = {scores['N']} "
          f"files, {len(model.classes)} classes; ties count against the model\n\n{class_table(scores)}")
    warn_unreadable(scores["unreadable"])
    name = data.name + (f"-{part}" if official.parts(args.data) > 1 else "")
    ends = write_classes(scores, model.classes, args.out / f"{name}-classes.csv")
    picture, drawn = args.out / f"{name}-confusion.png", ""
    if not model.multi:
        drawn = f", {figures.confusion(scores['confusion'], list(map(printable, model.classes)), picture)}"
    short = {k: v for k, v in scores.items() if not isinstance(v, list) or k == "left_out"}
    keep(args.out, f"classify_{name}", {**short, "unreadable": len(scores["unreadable"])})
    print(f"\n{ends}\n\n{args.out}: evaluate.json, {name}-classes.csv" + drawn.replace(f"{args.out}/", ""))


def retrieve_command(args, processes: Processes) -> None:
    """Zero-shot retrieval of films, or of parts of them, by their captions (Section A.3.3)"""
    with user_errors():
        model = vatt.load(args.run).to(processes.device)
        data = source(args, 1, processes)
        if data.classes:
            raise ValueError(f"{args.data} has classes, not captions: python evaluate.py classify takes it")
        recipe = embed.recipe(model.config, "video", args.windows or 4, args.fps or OFFICIAL_FPS.get(data.name))
    mine = range(processes.rank, len(data.test), processes.world)
    rows, failed = [torch.zeros(0, model.config.d_vt)], []
    for part, bad in embed.vectors(model, data.test, mine, recipe, "vt", args.batch, args.workers, args.precision):
        rows.append(part)
        failed += bad
    parts = processes.collect(torch.cat(rows))
    failed = [list(pair) for part in processes.collect(failed) for pair in part]
    if not processes.first:
        return
    films = torch.empty(len(data.test), model.config.d_vt)
    for rank, part in enumerate(parts):
        films[rank :: processes.world] = part
    read = ~films[:, 0].isnan()
    texts = [text for text, good in zip(data.test.texts(), read.tolist(), strict=True) if good]
    if not texts:
        fail(3, f"none of the {len(data.test)} films could be read, first {printable(': '.join(failed[0]))}")
    known = sum(any(word in model.vocabulary.ids for word in model.vocabulary.split(text)) for text in texts)
    again = sum(count for count in collections.Counter(texts).values() if count > 1)
    similarity = embed.sentences(model, texts) @ films[read].T
    scores = {**retrieval_metrics(similarity), "chance": retrieval_chance(len(texts))}
    print(f"{recipe.windows} windows of {recipe.frames} frames at {recipe.fps:g} fps, central crops of {recipe.size} pixels; "
          f"their mean vector, normalised\npool of N = {len(texts)}; ties count against the model; {again} captions stand at "
          f"more than one clip, and only their own is right; {len(texts) - known} hold no word that the run knows\n")
    print(table({"text_to_video": scores, "unreadable": []}, {}, "retrieval, percent"))
    warn_unreadable(failed)
    keep(args.out, f"retrieve_{data.name}", {**scores, "unreadable": len(failed)})


def source(args, part: int, processes: Processes) -> Labelled:
    """Loads a data set and says how much of its test is there; the list of what is not is written beside the run"""
    text, out, problems = args.data, args.out, []
    load = lambda: official.load(text, out / "index" / "evaluate", problems, part, args.allow_outside)
    data = processes.collect(load() if processes.first else None)[0]
    which = f" {part} of {official.parts(text)}" if official.parts(text) > 1 else ""
    processes.print(f"{data.name}{which}: {len(data.test)} of {data.listed[1]} test clips found")
    if processes.first:
        for line in problems[:10]:
            print(f"warning: {line}", file=sys.stderr)
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


def class_table(scores: dict) -> str:
    """Scores in percent beside chance; d' as it is"""
    if "mAP" in scores:
        row = lambda name, s: f"{name:26}{100 * s['mAP']:10.1f}{100 * s['AUC']:10.1f}{s[prime]:10.3f}"
        prime, lines = "d'", [f"{'':26}{'mAP, %':>10}{'AUC, %':>10}{'d-prime':>10}"]
        lines += [row("this run", scores), row("chance", scores["chance"])]
        other = scores["d' of AUC"]
        lines.append(f"d-prime is the mean of that of each class, as in the paper; that of the mean AUC is {other:.3f}")
        if scores["left_out"]:
            lines.append(f"{len(scores['left_out'])} classes have no positive or no negative file here and are in no mean")
        return "\n".join(lines)
    chance = scores["chance"]
    row = lambda name, s: f"{name:26}{100 * s['top-1']:10.1f}{100 * s['top-5']:10.1f}\n"
    return (f"{'':26}{'top-1, %':>10}{'top-5, %':>10}\n" + row("this run", scores) + row("chance", chance)
            + f"{'always the largest class':26}{100 * chance['most frequent']:10.1f}")


def write_classes(scores: dict, classes: list[str], path: Path) -> str:
    """Writes a row for each class; -> the lowest and the highest of them"""
    names = ("AP", "AUC of each") if "AP" in scores else ("recall", "precision")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["class", "samples", *(name.replace(" of each", "") for name in names)])
        out.writerows(zip(classes, scores["samples"], *(scores[name] for name in names), strict=True))
    rows = zip(scores[names[0]], classes, scores["samples"], strict=True)
    ranked = sorted(row for row in rows if row[0] is not None)
    say = lambda rows: "; ".join(f"{printable(name)} {100 * s:.0f}% of {n}" for s, name, n in rows)
    if len(ranked) <= 10:
        return f"{names[0]} by class: {say(ranked[::-1])}"
    return f"lowest {names[0]}: {say(ranked[:5])}\nhighest: {say(ranked[:-6:-1])}"


def warn_unreadable(failed: list) -> None:
    """How many files are in no score, and the first of them"""
    if failed:
        named = "; ".join(printable(f"{path}: {reason}") for path, reason in failed[:5])
        print(f"{len(failed)} files could not be read and are in no score, first {named}")


def keep(out: Path, name: str, scores: dict) -> None:
    """Adds scores to evaluate.json"""
    out.mkdir(parents=True, exist_ok=True)
    path, known = out / "evaluate.json", {}
    if path.is_file():
        with contextlib.suppress(ValueError):  # torn: these scores matter more
            known = json.loads(path.read_text(encoding="utf-8"))
    write_text(path, json.dumps({**known, name: scores}, indent=2) + "\n")


def left() -> str:
    """One table of what the runs of pretrain.py and finetune.py without flags have left in their results.json"""
    pretrained, finetuned = {}, {}
    for run, found in zip(DEMO, (pretrained, finetuned), strict=True):
        try:
            found.update(Run(run).results())
        except ValueError as error:
            raise ValueError(f"{run}/results.json is torn ({error}): remove it, and the run writes it again") from None
    lines = []
    if pretrained:
        lines += [f"{DEMO[0]}: percent", table(pretrained, {}), ""]
    else:
        lines += [f"{DEMO[0]} has no results yet: python pretrain.py makes them", ""]
    tasks = {name: s for name, s in finetuned.items() if isinstance(s, dict) and "chance" in s}
    if tasks:
        lines += [f"{DEMO[1]}: top-1 on held-out clips, percent", f"{'':24}{'pre-trained':>12}{'not':>12}{'chance':>12}"]
        for name, s in tasks.items():
            beside = next((s[k] for k in ("random", "scratch") if k in s), float("nan"))
            numbers = (s.get("pretrained", float("nan")), beside, s["chance"])
            lines.append(f"{name.replace('_', ' '):24}" + "".join(f"{100 * x:12.1f}" for x in numbers))
        lines.append("not: random features under a linear classifier, or training from scratch")
    else:
        lines.append(f"{DEMO[1]} has no results yet: python finetune.py makes them, after python pretrain.py")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------

def flags() -> argparse.ArgumentParser:
    """The command line"""
    p = argparse.ArgumentParser(description="Scores of trained runs. Without a command: those that the demo's runs have left.")
    commands = p.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, text: str, *positional: tuple[str, str]) -> argparse.ArgumentParser:
        c = commands.add_parser(name, help=text, description=text)
        for what, meaning in positional:
            c.add_argument(what, type=str if what in ("data", "words") else Path, help=meaning)
        c.add_argument("--windows", type=int,
                       help="in time, spread over a file (default: a classifier's own, 1 of a moment, else 4)")
        c.add_argument("--batch", type=int, default=32, help="views that pass the model at a time (default 32)")
        c.add_argument("--workers", type=int, default=0, help="processes that decode, for each process (default 0)")
        c.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the Transformers")
        return c

    outside = lambda c: c.add_argument("--allow-outside", action="store_true", help="a csv may name files outside its folder")
    run, data = ("run", "folder of a trained run"), ("data", "[KIND=]PATH of a data set; see downstream.py")
    c = command("classify", "top-1 and top-5, or mAP, AUC and d-prime, of a run of finetune.py", run)
    c.add_argument("data", nargs="?", help=f"{data[1]} (default: the run's own)")
    c.add_argument("--crops", type=int, help="in space, along the longer side (default: the run's own)")
    c.add_argument("--split", "--fold", dest="part", type=int, metavar="N", help="official one (default: the run's own)")
    c.add_argument("--out", type=Path, help="folder for tables and pictures (default: the run)")
    outside(c)
    c = command("retrieve", "zero-shot retrieval of films by their captions: R@1, R@5, R@10, median rank", run, data)
    c.add_argument("--fps", type=float, help="frames per second (default: 12.5 for YouCook2 and MSR-VTT, else the run's own)")
    c.add_argument("--out", type=Path, help="folder for evaluate.json (default: the run)")
    outside(c)
    c = command("embed", "vectors of all files of a folder, or of all lines of a text file, in one .npz", run,
                ("source", "folder of films, sounds or images, or a text file"), ("out", "the .npz to write"))
    c.add_argument("--kind", choices=("video", "audio", "image", "text"), help="of files (default: what most are)")
    c.add_argument("--space", choices=("vt", "va"), help="common space (default: vt, with text; sound has only va)")
    c.add_argument("--seconds", type=float, help="cut films into moments of this length (default: a vector for a whole film)")
    c = command("search", "the moments of films that are nearest to some words, with a picture of them", run,
                ("words", "what to look for, in quotes"))
    c.add_argument("--in", dest="source", type=Path, required=True, metavar="FOLDER", help="folder of films")
    c.add_argument("--top", type=int, default=8, help="moments to show (default 8)")
    c.add_argument("--out", type=Path, default=Path("search.png"), help="picture to draw (default search.png)")
    return p


def main(argv: list[str] | None = None) -> None:
    """Runs one command"""
    p = flags()
    args = p.parse_args(argv)
    if not args.command:
        with user_errors():
            print(left())
        return
    for name in ("windows", "batch", "crops", "part", "top", "fps", "seconds"):
        if getattr(args, name, None) is not None and not 0 < getattr(args, name) < float("inf"):
            p.error(f"--{name} must be above 0, not {getattr(args, name)}")
    if args.workers < 0:
        p.error(f"--workers must be at least 0, not {args.workers}")
    processes = Processes()
    try:
        if args.command in ("classify", "retrieve"):
            args.out = args.out or files.folder(args.run)
            (classify_command if args.command == "classify" else retrieve_command)(args, processes)
        else:
            how = (args.batch, args.workers, args.precision, processes)
            if args.command == "embed":
                windows = args.windows or (1 if args.seconds else 4)
                embed.embed(args.run, args.source, args.out, args.kind, args.space, args.seconds, windows, *how)
            else:
                embed.search(args.run, args.words, args.source, args.out, args.top, *how)
    except (FloatingPointError, ChildProcessError) as error:
        fail(3, str(error))
    except (ValueError, OSError) as error:
        if args.command in ("classify", "retrieve"):  # past `user_errors`, it is a bug
            raise
        fail(2, str(error))
    except KeyboardInterrupt:
        fail(130, "stopped" + ("; the same command goes on" if args.command in ("embed", "search") else ""))
    processes.end()


if __name__ == "__main__":
    main()
