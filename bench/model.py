"""Training steps against the clock: `python -m bench model`. Each part gives rows, one a contender.

All contenders of a part take turns, one step each, so that whatever else the machine does hits them alike; times are medians.
A plain matmul takes its turn too: what it reaches is what "of matmul" (MFU) is a share of. FLOPs are those of the matmuls that
the model needs, forward and backward; what is computed twice (recompute, chunk) takes time and counts once.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

import vatt
from bench import table
from engine import arguments
from engine.loop import configure
from engine.processes import Processes
from pretrain import Step
from tools.dry_run import cost, flops
from transformer import Size, Transformer

NONE = Size(layers=0, d=8, d_mlp=8, heads=1)  # a tower that is not measured


def flags(commands, common: argparse.ArgumentParser) -> None:
    """Add the command line of `model`; what is not given is what the device can carry."""
    c = commands.add_parser("model", parents=[common], help="time and memory of training steps on this device")
    c.set_defaults(run=run)
    c.add_argument("--parts", nargs="+", choices=tuple(PARTS), help="video encoder beside other libraries', video tower at "
                   "each drop rate, the whole step (default: all; on a CPU not the whole step)")
    c.add_argument("--preset", choices=vatt.PRESETS, help="sizes of the model (default: mbs; on a CPU bbs)")
    c.add_argument("--batch", type=lambda text: text if text == "max" else arguments.count(text), help="clips, or max: the "
                   "most whose whole step fits on the GPU (default: 32; on a CPU 1, for the whole step 2)")
    c.add_argument("--tokens", type=arguments.count, help="tokens of the encoder part (default: half of a clip's)")
    c.add_argument("--drop", type=arguments.share, nargs="+", default=[0.0, 0.25, 0.5, 0.75], help="shares of DropToken")
    c.add_argument("--steps", type=arguments.number(int, 2), default=20, help="timed rounds (default: %(default)s)")
    c.add_argument("--chunk", type=arguments.count, help="clips that pass the backbones at once (whole step)")
    c.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU that has it, else fp32")
    c.add_argument("--compile", action="store_true", help="torch.compile, for all contenders alike")
    c.add_argument("--recompute", action="store_true", help="ours computes activations again in the backward pass")


def setting(preset: str, batch: int | str, **more) -> SimpleNamespace:
    """What is measured, of which model, on which device, and how: `more` are flags of `model`"""
    device, config = Processes().device, vatt.PRESETS[preset]
    s = dict(drop=[0.5], steps=20, chunk=None, compile=False, recompute=False) | more
    s["precision"] = s.get("precision") or arguments.native_precision(device)
    s["tokens"] = s.get("tokens") or tokens(config) // 2
    return SimpleNamespace(preset=preset, batch=batch, config=config, device=device, **s)


def run(p: argparse.ArgumentParser, args: argparse.Namespace, _device: str) -> list[dict]:
    """`python -m bench model`: prints a table a part, returns the rows; exit code 2 where flags do not go together"""
    cuda = Processes().device.type == "cuda"
    parts = args.parts or (tuple(PARTS) if cuda else ("encoder", "droptoken"))
    batch = args.batch or (32 if cuda else 2 if "step" in parts else 1)
    if batch == "max" and not (cuda and list(parts) == ["step"]):
        p.error("--batch max needs a GPU and --parts step")
    if batch == 1 and "step" in parts:
        p.error("--batch must be at least 2 for the whole step (batch norm)")
    s = setting(args.preset or ("mbs" if cuda else "bbs"), batch, drop=sorted(set(args.drop)), precision=args.precision,
                tokens=args.tokens, steps=args.steps, chunk=args.chunk, compile=args.compile, recompute=args.recompute)
    print(f"preset {s.preset}, batch {batch}, {s.precision}{', compiled' * s.compile}"
          f"{', ours recomputes activations' * s.recompute}; {s.steps} alternating rounds")
    rows = []
    for part in (part for part in PARTS if part in parts):
        found = PARTS[part](s)
        print(f"\n{part}: {PARTS[part].__doc__}\n{report(found)}", flush=True)
        rows += found
    return rows


def alternate(runs: dict[str, Callable], steps: int, device: torch.device, what: str, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of each call: `steps` rounds in which each runs once, after `warm` rounds; another begins each round."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    names, seconds = list(runs), {name: [] for name in runs}
    for i in tqdm(range(-warm, steps), desc=what, unit="round", disable=not sys.stderr.isatty()):
        for name in names[i % len(names):] + names[: i % len(names)]:
            wait()
            began = time.perf_counter()
            runs[name]()
            wait()
            seconds[name] += [time.perf_counter() - began] * (i >= 0)
    return seconds


def peak_memory(run: Callable, device: torch.device, module: nn.Module, *more: torch.Tensor) -> int:
    """Bytes that torch's allocator gives out at the highest point of a call, the module's weights and `more` included.

    On a CPU from the profiler's record of every allocation: unlike the resident memory of the process it leaves out libraries,
    other contenders and what the C library keeps for later; it also leaves out buffers inside the matrix library.
    """
    module.zero_grad(set_to_none=True)
    held = sum(x.numel() * x.element_size() for x in (*module.parameters(), *module.buffers(), *more))
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()  # the allocator counts as kernels are asked for, not as they run
        return held + torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to the terminal
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded, tempfile.TemporaryDirectory() as folder:
        run()
        recorded.stop()
        recorded.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    sizes = [e["args"]["Bytes"] for e in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])]
    return held + max(itertools.accumulate(sizes, initial=0))


class Peer(nn.Module):
    """Another library's blocks, with an AGG before and a LayerNorm after them, as in ours.  (B, N, d) -> z_out (B, d)"""

    recompute = False  # has no such thing, but is compiled as ours

    def __init__(self, blocks: nn.Module, d: int):
        super().__init__()
        self.x_agg, self.blocks, self.norm = nn.Parameter(torch.randn(d)), blocks, nn.LayerNorm(d, eps=1e-6)

    def forward(self, x):
        x = self.blocks(torch.cat([self.x_agg.to(x.dtype).expand(len(x), 1, -1), x], 1))  # (B, 1 + N, d)
        return self.norm(getattr(x, "last_hidden_state", x)[:, 0])


