"""A TensorFlow checkpoint, read without TensorFlow.

`PREFIX.index` is a table in the format of LevelDB: blocks of (key, value) whose keys are names of variables, then a block that
says where those are, then 48 bytes that say where that is. A value is a protocol buffer with type, shape and place. The
numbers themselves lie in `PREFIX.data-00000-of-00001` and its sisters, which are mapped into memory, not read.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

MAGIC = bytes.fromhex("57fb808b247547db")
DTYPES = {1: torch.float32, 2: torch.float64, 14: torch.bfloat16, 19: torch.float16}  # TensorFlow's numbers of types


def read(prefix: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor in mapped memory, of all variables of floating point but the optimizer's slots.

    Raises ValueError, in one line, where the checkpoint is torn, compressed, of another format, or lacks a file.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    if not index.is_file():
        near = sorted(path.name.removesuffix(".index") for path in prefix.parent.glob("*.index"))
        raise ValueError(f"there is no {index}: name the checkpoint without its ending, "
                         + (f"here {' or '.join(near[:3])}" if near else "as in ckpt-500000"))
    table = index.read_bytes()
    if table[-8:] != MAGIC:
        raise ValueError(f"{index} is torn, or no checkpoint of TensorFlow 2: download it again")
    try:
        footer = io.BytesIO(table[-48:])
        varint(footer), varint(footer)                       # a block that TensorFlow leaves empty
        blocks = [value for _, value in entries(table, footer)]
        values = {key.decode(): fields(value) for block in blocks for key, value in entries(table, io.BytesIO(block))}
        shards = values.pop("").get(1, [1])[0]
        files = [prefix.with_name(f"{prefix.name}.data-{i:05}-of-{shards:05}") for i in range(shards)]
        if missing := [file for file in files if not file.is_file() or not file.stat().st_size]:
            raise ValueError(f"{missing[0]} is missing or empty: download it again")
        maps, tensors = [np.memmap(file, np.uint8, "c") for file in files], {}  # what is written there stays here
        for name, value in values.items():
            dtype, shard, offset, size = (value.get(field, [0])[0] for field in (1, 3, 4, 5))
            shape = [fields(side).get(1, [0])[0] for side in fields(value.get(2, [b""])[0]).get(2, [])]
            if dtype in DTYPES and size and ".OPTIMIZER_SLOT" not in name:
                try:
                    tensors[name] = torch.from_numpy(maps[shard][offset : offset + size]).view(DTYPES[dtype]).reshape(shape)
                except RuntimeError:
                    raise ValueError(f"{files[shard]} is torn: {name} is not whole in its {len(maps[shard])} bytes") from None
    except (IndexError, KeyError, TypeError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"{index} is torn ({type(e).__name__}): download it again") from None
    return tensors


def varint(stream: io.BytesIO) -> int:
    """The number that comes next: seven bits a byte, the lowest first, the eighth bit set but in the last"""
    byte = stream.read(1)[0]
    return byte if byte < 128 else byte - 128 + 128 * varint(stream)


def entries(table: bytes, handle: io.BytesIO) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of the block at this place; a key shares its beginning with the one before"""
    offset, size = varint(handle), varint(handle)
    if table[offset + size]:
        raise ValueError("the index is compressed, which TensorFlow's own never are: write the checkpoint again without")
    restarts = int.from_bytes(table[offset + size - 4 : offset + size], "little")
    block, key = io.BytesIO(table[offset : offset + size - 4 - 4 * restarts]), b""
    while block.tell() < len(block.getbuffer()):
        shared, rest, length = varint(block), varint(block), varint(block)
        key = key[:shared] + block.read(rest)
        yield key, block.read(length)


def fields(message: bytes) -> dict[int, list]:
    """A protocol buffer: number of a field -> its values, integers or bytes"""
    found, rest = {}, io.BytesIO(message)
    while rest.tell() < len(message):
        tag = varint(rest)
        kind = tag & 7
        value = varint(rest) if kind == 0 else rest.read(varint(rest) if kind == 2 else {1: 8, 5: 4}[kind])
        found.setdefault(tag >> 3, []).append(value)
    return found
