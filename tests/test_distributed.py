"""W processes compute what one computes, and chunks what the whole batch computes: every gradient and buffer.

gloo on the CPU, fp64, DropToken on; no dropout, because its choices depend on the process and the chunk.
"""

import dataclasses
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import vatt
from engine.processes import Processes
from pretrain import Step
from transformer import Size, Transformer

SMALL = Size(2, 32, 64, 2)
CONFIG = vatt.Config(SMALL, SMALL, SMALL, frames=4, size=16, patch=(2, 8, 8), rate=8000, vocabulary=20, words=4,
                     d_va=16, d_vt=8, dropout=0.0)
TEXTS = {
    "everywhere": torch.ones(8, 5, dtype=torch.bool),
    "here and there": torch.rand(8, 5, generator=torch.Generator().manual_seed(3)) < 0.4,
    "on one process only": torch.arange(8)[:, None].expand(8, 5) >= 5,
    "of one caption": (torch.arange(40) == 17).view(8, 5),
    "nowhere": torch.zeros(8, 5, dtype=torch.bool),
}
SOUNDS = {"everywhere": torch.ones(8, dtype=torch.bool), "on one process only": torch.arange(8) < 3}


def batch(text, sound):
    """Eight clips, the same whoever asks"""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 20, (8, 5, 4), generator=g) * TEXTS[text][..., None]
    return {"video": torch.randint(0, 256, (8, 4, 16, 16, 3), generator=g, dtype=torch.uint8),
            "audio": torch.rand(8, CONFIG.samples, generator=g, dtype=torch.float64), "text": ids,
            "has_text": TEXTS[text], "has_audio": SOUNDS[sound], "flip": torch.rand(8, generator=g) < 0.5,
            "colour": torch.zeros(8, 5), "keys": torch.randint(2**60, (8, 2), generator=g)}


def one_step(processes, shared, text, sound, chunk=None, **settings):
    """-> loss, gradients by name, buffers by name, after one forward and backward on this process's part of the batch"""
    torch.manual_seed(0)
    model = vatt.VATT(dataclasses.replace(CONFIG, shared=shared, **settings)).double()
    mine = slice(processes.rank * 8 // processes.world, (processes.rank + 1) * 8 // processes.world)
    part = {k: v[mine] for k, v in batch(text, sound).items()}
    parts = Step(model, processes, (0.5, 0.5), chunk)(part, step=3)
    return parts["loss"], {k: p.grad.clone() for k, p in model.named_parameters()}, dict(model.named_buffers())


#         shared backbone, text, sound, chunk
CASES = [*((False, text, "everywhere", None) for text in TEXTS),
         (True, "here and there", "everywhere", None), (False, "everywhere", "on one process only", None),
         (False, "here and there", "everywhere", 2), (True, "here and there", "on one process only", 3),
         (False, "on one process only", "everywhere", 1)]


def work(rank, world, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    os.environ["MASTER_PORT"] = (folder / "port").read_text()
    processes = Processes(timeout_s=60)
    torch.save([one_step(processes, *case) for case in CASES], folder / f"{rank}.pt")
    dist.barrier()
    processes.end()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    import socket

    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (folder / "port").write_text(str(free.getsockname()[1]))
    mp.spawn(work, (2, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def same(one, other):
    """Loss, every gradient and every buffer to 1e-9"""
    assert abs(one[0] - other[0]) < 1e-9
    for mine, its in zip(one[1:], other[1:], strict=True):
        assert mine.keys() == its.keys()
        assert all((mine[k] - its[k]).abs().max() < 1e-9 for k in mine)


@pytest.mark.parametrize("case", range(len(CASES)),
                         ids=[f"text {t}, sound {s}, shared {m}, chunk {c}" for m, t, s, c in CASES])
def test_two_processes_compute_what_one_computes(two_processes, case):
    alone = one_step(Processes(), *CASES[case][:3])
    for rank in range(2):
        same(alone, two_processes[rank][case])


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("shared", [False, True])
def test_chunks_give_the_gradients_of_the_whole_batch(shared, chunk):
    whole = one_step(Processes(), shared, "here and there", "on one process only")
    same(whole, one_step(Processes(), shared, "here and there", "on one process only", chunk))


def test_with_dropout_chunks_equal_one_graph_through_the_same_chunk_forwards():
    torch.manual_seed(0)
    model = vatt.VATT(dataclasses.replace(CONFIG, dropout=0.3)).double()
    step, clips = Step(model, Processes(), (0.5, 0.5), chunk=3), batch("everywhere", "everywhere")
    step(clips, step=3)
    chunked = {k: p.grad.clone() for k, p in model.named_parameters()}
    model.zero_grad()
    parts = [step.encode({k: v[i : i + 3] for k, v in clips.items()}, 3, i) for i in (0, 3, 6)]
    loss, _ = step.contrast(*map(torch.cat, zip(*parts, strict=True)), clips["has_audio"], clips["has_text"])
    loss.backward()
    assert all((chunked[k] - p.grad).abs().max() < 1e-9 for k, p in model.named_parameters())
    model.zero_grad()
    step(clips, step=4)
    assert any((chunked[k] - p.grad).abs().max() > 1e-6 for k, p in model.named_parameters()), "dropout did nothing"


def test_recomputed_activations_give_the_same_gradients_with_dropout_too():
    kept, again = [], []
    for recompute, out in ((False, kept), (True, again)):
        torch.manual_seed(0)
        model = vatt.VATT(dataclasses.replace(CONFIG, dropout=0.3)).double()
        for transformer in (m for m in model.modules() if isinstance(m, Transformer)):
            transformer.recompute = recompute
        Step(model, Processes(), (0.5, 0.5))(batch("everywhere", "everywhere"), step=0)
        out += [p.grad for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_the_gradients_compared_are_not_zero(two_processes):
    gradients = two_processes[0][0][1]
    assert all(g.abs().max() > 0 for g in gradients.values())


def test_without_any_text_the_text_model_gets_zero_gradients_and_nothing_is_nan(two_processes):
    _, gradients, _ = two_processes[0][CASES.index((False, "nowhere", "everywhere", None))]
    assert all(g.isfinite().all() for g in gradients.values())
    assert not any(g.any() for name, g in gradients.items() if "text" in name or "t_to_vt" in name or "W_tp" in name)