def of_timm(size: Size) -> nn.Module:
    """The blocks of timm's ViT"""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(16, 16, num_classes=0, embed_dim=size.d, depth=size.layers, num_heads=size.heads,
                             mlp_ratio=size.d_mlp / size.d).blocks


def of_transformers(size: Size) -> nn.Module:
    """VideoMAE's encoder in Hugging Face transformers; its q, k and v are separate, its k has no bias"""
    from transformers.models.videomae.modeling_videomae import VideoMAEConfig, VideoMAEEncoder

    return VideoMAEEncoder(VideoMAEConfig(
        hidden_size=size.d, num_hidden_layers=size.layers, num_attention_heads=size.heads, intermediate_size=size.d_mlp,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=1e-6, attn_implementation="sdpa"))


def of_torch(size: Size) -> nn.Module:
    """PyTorch's own, pre-LN and with GELU"""
    layer = nn.TransformerEncoderLayer(size.d, size.heads, size.d_mlp, dropout=0.0, activation="gelu", batch_first=True,
                                       norm_first=True, layer_norm_eps=1e-6)
    return nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False)


PEERS = {"timm": of_timm, "transformers": of_transformers, "torch": of_torch}


def encoder(name: str, size: Size) -> nn.Module:
    """Ours, or that of a library"""
    return Transformer(size, dropout=0.0) if name == "ours" else Peer(PEERS[name](size), size.d)


def contenders(size: Size, batch: int, tokens: int) -> dict[str, float]:
    """FLOPs of a step of ours and of the libraries that are installed; says which is left out, and why"""
    found = {}
    for name in ("ours", *PEERS):
        try:
            with torch.device("meta"):
                module, x = encoder(name, size), torch.empty(batch, tokens, size.d)
        except (ImportError, RuntimeError) as e:  # RuntimeError: it is there, but does not work with this torch
            why = (str(e).splitlines() or [type(e).__name__])[-1]
            print(f"{name}: skipped, it cannot be imported ({why}); pip install {name} puts it into the table")
            continue
        found[name] = flops(lambda m=module, x=x: m(x).sum().backward())
    return found


