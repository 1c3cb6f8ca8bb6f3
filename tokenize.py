"""Tokens of video, audio and text, with their positions (Section 3.1, Eq. 1).

Nothing here is learned: a raw signal is cut into patches, words are looked up, and position tables are summed. The weights
that project a patch to a token (W_vp, W_ap, W_tp) and the tables themselves live in `vatt.py`. Every function uses only the
methods of the tensors that it is given, so this file imports neither PyTorch nor NumPy: Python has a `tokenize` of its own,
and from this folder Python gets this file when it starts (see the end).

    B clips   T H W frames, rows, columns   t h w size of a patch   S samples of audio   N tokens   d width   L words
"""

import builtins
import math
import os
import unicodedata
from collections import Counter
from importlib.machinery import SourceFileLoader
from types import ModuleType


def video_patches(video, t=4, h=16, w=16):
    """Voxel patches, in the order time, row, column; sizes that do not divide are padded with zeros (Section 3.1).

    (B, T, H, W, 3) -> (B, N, t h w 3), N = ceil(T/t) ceil(H/h) ceil(W/w)
    """
    # Paper: ceil, so the edge is kept (official: a strided convolution that leaves out what does not fill a patch).
    x = _pad(_pad(_pad(video, 1, t), 2, h), 3, w)
    x = x.unflatten(3, (-1, w)).unflatten(2, (-1, h)).unflatten(1, (-1, t))  # b (T t) (H h) (W w) c -> b T t H h W w c
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(1, 3)        # -> b (T H W) (t h w c)


def image_clip(image, t=4):
    """An image as a clip that is one patch deep: repeated t times (Section 4.2.3).  (B, H, W, 3) -> (B, t, H, W, 3)"""
    return image.unsqueeze(1).expand(-1, t, -1, -1, -1)


def waveform_patches(wave, t=128):
    """Segments of t amplitudes, the last one padded with zeros (Section 3.1).  (B, S) -> (B, ceil(S/t), t)"""
    return _pad(wave, 1, t).unflatten(1, (-1, t))


def mel_spectrogram(wave, rate=48000, bins=80):
    """Log-mel spectrogram, each clip scaled to [0, 1]; 42.7 ms windows every 21.3 ms (Section A.5, Table 10).

    (B, S) -> (B, ceil(S / hop), bins); at 48 kHz the window has 2048 samples and the hop 1024.
    """
    # Official: Hann window, HTK mel scale from 80 to 7600 Hz, log(1 + 10^4 mel), scaled by minimum and maximum; the
    # paper gives bins and lengths only.
    window, hop = round(rate * 2048 / 48000), round(rate * 1024 / 48000)
    frames = math.ceil(wave.shape[1] / hop)
    padded = wave.new_zeros(wave.shape[0], (frames - 1) * hop + window)
    n = min(padded.shape[1], wave.shape[1])
    padded[:, :n] = wave[:, :n]
    hann, filters = _kept(_hann, wave, window), _kept(_mel_filters, wave, window, rate, bins)
    x = padded.stft(window, hop, window=hann, center=False, return_complex=True).abs()      # (B, window/2 + 1, frames)
    x = (1 + 1e4 * (filters @ x)).log().transpose(1, 2)                                      # (B, frames, bins)
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    return (x - low) / (high - low).clamp(min=1e-6)


def spectrogram_patches(spectrogram, t=16, f=5):
    """Patches of t frames x f mel bins, in the order time, frequency (Table 10).  (B, T, F) -> (B, N, t f)"""
    x = _pad(_pad(spectrogram, 1, t), 2, f)
    x = x.unflatten(2, (-1, f)).unflatten(1, (-1, t))                        # b (T t) (F f) -> b T t F f
    return x.transpose(2, 3).flatten(3).flatten(1, 2)                        # -> b (T F) (t f)


def position_sum(*tables):
    """e_ijk = e_temporal_i + e_vertical_j + e_horizontal_k (Eq. 1): T/t + H/h + W/w vectors place T/t H/h W/w patches.

    Tables (T/t, d), (H/h, d), (W/w, d) -> (N, d), in the order of `video_patches`; two tables place a spectrogram's.
    """
    # Paper: the plain sum (official: LayerNorm of the sum).
    # Official: rows index the vertical table, columns the horizontal one (Eq. 1 has the two names the other way round).
    total = tables[0]
    for table in tables[1:]:
        total = (total.unsqueeze(1) + table).flatten(0, 1)
    return total


