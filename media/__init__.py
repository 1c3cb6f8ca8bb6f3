"""One media file to frames, waveform and captions; imports nothing of ours but `engine.errors`."""

from media.container import Unreadable
from media.decode import Media

__all__ = ["Media", "Unreadable"]