def measure(part: str, s: SimpleNamespace, runs: dict[str, tuple], n: int, **more) -> list[dict]:
    """Rows of a table and of --json, one a contender: name -> (call, FLOPs, its module, other tensors that it holds).

    Beside them the matmuls of the MLPs of n tokens and nothing else: what the device reaches.
    """
    size, dtype = s.config.video, torch.bfloat16 if s.precision == "bf16" else torch.float32
    x, w1, w2 = (torch.randn(shape, device=s.device, dtype=dtype) * shape[0] ** -0.5
                 for shape in ((n, size.d), (size.d, size.d_mlp), (size.d_mlp, size.d)))
    plain = lambda: [x @ w1 @ w2 for _ in range(size.layers)][-1]
    seconds = alternate({name: run for name, (run, *_) in runs.items()} | {"matmul": plain}, s.steps, s.device, part)
    rate, rows = 4 * size.layers * n * size.d * size.d_mlp / median(seconds["matmul"]), []
    for name, (run, flop, module, *held) in runs.items():
        step = median(seconds[name])
        rows.append({"part": part, "name": name, "preset": s.preset, "batch": s.batch, "precision": s.precision,
                     "compile": s.compile, "recompute": s.recompute, "steps": s.steps, "step_s": step,
                     "quartiles_s": quantiles(seconds[name], n=4)[::2], "clips_per_s": s.batch / step, "flop": flop,
                     "flop_per_s": flop / step, "matmul_flop_per_s": rate, "mfu": flop / step / rate,
                     "peak_bytes": peak_memory(run, s.device, module, *held), **more})
    return rows


def learning(module: nn.Module, forward: Callable, s: SimpleNamespace) -> Callable:
    """A call that does one step, forward and backward, of a module that takes part in `forward() -> z`"""
    def run():
        module.zero_grad(set_to_none=True)
        with torch.autocast(s.device.type, torch.bfloat16, enabled=s.precision == "bf16"):
            z = forward()
        z.float().square().mean().backward()

    return run


def encoder_part(s: SimpleNamespace) -> list[dict]:
    """forward and backward of the video Transformer at N tokens, beside other libraries': same sizes, precision, no dropout"""
    size, runs = s.config.video, {}
    x = torch.randn(s.batch, s.tokens, size.d, device=s.device)
    for name, flop in contenders(size, s.batch, s.tokens).items():
        module = configure(encoder(name, size), s, s.device)
        runs[name] = learning(module, lambda m=module: m(x), s), flop, module
    rows = measure("encoder", s, runs, s.batch * (1 + s.tokens), tokens=s.tokens)
    rows[0] |= {f"vs_{r['name']}": r["step_s"] / rows[0]["step_s"] for r in rows[1:]}
    return rows


def droptoken_part(s: SimpleNamespace) -> list[dict]:
    """forward and backward of the video tower from raw frames on, at each drop rate (3.1.1), beside the ideal from FLOPs"""
    config = dataclasses.replace(s.config, audio=NONE, text=NONE, shared=False, vocabulary=3, dropout=0.0)
    shape, keys, drops = (s.batch, config.frames, config.size, config.size, 3), torch.arange(s.batch), sorted({0.0, *s.drop})
    with torch.device("meta"):
        still, none = vatt.Backbones(config), torch.empty(shape)
        flop = [flops(lambda d=d: still.video(none, d, keys.to("meta")).sum().backward()) for d in drops]
    model = configure(vatt.Backbones(config), s, s.device)
    video, keys, n = torch.rand(shape, device=s.device) * 2 - 1, keys.to(s.device), tokens(config)
    runs = {f"{d:.0%} dropped": (learning(model, lambda d=d: model.video(video, d, keys), s), f, model)
            for d, f in zip(drops, flop, strict=True)}
    rows = measure("droptoken", s, runs, s.batch * (1 + n))
    for r, d in zip(rows, drops, strict=True):
        r |= {"drop": d, "tokens": n - round(n * d), "cost": r["step_s"] / rows[0]["step_s"], "ideal": r["flop"] / flop[0]}
    return rows