class Vocabulary:
    """All words of the training captions, the most frequent first, as a look-up from word to id (Section 3.1).

    Id 0 is <pad>, 1 is <unk>. Equal counts are in the order of the alphabet, so the same captions give the same ids.
    """

    special = ("<pad>", "<unk>")
    fixed = False  # whether a training that starts from a run keeps that run's words, whatever its captions hold

    def __init__(self, words):
        self.words = [*self.special, *words]
        self.ids = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def build(cls, texts, size=2**16):
        """The words of captions; at most `size` entries (2^16 in Section 4.1), the two special ones included."""
        counts = Counter(word for text in texts for word in cls.split(text))
        return cls(sorted(counts, key=lambda word: (-counts[word], word))[: max(0, size - len(cls.special))])

    @classmethod
    def load(cls, path):
        """The words of a text file, one a line, as `save` writes it; ValueError if its first lines are not the special ones."""
        # `open` alone can be that of Python's `tokenize`, whose names this module then shares.
        with builtins.open(path, encoding="utf-8") as file:
            words = file.read().removesuffix("\n").split("\n")
        n = len(cls.special)
        if tuple(words[:n]) != cls.special or len(set(words)) != len(words):
            raise ValueError(f"{path} is no vocabulary: one word a line, none twice, the first {n} {' '.join(cls.special)}")
        return cls(words[n:])

    def save(self, path):
        """One word a line; a word's id is its line, counted from 0."""
        with builtins.open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write("".join(f"{word}\n" for word in self.words))

    def encode(self, text, length=16):
        """Caption -> list of `length` ids: cut or padded to 16 words (Section 4.1)."""
        ids = [self.ids.get(word, self.ids["<unk>"]) for word in self.split(text)[:length]]
        return ids + [0] * (length - len(ids))

    @staticmethod
    def split(text):
        """Caption -> words"""
        return split(text)

    def __len__(self):
        return len(self.words)


def split(text):
    """Caption -> words: lower case, punctuation deleted ("don't" is "dont"), cut at white space; letters of any alphabet."""
    # Ours: punctuation and capitals of all alphabets (official: ASCII only, so that "CAFÉ" becomes <unk>).
    text = unicodedata.normalize("NFC", text[:4096]).lower()
    kinds = ((c, unicodedata.category(c)) for c in text)
    return "".join(" " if kind in ("Cc", "Cs") else c for c, kind in kinds if kind[0] not in "PS").split()


def _pad(x, dim, multiple):
    """Zeros after the end of dimension `dim`, up to the next multiple."""
    missing = -x.shape[dim] % multiple
    if not missing:
        return x
    shape = list(x.shape)
    shape[dim] += missing
    padded = x.new_zeros(shape)
    padded.narrow(dim, 0, x.shape[dim]).copy_(x)
    return padded


def _kept(make, like, *numbers):
    """make(like, *numbers), which is made once for each device and dtype: to copy a list to a GPU is to wait for it"""
    key = make, like.device, like.dtype, numbers
    if key not in _made:
        _made[key] = make(like, *numbers)
    return _made[key]


_made = {}


def _hann(like, window):
    """Hann window, periodic.  -> (window,), on the device of `like`"""
    return 0.5 - 0.5 * (2 * math.pi / window * like.new_tensor(range(window))).cos()


def _mel_filters(like, window, rate, bins, low=80.0, high=7600.0):
    """Triangles that are even in mel, without a norm of their area.  -> (bins, window/2 + 1), on the device of `like`"""
    mel = lambda hertz: 1127.0 * math.log1p(hertz / 700.0)
    n = window // 2 + 1
    x = like.new_tensor([mel(i * rate / 2 / (n - 1)) for i in range(n)])
    low, high = mel(low), mel(min(high, rate / 2))
    edges = like.new_tensor([low + (high - low) * i / (bins + 1) for i in range(bins + 2)]).unsqueeze(1)
    rise = (x - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - x) / (edges[2:] - edges[1:-1])
    return rise.minimum(fall).clamp(min=0)


# `linecache`, `inspect`, and so PyTorch itself, import Python's `tokenize`; from this folder they get this file. It answers
# for both: a name that is not found above is looked up in Python's own module (PEP 562).
__file__ = os.path.join(os.path.dirname(os.__file__), "tokenize.py")
_python = ModuleType(__name__)
SourceFileLoader(__name__, __file__).exec_module(_python)


def __getattr__(name):
    return getattr(_python, name)
