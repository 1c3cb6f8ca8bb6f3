"""The processes of a run, as `torchrun` sets them up, and what they tell each other."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist


class Processes:
    """The processes of this run, as `torchrun` set them up, or one alone; CUDA with nccl where there is a GPU, else gloo."""

    def __init__(self, timeout_s: float = 600):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
            self.patient = dist.new_group(backend="gloo", timeout=timedelta(hours=12))  # while the first one lists the data

    @property
    def first(self) -> bool:
        """True on the one process that writes files and speaks"""
        return self.rank == 0

    def print(self, *text) -> None:
        """On the first process only"""
        if self.first:
            print(*text, flush=True)

    def wait(self) -> None:
        """Until all processes are here"""
        if self.world > 1:
            dist.barrier(self.patient)

    def sum(self, *numbers: float) -> list[float]:
        """The sums over all processes; through their CPUs, so that nobody waits for a GPU"""
        if self.world == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total, group=self.patient)
        return total.tolist()

    def add(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over all processes of a tensor on the device, in place, without gradient"""
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def collect(self, thing) -> list:
        """What each process has, in the order of ranks; anything that pickles, for rare use"""
        if self.world == 1:
            return [thing]
        things = [None] * self.world
        dist.all_gather_object(things, thing, self.patient)
        return things

    def gather(self, z: torch.Tensor) -> torch.Tensor:
        """The rows of all processes, with gradient: (b, ...) -> (world b, ...); see `Gather`"""
        return Gather.apply(z, self.rank, self.world) if self.world > 1 else z

    def alone(self) -> bool:
        """Ends the group; True on the first process, which goes on as if there were no other"""
        self.end()
        first, self.rank, self.world = self.first, 0, 1
        return first

    def end(self) -> None:
        """Leave the group, so that no process waits for this one"""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


class Gather(torch.autograd.Function):
    """All rows forward; backward, the gradients that all processes have for a process's own rows, added up.

    Every process scores its own rows of the loss, times the number of processes: that undoes the mean over processes which
    DistributedDataParallel takes.
    """

    @staticmethod
    def forward(ctx, z, rank, world):
        ctx.rank, ctx.world = rank, world
        rows = [torch.empty_like(z) for _ in range(world)]
        dist.all_gather(rows, z.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)  # gloo has no reduce-scatter; the vectors are few and short
        return gradient.chunk(ctx.world)[ctx.rank], None, None
