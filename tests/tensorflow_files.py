"""Small checkpoints in TensorFlow's format with the names of Google's released VATT, and what that model says, step by step."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F

MODEL = "model/layer_with_weights-0/"
END = "/.ATTRIBUTES/VARIABLE_VALUE"
D, D_AUDIO, D_TEXT, WIDTH, WORDS, D_WORD, D_VA, D_VT = 24, 32, 16, 8, 30, 10, 20, 12  # WIDTH: of a head
PATCH, PLACES, SEGMENT, SEGMENTS, LENGTH = (2, 8, 8), (3, 2, 2), 16, 9, 6
CODES = {torch.float32: 1, torch.bfloat16: 14}


# --------------------------------------------------------------------------------------------------------------- the files


def varint(n: int) -> bytes:
    """Seven bits a byte, the lowest first"""
    return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])


def block(rows: list[tuple[bytes, bytes]], compression: int = 0) -> bytes:
    """A block of LevelDB's table: each key without what it shares with the one before, one restart, kind, a sum not read"""
    out, before = b"", b""
    for key, value in rows:
        shared = next((i for i, (a, b) in enumerate(zip(key, before, strict=False)) if a != b), min(len(key), len(before)))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return out + bytes(4) + (1).to_bytes(4, "little") + bytes([compression]) + bytes(4)


