"""Training steps against the clock: `python -m bench model`. Each part gives rows, one a contender.

    encoder     a training step (forward, backward) of the preset's video Transformer at N tokens; beside it the same encoder
                from timm, Hugging Face transformers (VideoMAE, SDPA) and torch.nn: same sizes, tokens, precision, no dropout
    droptoken   the same for the video tower from raw frames on, at each drop rate (Section 3.1.1), beside the ideal from FLOPs
    step        the whole step of pre-training: three towers, heads, losses, Adam

All contenders of a part take turns, one step each, so that whatever else the machine does hits them alike; times are medians.
A plain matmul takes its turn too: what it reaches is what "of matmul" (MFU) is a share of. FLOPs are those of the matmuls that
the model needs, forward and backward; what is computed twice (recompute, chunk) takes time and counts once.
"""

import dataclasses
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

import vatt
from bench import audit
from engine.processes import Processes
from engine.step import Step
from transformer import Size, Transformer

NONE = Size(layers=0, d=8, d_mlp=8, heads=1)  # a tower that is not measured

# -------------------------------------------------------------------------------------------------------------- measuring


def alternate(runs: dict[str, Callable], steps: int, device: torch.device, what: str) -> dict[str, list[float]]:
    """Seconds of each call: `steps` rounds in which each runs once, after two rounds to warm up; another begins each round."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    names, seconds = list(runs), {name: [] for name in runs}
    for i in tqdm(range(-2, steps), desc=what, unit="round", disable=not sys.stderr.isatty()):
        for name in names[i % len(names):] + names[: i % len(names)]:
            wait()
            began = time.perf_counter()
            runs[name]()
            wait()
            if i >= 0:
                seconds[name].append(time.perf_counter() - began)
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
        run()
        torch.cuda.synchronize()
        return held + torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to the terminal
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    with tempfile.TemporaryDirectory() as folder:
        recorded.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    now = highest = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        highest = max(highest, now)
    return held + highest


def matmul(n: int, size: Size, device: torch.device, precision: str) -> tuple[Callable, int]:
    """What the device reaches: the matmuls of the MLPs of n tokens and nothing else -> the call and its FLOPs"""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x, w1, w2 = (torch.randn(s, device=device, dtype=dtype) * s[0] ** -0.5
                 for s in ((n, size.d), (size.d, size.d_mlp), (size.d_mlp, size.d)))

    def run():
        for _ in range(size.layers):
            x @ w1 @ w2

    return run, 4 * size.layers * n * size.d * size.d_mlp


# ------------------------------------------------------------------------------------------------------------- contenders


class Peer(nn.Module):
    """Another library's blocks, with an AGG before and a LayerNorm after them, as in ours.  (B, N, d) -> z_out (B, d)"""

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
    """Ours and the libraries that are installed, with the FLOPs of their step; says which is left out, and why"""
    found = {}
    for name in ("ours", *PEERS):
        try:
            with torch.device("meta"):
                module, x = encoder(name, size), torch.empty(batch, tokens, size.d)
        except (ImportError, RuntimeError) as e:  # RuntimeError: it is there, but does not work with this torch
            why = (str(e).splitlines() or [type(e).__name__])[-1]
            print(f"{name}: skipped, it cannot be imported ({why}); pip install {name} puts it into the table")
            continue
        found[name] = audit.flops(lambda m=module, x=x: m(x).sum().backward())
    return found


# ------------------------------------------------------------------------------------------------------------------ parts


def row(part: str, name: str, args, seconds: list[float], flop: float, rate: float, peak: int, **more) -> dict:
    """One line of a table and of --json; `rate` is the plain matmul's, FLOP/s"""
    step = median(seconds)
    return {"part": part, "name": name, "preset": args.preset, "batch": args.batch, "precision": args.precision,
            "compile": args.compile, "recompute": args.recompute, "steps": len(seconds), "step_s": step,
            "quartiles_s": quantiles(seconds, n=4)[::2], "clips_per_s": args.batch / step, "flop": flop,
            "flop_per_s": flop / step, "matmul_flop_per_s": rate, "mfu": flop / step / rate, "peak_bytes": peak, **more}


def prepare(transformer: nn.Module, args) -> None:
    """--compile for all contenders, --recompute for ours"""
    if args.compile:
        transformer.compile(dynamic=False)
    if isinstance(transformer, Transformer):
        transformer.recompute = args.recompute


def learning(module: nn.Module, forward: Callable, args, device: torch.device) -> Callable:
    """A call that does one step, forward and backward, of a module that takes part in `forward() -> z`"""
    def run():
        module.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            z = forward()
        z.float().square().mean().backward()

    return run