def step_part(s: SimpleNamespace) -> list[dict]:
    """the whole step of pre-training on made-up clips: three towers, heads, losses, Adam; at each drop rate"""
    step_at, model, optimizer = whole_step(s)
    def fits(n: int) -> bool:
        torch.cuda.empty_cache()
        try:
            for _ in range(2):
                step_at(s.drop[0], clips(s.config, n, s.device))()
        except torch.cuda.OutOfMemoryError:
            return False
        return True

    if s.batch == "max":
        s.batch = largest(fits)
    batch, at_once = clips(s.config, s.batch, s.device), min(s.batch, s.chunk or s.batch)
    for d in s.drop:
        step_at(d, batch)()  # Adam's state comes with the first
    state = [x for moments in optimizer.state.values() for x in moments.values()]
    runs = {f"{d:.0%} dropped": (step_at(d, batch), s.batch * sum(cost(s.config, (d, d))), model, *state) for d in s.drop}
    rows = measure("step", s, runs, at_once * (1 + tokens(s.config)), chunk=at_once)
    return [r | {"drop": d} for r, d in zip(rows, s.drop, strict=True)]


def whole_step(s: SimpleNamespace) -> tuple[Callable, vatt.VATT, torch.optim.Optimizer]:
    """(drop rate, batch) -> a call for one step of pre-training, Adam's included; with its model and optimizer"""
    model = configure(vatt.VATT(s.config), s, s.device)
    optimizer, processes = torch.optim.Adam(model.parameters(), fused=s.device.type == "cuda" or None), Processes()

    def step_at(drop: float, batch: dict) -> Callable:
        step = Step(model, processes, (drop, drop), s.chunk, s.precision)
        return lambda: (model.zero_grad(set_to_none=True), step(batch, 0), optimizer.step())

    return step_at, model, optimizer


def tokens(config: vatt.Config) -> int:
    """Tokens of a video clip: 1568 for 32 x 224 x 224"""
    return math.prod(math.ceil(n / p) for n, p in zip((config.frames, config.size, config.size), config.patch, strict=True))


def clips(config: vatt.Config, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch of noise in the form that `data.py` gives real clips"""
    c, keys = config, torch.arange(2 * batch, device=device).view(batch, 2)
    video = torch.randint(256, (batch, c.frames, c.size, c.size, 3), dtype=torch.uint8, device=device)
    text = torch.randint(2, c.vocabulary, (batch, c.captions, c.words), device=device)
    return {"video": video, "audio": torch.rand(batch, c.samples, device=device) * 2 - 1, "text": text, "keys": keys,
            "flip": keys[:, 0] % 4 == 0, "colour": torch.tensor([[1, 0.1, 1.2, 0.8, 0.1]], device=device).repeat(batch, 1),
            "has_audio": keys[:, 0] >= 0, "has_text": text[..., 0] >= 0}


def largest(fits: Callable[[int], bool]) -> int:
    """The largest batch that fits, to one part in eight: doubled until one does not, then halved in between"""
    if not fits(2):
        raise ValueError("--batch max: not even 2 clips fit; try --recompute, or a smaller --preset")
    low = 2
    while fits(2 * low):
        low *= 2
    high = 2 * low
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


PARTS = {"encoder": encoder_part, "droptoken": droptoken_part, "step": step_part}


def report(rows: list[dict]) -> str:
    """The rows of one part, for people"""
    first, cells = rows[0], []
    for r in rows:
        note = f"costs {r['cost']:.3f} of the whole, ideal {r['ideal']:.3f}" if "cost" in r else ""
        if (ratio := first.get(f"vs_{r['name']}")) is not None:
            note = f"ours is {ratio:.3f} times as fast, in {first['peak_bytes'] / r['peak_bytes']:.3f} of its memory"
        cells.append([r["name"], str(r.get("tokens", "")), f"{r['step_s']:.3f} s", "{:.3f}-{:.3f} s".format(*r["quartiles_s"]),
                      f"{r['clips_per_s']:.2f}", f"{r['flop_per_s'] / 1e9:.0f}", f"{r['mfu']:.1%}",
                      f"{r['peak_bytes'] / 1e9:.3f} GB", note])
    return table(["", "tokens", "step", "quartiles", "clips/s", "GFLOP/s", "of matmul", "memory", ""], cells)
