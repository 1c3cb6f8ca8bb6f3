"""safetensors files, which anyone can load without trusting them: https://github.com/huggingface/safetensors describes them.

Eight bytes hold the length of a header; the header, JSON, says type, shape and place of each tensor; then come their bytes.
"""

import json
from pathlib import Path

import numpy as np
import torch

from engine.run import Run, not_finite, read_checkpoint, write_whole

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
          "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes them whole or not at all, one after the other, so that no second copy of all stands in memory"""
    kinds, header, end = {dtype: kind for kind, dtype in DTYPES.items()}, {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)

    def content(file):
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())

    write_whole(path, content)


def read(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor in mapped memory; ValueError where the file is torn or of another kind"""
    try:
        data = np.memmap(path, np.uint8, "c")  # what is written there stays in this process
        begin = 8 + int.from_bytes(data[:8], "little")
        header, data, tensors = json.loads(data[8:begin].tobytes()), data[begin:], {}
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            tensors[name] = torch.from_numpy(data[start:end]).view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    except OSError as e:
        raise ValueError(f"{path} cannot be read ({e.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as e:
        raise ValueError(f"{path} is torn, or no safetensors file ({e})") from None
    if name := not_finite(tensors):
        raise ValueError(f"{path} holds weights that are not finite ({name})")
    return tensors


def folder(run: Path) -> Path:
    """The folder of a run, which may be named by its model.safetensors, best.pt or another checkpoint"""
    return run.parent if run.suffix in (".safetensors", ".pt") else run


def of_run(run: Path) -> dict[str, torch.Tensor]:
    """The weights of a run: of its newest checkpoint, else of its model.safetensors, or of the very file that is named.

    Raises ValueError where there is none.
    """
    if run.suffix == ".safetensors":
        return read(run)
    if run.suffix == ".pt":
        return read_checkpoint(run)["model"]
    if state := Run(run).newest():
        return state["model"]
    if (run / "model.safetensors").is_file():
        return read(run / "model.safetensors")
    raise ValueError(f"{run} holds no checkpoint that can be read: train it first, or name another run")


def share(model: torch.nn.Module, run: Path) -> None:
    """Writes the run's model.safetensors, in fp32; weights that two parts share stand in it once"""
    write(run / "model.safetensors", {name: w.detach().float() for name, w in model.state_dict().items()})