def write(prefix: Path, variables: dict[str, torch.Tensor], shards: int = 1, rows: int = 50, compression: int = 0) -> Path:
    """A checkpoint of these variables, which lie in turn in the shards, `rows` of them described in a block"""
    data, entries = [b"\1"] * shards, [(b"", b"\x08" + varint(shards))]  # the first byte: no variable is aligned
    for i, name in enumerate(sorted(variables)):
        x = variables[name].contiguous()
        sides = b"".join(b"\x12" + varint(len(side)) + side for side in (b"\x08" + varint(n) for n in x.shape))
        content = x.reshape(-1).view(torch.uint8).numpy().tobytes()
        numbers = zip((3, 4, 5), (i % shards, len(data[i % shards]), len(content)), strict=True)
        entries.append((name.encode(), b"\x08" + varint(CODES[x.dtype]) + b"\x12" + varint(len(sides)) + sides
                        + b"".join(varint(field << 3) + varint(n) for field, n in numbers if n)))
        data[i % shards] += content
    table, handles = b"", []
    for start in range(0, len(entries), rows):
        one = block(entries[start : start + rows], compression)
        handles.append((entries[start : start + rows][-1][0] + b"~", varint(len(table)) + varint(len(one) - 5)))
        table += one
    index = block(handles)
    footer = varint(0) + varint(0) + varint(len(table)) + varint(len(index) - 5)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_name(prefix.name + ".index").write_bytes(
        table + index + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db"))
    for i, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{i:05}-of-{shards:05}").write_bytes(content)
    return prefix


# --------------------------------------------------------------------------------------------------------------- the names


def encoder(root: str, layers: int, d: int, text: bool = False) -> dict[str, tuple]:
    """Shapes of an encoder's variables; its MLP is 2 d + 4 wide"""
    shapes = {} if text else {f"{root}/final_layer_norm/gamma": (d,), f"{root}/final_layer_norm/beta": (d,)}
    if text:
        shapes[f"{root}/final_layer_norm/weight"] = (d,)
        shapes[f"{root}/layers/0/self_attention/attention/relative_attention_bias/embeddings"] = (32, d // WIDTH)
    for i in range(layers):
        layer = f"{root}/layers/{i}"
        linear = {f"{layer}/{'self_attention/attention' if text else 'mha'}/{x}": (d, d) for x in "qkvo"}
        linear |= {f"{layer}/feed_forward/mlp/wi": (d, 2 * d + 4), f"{layer}/feed_forward/mlp/wo": (2 * d + 4, d)}
        norms = [f"{layer}/feed_forward/layer_norm"] + [f"{layer}/layer_norm"] * (not text)
        shapes |= {f"{name}/{x}": (d,) for name in norms for x in ("gamma", "beta")}
        shapes |= {f"{name}/kernel": shape for name, shape in linear.items()}
        shapes |= {f"{layer}/self_attention/layer_norm/weight": (d,)} if text else {}
        shapes |= {} if text else {f"{name}/bias": shape[1:] for name, shape in linear.items()}
    return shapes


def tower(root: str, kind: str, layers: int, d: int = D, shared: bool = False) -> dict[str, tuple]:
    """Shapes of one modality with a backbone of its own; `shared`: as fine-tuned from the shared backbone"""
    raw, shape = ("voxel_to_patch", (*PATCH, 3, d)) if kind == "video" else ("wave_to_patch", (SEGMENT, 1, d))
    shapes = {f"{root}/{raw}/kernel": shape, f"{root}/{raw}/bias": (d,), f"{root}/agg_embedding": (d,)}
    for part in ("pre_proj", "post_proj") if shared else ():
        shapes |= {f"{root}/{part}/kernel": (d, d), f"{root}/{part}/bias": (d,)}
    return shapes | positions(f"{root}/pos_embedding_lookup", kind, d) | encoder(f"{root}/tx", layers, d)


def positions(root: str, kind: str, d: int) -> dict[str, tuple]:
    """Shapes of the tables of positions and their LayerNorm"""
    sides = {"video": dict(zip(("temporal", "vertical", "horizontal"), PLACES, strict=True)), "audio": {"temporal": SEGMENTS},
             "text": {"temporal": LENGTH}}[kind]
    return {f"{root}/layernorm/gamma": (d,), f"{root}/layernorm/beta": (d,),
            **{f"{root}/{side}_position_embeddings/embeddings": (n, d) for side, n in sides.items()}}


def pretrained(shared: bool, layers: int = 2) -> dict[str, tuple]:
    """Shapes of all variables of a pre-trained model"""
    base = "_base_layer"
    if shared:
        root = f"{base}/unified_backbone/unified_transformer"
        shapes = encoder(f"{root}/tx", layers, D) | {f"{root}/raw_to_embeddings/text/embeddings": (WORDS, D_WORD)}
        for short, kind, shape in (("vid", "video", (*PATCH, 3, D)), ("aud", "audio", (SEGMENT, 1, D)), ("txt", "text", ())):
            shapes |= {f"{root}/{short}_agg_embedding": (D,), **positions(f"{root}/pos_embedding_lookup/{kind}", kind, D)}
            shapes |= {f"{root}/pre_proj/{kind}/kernel": (D if shape else D_WORD, D), f"{root}/pre_proj/{kind}/bias": (D,),
                       f"{root}/post_proj/{kind}/kernel": (D, D), f"{root}/post_proj/{kind}/bias": (D,)}
            if shape:
                shapes |= {f"{root}/raw_to_embeddings/{kind}/{x}": s for x, s in (("kernel", shape), ("bias", (D,)))}
    else:
        shapes = tower(f"{base}/vid_backbone/_base", "video", layers)
        shapes |= tower(f"{base}/aud_backbone/_base", "audio", layers + 1, D_AUDIO)
        root = f"{base}/txt_backbone"
        shapes |= {f"{root}/embedding/embeddings": (WORDS, D_WORD), f"{root}/pre_proj/kernel": (D_WORD, D_TEXT),
                   f"{root}/agg_embedding": (D_WORD,), **encoder(f"{root}/base_lm", layers, D_TEXT, text=True)}
    d_audio, d_text = (D, D) if shared else (D_AUDIO, D_TEXT)
    head = "_head_layer/_bridge_heads/0"
    for name, d in (("hid_to_va/pre_bn", D_VA), ("hid_to_va/bn", D_VA), ("va_to_vat/bn", D_VT)):
        shapes |= {f"{head}/{name}/{x}": (d,) for x in ("gamma", "beta", "moving_mean", "moving_variance")}
    return shapes | {f"{head}/vid_to_hid/kernel": (D, D_VA), f"{head}/hid_to_va/dense/kernel": (D_VA, D_VA),
                     f"{head}/va_to_vat/dense/kernel": (D_VA, D_VT), f"{head}/aud_to_va/kernel": (d_audio, D_VA),
                     f"{head}/aud_to_va/bias": (D_VA,), f"{head}/txt_to_vat/kernel": (d_text, D_VT),
                     f"{head}/txt_to_vat/bias": (D_VT,)}


def finetuned(kind: str, classes: int, shared: bool = False) -> dict[str, tuple]:
    """Shapes of all variables of a classifier"""
    return tower("_base", kind, 2, shared=shared) | {"_ops/cls/kernel": (D, classes), "_ops/cls/bias": (classes,)}


def variables(shapes: dict[str, tuple], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random values under their full names, with two slots of an optimizer and a counter"""
    generator = torch.Generator().manual_seed(1)
    values = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=generator) * (0.4 if "kernel" in name else 0.7)
        values[MODEL + name + END] = (x.abs() + 0.5 if "variance" in name else x).to(dtype)
    slot = f"{MODEL}{next(iter(shapes))}/.OPTIMIZER_SLOT/optimizer/m{END}"
    return values | {slot: torch.zeros(3), f"optimizer/beta_1{END}": torch.ones(())}


# --------------------------------------------------------------------------------------------------------------- the model


class Model:
    """What Google's code computes from these variables, written down once more without our modules"""

    def __init__(self, values: dict[str, torch.Tensor]):
        self.v = {name.removeprefix(MODEL).removesuffix(END): x.double() for name, x in values.items()}

    def dense(self, x, name):
        return x @ self.v[f"{name}/kernel"] + self.v.get(f"{name}/bias", 0)

    def layer_norm(self, x, name):
        if f"{name}/weight" in self.v:  # T5's: no mean, no bias
            return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.v[f"{name}/weight"]
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.v[f"{name}/gamma"] + self.v[f"{name}/beta"]

    def batch_norm(self, x, name):
        g, b, mean, var = (self.v[f"{name}/{x}"] for x in ("gamma", "beta", "moving_mean", "moving_variance"))
        return (x - mean) / (var + 1e-5).sqrt() * g + b

    def encode(self, x, tx, mask=None, text=False):
        """x (B, N, d), AGG first; mask (B, N) -> z_out (B, d)"""
        layers = 1 + max(int(name.split("/layers/")[1].split("/")[0]) for name in self.v if name.startswith(f"{tx}/layers/"))
        split = lambda q: q.unflatten(-1, (-1, WIDTH)).transpose(1, 2)
        for i in range(layers):
            layer = f"{tx}/layers/{i}"
            attention = f"{layer}/self_attention/attention" if text else f"{layer}/mha"
            y = self.layer_norm(x, f"{layer}/self_attention/layer_norm" if text else f"{layer}/layer_norm")
            q, k, v = (split(self.dense(y, f"{attention}/{one}")) for one in "qkv")
            scores = q @ k.transpose(-1, -2) / (1 if text else math.sqrt(WIDTH))
            if text:
                scores = scores + self.relative(tx, x.shape[1])
            if mask is not None:
                scores = scores + (1 - mask.double())[:, None, None] * -1e9
            x = x + self.dense((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{attention}/o")
            y = self.layer_norm(x, f"{layer}/feed_forward/layer_norm")
            x = x + self.dense(F.gelu(self.dense(y, f"{layer}/feed_forward/mlp/wi")), f"{layer}/feed_forward/mlp/wo")
        return self.layer_norm(x, f"{tx}/final_layer_norm")[:, 0]

    def relative(self, tx, n):
        """T5's bias of the first layer, which all layers use; 16 buckets a side, exact up to 7, logarithmic up to 64"""
        table = self.v[f"{tx}/layers/0/self_attention/attention/relative_attention_bias/embeddings"]
        bias = torch.zeros(table.shape[1], n, n, dtype=torch.float64)
        for i in range(n):
            for j in range(n):
                r = abs(j - i)
                far = 8 + int(math.log(max(r, 1) / 8) / math.log(64 / 8) * 8)
                bias[:, i, j] = table[(r if r < 8 else min(far, 15)) + 16 * (j > i)]
        return bias

    def positions(self, root, kind):
        t = self.v[f"{root}/temporal_position_embeddings/embeddings"]
        if kind == "video":
            v, h = (self.v[f"{root}/{side}_position_embeddings/embeddings"] for side in ("vertical", "horizontal"))
            t = (t[:, None, None] + v[:, None] + h).flatten(0, 2)
        return self.layer_norm(t, f"{root}/layernorm")

    def patches(self, x, kind, name):
        """The convolution, as one product for each patch"""
        kernel = self.v[f"{name}/kernel"]
        if kind == "video":
            t, h, w = PATCH
            x = torch.stack([x[:, a : a + t, b : b + h, c : c + w].flatten(1) for a in range(0, x.shape[1], t)
                             for b in range(0, x.shape[2], h) for c in range(0, x.shape[3], w)], dim=1)
        else:
            x = x.unflatten(1, (-1, SEGMENT))
        return x.double() @ kernel.flatten(0, -2) + self.v[f"{name}/bias"]

    def tower(self, x, kind, root):
        """(B, ...) -> z_out (B, d), from a backbone of its own"""
        x = self.patches(x, kind, f"{root}/{'voxel_to_patch' if kind == 'video' else 'wave_to_patch'}")
        if f"{root}/pre_proj/kernel" in self.v:
            x = F.gelu(self.dense(x, f"{root}/pre_proj"))
        x = x + self.positions(f"{root}/pos_embedding_lookup", kind)
        z = self.encode(torch.cat([self.v[f"{root}/agg_embedding"].expand(len(x), 1, -1), x], 1), f"{root}/tx")
        return F.gelu(self.dense(z, f"{root}/post_proj")) if f"{root}/post_proj/kernel" in self.v else z

    def z_out(self, video, audio, text):
        """Of the three modalities, text (B, L)"""
        mask = F.pad(text != 0, (1, 0), value=True)
        if "_base_layer/unified_backbone/unified_transformer/tx/final_layer_norm/gamma" not in self.v:
            root = "_base_layer/txt_backbone"
            words = self.v[f"{root}/embedding/embeddings"][text]
            words = torch.cat([self.v[f"{root}/agg_embedding"].expand(len(text), 1, -1), words], 1)
            return (self.tower(video, "video", "_base_layer/vid_backbone/_base"),
                    self.tower(audio, "audio", "_base_layer/aud_backbone/_base"),
                    self.encode(F.gelu(self.dense(words, f"{root}/pre_proj")), f"{root}/base_lm", mask, text=True))
        root, out = "_base_layer/unified_backbone/unified_transformer", []
        for short, kind, x in (("vid", "video", video), ("aud", "audio", audio), ("txt", "text", text)):
            x = (self.v[f"{root}/raw_to_embeddings/text/embeddings"][x] if kind == "text"
                 else self.patches(x, kind, f"{root}/raw_to_embeddings/{kind}"))
            x = F.gelu(self.dense(x, f"{root}/pre_proj/{kind}")) + self.positions(f"{root}/pos_embedding_lookup/{kind}", kind)
            x = torch.cat([self.v[f"{root}/{short}_agg_embedding"].expand(len(x), 1, -1), x], 1)
            z = self.encode(x, f"{root}/tx", mask if kind == "text" else None)
            out.append(F.gelu(self.dense(z, f"{root}/post_proj/{kind}")))
        return tuple(out)

    def spaces(self, video, audio, text):
        """z_out -> z_v,va, z_a,va, z_v,vt, z_t,vt"""
        h = "_head_layer/_bridge_heads/0"
        x = self.batch_norm(self.dense(video, f"{h}/vid_to_hid"), f"{h}/hid_to_va/pre_bn").relu()
        va = self.batch_norm(self.dense(x, f"{h}/hid_to_va/dense"), f"{h}/hid_to_va/bn")
        vt = self.batch_norm(self.dense(va.relu(), f"{h}/va_to_vat/dense"), f"{h}/va_to_vat/bn")
        return va, self.dense(audio, f"{h}/aud_to_va"), vt, self.dense(text, f"{h}/txt_to_vat")

    def logits(self, x, kind):
        """Of a classifier"""
        return self.dense(self.tower(x, kind, "_base"), "_ops/cls")


def clips() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Videos, waveforms and captions, one of which is cut short and one empty"""
    generator = torch.Generator().manual_seed(2)
    video = torch.rand(3, *(p * k for p, k in zip(PATCH, PLACES, strict=True)), 3, generator=generator) * 2 - 1
    text = torch.randint(4, WORDS, (3, LENGTH), generator=generator)
    text[1, 2:], text[2] = 0, 0
    return video, torch.rand(3, SEGMENT * SEGMENTS, generator=generator) * 2 - 1, text
