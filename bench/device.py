"""What only a GPU can show, in one command: `python -m bench device --json device.json`, eight minutes on one H100.

Every part is a process of its own with a share of --minutes and what the parts before have left of theirs; where one fails or
its time is up, what it has measured stays in the table, the reason beside it, and the next one goes on. On a CPU the same parts
run in small, which shows that they work. No network is needed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import vatt
from bench import data, model, table
from data import ClipSpec
from engine.arguments import positive
from engine.processes import Processes
from engine.run import write_text

HERE = Path(__file__).parent.parent
CPU_DEMO = {"text_to_video": 0.98, "video_to_audio": 0.76, "audio_to_video": 0.76}  # R@10, medians of three seeds
COMMON = 32  # clips of the batch that all settings are compared at


def flags(commands, common: argparse.ArgumentParser) -> None:
    """Adds the command line of `device`"""
    c = commands.add_parser("device", parents=[common], help="all that a GPU can show, in minutes")
    c.set_defaults(run=run)
    c.add_argument("--minutes", type=positive, default=8.0, help="for everything (default: %(default)s)")
    c.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="default: all")
    c.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # one part, in this process


def run(p: argparse.ArgumentParser, args: argparse.Namespace, _device: str) -> list[dict]:
    """`python -m bench device`: prints one table, returns its rows"""
    rows = []
    if args.alone:
        for row in PARTS[args.parts[0]][1](Processes().device.type == "cuda"):
            rows.append(row)
            write_text(args.json, json.dumps({"rows": rows}))
        return rows
    spare, shares = 0.0, sum(PARTS[part][0] for part in args.parts)
    for part in args.parts:
        limit, began = spare + 60 * args.minutes * PARTS[part][0] / shares, time.perf_counter()
        print(f"{part}: at most {limit:.0f} s", flush=True)
        found, why = in_a_process(part, limit)
        took = time.perf_counter() - began
        spare = max(0.0, limit - took)
        rows += [*({"part": part, **row} for row in found), {"part": part, "name": "", "seconds": took, "note": why or "done"}]
    print(report(rows))
    return rows


def in_a_process(part: str, limit: float) -> tuple[list[dict], str]:
    """Runs one part for at most `limit` seconds -> its rows, and why it failed, if it did"""
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder, "rows.json"), Path(folder, "log")
        command = [sys.executable, "-m", "bench", "device", "--alone", "--parts", part, "--json", str(path)]
        with log.open("w") as file:
            child = subprocess.Popen(command, cwd=HERE, stdout=file, stderr=file, start_new_session=True)
            try:
                code, why = child.wait(limit), ""
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)  # with the processes that it has started
                code, why = child.wait(), f"FAILED: not done in {limit:.0f} s"
        last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
        rows = json.loads(path.read_text())["rows"] if path.is_file() else []
        return rows, why or (f"FAILED with {code}: {last[:200]}" if code else "")


# The parts: (on a GPU?) -> rows, one by one.


def tests(cuda: bool) -> Iterator[dict]:
    """pytest -m gpu"""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu"], cwd=HERE, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    yield {"name": "pytest -m gpu", "note": "; ".join(line for line in lines if line.startswith("FAILED")) or lines[-1]}


def demo(cuda: bool) -> Iterator[dict]:
    """The demo, and its scores beside the CPU's"""
    with tempfile.TemporaryDirectory() as out:
        small = [] if cuda else ["--steps", "4", "--batch", "8"]
        subprocess.run([sys.executable, "pretrain.py", "--out", out, *small], cwd=HERE, check=True)
        results = json.loads(Path(out, "results.json").read_text())
        for task, cpu in CPU_DEMO.items():
            yield {"name": task, "R@10": results[task]["R@10"], "note": f"R@10 {results[task]['R@10']:.0%}; on a CPU {cpu:.0%}"}


