"""Scores, each a small function that says what it counts (Section 4.2.4)."""

import torch
import torch.nn.functional as F

import augment
from data import to_device
from metrics import classification_metrics, retrieval_chance, retrieval_metrics  # noqa: F401
from subtitles import printable

TASKS = ("text_to_video", "video_to_audio", "audio_to_video")


@torch.no_grad()
def retrieval(model, loader, processes, precision: str) -> dict:
    """Retrieval among the held-out clips, each clip's nearest caption as the query; a pool holds the clips that have both.

    loader: batches of `data.held_out_loader`, each process its own; every clip counts once with any number of processes.
    """
    model.eval()
    rows, failed = [], []
    for batch, bad in loader:
        failed += bad
        if batch is None:
            continue
        batch = to_device(batch, processes.device)
        dtype = model.heads.dtype
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=precision == "bf16"):
            z = model(augment.augment(batch["video"], None, None).to(dtype), batch["audio"].to(dtype), batch["text"][:, :1])
        z_v_va, z_a_va, z_v_vt, z_t_vt = model.project(*z)
        z_t_vt = z_t_vt[:, 0]
        vectors = ([row.clone() for row in x.float().cpu()] for x in (z_v_va, z_a_va, z_v_vt, z_t_vt))  # not views of a batch
        rows += list(zip(*vectors, batch["has_audio"].tolist(), batch["has_text"][:, 0].tolist(), batch["path"], strict=True))
    model.train()
    rows = sorted((row for part in processes.collect(rows) for row in part), key=lambda row: row[-1])
    results = {"unreadable": sorted(pair for part in processes.collect(failed) for pair in part)}
    sounding, captioned = [r for r in rows if r[4]], [r for r in rows if r[5]]
    for name, pool, query, item in zip(TASKS, (captioned, sounding, sounding), (3, 0, 1), (2, 1, 0), strict=True):
        n = len(pool)
        similarity = torch.zeros(0, 0)
        if n:
            q, i = (F.normalize(torch.stack([row[x] for row in pool]), dim=1) for x in (query, item))
            similarity = q @ i.T
        results[name] = {**retrieval_metrics(similarity), "chance": retrieval_chance(n)}
    return results


def table(results: dict, beside: dict[str, dict]) -> str:
    """Scores in percent beside chance and, for the demo, beside what knowing a part of the attributes would give"""
    lines = [f"{'held-out retrieval':30}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MedR':>7}{'N':>6}"]
    row = lambda name, s, n="": f"{name:30}" + "".join(
        f"{100 * s[k]:7.1f}" if k in s else f"{'':7}" for k in ("R@1", "R@5", "R@10")) + f"{s.get('MedR', ''):>7}{n:>6}"
    for name in TASKS:
        if results[name]["N"]:
            lines.append(row(name.replace("_", " "), results[name], results[name]["N"]))
            lines.append(row("  chance", results[name]["chance"]))
        else:
            lines.append(f"{name.replace('_', ' '):30}  no held-out clip has both (--val names others)")
    for name, scores in beside.items():
        lines.append(row(f"  knowing {name} alone", scores))
    if results["unreadable"]:
        named = "; ".join(f"{printable(path)}: {reason}" for path, reason in results["unreadable"][:5])
        lines.append(f"{len(results['unreadable'])} held-out clips could not be read and are not in the pools, first {named}")
    return "\n".join(lines)
