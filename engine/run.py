"""The folder of a run: settings, log, checkpoints and results, written whole or not at all."""

import collections
import contextlib
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

CHECKPOINT = re.compile(r"checkpoint-([0-9]{8,})\.pt")


class Run:
    """The folder of a run: its settings, its log, its checkpoints. One process at a time may train in it."""

    def __init__(self, out: Path):
        self.out, self.events, self.lock = out, None, None

    def claim(self) -> None:
        """Make the folder, or take the one that is there, and hold it; ValueError where it is a file, not ours, or in use."""
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out {self.out} is a file: name a folder")
        names = {path.name for path in self.out.iterdir()} if self.out.is_dir() else set()
        if names and not names & {"config.json", ".lock"}:
            raise ValueError(f"--out {self.out} holds files but is no run (it has no config.json): name another folder")
        self.out.mkdir(parents=True, exist_ok=True)
        self.lock = lock(self.out / ".lock", f"--out {self.out}")
        if not self.began:  # new, or an attempt that never came to its first step
            shutil.rmtree(self.out / "index", ignore_errors=True)
            (self.out / "vocabulary.txt").unlink(missing_ok=True)

    def begin(self, settings: dict, may_differ: set[str]) -> None:
        """Claim the folder, if that is not done, to go on with its run; ValueError that names the settings that differ."""
        if not self.lock:
            self.claim()
        saved = self.read_config()["settings"] if (self.out / "config.json").is_file() else {}
        settings = json.loads(json.dumps(settings, default=str))
        differ = [k for k in settings if self.began and k not in may_differ and saved.get(k) != settings[k]]
        if differ:
            changes = ", ".join(f"--{k.replace('_', '-')} was {saved.get(k)} and is {settings[k]}" for k in differ)
            raise ValueError(f"--out {self.out} holds a run of other settings ({changes}): repeat its settings to go on, "
                             f"or name another folder")

    @property
    def began(self) -> bool:
        """Whether there is a run here that came to its first step"""
        return (self.out / "config.json").is_file() and (bool(self.checkpoints()) or any(self.rows()))

    def read_config(self) -> dict:
        """config.json: settings, model, versions; ValueError where it is torn or another program's"""
        config = read_json(self.out / "config.json")
        if not all(isinstance(config.get(key), dict) for key in ("settings", "model", "versions")):
            raise ValueError(f"{self.out / 'config.json'} is not of this program: name another folder")
        return config

    def describe(self, settings: dict, model: dict) -> None:
        """Writes config.json: the flags and the model"""
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        config = {"settings": settings, "model": model, "versions": versions}
        write_text(self.out / "config.json", json.dumps(config, indent=2, default=str) + "\n")

    def checkpoints(self) -> list[Path]:
        """All files of exactly this program's names, the newest first"""
        return sorted((path for path in self.out.glob("checkpoint-*.pt") if CHECKPOINT.fullmatch(path.name)), reverse=True)

    def save(self, step: int, state: dict, keep: int = 2, keep_every: int | None = None) -> bool:
        """Write checkpoint-STEP.pt, and delete all but the last `keep` and the multiples of `keep_every`; False as `write`."""
        if saved := self.write(f"checkpoint-{step:08d}.pt", {"step": step, **state}):
            for old in self.checkpoints()[keep:]:
                if not keep_every or int(CHECKPOINT.fullmatch(old.name)[1]) % keep_every:
                    old.unlink()
        return saved

    def write(self, name: str, state: dict) -> bool:
        """Write a checkpoint whole or not at all; False, with a warning, where the disk is full or weights are not finite."""
        try:
            if (wrong := not_finite(state["model"])) is not None:
                raise ValueError(f"{wrong} is not finite")
            write_whole(self.out / name, lambda file: torch.save(state, file))
        except (OSError, RuntimeError, ValueError) as e:  # torch turns "no space left" into a RuntimeError
            print(f"warning: {self.out / name} could not be written ({e}; {shutil.disk_usage(self.out).free / 1e6:.0f} MB are "
                  f"free); the last checkpoint remains", file=sys.stderr, flush=True)
            return False
        return True

    def newest(self) -> dict | None:
        """The newest checkpoint that can be read, on the CPU; None where there are none, ValueError where none can be read."""
        for path in self.checkpoints():
            try:
                return read_checkpoint(path)
            except ValueError as e:
                print(f"warning: {e}; trying the one before", file=sys.stderr, flush=True)
        if self.checkpoints():
            raise ValueError(f"{self.out} has checkpoints, but none can be read: remove them, or name another folder")
        return None

    def forget(self, step: int) -> None:
        """Remove what lies past `step`, which will be made again: rows of the log, and checkpoints that cannot be read."""
        for path in self.checkpoints():
            if int(CHECKPOINT.fullmatch(path.name)[1]) > step:
                path.unlink()
        write_text(self.out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows() if row["step"] < step))

    def blame(self, path: str) -> str:
        """Record that a worker died or hung over this file; what that means, for the user"""
        with open(self.out / "deaths.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"path": path, "time": time.strftime("%F %T")}) + "\n")
        return "the same command goes on" + (" without that file" if path in self.killers() else "; a second time, without it")

    def killers(self) -> frozenset[str]:
        """The files over which workers have died or hung twice: they are left out from the next start on"""
        deaths = collections.Counter(row.get("path") for row in read_rows(self.out / "deaths.jsonl"))
        return frozenset(path for path, n in deaths.items() if n >= 2)

    def log(self, row: dict) -> None:
        """Appends one JSON object to metrics.jsonl, and its numbers to TensorBoard's events where that is installed"""
        with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.events is None and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(str(self.out / "events"), purge_step=row["step"])
        if self.events:
            flat = {f"{k}/{name}": v for k, part in row.items() if isinstance(part, dict) for name, v in part.items()}
            for name, value in {**row, **flat}.items():
                if isinstance(value, (int, float)):
                    self.events.add_scalar(name, value, row["step"])

    def rows(self) -> Iterator[dict]:
        """The rows of metrics.jsonl"""
        return (row for row in read_rows(self.out / "metrics.jsonl") if isinstance(row.get("step"), int))

    def results(self) -> dict:
        """results.json, empty before the run has come to its end; ValueError where it is torn"""
        path = self.out / "results.json"
        return read_json(path) if path.exists() else {}

    def add_results(self, results: dict) -> None:
        """Writes these keys of results.json and leaves the others"""
        write_text(self.out / "results.json", json.dumps({**self.results(), **results}, indent=2) + "\n")


def lock(path: Path, what: str, wait: bool = False):
    """The open file of a lock that ends with the process; ValueError where another process has it, and `wait` is False."""
    file = open(path, "a+")  # noqa: SIM115  held until it is closed, or the process ends
    try:
        with contextlib.suppress(ImportError):  # Windows has no such locks
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))  # lockf: loader workers do not inherit it
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise ValueError(f"{what} is in use by {file.read() or 'another'}: wait for it, or name another folder") from None
    except OSError as e:
        print(f"warning: {what} cannot be locked ({e}): see that no other process writes there", file=sys.stderr)
    file.truncate(0)
    print(f"process {os.getpid()} on {platform.node()}", end="", file=file, flush=True)
    return file


