"""Scores as tables for people, in percent beside chance, and the files that keep them."""

import contextlib
import csv
import io
import json
from pathlib import Path

import torch

from engine.errors import plural, printable
from engine.run import Run, read_json, write_text

TASKS = ("text_to_video", "video_to_audio", "audio_to_video")
FEW = 50  # files: below that, one more or less is more than two points
DEMO = (Path("runs/demo"), Path("runs/demo-finetune"))


def aligned(rows: list[list[str]], first: int, *widths: int) -> str:
    """Cells below each other, the first of a row to the left, wide enough for all, the others to the right of their column"""
    first = max(first, *(len(row[0]) + 1 for row in rows if len(row) > 1))
    return "\n".join(f"{row[0]:{first}}" + "".join(f"{cell:>{n}}" for cell, n in zip(row[1:], widths, strict=False))
                     if len(row) > 1 else row[0] for row in rows)


def percent(x: float | None) -> str:
    """A fraction of 1, empty where there is none"""
    return "" if x is None else f"{100 * x:.1f}"


def few(n: int, remedy: str) -> list[str]:
    """A line where scores of so few files mean little, and how to have more"""
    line = f"scores of {plural(n, 'file')} mean little: one more that is right is {100 / max(n, 1):.0f} points ({remedy})"
    return [line] if 0 < n < FEW else []


def retrieval(results: dict, beside: dict[str, dict], title: str = "held-out retrieval",
              remedy: str = "--val FOLDER names more") -> str:
    """Scores in percent beside chance and, for the demo, beside what knowing a part of the attributes would give"""
    row = lambda name, s, n="": [name, *(percent(s.get(k)) for k in ("R@1", "R@5", "R@10")), str(s.get("MedR", "")), str(n)]
    rows, pools = [[title, "R@1", "R@5", "R@10", "MedR", "N"]], {task: results[task] for task in TASKS if task in results}
    for name, scores in pools.items():
        task = name.replace("_", " ")
        rows += ([row(task, scores, scores["N"]), row("  chance", scores["chance"])] if scores["N"] else
                 [[f"{task:30}  no held-out clip has both (--val names others)"]])
    rows += [row(f"  knowing {name} alone", scores) for name, scores in beside.items()]
    rows += [[line] for line in few(min((s["N"] for s in pools.values() if s["N"]), default=0), remedy)]
    if results["unreadable"]:
        named = "; ".join(f"{printable(path)}: {reason}" for path, reason in results["unreadable"][:5])
        rows.append([f"{plural(len(results['unreadable']), 'held-out clip')} could not be read, in no pool, first {named}"])
    return aligned(rows, 30, 7, 7, 7, 7, 6)


def classes(scores: dict) -> str:
    """Scores in percent beside chance; d' as it is"""
    chance, rest = scores["chance"], few(scores["N"], "more labelled files to test on would help")
    if "mAP" in scores:
        row = lambda name, s: [name, percent(s["mAP"]), percent(s["AUC"]), f"{s[prime]:.3f}"]
        prime, rows = "d'", [["", "mAP, %", "AUC, %", "d-prime"]]
        rest.append("d-prime is the mean of that of each class, as in the paper; that of the mean AUC is "
                    f"{scores[f'{prime} of AUC']:.3f}")
        if scores["left_out"]:
            rest.append(f"{len(scores['left_out'])} classes have no positive or no negative file here and are in no mean")
    else:
        row, rows = lambda name, s: [name, percent(s["top-1"]), percent(s["top-5"])], [["", "top-1, %", "top-5, %"]]
        rest.insert(0, f"{'always the largest class':26}{percent(chance['most frequent']):>10}")
    return aligned([*rows, row("this run", scores), row("chance", chance), *([line] for line in rest)], 26, 10, 10, 10)


def write_csv(path: Path, rows: list) -> None:
    """Write rows whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def write_classes(scores: dict, classes: list[str], path: Path) -> str:
    """Write a row for each class -> the lowest and the highest of them, to be printed."""
    first, second = ("AP", "AUC of each") if "AP" in scores else ("recall", "precision")
    rows = list(zip(classes, scores["samples"], scores[first], scores[second], strict=True))
    write_csv(path, [("class", "samples", first, second.removesuffix(" of each")), *rows])
    ranked = sorted((score, name, n) for name, n, score, _ in rows if score is not None)
    say = lambda rows: "; ".join(f"{printable(name)} {100 * score:.0f}% of {n}" for score, name, n in rows)
    if len(ranked) <= 10:
        return f"{first} by class: {say(ranked[::-1])}"
    return f"lowest {first}: {say(ranked[:5])}\nhighest: {say(ranked[:-6:-1])}"


FILES = ("path", "unreadable", "label", "probability")  # the first columns of a csv of files


def write_files(path: Path, ids: list[str], classes: list[str], probabilities: torch.Tensor, failed: list[tuple[str, str]],
                true: list[str] | None = None) -> None:
    """Write a row a file: its best label, the true one where given, all probabilities (N, C); then what could not be read."""
    rows = [[*FILES, *["true"] * bool(true), *(f"p({name})" for name in classes)]]
    for i, (name, p) in enumerate(zip(ids, probabilities.tolist(), strict=True)):
        best, right = p.index(max(p)), true[i : i + 1] if true else []
        rows.append([name, "", classes[best], f"{p[best]:.4f}", *right, *(f"{x:.4g}" for x in p)])
    write_csv(path, [*rows, *([*pair, *[""] * (len(rows[0]) - 2)] for pair in failed)])


def warn_unreadable(failed: list) -> None:
    """How many files are in no score, and the first of them"""
    if failed:
        named = "; ".join(printable(f"{path}: {reason}") for path, reason in failed[:5])
        print(f"{plural(len(failed), 'file')} could not be read, in no score, first {named}")


def keep(out: Path, name: str, scores: dict) -> None:
    """Adds scores to evaluate.json"""
    out.mkdir(parents=True, exist_ok=True)
    path, known = out / "evaluate.json", {}
    with contextlib.suppress(OSError, ValueError):  # torn: these scores matter more
        known = read_json(path)
    write_text(path, json.dumps({**known, name: scores}, indent=2) + "\n")


def left() -> str:
    """What the runs of pretrain.py and finetune.py without flags have left in their results.json"""
    lines = []
    for run, table, remedy in zip(DEMO, (lambda results: retrieval(results, {}, "held-out retrieval, percent"), tasks),
                                  ("python pretrain.py", "python finetune.py, after python pretrain.py,"), strict=True):
        try:
            results = Run(run).results()
            lines.append(f"{run}\n{table(results)}\n" if results else f"{run} has no results yet: {remedy} makes them")
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ValueError(f"{run / 'results.json'} is torn or not of this program: remove it, and the same command scores "
                             f"the run again") from None
    return "\n".join(lines)


def tasks(results: dict) -> str:
    """What the demo's tasks are solved to with pre-training and without, beside chance"""
    rows = [[name.replace("_", " "), *map(percent, (s["pretrained"], s.get("random", s.get("scratch")), s["chance"]))]
            for name, s in results.items()]
    return aligned([["top-1 on held-out clips, percent", "pre-trained", "without", "chance"], *rows,
                    ["without: features of a random network (linear), training from scratch (finetune)"]], 34, 12, 9, 8)
