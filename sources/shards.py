"""Clips in plain tar files of about 1 GB: few large files, which any file system, copy or program for tars gets along with.

    OUT/shard-000000.tar    000000000.mp4     a clip; numbered as in the index, through all shards
                            000000000.json    path, start and end in it (s), captions as [start, end, text], s in the clip
    OUT/index/              what training reads (`index.py`), also which bytes of which shard are row i, and their CRC-32
    OUT/pack.json           how they were packed (`pack.py`)

A clip is read where it lies (`decode.Media` takes an offset and a size): nothing is ever unpacked, and no name in a tar is
believed. Shards are plain enough for WebDataset, too.
"""

import contextlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from sources.index import SHARD, Place

BLOCK = 1 << 20


class Writer:
    """Appends clips to the shards of a folder, and begins another past `limit` bytes; for use in a `with`.

    It goes on behind byte `end` of `shard`, and what lies there from an attempt that was killed is written over.
    """

    def __init__(self, folder: Path, limit: float, shard: int = 0, end: int = 0):
        self.folder, self.limit, self.shard, self.end, self.file = folder, limit, shard, end, None
        whole = self.folder / SHARD.format(shard)
        if whole.exists():
            whole.rename(self.partial)
        for later in sorted(folder.glob("shard-*.tar*")):
            if later.name > self.partial.name:
                later.unlink()
        self.open()

    @property
    def partial(self) -> Path:
        """A shard has its name only when it is whole"""
        return self.folder / (SHARD.format(self.shard) + ".partial")

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_):
        self.file.close()

    def open(self) -> None:
        """Opens the shard at `end`"""
        self.file = open(self.partial, "r+b" if self.partial.exists() else "w+b")  # noqa: SIM115  closed by the `with`
        self.file.truncate(self.end)
        self.file.seek(self.end)

    def add(self, number: int, film: Path, said: dict) -> tuple[Place, Place]:
        """Appends the file `film` as clip `number`, and what is said of it -> the places of both"""
        text, size = (json.dumps(said) + "\n").encode(), film.stat().st_size
        if self.end and self.end + size + len(text) > self.limit:
            self.close()
            self.shard, self.end = self.shard + 1, 0
            self.open()
        with film.open("rb") as content:
            places = (self.member(f"{number:09d}{film.suffix.lower()}", content, size),
                      self.member(f"{number:09d}.json", io.BytesIO(text), len(text)))
        self.file.flush()
        self.end = self.file.tell()
        return places

    def member(self, name: str, content, size: int) -> Place:
        """A header, `size` bytes of `content`, and zeros up to the next 512"""
        info = tarfile.TarInfo(name)
        info.size = size
        self.file.write(info.tobuf())
        offset, crc = self.file.tell(), 0
        for block in iter(lambda: content.read(BLOCK), b""):
            crc = zlib.crc32(block, crc)
            self.file.write(block)
        if self.file.tell() != offset + size:
            raise OSError(f"{name} changed while it was read")
        self.file.write(bytes(-size % tarfile.BLOCKSIZE))
        return Place(self.shard, crc, offset, size)

    def sync(self) -> None:
        """All that was added is on the disk"""
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Ends the shard and gives it its name"""
        end = self.file.tell() + 2 * tarfile.BLOCKSIZE
        self.file.write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
        self.sync()
        self.file.close()
        self.partial.rename(self.folder / SHARD.format(self.shard))


def checksum(path: Path, offset: int = 0, size: int | None = None) -> int:
    """The CRC-32 of a part of a file; of what there is of it, where it is too short"""
    crc, left = 0, float("inf") if size is None else size
    with path.open("rb") as file:
        file.seek(offset)
        while left and (block := file.read(min(BLOCK, left) if size is not None else BLOCK)):
            crc, left = zlib.crc32(block, crc), left - len(block)
    return crc


def damaged(path: Path, places: Iterable[Place]) -> list[Place]:
    """Those of `places`, all in the shard `path`, whose bytes on the disk have another checksum"""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError), path.open("rb") as file:  # from the disk, not from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return [place for place in places if checksum(path, place.offset, place.size) != place.crc]
