"""The cost tables of the paper, counted again: FLOPs of Tables 1, 5 and 6, parameters of Table 7 (Sections 4.2, A.2.2).

Each figure stands beside two counts: "paper's way", the rules that give the printed figure, and "ours", what this code does:
every multiplication with its addition counts 2, softmax and other element-wise work 0, and DropToken comes before projection.

The paper's way is that of TensorFlow 2.4's graph profiler on the official model: it knows MatMul, convolutions, biases,
products, softmax (5 an element), but neither Einsum, so that q k counts 0, nor AddV2, the sum of two tensors. All patches are
projected, then dropped. Table 5 and the drop columns of Table 6 fit a training graph, where dropout counts 3 an element.

    P patches of p numbers   N tokens, AGG included   L layers   d width   h heads
"""

import dataclasses

import torch

from bench import table
from tools.dry_run import cost, flops, parts
from transformer import SIZES, Size, Transformer
from vatt import PRESETS, VATT, Backbones, Config

# Table 1: one clip of Kinetics is seen 12 times, as 4 x 3 crops of 32 x 320 x 320; TFLOP.
TABLE_1 = {"Base": 9.09, "Medium": 15.02, "Large": 29.80, "MA-Medium": 15.02}
# Table 5: MBS, 32 x 224 x 224 video, 153,600 samples, 16 words, by drop rate; GFLOP.
TABLE_5 = {0.75: 188.1, 0.5: 375.4, 0.25: 574.2, 0.0: 784.8}
# Table 6: Medium, by frames, pixels and drop rate; GFLOP.
TABLE_6 = {(32, 224, 0.0): 548.1, (64, 224, 0.0): 1222.1, (32, 320, 0.75): 279.8, (32, 320, 0.5): 572.5,
           (32, 320, 0.25): 898.9, (32, 320, 0.0): 1252.3}
# Table 7: millions of parameters.
TABLE_7 = {"small": 20.9, "base": 87.9, "medium": 155.0, "large": 306.1}
VIEWS = 12


def flags(commands, common) -> None:
    """Adds the command line of `audit`"""
    commands.add_parser("audit", parents=[common], help="the paper's cost tables, counted again").set_defaults(run=run)


def run(_p, _args, _device: str) -> list[dict]:
    """`python -m bench audit`: prints the table, returns its rows"""
    print(report(found := rows()))
    return found


def profiled(size: Size, patches: int, p: int, drop: float = 0.0, training: bool = False) -> int:
    """FLOPs of one tower, forward, the paper's way: P patches of p numbers, a share `drop` of them dropped."""
    layers, d, d_mlp, heads = size
    n = 1 + patches - round(patches * drop)
    matmuls = 2 * patches * p * d + layers * (2 * n * (4 * d * d + 2 * d * d_mlp) + 2 * n * n * d)
    softmax = layers * heads * n * n * (1 + 5)                                      # scores are scaled first
    biases_and_gelu = layers * n * (5 * d + d_mlp + 3 * d_mlp) + patches * d
    norms = 7 * d * ((2 * layers + 1) * n + patches)                                # one also on the sum of positions
    dropped = layers * (heads * n * n + n * (2 * d + d_mlp)) + (n + patches) * d    # elements that dropout sees
    return matmuls + softmax + biases_and_gelu + norms + (3 * dropped if training else 0)


def video_patches(frames: int, pixels: int) -> int:
    """Patches of 4 x 16 x 16 voxels: 1568 for 32 frames of 224 pixels"""
    return frames // 4 * (pixels // 16) ** 2


def counted(config: Config, drop: float = 0.0) -> int:
    """FLOPs of our video tower, forward, batch 1, by torch's counter"""
    with torch.device("meta"), torch.no_grad():
        model, video = Backbones(config), torch.empty(1, config.frames, config.size, config.size, 3)
        return flops(lambda: model.video(video, drop, torch.empty(1, dtype=torch.long)))


def parameters_by_fit(size: Size) -> int:
    """The rule that rounds to all four figures of Table 7: encoder, video patches -> d -> 512 -> 256; found by search."""
    layers, d, d_mlp, _ = size
    return layers * (4 * d * d + 2 * d * d_mlp + 9 * d + d_mlp) + 2 * d + 4 * 16 * 16 * 3 * d + 512 * d + 512 * 256


def rows() -> list[dict]:
    """One a printed figure: table, row, unit, paper, paper's way, ours, and how far each is from the paper in percent."""
    found = []

    def add(table, row, unit, paper, again, ours):
        found.append({"table": table, "row": row, "unit": unit, "paper": paper,
                      "paper_way": again, "paper_way_diff": 100 * (again / paper - 1),
                      "ours": ours, "ours_diff": 100 * (ours / paper - 1)})

    patches = video_patches(32, 320)
    for name, paper in TABLE_1.items():
        size = SIZES[name.lower().removeprefix("ma-")]
        config = dataclasses.replace(PRESETS["ma" if "MA" in name else "bbs"], video=size, size=320)
        add("1", f"{name}, {VIEWS} views of 32x320x320", "TFLOP", paper, VIEWS * profiled(size, patches, 3072) / 1e12,
            VIEWS * counted(config) / 1e12)
    mbs = PRESETS["mbs"]
    for drop, paper in TABLE_5.items():
        # No sum of positions is normalised in the text tower, and words are looked up: 300 numbers a word are projected.
        again = (profiled(mbs.video, video_patches(32, 224), 3072, drop, training=True)
                 + profiled(mbs.audio, mbs.samples // 128, 128, drop, training=True)
                 + profiled(mbs.text, mbs.words, 300, training=True))
        add("5", f"MBS, one caption, {drop:.0%} dropped", "GFLOP", paper, again / 1e9,
            cost(dataclasses.replace(mbs, captions=1), (drop, drop))[0] / 1e9)
    for (frames, pixels, drop), paper in TABLE_6.items():
        again = profiled(mbs.video, video_patches(frames, pixels), 3072, drop, training=drop > 0)
        ours = counted(dataclasses.replace(mbs, frames=frames, size=pixels), drop)
        add("6", f"Medium, {frames}x{pixels}x{pixels}, {drop:.0%} dropped", "GFLOP", paper, again / 1e9, ours / 1e9)
    for name, paper in TABLE_7.items():
        with torch.device("meta"):
            encoder = sum(p.numel() for p in Transformer(SIZES[name]).parameters())
        add("7", f"{name.capitalize()}; ours: the encoder", "M", paper, parameters_by_fit(SIZES[name]) / 1e6, encoder / 1e6)
    return found


def report(found: list[dict]) -> str:
    """The table of `rows()`, and the parameters of every part of every preset"""
    number = lambda r, key, more: f"{r[key]:.{(2 if r['unit'] == 'TFLOP' else 1) + more}f}"
    cells = [[r["table"], r["row"], r["unit"], number(r, "paper", 0), number(r, "paper_way", 1),
              f"{r['paper_way_diff']:+.2f}%", number(r, "ours", 1), f"{r['ours_diff']:+.1f}%"] for r in found]
    with torch.device("meta"):
        sizes = [[preset, part, f"{n / 1e6:.3f} M"] for preset in PRESETS for part, n in parts(VATT(PRESETS[preset])).items()]
    cells = table(["table", "row", "unit", "paper", "paper’s way", "diff", "ours", "diff"], cells)
    return "\n\n".join([cells, "What contradicts what: docs/results.md", table(["preset", "part", "parameters"], sizes)])
