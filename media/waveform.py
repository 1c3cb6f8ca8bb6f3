"""Files of audio alone that libsndfile knows, read through it: the length is counted, and a seek lands on the sample."""

import math
from collections.abc import Iterator

import av
import soundfile

from media.container import Container

# As FFmpeg names them. Not MP3: of one without a header libsndfile guesses length and places, and it prints what it thinks.
FORMATS = {"wav", "w64", "flac", "ogg", "aiff"}


def opened(container: Container) -> soundfile.SoundFile | None:
    """The samples of an open file of one or two channels, or None where libsndfile is not the one to read them."""
    inside = (container.offset, container.size) != (0, None)  # of a tar, say, which holds videos (`data.py pack`)
    if container.format not in FORMATS or inside:
        return None
    try:
        file = soundfile.SoundFile(container.file)
    except Exception:  # what it does not know, or takes for damaged, FFmpeg may
        return None
    # How more channels are ordered, libsndfile leaves to the format.
    is_plain = file.channels <= 2 and file.samplerate >= 1000 and 0 < file.frames < 1e6 * file.samplerate
    return file if is_plain else None


def blocks(file: soundfile.SoundFile, t: float) -> Iterator[tuple[float, av.AudioFrame]]:
    """(seconds, block) from t or a little earlier to the end, in tenths of a second, the same wherever it begins."""
    size = max(1, file.samplerate // 10)
    first = min(max(0, math.floor(t * file.samplerate / size)), (file.frames - 1) // size) * size
    file.seek(first)
    while len(part := file.read(size, "float32", always_2d=True)):
        block = av.AudioFrame.from_ndarray(part.reshape(1, -1), "flt", "mono" if part.shape[1] == 1 else "stereo")
        block.sample_rate = file.samplerate
        yield first / file.samplerate, block
        first += len(part)
