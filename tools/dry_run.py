"""What a run will need, before it begins: `--dry-run` of pretrain.py and finetune.py (the scale of Sections 4.1 and A.2.3).

    weights, gradients, Adam     16 bytes a parameter: fp32, and two moments (of SGD 12: one)
    activations                  what one clip keeps for the backward pass, times the clips that pass at once
    FLOPs                        of the matmuls, forward and backward; with --chunk the backbones go forward twice

Models of the meta device have shapes and take no memory: what does not fit is seen before anything is built.
"""

import argparse
import contextlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import data
import vatt
from engine import loading, loop
from engine.errors import printable
from engine.processes import Processes

SLOW = {"cpu": 3e11, "cuda": 1e15}  # FLOPs that a pass may take: half a minute at most


def preview(build: Callable[[], nn.Module], clips: data.TrainDataset, s: argparse.Namespace, processes: Processes) -> None:
    """Print shapes, parameters, FLOPs, memory and time of a run of a VATT or Classifier; nothing is built that does not fit."""
    with torch.device("meta"):
        meta = loop.configure(build(), argparse.Namespace(**{**vars(s), "compile": False}), torch.device("meta"))
    pretraining = isinstance(meta, vatt.VATT)
    decoded = loading.first_clips(clips, range(1), range(min(8, s.batch)))
    next(decoded)  # its process has started
    began = time.perf_counter()
    batch, failed = next(decoded)
    decoding = (time.perf_counter() - began) / len(batch["path"])
    for path, reason in dict(failed).items():
        print(f"unreadable: {printable(path)}: {reason}")
    tensors = {name: x for name, x in batch.items() if torch.is_tensor(x)}
    for name, x in tensors.items():
        print(f"{name:9} {tuple(x.shape)} {x.dtype}")
    sizes = parts(meta)
    total, tokens = sum(sizes.values()), sum(n for part, n in sizes.items() if part.startswith("tokens"))
    print(f"parameters {total / 1e6:.1f} M: tokens {tokens / 1e6:.1f}, "
          + ", ".join(f"{part} {n / 1e6:.1f}" for part, n in sizes.items() if not part.startswith("tokens")))
    device, world = processes.device, int(os.environ.get("WORLD_SIZE", 1))  # the others have left
    mine = s.batch // world
    at_once = min(mine, s.chunk or mine)
    forward, backward = passes(meta, s.drop)
    clip = forward * (2 if pretraining and at_once < mine else 1) + backward
    print(f"FLOPs {clip / 1e9:.1f} G a clip, {clip * mine / 1e12:.2f} T a step of each process, "
          f"{clip * mine * world * s.steps / 1e18:.3g} E in all")

    size, free = 8 if s.precision == "fp64" else 4, free_memory(device) / (1 if device.type == "cuda" else processes.local)
    one, two = (activations(meta, lambda n=n: through(meta, unreal(meta.config, n), s.drop)) for n in (1, 2))
    where = f"memory {free / 1e9:.1f} GB is free on the {device.type} for each process"
    if size * total + two > free:
        return print(f"{where}: weights and two clips alone need {(size * total + two) / 1e9:.1f} GB, so nothing was built")
    tensors, model = loading.to_device(tensors, device), None
    forward_of = lambda n: through(model, {name: x[:n] for name, x in tensors.items()}, s.drop, s.precision == "bf16")
    if device.type == "cuda":  # its attention keeps less, and bf16 half
        model = loop.configure(build(), s, device)
        one, two = (activations(model, lambda n=n: forward_of(n)) for n in (1, 2))
    kept, alike = two - one, max(0, 2 * one - two)      # what both keep is of no clip: weights in bf16
    state = (4 if pretraining else 3) * size * total + alike
    given = sum(x[:1].numel() * x.element_size() for x in tensors.values()) * mine
    given *= 2 if device.type == "cuda" else 1  # the next batch is copied while this one is computed
    need = state + kept * at_once + given
    print(f"memory {need / 1e9:.2f} GB a process, about: {state / 1e9:.2f} weights, gradients and moments, "
          f"{kept * at_once / 1e9:.2f} activations ({kept / 1e6:.1f} MB a clip, {at_once} at once), {given / 1e9:.2f} clips")
    print(where + (": add --chunk or --recompute, or lower --batch" if need > free else ""))
    shared = processes.local * loading.shared_memory(clips.spec.nbytes, mine, s.workers)
    print(f"shared memory {shared / 1e9:.2f} GB a machine, at most, for the clips that wait")

    n = int(min(len(batch["path"]), (free - state) / max(kept, 1), SLOW[device.type] / (forward + backward)))
    if n > 0:
        model = model or loop.configure(build(), s, device)
        run, how, work = lambda: forward_of(n).backward(), f"as two passes of {n} clips took", (forward + backward) * n
    else:
        x = torch.rand(2048, 2048, device=device)
        run, how, work = lambda: x @ x, "at least, at the speed of a plain matmul", 2 * 2048**3
    computing = seconds_of(run, device) / work * clip * mine
    waiting = 0.0 if s.cache else decoding * mine / max(1, s.workers)
    seconds = max(computing, waiting)
    print(f"time {seconds:.3g} s a step, about: {computing:.3g} computing, {how}, and meanwhile "
          f"{waiting:.3g} decoding; {seconds * s.steps / 86400:.3g} days for {s.steps} steps, without evaluations")


