"""Flags: the types of their values, checked where they are declared, and those that pretrain.py and finetune.py share."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch

# Values of the flags of `run_flags` which no preset sets.
RUN = dict(seed=0, chunk=None, recompute=False, compile=False, precision=None, keep=2, keep_every=None, max_bad=0.05,
           skip=None, timeout=600.0, dry_run=False)
MAY_DIFFER = {"out", "allow_outside", "workers", "save_every", "eval_every", "keep", "keep_every", "max_bad", "skip",
              "compile", "recompute", "timeout"}


def number(kind: type, least: float = -math.inf, most: float = math.inf, above: float = -math.inf,
           below: float = math.inf) -> Callable:
    """A type for argparse: a finite int or float in these bounds; `above` and `below` are not among them."""
    def parse(text: str):
        value = kind(text)
        bounds = {f"above {above}": value > above, f"at least {least}": value >= least, f"at most {most}": value <= most,
                  f"below {below}": value < below, "finite": math.isfinite(value)}
        if wrong := [bound for bound, kept in bounds.items() if not kept]:
            raise argparse.ArgumentTypeError(f"must be {wrong[-1]}, not {text}")
        return value

    parse.__name__ = kind.__name__  # argparse says "invalid int value"
    return parse


count, whole, positive, amount = number(int, 1), number(int, 0), number(float, above=0), number(float, 0)
fraction, share = number(float, 0, 1), number(float, 0, below=1)


def model_flags(group, presets) -> None:
    """Add the flags of the model, and of the clips that it takes."""
    add = group.add_argument
    add("--preset", choices=presets, help="sizes of the model (Table 7) and recipe of the training: defaults of other flags")
    add("--init", metavar="RUN", help="start from this run: its model, if of other sizes of clips, and its weights")
    add("--frames", type=count, help="frames of a clip; its audio is as long (A.2.1)")
    add("--fps", type=number(float, most=240, above=0), help="frames per second (A.2.1)")
    add("--size", type=count, help="height and width of a frame, pixels (A.2.1)")
    add("--patch", type=count, nargs=3, metavar=("T", "H", "W"), help="frames, rows and columns of a video patch (3.1)")
    add("--audio-input", choices=("waveform", "spectrogram"), help="what audio tokens are made from (Table 10)")
    add("--rate", type=number(int, 1000), help="samples of audio per second, Hz")
    add("--dropout", type=share, help="dropout in the Transformers, a share")


def optimisation_flags(group, least_batch: int) -> None:
    """Add the flags of how long a model learns, and from what; a batch has at least so many clips."""
    add = group.add_argument
    add("--steps", type=count, help="batches in all")
    add("--batch", type=number(int, least_batch), help="clips in a batch, over all processes")
    add("--warmup", type=whole, metavar="STEPS", help="steps in which the learning rate rises from 0")
    add("--area", type=fraction, nargs=2, metavar=("MIN", "MAX"), help="area of a crop, a fraction of the frame's (A.2.1)")
    add("--colour", type=amount, nargs=4, metavar=tuple("BSCH"), help="most change of brightness, saturation, contrast, hue")


def run_flags(p: argparse.ArgumentParser, out: str, scored: str) -> None:
    """Add the flags that say how a run goes, not what it learns."""
    add = p.add_argument_group("run").add_argument
    add("--out", type=Path, help=f"folder of the run; the same command goes on in it (default: {out})")
    add("--seed", type=number(int, 0, 2**63 - 1), help="seed of everything random")
    add("--workers", type=whole, help="processes that decode, beside each process that trains; without any, a file that "
        "crashes FFmpeg ends the run without a word")
    add("--cache", type=amount, metavar="GB", help="GB of decoded videos that each process keeps; for small data")
    add("--chunk", type=count, metavar="CLIPS", help="clips that pass the backbones at a time, for batches larger than memory")
    add("--recompute", action="store_true", help="compute activations again in the backward pass: less memory, more time")
    add("--compile", action="store_true", help="torch.compile the Transformers: a slow start, then faster")
    add("--precision", choices=("bf16", "tf32", "fp32", "fp64"), help="number format of the matmuls in the Transformers; tf32: "
        "of all matmuls (default: bf16 on a GPU that has it, else fp32)")
    add("--save-every", type=count, metavar="STEPS", help="steps from one checkpoint to the next")
    add("--keep", type=count, metavar="N", help="newest checkpoints that are kept")
    add("--keep-every", type=count, metavar="STEPS", help="keep the checkpoints of these multiples for good, too")
    add("--eval-every", type=count, metavar="STEPS", help=f"steps from one {scored} on held-out clips to the next")
    add("--max-bad", type=fraction, metavar="SHARE", help="share of unreadable files, of those seen, that ends the run")
    add("--skip", type=Path, metavar="CSV", help="leave out the files of this list, as data.py check writes it")
    add("--timeout", type=positive, metavar="SECONDS", help="seconds after which a worker at a file, or a process, is given up")
    add("--dry-run", action="store_true", help="build everything, decode some clips, print what the run would take, and leave")


def show_defaults(p: argparse.ArgumentParser, values: dict) -> None:
    """End each help text with the value that the flag has where it is not given."""
    for action in p._actions:
        value = values.get(action.dest)
        if value is not None and not isinstance(value, bool) and "(default" not in action.help:
            numbers = value if isinstance(value, tuple | list) else [value]
            action.help += f" (default: {' '.join(f'{v:.4g}' if isinstance(v, float) else str(v) for v in numbers)})"


def peek(argv: list[str] | None, flag: str, default, **declared):
    """The value of one flag, before the others can be read; declared: as for add_argument"""
    p = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    p.add_argument(flag, default=default, dest="value", **declared)
    return p.parse_known_args(argv)[0].value


def native_precision(device: torch.device) -> str:
    """The number format of a run that names none: bf16 on a GPU that has it, else fp32"""
    # Ours: bf16 autocast, with losses, batch norms and spectrograms in fp32 (official: fp32 throughout).
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
