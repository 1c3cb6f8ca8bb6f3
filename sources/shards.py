"""Clips in plain tar files of about 1 GB: few large files, which any file system, copy or program for tars gets along with.

    OUT/shard-000000.tar    000000000.mp4     a clip; numbered as in the index, through all shards
                            000000000.json    path, start and end in it (s), captions as [start, end, text], s in the clip
    OUT/index/              what training reads (`index.py`), also which bytes of which shard are row i, and their CRC-32
    OUT/pack.json           how they were packed (`pack.py`)

A clip is read where it lies (`media.Media` takes an offset and a size): nothing is ever unpacked, and no name in a tar is
believed. Shards are plain enough for WebDataset, too.
"""

import contextlib
import io
import os
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

from sources.index import SHARD, Place


class Shard:
    """A shard that is being written. It has its name only when it is whole: after `close`."""

    def __init__(self, folder: Path, number: int):
        self.number, self.path, self.places = number, folder / SHARD.format(number), []
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.tar = tarfile.open(self.partial, "w")  # noqa: SIM115  closed by `close`

    def add(self, number: int, clip: Path, text: bytes) -> Place:
        """Appends the file `clip`, the clip of that number, and the `text` about it; returns the place of the clip."""
        with clip.open("rb") as file:
            self._append(f"{number:09d}{clip.suffix.lower()}", file, clip.stat().st_size, checksum(clip))
        self._append(f"{number:09d}.json", io.BytesIO(text), len(text), zlib.crc32(text))
        return self.places[-2]

    def _append(self, name: str, content: BinaryIO, size: int, crc: int) -> None:
        info = tarfile.TarInfo(name)
        info.size = size
        self.tar.addfile(info, content)
        self.places.append(Place(self.number, crc, self.tar.offset - size - -size % tarfile.BLOCKSIZE, size))

    def close(self) -> Place | None:
        """Ends the shard, reads it again, and gives it its name; returns what the disk does not give back, if anything."""
        self.tar.close()
        with self.partial.open("rb+") as file:
            os.fsync(file.fileno())
            with contextlib.suppress(AttributeError, OSError):      # what is read now comes from the disk, not from memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for place in self.places:
            if checksum(self.partial, place.offset, place.size) != place.crc:
                return place
        self.partial.rename(self.path)
        return None

    def drop(self) -> None:
        """Ends and removes a shard that is not to be."""
        self.tar.fileobj.close()
        self.partial.unlink(missing_ok=True)


def checksum(path: Path, offset: int = 0, size: int | None = None) -> int:
    """The CRC-32 of `size` bytes of a file from `offset` on, or of what there is of them."""
    crc, left = 0, os.path.getsize(path) if size is None else size
    with path.open("rb") as file:
        file.seek(offset)
        while left and (block := file.read(min(1 << 20, left))):
            crc, left = zlib.crc32(block, crc), left - len(block)
    return crc
