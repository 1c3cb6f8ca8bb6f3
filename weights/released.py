"""Google's checkpoints -> our configuration and weights: the kind of model and its sizes are found from names and shapes.

A classifier has one tower, `_base`; a pre-trained model has three or, where the backbone is shared, one for all of them.
"""

import re
from collections.abc import Iterator

import torch

from transformer import Size

NAME = re.compile(r"(?:.*?/)?((?:_base|_base_layer|_head_layer|_ops)/.+)/\.ATTRIBUTES/VARIABLE_VALUE")
ROOTS = {"shared": "/raw_to_embeddings/video/kernel", "video": "/voxel_to_patch/kernel", "audio": "/wave_to_patch/kernel",
         "text": "/base_lm/final_layer_norm/weight", "heads": "/vid_to_hid/kernel", "classifier": "/cls/kernel"}
# Our modules, and theirs; what is one below the other with us is q, k and v with them.
BLOCK = {"norm1": "layer_norm", "attention.qkv": "mha", "attention.out": "mha/o", "norm2": "feed_forward/layer_norm",
         "mlp.0": "feed_forward/mlp/wi", "mlp.3": "feed_forward/mlp/wo"}
TEXT_BLOCK = {**BLOCK, "norm1": "self_attention/layer_norm", "attention.qkv": "self_attention/attention",
              "attention.out": "self_attention/attention/o"}
HEADS = {"v_to_va1.linear": "vid_to_hid", "v_to_va1.norm": "hid_to_va/pre_bn", "v_to_va2.linear": "hid_to_va/dense",
         "v_to_va2.norm": "hid_to_va/bn", "v_to_vt.linear": "va_to_vat/dense", "v_to_vt.norm": "va_to_vat/bn",
         "a_to_va": "aud_to_va", "t_to_vt": "txt_to_vat"}
QKV = {"attention.qkv": ("/q", "/k", "/v")}
LEAVES = {"weight": ("kernel", "gamma", "weight"), "bias": ("bias", "beta"), "running_mean": ("moving_mean",),
          "running_var": ("moving_variance",)}


