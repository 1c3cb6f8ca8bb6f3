"""The processes of a run, as `torchrun` sets them up: what they tell each other, and how one of them is told to stop."""

import atexit
import contextlib
import os
import signal
import time
from datetime import timedelta

import torch
import torch.distributed as dist

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class Stopped(BaseException):
    """A signal has asked the run to save and leave, while it waited for something."""


class GracefulShutdown:
    """A first signal (of torchrun, Slurm, a terminal) asks the loop to save and leave; a second Ctrl-C leaves at once."""

    def __init__(self, speaks: bool = True):
        self.code, self.asked, self.speaks = 0, 0.0, speaks
        heard = [s for s in SIGNALS if s == signal.SIGINT or signal.getsignal(s) != signal.SIG_IGN]  # nohup: a hang-up is not
        self.before = {s: signal.signal(s, self.handle) for s in heard}

    def end(self) -> None:
        """Let signals do again what they did before: nothing is left to save."""
        for s, handler in self.before.items():
            signal.signal(s, handler)

    def handle(self, number, _frame) -> None:
        """Set a flag, no more: a checkpoint needs the end of a step."""
        # torchrun and the terminal may both send the first one, and torchrun sends SIGTERM again to those that still save.
        if self.code and number == signal.SIGINT and time.monotonic() - self.asked > 0.2:
            os._exit(128 + number)
        if not self.code:
            self.code, self.asked = 128 + number, time.monotonic()
            with contextlib.suppress(OSError):
                if self.speaks:
                    os.write(2, b"\nsaving after this step; Ctrl-C again leaves at once\n")


class Processes:
    """The processes of this run, as `torchrun` set them up, or one alone; CUDA with nccl where there is a GPU, else gloo.

    timeout_s: seconds that one waits for another. solo: this process by itself, also where there are others.
    """

    def __init__(self, timeout_s: float = 600, solo: bool = False):
        self.rank, self.world = (0, 1) if solo else (int(os.environ.get(k, n)) for k, n in (("RANK", 0), ("WORLD_SIZE", 1)))
        self.timeout_s, self.shutdown, self.meetings, self.beaten = timeout_s, None, 0, 0.0
        self.local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes on this machine
        local = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1:
            timeout = timedelta(seconds=timeout_s)
            store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
            # torchrun keeps one store for all its attempts: without a prefix, a new one finds the addresses of the dead.
            self.store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            self.store.set(f"alive-{self.rank}", "0")
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", store=self.store, rank=self.rank,
                                    world_size=self.world, timeout=timeout)
            self.cpu = dist.new_group(backend="gloo", timeout=timeout)
            self.patient = dist.new_group(backend="gloo", timeout=timedelta(hours=12))
            # After an error, too: a thread of gloo's that outlives Python aborts the process. nccl might wait for failed peers.
            atexit.register(self.end, gloo_only=self.device.type == "cuda")

    @property
    def first(self) -> bool:
        """True on the one process that writes files and speaks"""
        return self.rank == 0

    def print(self, *text) -> None:
        """Print on the first process only."""
        if self.first:
            print(*text, flush=True)

    def wait(self) -> None:
        """Wait until all processes are here, for hours if need be: while the first one lists the data."""
        if self.world > 1:
            dist.barrier(self.patient)

    def sum(self, *numbers: float) -> list[float]:
        """The sums over all processes; through their CPUs, so that nobody waits for a GPU"""
        if self.world == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total, group=self.cpu)
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
        dist.all_gather_object(things, thing, self.cpu)
        return things

    def gather(self, z: torch.Tensor) -> torch.Tensor:
        """The rows of all processes, with gradient: (b, ...) -> (world b, ...).

        Backward, the gradients that all processes have for a process's own rows are added up: each scores its own rows of the
        loss, times the number of processes, which undoes the mean over processes that DistributedDataParallel takes.
        """
        if self.world == 1:
            return z
        rows = [torch.empty_like(z) for _ in range(self.world)]
        dist.all_gather(rows, z.detach().contiguous())
        rows[self.rank] = z
        z = torch.cat(rows)
        if z.requires_grad:
            z.register_hook(lambda gradient: self.add(gradient.clone()))  # gloo has no reduce-scatter; the vectors are short
        return z

    def agree(self, what: dict[str, object]) -> None:
        """Raise ValueError that names the first of these values which another process has otherwise."""
        first, *others = self.collect(what)
        for rank, theirs in enumerate(others, 1):
            for name in (name for name in first if first[name] != theirs[name]):
                raise ValueError(f"{name} is {theirs[name]} on process {rank} and {first[name]} on process 0: start all alike")

    def asked_to_stop(self) -> bool:
        """True once a signal has come to this process"""
        return bool(self.shutdown and self.shutdown.code)

    def alive(self) -> None:
        """Show those that wait in `meet` that this process works; once a second is enough."""
        if self.world > 1 and time.monotonic() - self.beaten > 1:
            self.beaten = time.monotonic()
            self.store.set(f"alive-{self.rank}", str(self.beaten))

    def meet(self) -> None:
        """Wait for the others at the end of work that takes each its own time; Stopped on all where one was asked to stop.

        RuntimeError where one that is not here has not called `alive` for --timeout seconds.
        """
        stop = self.asked_to_stop()
        if self.world > 1:
            self.meetings += 1
            here, seen = [f"meeting-{self.meetings}-{rank}" for rank in range(self.world)], {}
            self.store.set(here[self.rank], str(int(stop)))
            while late := [rank for rank in range(self.world) if not self.store.check([here[rank]])]:
                for rank in late:
                    sign, now = self.store.get(f"alive-{rank}"), time.monotonic()
                    if now - seen.setdefault((rank, sign), now) > self.timeout_s:
                        raise RuntimeError(f"process {rank} has not shown that it works for {self.timeout_s:g} s (--timeout)")
                time.sleep(0.05)
            stop = any(self.store.get(key) == b"1" for key in here)
        if stop:
            raise Stopped

    def alone(self) -> bool:
        """End the group; True on the first process, which goes on as if there were no other."""
        self.end()
        self.world = 1
        return self.first

    def end(self, gloo_only: bool = False) -> None:
        """Leave the groups, or those of gloo only, so that no process waits for this one."""
        if self.world > 1 and self.cpu:
            for group in (self.cpu, self.patient):
                dist.destroy_process_group(group)
            self.cpu = self.patient = None  # the threads of a group live as long as it does
            if not gloo_only:
                dist.destroy_process_group()
