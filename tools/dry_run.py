"""What a run will need, before it begins: `pretrain.py --dry-run` (the scale of Sections 4.1 and A.2.3).

    weights, gradients, Adam     16 bytes a parameter: fp32, and two moments
    activations                  what one clip keeps for the backward pass, times the clips that pass at once
    FLOPs                        of the matmuls, forward and backward; with --chunk the backbones go forward twice
"""

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import vatt


def report(gradients, batch: dict, clips: int, steps: int, world: int, waiting: int) -> str:
    """Shapes, parameters, FLOPs and memory of a run in which each of `world` processes has `clips` clips a step.

    gradients: a `pretrain.Step`. batch: decoded clips on the device, two at least; the first ones are sent through the model
    to see what it keeps. waiting: bytes of clips that the loaders of this machine may hold in shared memory.
    """
    model = gradients.model
    lines = [shapes(batch)]
    sizes = parts(model)
    total = sum(sizes.values())
    named = {"tokens": sum(n for part, n in sizes.items() if part.startswith("tokens")),
             **{part: n for part, n in sizes.items() if not part.startswith("tokens")}}
    lines += [f"parameters {total / 1e6:.1f} M: " + ", ".join(f"{part} {n / 1e6:.1f}" for part, n in named.items())]

    at_once = min(clips, gradients.chunk or clips)
    forward, backward = cost(model.config, gradients.drop)
    clip = forward * (2 if at_once < clips else 1) + backward
    lines += [f"FLOPs {clip / 1e9:.1f} G a clip, {clip * clips / 1e12:.2f} T a step of each process, "
              f"{clip * clips * world * steps / 1e18:.3g} E in all"]

    size = next(model.parameters()).element_size()
    one, two = (activations(gradients, {k: v[:n] for k, v in batch.items() if torch.is_tensor(v)}) for n in (1, 2))
    state, kept = 4 * size * total + 2 * one - two, two - one  # what both keep is not of a clip: weights rounded to bf16
    given = sum(x[:1].numel() * x.element_size() for x in batch.values() if torch.is_tensor(x)) * clips
    given *= 2 if gradients.processes.device.type == "cuda" else 1  # the next batch is copied while this one is computed
    need = state + kept * at_once + given
    lines += [f"memory {need / 1e9:.2f} GB a process, about: {state / 1e9:.2f} weights, gradients and Adam, "
              f"{kept * at_once / 1e9:.2f} activations ({kept / 1e6:.1f} MB a clip, {at_once} at once), "
              f"{given / 1e9:.2f} clips"]
    lines += [f"shared memory {waiting / 1e9:.2f} GB a machine, at most, for the clips that wait"]
    device = gradients.processes.device
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        lines += [f"memory {whole / 1e9:.1f} GB is what {torch.cuda.get_device_name(device)} has"
                  + (": add --chunk or --recompute, or lower --batch" if need > whole else "")]
    return "\n".join(lines)


def shapes(batch: dict) -> str:
    """A line for each tensor of a batch"""
    return "\n".join(f"{name:9} {tuple(x.shape)} {x.dtype}" for name, x in batch.items() if torch.is_tensor(x))


def cost(config: vatt.Config, drop: tuple[float, float]) -> tuple[int, int]:
    """Of the backbones' matmuls for one clip: forward, backward; on the meta device, where attention is counted too"""
    with torch.device("meta"):
        backbones, keys = vatt.Backbones(config), torch.empty(1, 2, dtype=torch.long)
        video = torch.empty(1, config.frames, config.size, config.size, 3)
        audio, text = torch.empty(1, config.samples), torch.empty(1, config.captions, config.words, dtype=torch.long)
    run = lambda: sum(z.sum() for z in backbones(video, audio, text, drop, keys))
    with torch.no_grad():
        forward = flops(run)
    return forward, flops(lambda: run().backward()) - forward


def flops(run) -> int:
    """Of the matmuls in the call `run()`, backward ones too; give it tensors on the meta device, where attention is seen"""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def activations(gradients, clip: dict) -> int:
    """Bytes that autograd keeps between the forward and the backward pass of one clip, weights left out"""
    weights = {p.untyped_storage().data_ptr() for p in gradients.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other one gets its address
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        gradients.encode(clip, 0, 0)
    return sum(storage.nbytes() for storage in kept.values())


def parts(model: vatt.VATT) -> dict[str, int]:
    """How many parameters each part of Figure 1 has"""
    sizes: dict[str, int] = {}
    for name, p in model.named_parameters():
        if "transformer" in name:
            modality = name.removeprefix("backbones.").split(".")[0].removesuffix("transformer").rstrip("_")
            part = f"{modality or 'shared'} Transformer"
        else:
            part = "heads" if name.startswith("heads") else f"tokens: {name.split('.')[1]}"
        sizes[part] = sizes.get(part, 0) + p.numel()
    return sizes
