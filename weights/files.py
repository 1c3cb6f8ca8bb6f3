"""safetensors files, which anyone can load without trusting them: https://github.com/huggingface/safetensors describes them.

Eight bytes hold the length of a header; the header, JSON, says type, shape and place of each tensor; then come their bytes.
"""

import json
import math
import mmap
from pathlib import Path

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
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        begin = 8 + int.from_bytes(data[:8], "little")
        tensors = {}
        for name, entry in json.loads(data[8:begin]).items():
            if name != "__metadata__":
                dtype, shape, (start, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
                if not 0 <= start <= end <= len(data) - begin or end - start != math.prod(shape) * dtype.itemsize:
                    raise ValueError(f"{name} is not whole")
                part = torch.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=begin + start) if end > start else []
                tensors[name] = torch.as_tensor(part, dtype=dtype).reshape(shape)
    except OSError as e:
        raise ValueError(f"{path} cannot be read ({e.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as e:
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