def encoder_part(args, config: vatt.Config, device: torch.device) -> list[dict]:
    """The video Transformer alone at N tokens, beside those of other libraries"""
    size, n = config.video, args.tokens
    flop = contenders(size, args.batch, n)
    x = torch.randn(args.batch, n, size.d, device=device)
    modules, runs = {}, {}
    for name in flop:
        modules[name] = encoder(name, size).to(device)
        prepare(modules[name], args)
        runs[name] = learning(modules[name], lambda m=modules[name]: m(x), args, device)
    runs["matmul"], plain = matmul(args.batch * (1 + n), size, device, args.precision)
    seconds = alternate(runs, args.steps, device, "encoder")
    rate = plain / median(seconds["matmul"])
    rows = [row("encoder", name, args, seconds[name], flop[name], rate, peak_memory(runs[name], device, module), tokens=n)
            for name, module in modules.items()]
    rows[0] |= {f"vs_{r['name']}": r["step_s"] / rows[0]["step_s"] for r in rows[1:]}
    return rows


def droptoken_part(args, config: vatt.Config, device: torch.device) -> list[dict]:
    """The video tower from raw frames on, at each drop rate; cost and ideal are shares of the step without DropToken"""
    config = dataclasses.replace(config, audio=NONE, text=NONE, shared=False, vocabulary=3, dropout=0.0)
    shape = (args.batch, config.frames, config.size, config.size, 3)
    keys, drops = torch.arange(args.batch), sorted({0.0, *args.drop})
    with torch.device("meta"):
        still, video = vatt.Backbones(config), torch.empty(shape)
        flop = {d: audit.flops(lambda d=d: still.video(video, d, keys.to("meta")).sum().backward()) for d in drops}
    model = vatt.Backbones(config).to(device)
    prepare(model.video_transformer, args)
    video, keys = torch.rand(shape, device=device) * 2 - 1, keys.to(device)
    runs = {d: learning(model, lambda d=d: model.video(video, d, keys), args, device) for d in drops}
    n = tokens(config)
    runs["matmul"], plain = matmul(args.batch * (1 + n), config.video, device, args.precision)
    seconds = alternate(runs, args.steps, device, "droptoken")
    rate, whole = plain / median(seconds["matmul"]), median(seconds[0.0])
    return [row("droptoken", f"{d:.0%} dropped", args, seconds[d], flop[d], rate, peak_memory(runs[d], device, model), drop=d,
                tokens=n - round(n * d), cost=median(seconds[d]) / whole, ideal=flop[d] / flop[0.0]) for d in drops]


def step_part(args, config: vatt.Config, device: torch.device) -> list[dict]:
    """The whole step of pre-training on made-up clips, with the preset's dropout, at each drop rate"""
    with torch.device("meta"):
        still, one = vatt.Backbones(config), clips(config, 1, torch.device("meta"))
        flop = {d: audit.flops(lambda d=d: sum(z.sum() for z in still(
            one["video"].float(), one["audio"], one["text"], (d, d), one["keys"])).backward()) for d in args.drop}
    model = vatt.VATT(config).to(device)
    for transformer in (m for m in model.modules() if isinstance(m, Transformer)):
        prepare(transformer, args)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, eps=1e-7, fused=device.type == "cuda" or None)
    processes = Processes()

    def step_at(drop: float, batch: dict) -> Callable:
        step = Step(model, processes, (drop, drop), args.chunk, args.precision)

        def run():
            model.zero_grad(set_to_none=True)
            step(batch, 0)
            optimizer.step()

        return run

    def fits(batch: int) -> bool:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        try:
            run = step_at(args.drop[0], clips(config, batch, device))
            for _ in range(2):  # Adam's state comes with the first
                run()
        except torch.cuda.OutOfMemoryError:
            return False
        return True

    if args.batch == "max":
        args.batch = largest(fits)
    batch = clips(config, args.batch, device)
    runs = {d: step_at(d, batch) for d in args.drop}
    at_once = min(args.batch, args.chunk or args.batch)
    runs["matmul"], plain = matmul(at_once * (1 + tokens(config)), config.video, device, args.precision)
    seconds = alternate(runs, args.steps, device, "step")
    rate = plain / median(seconds["matmul"])
    state = [x for s in optimizer.state.values() for x in s.values()]
    return [row("step", f"{d:.0%} dropped", args, seconds[d], args.batch * flop[d], rate,
                peak_memory(runs[d], device, model, *state), drop=d, chunk=at_once) for d in args.drop]


def tokens(config: vatt.Config) -> int:
    """Of a video clip: 1568 for 32 x 224 x 224"""
    return math.prod(math.ceil(n / p) for n, p in zip((config.frames, config.size, config.size), config.patch, strict=True))


def clips(config: vatt.Config, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch of noise in the form that `data.py` gives real clips"""
    c = config
    video = torch.randint(256, (batch, c.frames, c.size, c.size, 3), dtype=torch.uint8, device=device)
    text = torch.randint(2, c.vocabulary, (batch, c.captions, c.words), device=device)
    keys = torch.arange(2 * batch, device=device).view(batch, 2)
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
