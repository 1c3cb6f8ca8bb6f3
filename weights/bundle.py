"""A TensorFlow checkpoint, read without TensorFlow.

`PREFIX.index` is a table in the format of LevelDB: blocks of (key, value) whose keys are names of variables, then a block that
says where those are, then 48 bytes that say where that is. A value is a protocol buffer with type, shape and place. The
numbers themselves lie in `PREFIX.data-00000-of-00001` and its sisters, which are mapped into memory, not read.
"""

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

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
        footer = Bytes(table, len(table) - 48)
        footer.varint(), footer.varint()                     # a block that TensorFlow leaves empty
        blocks = [value for _, value in entries(table, footer)]
        values = {key.decode(): fields(value) for block in blocks for key, value in entries(table, Bytes(block))}
        shards = values.pop("").get(1, [1])[0]
        files = [prefix.with_name(f"{prefix.name}.data-{i:05}-of-{shards:05}") for i in range(shards)]
        maps = [mapped(file) for file in files]
        tensors = {}
        for name, value in values.items():
            dtype, shard, offset, size = (value.get(field, [0])[0] for field in (1, 3, 4, 5))
            shape = [fields(side).get(1, [0])[0] for side in fields(value.get(2, [b""])[0]).get(2, [])]
            if dtype not in DTYPES or not size or ".OPTIMIZER_SLOT" in name:
                continue
            dtype, count = DTYPES[dtype], math.prod(shape)
            if offset + size > len(maps[shard]) or size != count * dtype.itemsize:
                raise ValueError(f"{files[shard]} is torn: {name} is not whole in its {len(maps[shard])} bytes")
            tensors[name] = torch.frombuffer(maps[shard], dtype=dtype, count=count, offset=offset).reshape(shape)
    except (IndexError, KeyError, TypeError, UnicodeDecodeError) as e:
        raise ValueError(f"{index} is torn ({type(e).__name__}): download it again") from None
    return tensors


def mapped(path: Path) -> mmap.mmap:
    """The file as memory; what is written there stays in this process. ValueError where it is missing or empty"""
    if not path.is_file() or not path.stat().st_size:
        raise ValueError(f"{path} is missing or empty: download it again")
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


class Bytes:
    """Bytes, read from the front"""

    def __init__(self, data: bytes, at: int = 0):
        self.data, self.at = data, at

    def take(self, n: int) -> bytes:
        """The next n of them"""
        self.at += n
        return self.data[self.at - n : self.at]

    def varint(self) -> int:
        """A number: seven bits a byte, the lowest first, the eighth bit set but in the last"""
        value = shift = 0
        while True:
            byte = self.data[self.at]
            value, shift, self.at = value | (byte & 127) << shift, shift + 7, self.at + 1
            if byte < 128:
                return value


def entries(table: bytes, handle: Bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of the block at this place; a key shares its beginning with the one before"""
    offset, size = handle.varint(), handle.varint()
    if table[offset + size]:
        raise ValueError("the index is compressed, which TensorFlow's own never are: write the checkpoint again without")
    block = Bytes(table[offset : offset + size])
    key, end = b"", size - 4 - 4 * int.from_bytes(block.data[-4:], "little")
    while block.at < end:
        shared, rest, length = block.varint(), block.varint(), block.varint()
        key = key[:shared] + block.take(rest)
        yield key, block.take(length)


def fields(message: bytes) -> dict[int, list]:
    """A protocol buffer: number of a field -> its values, integers or bytes"""
    found, rest = {}, Bytes(message)
    while rest.at < len(message):
        tag = rest.varint()
        kind = tag & 7
        value = rest.varint() if kind == 0 else rest.take(rest.varint() if kind == 2 else {1: 8, 5: 4}[kind])
        found.setdefault(tag >> 3, []).append(value)
    return found
