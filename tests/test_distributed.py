"""W processes compute what one computes: gloo on the CPU, fp64, no dropout, DropToken on; every gradient and buffer."""

import dataclasses
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import vatt
from pretrain import forward
from training import Processes
from transformer import Size

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


def one_step(processes, shared, text, sound):
    """-> loss, gradients by name, buffers by name, after one forward and backward on this process's part of the batch"""
    torch.manual_seed(0)
    model = vatt.VATT(dataclasses.replace(CONFIG, shared=shared)).double()
    backbones = model.backbones
    if processes.world > 1:
        backbones = DistributedDataParallel(backbones, gradient_as_bucket_view=True)
    mine = slice(processes.rank * 8 // processes.world, (processes.rank + 1) * 8 // processes.world)
    part = {k: v[mine] for k, v in batch(text, sound).items()}
    loss, _ = forward(model, backbones, part, (0.5, 0.5), processes)
    loss.backward()
    return loss.detach(), {k: p.grad for k, p in model.named_parameters()}, dict(model.named_buffers())


CASES = [(False, text, "everywhere") for text in TEXTS] + [(True, "here and there", "everywhere"),
                                                           (False, "everywhere", "on one process only")]


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


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"text {t}, sound {s}, shared {m}" for m, t, s in CASES])
def test_two_processes_compute_what_one_computes(two_processes, case):
    loss, gradients, buffers = one_step(Processes(), *CASES[case])
    for rank in range(2):
        its_loss, its_gradients, its_buffers = two_processes[rank][case]
        assert abs(its_loss - loss) < 1e-9
        assert its_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert gradient is not None, f"{name} has no gradient"
            assert (its_gradients[name] - gradient).abs().max() < 1e-9, name
        for name, buffer in buffers.items():
            assert (its_buffers[name] - buffer).abs().max() < 1e-9, name


def test_the_gradients_compared_are_not_zero(two_processes):
    gradients = two_processes[0][0][1]
    assert all(g.abs().max() > 0 for g in gradients.values())


def test_without_any_text_the_text_model_gets_zero_gradients_and_nothing_is_nan(two_processes):
    _, gradients, _ = two_processes[0][CASES.index((False, "nowhere", "everywhere"))]
    assert all(g.isfinite().all() for g in gradients.values())
    assert not any(g.any() for name, g in gradients.items() if "text" in name or "t_to_vt" in name or "W_tp" in name)
