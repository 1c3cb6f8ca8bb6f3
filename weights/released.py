"""Google's checkpoints -> our configuration and weights: the kind of model and its sizes are found from names and shapes.

A classifier has one tower, `_base`; a pre-trained model has three or, where the backbone is shared, one for all of them.
"""

import re

import torch

from transformer import Size

NAME = re.compile(r"(?:.*?/)?((?:_base|_base_layer|_head_layer|_ops)/.+)/\.ATTRIBUTES/VARIABLE_VALUE")
RULES = (  # a name of Google's becomes ours by all of these in turn, and "." for "/"
    ("^_base_layer/unified_backbone/unified_transformer/", ""), (r"^_base_layer/(vid|aud|txt)_backbone/(_base/)?", r"\1/"),
    (r"^(\w+)/(video|audio|text)/", r"\2/\1/"), ("^(vid|aud|txt)_agg_", r"\1/agg_"),
    ("^vid/", "video/"), ("^aud/", "audio/"), ("^txt/", "text/"),                # the modality comes first from here on
    ("^video/(voxel_to_patch|raw_to_embeddings)/kernel", "W_vp"), ("^audio/(wave_to_patch|raw_to_embeddings)/kernel", "W_ap"),
    ("^text/(embedding|raw_to_embeddings)/embeddings", "W_tp"), ("/[a-z]+_to_(patch|embeddings)/bias", "_around/bias"),
    (r"^video/pos_embedding_lookup/(\w+)_position_embeddings/embeddings", r"e_\1"),
    (r"^(\w+)/pos_embedding_lookup/temporal_position_embeddings/embeddings", r"e_\1"),
    ("/pos_embedding_lookup/layernorm", "_around/norm"), ("/pre_proj", "_around/before/0"), ("/post_proj", "_around/after/0"),
    ("/agg_embedding", "_transformer/x_agg"), ("/(tx|base_lm)/", "_transformer/"), ("^tx/", "transformer/"),
    ("layers/0/self_attention/attention/relative_attention_bias/embeddings", "relative_bias/table"), ("/layers/", "/blocks/"),
    ("final_layer_norm", "norm"), ("feed_forward/layer_norm", "norm2"), ("(self_attention/)?layer_norm", "norm1"),
    ("(mha|self_attention/attention)/[qkv]/", "attention/qkv/"), ("(mha|self_attention/attention)/o/", "attention/out/"),
    ("feed_forward/mlp/wi", "mlp/0"), ("feed_forward/mlp/wo", "mlp/3"), ("^_ops/cls", "classifier/linear"),
    ("^_head_layer/_bridge_heads/0", "heads"), ("vid_to_hid", "v_to_va1/linear"), ("hid_to_va/pre_bn", "v_to_va1/norm"),
    ("hid_to_va/dense", "v_to_va2/linear"), ("hid_to_va/bn", "v_to_va2/norm"), ("va_to_vat/dense", "v_to_vt/linear"),
    ("va_to_vat/bn", "v_to_vt/norm"), ("aud_to_va", "a_to_va"), ("txt_to_vat", "t_to_vt"),
    ("/(kernel|gamma)$", "/weight"), ("/beta$", "/bias"), ("/moving_mean$", "/running_mean"),
    ("/moving_variance$", "/running_var"), ("/", "."),
)
PARTS = ("/q/", "/k/", "/v/", "/vid_agg", "/aud_agg", "/txt_agg")       # of what is one below the other with us, from above
MARKS = {"W_vp": "video", "W_ap": "audio", "W_tp": "text", "heads.v_to_va1.linear.weight": "heads",
         "classifier.linear.weight": "classifier"}