def write_whole(path: Path, write) -> None:
    """Calls `write(file)` on a temporary file, syncs it and renames it: a kill leaves the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # Windows, and some disks of networks, do not sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def read_json(path: Path) -> dict:
    """The object in a file; ValueError where the file is torn or holds something else"""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is torn or not of this program: move it away, or name another folder")
    return content


def read_rows(path: Path) -> Iterator[dict]:
    """The objects of a file of JSON lines, but for those that a kill or a hand has broken; none where there is no file"""
    if path.is_file():
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError, RecursionError):
                    if isinstance(row := json.loads(line), dict):
                        yield row


def write_text(path: Path, text: str) -> None:
    """UTF-8, whole or not at all"""
    write_whole(path, lambda file: file.write(text.encode("utf-8", "replace")))


def read_checkpoint(path: Path) -> dict:
    """{"step", "model", ...}; ValueError in one line where the file is torn, altered, or holds more than tensors and values."""
    try:
        check_zip(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not all(map(torch.is_tensor, state["model"].values())):
            raise ValueError("its weights are no tensors")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except Exception as e:
        why = (str(e).splitlines() or [type(e).__name__])[0][:200]
        raise ValueError(f"{path} is no readable checkpoint ({why})") from None
    if (name := not_finite(state["model"])) is not None:
        raise ValueError(f"{path} holds weights that are not finite ({name}): name a run whose training went well")
    return state


def check_zip(path: Path) -> None:
    """ValueError where the parts of a zip are compressed, take more room than the file, or fail their checksums"""
    with zipfile.ZipFile(path) as parts:  # neither torch nor numpy writes the former, nor looks at the latter
        infos = parts.infolist()
        if any(part.compress_type for part in infos) or sum(part.file_size for part in infos) > path.stat().st_size or (
                parts.testzip() is not None):
            raise ValueError("compressed, or a checksum is wrong")


def not_finite(weights: dict[str, torch.Tensor]) -> str | None:
    """The name of the first of the weights that is not finite"""
    return next((name for name, w in weights.items() if w.is_floating_point() and not torch.isfinite(w).all()), None)


def load_weights(module: torch.nn.Module, weights: dict, where: str) -> None:
    """Loads all of them; raises as `check_weights`."""
    check_weights(module, weights, where)
    module.load_state_dict(weights)


def check_weights(module: torch.nn.Module, weights: dict, where: str) -> None:
    """ValueError that lists what is missing, left over, or of another shape, where they are not those of the module"""
    own, theirs = ({name: tuple(w.shape) for name, w in state.items()} for state in (module.state_dict(), weights))
    lines = [f"{name} is {theirs.get(name, 'missing')}, the model has {own.get(name, 'none')}"
             for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
    if lines:
        more = f" and {len(lines) - 6} more" if len(lines) > 6 else ""
        raise ValueError(f"{where} holds another model: {'; '.join(lines[:6])}{more}; use the --preset and flags of that run")
