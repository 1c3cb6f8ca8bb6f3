"""Image ViTs of timm and transformers, and torch's own encoder: "a standard Transformer" (Section 3.2), so weights can move.

    patch projection   the same for each frame of a patch, divided by their number: a still clip gives the image's tokens
    positions          a row and a column table whose sum is nearest to the image's table; zeros in time
    class token        AGG, which holds its own position
    blocks             as they are
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from transformer import Size

OURS = ("norm1", "attention.qkv", "attention.out", "norm2", "mlp.0", "mlp.3")
# The blocks, the last norm, the parts of a block in the order of OURS; class token, positions, patch projection.
FORMATS = {
    "timm": ("blocks", "norm", ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"),
             "cls_token", "pos_embed", "patch_embed.proj"),
    "transformers": ("encoder.layer", "layernorm",
                     ("layernorm_before", "attention.attention.{query,key,value}", "attention.output.dense", "layernorm_after",
                      "intermediate.dense", "output.dense"),
                     "embeddings.cls_token", "embeddings.position_embeddings", "embeddings.patch_embeddings.projection"),
    "transformers 5": ("layers", "layernorm",
                       ("layernorm_before", "attention.{q_proj,k_proj,v_proj}", "attention.o_proj", "layernorm_after",
                        "mlp.fc1", "mlp.fc2"),
                       "embeddings.cls_token", "embeddings.position_embeddings", "embeddings.patch_embeddings.projection"),
    "torch": ("layers", "norm", ("norm1", "self_attn.in_proj_", "self_attn.out_proj", "norm2", "linear1", "linear2")),
}
OTHERS = ("head.", "fc_norm.", "pre_logits.", "classifier.", "pooler.")  # what stands on an image ViT and is not needed


def names(kind: str, layers: int) -> Iterator[tuple[str, list[str]]]:
    """(our name, theirs) of all weights of an encoder; theirs are one below the other in ours"""
    blocks, norm, parts, *_ = FORMATS[kind]
    modules = {f"blocks.{i}.{a}": f"{blocks}.{i}.{b}" for i in range(layers) for a, b in zip(OURS, parts, strict=True)}
    for ours, theirs in {**modules, "norm": norm}.items():
        start, _, several = theirs.removesuffix("}").partition("{")
        for leaf in ("weight", "bias"):
            yield f"{ours}.{leaf}", [f"{start}{one}.{leaf}".replace("_.", "_") for one in several.split(",")]


def from_image(tensors: dict[str, torch.Tensor], t: int, head_width: int) -> tuple[dict, dict[str, torch.Tensor], float]:
    """An image ViT -> (fields of vatt.Config, weights of a video tower, how far its positions are from such a sum).

    The distance is the root mean square of what is left over the root mean square of all. ValueError where it is no plain ViT.
    """
    tensors = {name.removeprefix("vit."): tensor.float() for name, tensor in tensors.items()}
    kind = next((kind for kind in FORMATS if kind != "torch" and FORMATS[kind][3] in tensors
                 and f"{FORMATS[kind][0]}.0.{FORMATS[kind][2][0]}.weight" in tensors), None)
    if kind is None:
        raise ValueError("it is no image ViT with a class token, of timm or transformers")
    blocks, _, _, cls, pos, patch = FORMATS[kind]
    layers = len({name.split(".")[blocks.count(".") + 1] for name in tensors if name.startswith(f"{blocks}.")})
    plan = [*names(kind, layers), ("", [cls, pos, f"{patch}.weight", f"{patch}.bias"])]
    used = {one for _, theirs in plan for one in theirs}
    if lacking := sorted(used - set(tensors)):
        raise ValueError(f"it lacks {lacking[0]}")
    if more := sorted(name for name in set(tensors) - used if not name.startswith(OTHERS)):
        raise ValueError(f"it has {more[0]}, which a plain ViT does not have")
    weights = {f"video_transformer.{ours}": torch.cat([tensors[one] for one in theirs]) for ours, theirs in plan[:-1]}
    W, table = tensors[f"{patch}.weight"], tensors[pos][0]                       # (d, 3, h, w), (1 + N, d)
    d, channels, h, w = W.shape
    side = round((len(table) - 1) ** 0.5)
    if channels != 3 or h != w or side**2 != len(table) - 1 or d % head_width:
        raise ValueError(f"its patches {channels, h, w}, positions {len(table)} or width {d} are not those of a plain ViT")
    grid = table[1:].unflatten(0, (side, side))                                  # (H, W, d)
    e_vertical, e_horizontal = grid.mean(1), grid.mean(0) - grid.mean((0, 1))
    left = grid - e_vertical[:, None] - e_horizontal
    weights |= {
        "video_transformer.x_agg": tensors[cls][0] + table[:1],
        "W_vp": (W / t).permute(2, 3, 1, 0).flatten(0, 2).repeat(t, 1),          # (t h w 3, d)
        "e_temporal": torch.zeros(1, d),
        "e_vertical": e_vertical + tensors[f"{patch}.bias"],
        "e_horizontal": e_horizontal,
    }
    size = Size(layers, d, len(weights["video_transformer.blocks.0.mlp.0.bias"]), d // head_width)
    error = (left.square().mean() / grid.square().mean()).sqrt().item()
    return {"video": size, "size": side * h, "patch": (t, h, w)}, weights, error


def to_image(weights: dict[str, torch.Tensor], kind: str, patch: tuple, modality: str) -> dict[str, torch.Tensor]:
    """The tower of a modality as the weights of another library; ValueError where that has no place for something in it.

    An image stands at the first place in time, as in fine-tuning on images.
    """
    encoder = f"{modality}_transformer." if f"{modality}_transformer.x_agg" in weights else "transformer."
    own = {name.removeprefix(encoder): w for name, w in weights.items() if name.startswith(encoder)}
    if not own or "relative_bias.table" in own:
        raise ValueError(f"the {modality} Transformer is not there" if not own else "its relative bias has no place elsewhere")
    out = {}
    for ours, theirs in names(kind, len({name.split(".")[1] for name in own if name.startswith("blocks.")})):
        out |= dict(zip(theirs, own[ours].chunk(len(theirs)), strict=True))
    if kind == "torch":
        return out
    if modality != "video" or "video_around.before.0.weight" in weights:
        raise ValueError("an image ViT has no place for what comes before this Transformer: --to torch writes it alone")
    cls, pos, projection = FORMATS[kind][3:]
    positions = (weights["e_temporal"][0] + weights["e_vertical"][:, None] + weights["e_horizontal"]).flatten(0, 1)  # (N, d)
    if "video_around.norm.weight" in weights:
        positions = F.layer_norm(positions, positions.shape[1:], weights["video_around.norm.weight"],
                                 weights["video_around.norm.bias"], 1e-6)
    W = weights["W_vp"].unflatten(0, (*patch, 3)).sum(0).permute(3, 2, 0, 1)     # (d, 3, h, w)
    return out | {cls: own["x_agg"][None, :1], pos: F.pad(positions, (0, 0, 1, 0))[None], f"{projection}.weight": W,
                  f"{projection}.bias": weights.get("video_around.bias", torch.zeros(W.shape[0]))}
