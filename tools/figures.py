"""Figures of a run and its scores, where matplotlib is installed."""

from pathlib import Path

import numpy as np

from engine.run import Run
from losses import at_chance


def pyplot():
    """matplotlib's, for files alone; None where it is not installed"""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save(figure, *paths: Path) -> bool:
    """Write a figure to each of the files, by their endings, and let it go."""
    for path in paths:
        figure.savefig(path, dpi=110)
    pyplot().close(figure)
    return True


def curves(run: Path) -> bool:
    """Write curves.png: both losses beside chance, cosines of pairs, held-out R@10; False without matplotlib."""
    if not (plt := pyplot()):
        return False
    rows, batch, results = list(Run(run).rows()), Run(run).read_config()["settings"]["batch"], Run(run).results()
    steps = [row["step"] + 1 for row in rows]
    column = lambda name: [float("nan") if row[name] is None else row[name] for row in rows]
    figure, (loss, cosine, recall) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for name, count, colour in (("nce", "sounding", "tab:orange"), ("mil_nce", "captioned", "tab:blue")):
        label = name.upper().replace("_", "-")
        loss.plot(steps, column(name), color=colour, label=label, lw=1)
        chance = [at_chance(batch, int(row[count] or 0)) for row in rows]
        loss.plot(steps, chance, color=colour, ls=":", label=f"{label} at chance")
    for space, colour, label in (("va", "tab:orange", "video, audio"), ("vt", "tab:blue", "video, text")):
        cosine.plot(steps, column(f"pos_{space}"), color=colour, label=f"{label}: positive pairs", lw=1)
        cosine.plot(steps, column(f"neg_{space}"), color=colour, ls=":", label=f"{label}: negative pairs", lw=1)
    seen = [(row["step"] + 1, row["held_out"]) for row in rows if "held_out" in row]
    if last := {task: scores["R@10"] for task, scores in results.items() if "R@10" in scores}:
        seen.append((steps[-1], last))
    for task in seen[0][1] if seen else ():
        recall.plot([step for step, _ in seen], [100 * scores[task] for _, scores in seen], "o-", label=task.replace("_", " "))
    for axis, title in ((loss, "loss"), (cosine, "mean cosine"), (recall, "held-out R@10, %")):
        axis.set(xlabel="step", title=title)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    return save(figure, run / "curves.png")


def confusion(counts: list[list[int]], classes: list[str], path: Path) -> bool:
    """Write a confusion matrix: rows are the true classes, in shares of each; False without matplotlib."""
    if not (plt := pyplot()):
        return False
    n = len(classes)
    share = [[x / max(sum(row), 1) for x in row] for row in counts]
    side = min(40, 3 + 0.22 * n)
    figure, axis = plt.subplots(figsize=(side + 1, side), layout="constrained")
    image = axis.imshow(share, cmap="viridis", vmin=0, vmax=1)
    if n <= 150:  # names of more would not be read
        axis.set_xticks(range(n), classes, rotation=90, fontsize=7, parse_math=False)
        axis.set_yticks(range(n), classes, fontsize=7, parse_math=False)
    if n <= 20:
        for i, row in enumerate(counts):
            for j, x in enumerate(row):
                if x:
                    axis.text(j, i, x, ha="center", va="center", fontsize=7, color="black" if share[i][j] > 0.6 else "white")
    axis.set(xlabel="answer", ylabel="class")
    figure.colorbar(image, label="share of the class", shrink=0.6)
    return save(figure, path)


def contact_sheet(rows: list[tuple[str, np.ndarray]], title: str, path: Path) -> bool:
    """Draw rows of frames (N, h, w, 3) below what is written above each; False without matplotlib."""
    if not (plt := pyplot()):
        return False
    heights = [0.35 + frames.shape[1] / 100 for _, frames in rows]
    figure = plt.figure(figsize=(1.85 * len(rows[0][1]), 0.5 + sum(heights)), layout="constrained")
    lines = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)
    for line, (text, frames) in zip(lines[:, 0], rows, strict=True):
        line.suptitle(text, x=0.01, ha="left", fontsize=9, parse_math=False)
        for axis, frame in zip(line.subplots(1, len(frames)), frames, strict=True):
            axis.imshow(frame)
            axis.axis("off")
    figure.suptitle(title, parse_math=False)
    return save(figure, path)