def step(cuda: bool, batches: tuple = (COMMON, "max"), **how) -> Iterator[dict]:
    """Each preset's whole step at 50% DropToken, the paper's exploration model first: the common batch, and the largest one"""
    big = sorted(vatt.PRESETS.keys() - {"demo", "demo-ma"}, key=lambda name: (name != "mbs", name))
    for preset in big if cuda else ["demo"]:
        for batch in batches if cuda else (4,):
            name = " ".join([preset, *how])
            try:
                yield model.step_part(model.setting(preset, batch, steps=5, **how))[0] | {"name": name}
            except Exception as e:
                yield {"name": name, "batch": batch, "note": f"FAILED: {data.first_line(e)[:200]}"}
            torch.cuda.empty_cache()


def options(cuda: bool) -> Iterator[dict]:
    """The same with --recompute, then with --compile"""
    yield from step(cuda, recompute=True)
    yield from step(cuda, (COMMON,), compile=True)


def chunk(cuda: bool) -> Iterator[dict]:
    """The paper's batch of 2048 on one device, 64 clips at a time"""
    s = model.setting("mbs", 2048, chunk=64) if cuda else model.setting("demo", 32, chunk=8)
    step_at, _, _ = model.whole_step(s)
    step_at(0.5, model.clips(s.config, s.chunk + 2, s.device))()
    run = step_at(0.5, model.clips(s.config, s.batch, s.device))
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = model.alternate({"step": run}, 1, s.device, "chunk", warm=0)["step"][0]
    yield {"name": f"{s.preset} chunk {s.chunk}", "batch": s.batch, "clips_per_s": s.batch / seconds,
           "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None}


def encoder(cuda: bool) -> Iterator[dict]:
    """The video Transformer beside those of timm, transformers and torch.nn"""
    yield from model.encoder_part(model.setting("mbs" if cuda else "demo", COMMON if cuda else 2, steps=10))


def costs(cuda: bool) -> Iterator[dict]:
    """The ten operations that take longest in a step"""
    s = model.setting("mbs", COMMON) if cuda else model.setting("demo", 4)
    run = model.whole_step(s)[0](0.5, model.clips(s.config, s.batch, s.device))
    run(), run()
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as recorded:
        run()
        if cuda:
            torch.cuda.synchronize()
    of = lambda event: event.self_device_time_total if cuda else event.self_cpu_time_total
    events = sorted(recorded.key_averages(), key=of, reverse=True)
    whole = sum(map(of, events))
    for event in events[:10]:
        share = f"{of(event) / whole:.1%} of a step, {event.count} calls"
        yield {"name": event.key[:60], "seconds": of(event) / 1e6, "note": share}


def loader(cuda: bool) -> Iterator[dict]:
    """The loader of training on the CPU cores of this machine, with its workers and without"""
    with tempfile.TemporaryDirectory() as folder:
        size = (340, 256, {"g": "150"}) if cuda else (64, 48, {}, 4)
        videos = {f"{size[0]}x{size[1]}": data.video(Path(folder, "a.mp4"), *size)}
        for r in data.loader(videos, ClipSpec(), 8 if cuda else 1, os.cpu_count()):
            yield r | {"note": f"{r['clips_per_s_core']:.1f} clips/s a core"}


PARTS = {"tests": (1.0, tests), "encoder": (0.5, encoder), "costs": (0.4, costs), "step": (2.2, step), "chunk": (0.8, chunk),
         "loader": (0.6, loader), "demo": (1.2, demo), "options": (1.3, options)}  # with their shares of the minutes


def report(rows: list[dict]) -> str:
    """All rows in one table"""
    cells = []
    for r in rows:
        has = lambda key, form, r=r: form(r[key]) if r.get(key) is not None else ""
        ratios = "; ".join(f"ours is {v:.3f} times as fast as {k[3:]}" for k, v in r.items() if k.startswith("vs_"))
        cells.append([f"{r['part']:9}{r['name']}", has("batch", str), has("clips_per_s", "{:.1f}".format),
                      has("mfu", "{:.1%}".format), has("peak_bytes", lambda b: f"{b / 1e9:.2f} GB"),
                      has("seconds", "{:.3f} s".format), r.get("note", ratios)])
    return table(["part", "batch", "clips/s", "of matmul", "memory", "time", ""], cells)
