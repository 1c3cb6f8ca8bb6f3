"""Scores as tables for people, in percent beside chance, and the files that keep them."""

import contextlib
import csv
import io
import json
from pathlib import Path

import torch

from engine.errors import printable
from engine.run import Run, write_text, write_whole

TASKS = ("text_to_video", "video_to_audio", "audio_to_video")
DEMO = (Path("runs/demo"), Path("runs/demo-finetune"))


def retrieval(results: dict, beside: dict[str, dict], title: str = "held-out retrieval") -> str:
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


def classes(scores: dict) -> str:
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


FILES = ("path", "unreadable", "label", "probability")  # the first columns of a csv of files


def write_files(path: Path, ids: list[str], classes: list[str], probabilities: torch.Tensor, why: list[str],
                true: list[str] | None = None) -> None:
    """Writes a row a file: why it could not be read, its best label, the true ones where given, and all probabilities (N, C)"""
    def rows(file):
        text = io.TextIOWrapper(file, "utf-8", errors="replace", newline="", write_through=True)
        out = csv.writer(text, lineterminator="\n")
        out.writerow([*FILES, *["true"] * bool(true), *(f"p({name})" for name in classes)])
        for i, (name, p, reason) in enumerate(zip(ids, probabilities.tolist(), why, strict=True)):
            best = ["", ""] if reason else [classes[k := p.index(max(p))], f"{p[k]:.4f}"]
            right = [true[i]] if true else []
            out.writerow([name, reason, *best, *right, *("" if reason else f"{x:.4g}" for x in p)])
        text.detach()

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, rows)


def is_of_files(path: Path) -> bool:
    """Whether a csv is of `write_files`"""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(100).startswith(",".join(FILES))


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


def tasks(results: dict) -> str:
    """What the demo's tasks are solved to with pre-training and without, beside chance"""
    lines = [f"{'top-1 on held-out clips, percent':34}{'pre-trained':>12}{'without':>9}{'chance':>8}"]
    for name, s in results.items():
        numbers = zip((12, 9, 8), (s["pretrained"], s.get("random", s.get("scratch")), s["chance"]), strict=True)
        lines.append(f"{name.replace('_', ' '):34}" + "".join(f"{100 * x:{width}.1f}" for width, x in numbers))
    lines.append("without: features of a random network (linear), training from scratch (finetune)")
    return "\n".join(lines)


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
        lines += [f"{DEMO[0]}: percent", retrieval(pretrained, {}), ""]
    else:
        lines += [f"{DEMO[0]} has no results yet: python pretrain.py makes them", ""]
    if finetuned:
        lines += [f"{DEMO[1]}:", tasks(finetuned)]
    else:
        lines.append(f"{DEMO[1]} has no results yet: python finetune.py makes them, after python pretrain.py")
    return "\n".join(lines)
