"""The paper's ablations, one command each: `python -m bench study drop | patch | audio` (Tables 5, 9 and 10).

Each value is a run of `pretrain.py`, the demo's unless flags of it follow `--`: `... study drop -- --preset mbs --data /data`.
At the demo's size what can be compared with the paper is the trend, not the figure. Finished runs are read, not trained.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from bench import table
from tools.tables import TASKS

HERE = Path(__file__).parent.parent
# Table 5: top-1 of a linear classifier on HMDB51, UCF101 and ESC-50, R@10 on YouCook2 and MSR-VTT.
DROP = {0.75: (62.5, 84.0, 78.9, 17.9, 14.1), 0.5: (64.8, 85.5, 84.1, 20.7, 14.6), 0.25: (65.6, 87.2, 84.6, 24.2, 15.1),
        0.0: (66.4, 87.6, 84.9, 23.1, 15.2)}
# Table 9, by frames, pixels and patch, in the same order.
PATCH = {(32, 224, (4, 16, 16)): (67.7, 87.8, 87.0, 27.53, 17.99), (32, 200, (5, 16, 16)): (67.08, 87.16, 86.25, 23.98, 17.84),
         (32, 224, (5, 16, 16)): (67.6, 87.74, 87.0, 27.47, 17.96), (64, 224, (5, 16, 16)): (63.09, 86.57, 86.25, 18.52, 12.5),
         (32, 224, (8, 16, 16)): (65.64, 86.52, 84.0, 23.43, 16.14), (32, 224, (8, 32, 32)): (60.73, 82.68, 87.0, 15.27, 13.79)}
# Table 10, by the amplitudes of a patch; None is the spectrogram.
AUDIO = {128: (68.13, 88.14, 87.75, 25.72, 17.31), 256: (66.1, 87.74, 83.75, 24.19, 16.55),
         512: (67.34, 87.21, 82.5, 26.11, 16.91), 1024: (66.36, 86.41, 82.5, 24.46, 16.38),
         None: (67.52, 88.3, 88.0, 26.62, 16.86)}


def flags(commands, common: argparse.ArgumentParser) -> None:
    """Adds the command line of `study`"""
    c = commands.add_parser("study", parents=[common], help="an ablation of the paper, each value trained, beside the paper's",
                            usage="%(prog)s [flags] drop|patch|audio [-- flags of pretrain.py]")
    c.set_defaults(run=run)
    c.add_argument("what", choices=("drop", "patch", "audio"), help="Table 5, 9 or 10")
    c.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the runs (default: %(default)s)")
    c.add_argument("--seed", type=int, default=0, help="of every run (default: %(default)s)")


def runs(what: str, small: bool) -> dict[str, tuple[list[str], tuple]]:
    """What each run of a study is called -> its flags of pretrain.py, the paper's scores.

    small: at the demo's size, where frames and a patch's sides are half and pixels a seventh of the paper's.
    """
    if what == "drop":
        return {f"{drop:.0%} dropped": (["--drop", f"{drop}"], paper) for drop, paper in DROP.items()}
    if what == "audio":
        these = lambda n: ["--audio-patch", f"{n}"] if n else ["--audio-input", "spectrogram"]
        return {f"patches of {n}" if n else "spectrogram": (these(n), paper) for n, paper in AUDIO.items()}
    found = {}
    for (frames, size, (t, h, w)), paper in PATCH.items():
        if small:
            frames, size, h, w = frames // 2, size // 7, h // 2, w // 2
        found[f"{frames} x {size} pixels, patches {t}x{h}x{w}"] = (
            ["--frames", f"{frames}", "--size", f"{size}", "--patch", f"{t}", f"{h}", f"{w}"], paper)
    return found


def run(p: argparse.ArgumentParser, args: argparse.Namespace, _device: str) -> list[dict]:
    """`python -m bench study`: prints the table, returns its rows"""
    rows = []
    for number, (name, (these, paper)) in enumerate(runs(args.what, "--preset" not in args.more).items()):
        out = args.out / f"{args.what}-{number}"
        command = [sys.executable, "pretrain.py", "--out", str(out.resolve()), "--seed", f"{args.seed}", *these, *args.more]
        print(f"{name}: {' '.join(command[1:])}", flush=True)
        if subprocess.run(command, cwd=HERE).returncode:
            raise ValueError(f"{name} could not be trained; the same command goes on")
        scores = json.loads((out / "results.json").read_text(encoding="utf-8"))
        rows.append({"study": args.what, "name": name, "seed": args.seed, "paper": paper,
                     **{task: scores[task]["R@10"] for task in TASKS}})
    cells = [[r["name"], *(f"{100 * r[task]:.1f}" for task in TASKS), " ".join(f"{x:6.2f}" for x in r["paper"])] for r in rows]
    print(f"\nR@10 among the held-out clips, seed {args.seed}; the paper's scores of HMDB51, UCF101, ESC-50 (top-1), YouCook2, "
          f"MSR-VTT (R@10)\n" + table(["", *(task.replace("_", " ") for task in TASKS), "paper"], cells))
    return rows
