"""`python -m bench model | data | audit | device | study`: speed and cost, side by side with what people would use instead.

Each command prints tables, and with --json FILE writes the same as {"rows": [...], "device": ...}; ratios vs_PEER are above 1
where ours is faster.
"""

import engine.threads  # noqa: F401

import argparse
import contextlib
import json
import platform
import sys
from pathlib import Path

import torch

from bench import audit, data, device, model, study
from engine.errors import user_errors
from engine.processes import Processes
from engine.run import write_text


def flags() -> argparse.ArgumentParser:
    """The command line: each command adds its own"""
    p = argparse.ArgumentParser(prog="python -m bench", description="Speed and cost, beside what people would use instead.")
    commands = p.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", type=Path, metavar="FILE", help="write the same numbers there")
    for command in (model, data, audit, device, study):
        command.flags(commands, common)
    return p


def describe(device: torch.device) -> str:
    """The device's name, its threads where it is a CPU, and the version of torch"""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next(line.split(": ")[1].strip() for line in file if line.startswith("model name"))
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main(argv: list[str] | None = None) -> None:
    """Reads the flags and runs the command; exit code 2 and one line for what the user can mend"""
    p, argv = flags(), [str(word) for word in (sys.argv[1:] if argv is None else argv)]
    mine = argv.index("--") if "--" in argv else len(argv)
    args = p.parse_args(argv[:mine])
    args.more = argv[mine + 1:]
    if args.json and not args.json.parent.is_dir():
        p.error(f"--json: there is no folder {args.json.parent}")
    processes = Processes()
    if processes.world > 1:
        p.error("one process measures one device: leave torchrun out")
    name = {"audit": "none: computed", "data": describe(torch.device("cpu"))}.get(args.command, describe(processes.device))
    print(name, flush=True)
    with user_errors():
        rows = args.run(p, args, name)
        if args.json:
            write_text(args.json, json.dumps({"rows": rows, "device": name}, indent=2) + "\n")


if __name__ == "__main__":
    main()
