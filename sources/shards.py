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
from collections.abc import Iterable
from pathlib import Path

from engine.errors import fail
from sources.index import SHARD, Place


def write(folder: Path, shard: int, clips: Iterable[tuple[int, Path, bytes]]) -> list[Place]:
    """Writes the shard of that number of clips (number, file, text about it) and reads it again; returns the clips' places.

    It has its name only when it is whole. Ends the program where the disk gives back something else.
    """
    path, places = folder / SHARD.format(shard), []
    partial = path.with_name(path.name + ".partial")
    with tarfile.open(partial, "w") as tar:
        for number, clip, text in clips:
            for suffix, content, crc in ((clip.suffix.lower(), clip.open("rb"), checksum(clip)),
                                         (".json", io.BytesIO(text), zlib.crc32(text))):
                with content:
                    info = tarfile.TarInfo(f"{number:09d}{suffix}")
                    info.size = size = content.seek(0, os.SEEK_END)
                    content.seek(0)
                    tar.addfile(info, content)
                places.append(Place(shard, crc, tar.offset - size - -size % tarfile.BLOCKSIZE, size))
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
        with contextlib.suppress(AttributeError, OSError):      # what is read now comes from the disk, not from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for place in places:
        if checksum(partial, place.offset, place.size) != place.crc:
            fail(3, f"{path} is not what was written to it, first at byte {place.offset}: check the disk")
    partial.rename(path)
    return places[::2]


def room(size: int) -> int:
    """Bytes that a file of `size` bytes takes in a shard."""
    return tarfile.BLOCKSIZE * (1 - -size // tarfile.BLOCKSIZE)


def checksum(path: str | Path, offset: int = 0, size: int | None = None) -> int:
    """The CRC-32 of `size` bytes of a file from `offset` on, or of what there is of them."""
    crc, left = 0, os.path.getsize(path) if size is None else size
    with open(path, "rb") as file:
        file.seek(offset)
        while left and (block := file.read(min(1 << 20, left))):
            crc, left = zlib.crc32(block, crc), left - len(block)
    return crc
