"""Pictures of a run, where matplotlib is installed: `python figures.py runs/demo`."""

import json
import sys
from pathlib import Path


def curves(run: Path) -> str:
    """Writes curves.png: both losses beside chance, cosines of positive and negative pairs, held-out R@10.

    -> the end of a sentence: that it was written, or what to install.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return " (pip install matplotlib draws curves.png too)"
    from losses import at_chance

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    batch = json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"]["batch"]
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
    seen = [row for row in rows if "held_out" in row]
    for task in seen[0]["held_out"] if seen else ():
        recall.plot([row["step"] + 1 for row in seen], [100 * row["held_out"][task] for row in seen], "o-",
                    label=task.replace("_", " "))
    for axis, title in ((loss, "loss"), (cosine, "mean cosine"), (recall, "held-out R@10, %")):
        axis.set(xlabel="step", title=title)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.savefig(run / "curves.png", dpi=110)
    plt.close(figure)
    return ", curves.png"


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "metrics.jsonl").is_file():
        sys.exit("usage: python figures.py RUN, a folder with metrics.jsonl such as runs/demo")
    print(sys.argv[1] + curves(Path(sys.argv[1])))
