"""Cost and speed, side by side with what people would use instead.

`python -m bench audit` counts the cost tables of the paper again (`audit.py`); `python -m bench model` times training
steps and their memory on this device beside other libraries (`speed.py`); `python -m bench data` how fast films become
clips (`feeding.py`), or what an index of N clips costs (`scale.py`). Each prints a table, and with --json FILE writes the same
as {"rows": [...], "device": ...}.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import tempfile
from pathlib import Path

import torch

import vatt
from bench import audit, feeding, scale, speed
from data import Recipe
from engine.errors import fail
from engine.processes import Processes
from engine.run import write_text

TITLES = {
    "encoder": "encoder: forward and backward of the video Transformer, {tokens} tokens and AGG, batch {batch}",
    "droptoken": "droptoken: forward and backward of the video tower from raw frames, {tokens} tokens and AGG, batch {batch}",
    "step": "step: whole step of pre-training, batch {batch}, video, audio and captions, {chunk} clips at once",
}


def flags() -> argparse.ArgumentParser:
    """The command line; None stands for what the device can carry"""
    p = argparse.ArgumentParser(description="Speed and cost, side by side with what people would use instead.")
    commands = p.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", type=Path, metavar="FILE", help="write the same numbers there")
    c = commands.add_parser("audit", parents=[common], help="the paper's cost tables, counted again")
    c.set_defaults(run=run_audit)
    c = commands.add_parser("model", parents=[common], help="time and memory of training steps on this device")
    c.set_defaults(run=run_model)
    c.add_argument("--parts", nargs="+", choices=tuple(speed.PARTS), help="video encoder beside other libraries', video "
                   "tower at each drop rate, the whole step (default: all; on a CPU not the whole step)")
    c.add_argument("--preset", choices=vatt.PRESETS, help="sizes of the model (default: mbs; on a CPU bbs)")
    c.add_argument("--batch", help="clips, or max: the most whose whole step fits on the GPU (default: 32; on a CPU 1)")
    c.add_argument("--tokens", type=int, help="of the encoder part (default: half of the preset's, as DropToken leaves them)")
    c.add_argument("--drop", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75], metavar="SHARE", help="of DropToken")
    c.add_argument("--steps", type=int, default=20, help="timed rounds")
    c.add_argument("--chunk", type=int, help="clips that pass the backbones at once (whole step)")
    c.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU that has it, else fp32")
    c.add_argument("--compile", action="store_true", help="torch.compile, for all contenders alike")
    c.add_argument("--recompute", action="store_true", help="ours computes activations again in the backward pass")
    c.add_argument("--picture", type=Path, metavar="FILE", help="cost against drop rate beside the ideal (needs matplotlib)")
    c = commands.add_parser("data", parents=[common], help="films to clips, a core, beside other libraries; or a huge index")
    c.set_defaults(run=run_data)
    c.add_argument("--parts", nargs="+", choices=tuple(feeding.PARTS), default=tuple(feeding.PARTS),
                   help="one clip beside other libraries, shards beside films, the loader with its workers (default: all)")
    c.add_argument("--rounds", type=int, default=15, help="timed clips of each film (default: %(default)s)")
    c.add_argument("--workers", type=int, default=os.cpu_count(), help="of the loader (default: one a core)")
    c.add_argument("--folder", type=Path, help="for the films or the index meanwhile (default: that of the system)")
    c.add_argument("--index", type=int, nargs="?", const=100_000_000, metavar="N", help="instead: what a made-up list of N "
                   "clips costs (default: a hundred million; 120 bytes each on the disk)")
    return p


def settings(p: argparse.ArgumentParser, args: argparse.Namespace, device: torch.device) -> vatt.Config:
    """Fills up the flags of `model` and checks them -> the preset; ends with exit code 2 and one line where one cannot be"""
    cuda = device.type == "cuda"
    args.parts = args.parts or (tuple(speed.PARTS) if cuda else tuple(speed.PARTS)[:2])
    args.preset = args.preset or ("mbs" if cuda else "bbs")
    args.precision = args.precision or ("bf16" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32")
    config = vatt.PRESETS[args.preset]
    args.tokens = speed.tokens(config) // 2 if args.tokens is None else args.tokens
    args.drop = sorted(set(args.drop))
    if args.batch == "max" and not (cuda and list(args.parts) == ["step"]):
        p.error("--batch max needs a GPU and --parts step")
    if args.batch != "max":
        args.batch = args.batch or (32 if cuda else 1)
        try:
            args.batch = int(args.batch)
        except ValueError:
            p.error(f"--batch takes a number or max, not {args.batch}")
        if args.batch < (2 if "step" in args.parts else 1):
            p.error(f"--batch must be at least 1, and 2 for the whole step (batch norm), not {args.batch}")
    if args.tokens < 1 or args.steps < 2 or (args.chunk or 1) < 1:
        p.error("--tokens and --chunk must be at least 1, --steps at least 2")
    if not all(0 <= d < 1 for d in args.drop):
        p.error(f"--drop takes shares of at least 0 and below 1, not {args.drop}")
    if args.picture and "droptoken" not in args.parts:
        p.error("--picture shows the part droptoken: add it to --parts")
    if args.picture and not (args.picture.parent.is_dir() and importlib.util.find_spec("matplotlib")):
        p.error(f"--picture needs the folder {args.picture.parent}, and matplotlib (pip install matplotlib)")
    return config


def run_audit(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """`python -m bench audit`"""
    rows = audit.rows()
    print(audit.report(rows))
    write(args.json, rows, f"none: computed, torch {torch.__version__}")


def run_model(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """`python -m bench model`"""
    processes = Processes()
    if processes.world > 1:
        p.error("one process measures one device: leave torchrun out")
    device = processes.device
    config = settings(p, args, device)
    name = describe(device)
    print(f"{name}; preset {args.preset}, batch {args.batch}, {args.precision}"
          f"{', compiled' * args.compile}{', ours recomputes activations' * args.recompute}; {args.steps} alternating rounds")
    rows = []
    for part, measure in speed.PARTS.items():
        if part in args.parts:
            found = measure(args, config, device)
            print(f"\n{TITLES[part].format(**found[0])}\n{table(found)}", flush=True)
            if part == "droptoken" and args.picture:
                picture(found, args.picture, name)
            rows += found
    write(args.json, rows, name)


def run_data(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """`python -m bench data`"""
    if args.rounds < 1 or args.workers < 1 or (args.index is not None and args.index < 1):
        p.error("--rounds, --workers and --index must be at least 1")
    if args.folder and not args.folder.is_dir():
        p.error(f"--folder: there is no folder {args.folder}")
    name = describe(torch.device("cpu"))
    print(name)
    if args.index is not None:
        rows = scale.measure(args.index, folder=args.folder)
        print(scale.report(rows))
    else:
        rows, recipe = [], Recipe()
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            films = feeding.write(Path(folder))
            torch.set_num_threads(1)
            for part in args.parts:
                found, words = feeding.PARTS[part](films, recipe, args.rounds, args.workers)
                print("\n".join(["", f"{part}: {feeding.TITLES[part]}", feeding.report(found), *words]), flush=True)
                rows += found
        print(f"\n{feeding.AIMS}")
    write(args.json, rows, name)


def table(rows: list[dict]) -> str:
    """The rows of one part, for people"""
    first = rows[0]
    lines = [f"{'':16}{'step':>10}{'quartiles':>18}{'clips/s':>10}{'GFLOP/s':>10}{'of matmul':>11}{'memory':>11}"]
    for r in rows:
        low, high = r["quartiles_s"]
        line = (f"{r['name']:16}{r['step_s']:9.3f}s{low:9.3f}-{high:7.3f}s{r['clips_per_s']:10.2f}{r['flop_per_s'] / 1e9:10.0f}"
                f"{r['mfu']:11.1%}{r['peak_bytes'] / 1e9:8.3f} GB")
        if f"vs_{r['name']}" in first:
            share = first["peak_bytes"] / r["peak_bytes"]
            line += f"   ours is {first['vs_' + r['name']]:.3f} times as fast, in {share:.3f} of its memory"
        if "cost" in r:
            line += f"   costs {r['cost']:.3f} of the whole, ideal {r['ideal']:.3f}"
        lines.append(line)
    return "\n".join(lines)


def picture(rows: list[dict], path: Path, device: str) -> None:
    """Cost against drop rate beside the ideal, to a file"""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    drops = [100 * r["drop"] for r in rows]
    axis.plot(drops, [r["cost"] for r in rows], "o-", label=f"measured: {device}")
    axis.plot(drops, [r["ideal"] for r in rows], "k:", label="ideal, from FLOPs")
    axis.set(xlabel="tokens dropped, %", ylabel="time of a step, share of that with all tokens", ylim=(0, None),
             title=f"DropToken, video tower of {rows[0]['preset']}, batch {rows[0]['batch']}, {rows[0]['precision']}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def describe(device: torch.device) -> str:
    """The device's name, its threads where it is a CPU, and the version of torch"""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next(line.split(": ")[1].strip() for line in file if line.startswith("model name"))
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def write(path: Path | None, rows: list[dict], device: str) -> None:
    """--json"""
    if path:
        write_text(path, json.dumps({"rows": rows, "device": device}, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Reads the flags and runs the command"""
    p = flags()
    args = p.parse_args(argv)
    if args.json and not args.json.parent.is_dir():
        p.error(f"--json: there is no folder {args.json.parent}")
    try:
        args.run(p, args)
    except (ValueError, OSError) as e:
        fail(2, str(e))


if __name__ == "__main__":
    main()