class Released:
    """A checkpoint of Google's, as `bundle.read` gives it; ValueError where it is none.

    kind       of a classifier "video" or "audio", of a pre-trained model None
    classes    how many a classifier has
    """

    def __init__(self, variables: dict[str, torch.Tensor]):
        self.v = {found[1]: tensor for name, tensor in variables.items() if (found := NAME.fullmatch(name))}
        self.root = {part: name.removesuffix(end) for part, end in ROOTS.items() for name in self.v if name.endswith(end)}
        parts = set(self.root)
        towers = [m for m in ("video", "audio", "text") if m in parts or "shared" in parts]
        if (len(towers), "classifier" in parts, "heads" in parts) not in ((3, False, True), (1, True, False)):
            raise ValueError("it holds neither a whole VATT nor one backbone and a classifier, but "
                             + (f"{', '.join(sorted(parts))} alone" if parts else "another model"))
        self.kind = towers[0] if len(towers) == 1 else None
        self.classes = self.v["_ops/cls/kernel"].shape[-1] if self.kind else 0
        self.shared = "shared" in parts or f"{self.root[towers[0]]}/pre_proj/kernel" in self.v
        self.places = {name: theirs for m in towers for name, theirs in self.tower(m)}
        self.places |= ({"classifier.linear": ["_ops/cls"]} if self.kind else
                        {f"heads.{ours}": [f"{self.root['heads']}/{theirs}"] for ours, theirs in HEADS.items()})

    def tower(self, m: str) -> Iterator[tuple[str, list[str]]]:
        """(our name of a module or table, theirs) of all that modality m needs"""
        one = self.root.get("shared")
        part = lambda name: f"{one}/{name}/{m}" if one else f"{self.root[m]}/{name}"
        raw = part("raw_to_embeddings" if one else {"video": "voxel_to_patch", "audio": "wave_to_patch"}.get(m, "embedding"))
        yield {"video": "W_vp", "audio": "W_ap", "text": "W_tp"}[m], [f"{raw}/{'embeddings' if m == 'text' else 'kernel'}"]
        yield f"{m}_around.bias", [f"{raw}/bias"]
        yield f"{m}_around.norm", [f"{part('pos_embedding_lookup')}/layernorm"]
        yield f"{m}_around.before.0", [part("pre_proj")]
        yield f"{m}_around.after.0", [part("post_proj")]
        for ours, theirs in {"video": {"e_temporal": "temporal", "e_vertical": "vertical", "e_horizontal": "horizontal"},
                             "audio": {"e_audio": "temporal"}, "text": {"e_text": "temporal"}}[m].items():
            yield ours, [f"{part('pos_embedding_lookup')}/{theirs}_position_embeddings/embeddings"]
        ours, tx = ("transformer" if self.shared else f"{m}_transformer"), f"{one or self.root[m]}/tx"
        block, aggs = BLOCK, [f"{one}/{x}_agg_embedding" for x in ("vid", "aud", "txt")] if one else [part("agg_embedding")]
        if m == "text" and not one:
            tx, block = f"{self.root[m]}/base_lm", TEXT_BLOCK
            yield f"{ours}.before.0", [part("pre_proj")]
            yield f"{ours}.relative_bias.table", [f"{tx}/layers/0/self_attention/attention/relative_attention_bias/embeddings"]
        yield f"{ours}.x_agg", aggs * 3 if self.shared and not one else aggs  # a classifier keeps one of the three
        yield f"{ours}.norm", [f"{tx}/final_layer_norm"]
        layers = {name.removeprefix(f"{tx}/layers/").split("/")[0] for name in self.v if name.startswith(f"{tx}/layers/")}
        for i in range(len(layers)):
            for a, b in block.items():
                yield f"{ours}.blocks.{i}.{a}", [f"{tx}/layers/{i}/{b}{x}" for x in QKV.get(a, ("",))]

    def config(self, head_width: int | None) -> dict:
        """The fields of `vatt.Config`; KeyError or ValueError where a variable is missing, or heads do not divide a width.

        head_width: d/h, which no shape tells but that of the text model's relative bias; 64 in all that Google released.
        """
        shape = lambda name: self.v[self.theirs(name)[0]].shape
        if (bias := "text_transformer.relative_bias.table") in self.places and not head_width:
            head_width = shape("text_transformer.norm.weight")[0] // shape(bias)[1]
        self.head_width = head_width = head_width or 64
        config = {"variant": "official", "shared": self.shared}
        for m in ("video", "audio", "text"):
            own = self.kind or m                                # what a classifier does not have is not built
            encoder = "transformer" if self.shared else f"{own}_transformer"
            d, d_mlp = shape(f"{encoder}.blocks.0.mlp.0.weight")
            if d % head_width:
                raise ValueError(f"its tokens of {d} numbers do not divide into heads of {head_width}: --head-width")
            layers = sum(name.startswith(encoder) and name.endswith("norm1") for name in self.places)
            config[m] = Size(layers, d, d_mlp, d // head_width)
        if "W_vp" in self.places:
            t, h, _ = config["patch"] = tuple(shape("W_vp")[:3])
            config["frames"], config["size"] = t * shape("e_temporal")[0], h * shape("e_vertical")[0]
            config["fps"] = 12.5 if self.kind else 10.0               # Section A.2.1
        if "W_ap" in self.places:
            config["audio_patch"] = shape("W_ap")[0]
            samples, frames = config["audio_patch"] * shape("e_audio")[0], config.get("frames", 32)
            config["rate"] = 48000 if self.kind else round(samples * config["fps"] / frames)
            config["fps"] = frames * config["rate"] / samples
        if not self.kind:
            config["vocabulary"], config["word_vectors"] = shape("W_tp")
            config["words"] = shape("e_text")[0] if self.shared else 16
            config["d_va"] = shape("heads.v_to_va1.linear.weight")[1]
            config["d_vt"] = shape("heads.v_to_vt.linear.weight")[1]
        return config

    def weights(self, own: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
        """(weights for a model whose state is `own`, variables without a place in it); ValueError names what is missing."""
        weights, left, lacks = {}, set(self.v), []
        for name, like in own.items():
            theirs = self.theirs(name.removeprefix("backbones.").removeprefix("backbone."))
            left -= set(theirs)
            if absent := [one for one in theirs if one not in self.v]:
                lacks += absent
                continue
            parts = [turned(self.v[one], one) for one in theirs]
            weights[name] = parts[0] if len(parts) == 1 else torch.cat(parts)  # a view, so that nothing is copied
            if weights[name].shape != like.shape:
                lacks.append(f"{theirs[0]} of the right shape")
            if name.endswith("qkv.weight") and "text_transformer" in name:  # T5 does not divide scores by sqrt(d/h); we do
                weights[name][: len(weights[name]) // 3] *= self.head_width**0.5
        if lacks:
            raise ValueError(f"it lacks {len(lacks)} variables: {', '.join(lacks[:4])}" + ", .." * (len(lacks) > 4))
        return weights, sorted(left)

    def theirs(self, name: str) -> list[str]:
        """The variables that a weight of ours is made of, one below the other"""
        if name in self.places:
            return self.places[name]
        module, _, leaf = name.rpartition(".")
        return [next((f"{path}/{end}" for end in LEAVES[leaf] if f"{path}/{end}" in self.v), f"{path}/{LEAVES[leaf][0]}")
                for path in self.places[module]]


def turned(x: torch.Tensor, name: str) -> torch.Tensor:
    """Keras has kernels as (in, out) and those of convolutions as (t, h, w, in, out); AGG becomes a row"""
    if name.endswith("agg_embedding"):
        return x.float()[None]
    return (x.T if x.ndim == 2 else x.flatten(0, -2)).float() if name.endswith("kernel") else x.float()