def seconds_of(run: Callable, device: torch.device) -> float:
    """Seconds of the second of two calls; the first one allocates memory and chooses algorithms"""
    for _ in range(2):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - began


def free_memory(device: torch.device) -> float:
    """Bytes that may still be taken on a device"""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [math.inf]
    with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo") as lines:
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with contextlib.suppress(OSError, ValueError):  # a container's; "max" where there is none
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found)


def unreal(c: vatt.Config, n: int) -> dict[str, torch.Tensor]:
    """n clips on the meta device"""
    with torch.device("meta"):
        return {"video": torch.empty(n, c.frames, c.size, c.size, 3), "audio": torch.empty(n, c.samples),
                "text": torch.empty(n, c.captions, c.words, dtype=torch.long), "keys": torch.empty(n, 2, dtype=torch.long)}


def through(model: nn.Module, clips: dict, drop, bf16: bool = False) -> torch.Tensor:
    """A sum of what the backbones of a VATT or a Classifier make of clips, from which gradients go back to all that learns"""
    keys, kind = clips["keys"], getattr(model, "kind", "video")
    seen = data.augment(clips.get(kind, clips.get("video")), clips.get("flip"), clips.get("colour"))
    if seen.dim() == 4:
        seen = vatt.tokenize.image_clip(seen, model.config.patch[0])
    device, dtype = "cpu" if keys.is_meta else keys.device.type, next(model.parameters()).dtype
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        if isinstance(model, vatt.VATT):
            z = model(seen.to(dtype), clips["audio"].to(dtype), clips["text"], drop, keys)
        else:
            z = [(model.backbone.audio if kind == "audio" else model.backbone.video)(seen.to(dtype), drop, keys[:, 0])]
    learned = 1 if isinstance(model, vatt.VATT) else next(model.classifier.parameters()).sum()
    return learned * sum(x.float().sum() for x in z)


def cost(config: vatt.Config, drop: tuple[float, float]) -> tuple[int, int]:
    """FLOPs of the backbones' matmuls for one clip: forward, backward"""
    with torch.device("meta"):
        model = vatt.VATT(config)
    return passes(model, drop)


def passes(meta: nn.Module, drop) -> tuple[int, int]:
    """FLOPs of the matmuls for one clip: forward, backward; on the meta device, where attention is counted too"""
    run = lambda: through(meta, unreal(meta.config, 1), drop)
    with torch.no_grad():
        forward = flops(run)
    return forward, flops(lambda: run().backward()) - forward


def flops(run: Callable) -> int:
    """Of the matmuls in the call `run()`, backward ones too; give it tensors on the meta device, where attention is seen"""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def activations(model: nn.Module, run: Callable) -> int:
    """Bytes that autograd keeps between the forward pass `run()` and the backward pass, the model's weights left out"""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x):
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other one gets its address
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def parts(model: nn.Module) -> dict[str, int]:
    """How many parameters each part of Figure 1 has, of a VATT or a Classifier"""
    sizes: dict[str, int] = {}
    for name, p in model.named_parameters():
        top, name = name.split(".", 1)
        modality = name.split(".")[0].removesuffix("transformer").rstrip("_")
        part = (f"{modality or 'shared'} Transformer" if "transformer" in name else
                top if top in ("heads", "classifier") else f"tokens: {modality}")
        sizes[part] = sizes.get(part, 0) + p.numel()
    return sizes