class Released:
    """A checkpoint of Google's, as `bundle.read` gives it; ValueError where it is none.

    kind       of a classifier "video" or "audio", of a pre-trained model None
    classes    how many a classifier has
    places     our names of weights, but for that of the backbones -> Google's of the variables that they are made of
    """

    def __init__(self, variables: dict[str, torch.Tensor]):
        self.v = {found[1]: tensor for name, tensor in variables.items() if (found := NAME.fullmatch(name))}
        self.shared = any("/pre_proj/" in name and "txt_backbone" not in name for name in self.v)
        tower = "video/" if "_base/voxel_to_patch/kernel" in self.v else "audio/"
        self.places: dict[str, list[str]] = {}
        for theirs in sorted(self.v, key=lambda name: [part in name for part in PARTS], reverse=True):
            ours = re.sub("^_base/", tower, theirs)
            for pattern, to in RULES:
                ours = re.sub(pattern, to, ours)
            ours = (re.sub(r"^\w+_transformer", "transformer", ours) if self.shared else
                    ours.replace("text_around.before", "text_transformer.before"))
            self.places.setdefault(ours, []).append(theirs)
        parts = {part for name, part in MARKS.items() if name in self.places}
        towers = sorted(parts - {"heads", "classifier"})
        if (len(towers), "classifier" in parts, "heads" in parts) not in ((3, False, True), (1, True, False)):
            raise ValueError("it holds neither a whole VATT nor one backbone and a classifier, but "
                             + (f"{', '.join(sorted(parts))} alone" if parts else "another model"))
        self.kind = towers[0] if len(towers) == 1 else None
        self.classes = self.shape("classifier.linear.weight")[-1] if self.kind else 0
        if self.kind and self.shared:
            self.places["transformer.x_agg"] *= 3  # a classifier keeps one of the three

    def shape(self, name: str) -> torch.Size:
        """That of the first variable that a weight of ours is made of; ValueError where there is none."""
        if name not in self.places:
            raise ValueError(f"it lacks {name}")
        return self.v[self.places[name][0]].shape

    def config(self, head_width: int | None) -> dict:
        """The fields of `vatt.Config`; ValueError where a variable is missing, or heads do not divide a width.

        head_width: d/h, which no shape tells but that of the text model's relative bias; 64 in all that Google released.
        """
        shape, config = self.shape, {"variant": "official", "shared": self.shared}
        if (bias := "text_transformer.relative_bias.table") in self.places and not head_width:
            head_width = shape("text_transformer.norm.weight")[0] // shape(bias)[1]
        self.head_width = head_width = head_width or 64
        for m in ("video", "audio", "text"):
            own = self.kind or m                                # what a classifier does not have is not built
            encoder = "transformer" if self.shared else f"{own}_transformer"
            d, d_mlp = shape(f"{encoder}.blocks.0.mlp.0.weight")
            if d % head_width:
                raise ValueError(f"its tokens of {d} numbers do not divide into heads of {head_width}: --head-width")
            layers = sum(name.startswith(encoder) and name.endswith("norm1.weight") for name in self.places)
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
            config["d_va"], config["d_vt"] = (shape(f"heads.{name}.linear.weight")[1] for name in ("v_to_va1", "v_to_vt"))
        return config

    def weights(self, own: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
        """(weights for a model whose state is `own`, variables without a place in it); ValueError names what is missing."""
        weights, left = {}, set(self.v)
        for name in own:
            theirs = self.places.get(name.removeprefix("backbones.").removeprefix("backbone."), [])
            left -= set(theirs)
            parts = [turned(self.v[one], one) for one in theirs]
            weights[name] = parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0)  # one: not copied
            if name.endswith("qkv.weight") and "text_transformer" in name:  # T5 does not divide scores by sqrt(d/h); we do
                weights[name][: len(weights[name]) // 3] *= self.head_width**0.5
        if lacks := [f"{name} {tuple(like.shape)}" for name, like in own.items() if weights[name].shape != like.shape]:
            raise ValueError(f"it lacks {len(lacks)} weights: {', '.join(lacks[:4])}" + ", .." * (len(lacks) > 4))
        return weights, sorted(left)


def turned(x: torch.Tensor, name: str) -> torch.Tensor:
    """Keras has kernels as (in, out) and those of convolutions as (t, h, w, in, out); AGG becomes a row"""
    if name.endswith("agg_embedding"):
        return x.float()[None]
    return (x.T if x.ndim == 2 else x.flatten(0, -2)).float() if name.endswith("kernel") else x.float()
