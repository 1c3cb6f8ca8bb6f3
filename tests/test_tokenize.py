"""Tokens and positions (Section 3.1, Eq. 1), against numbers printed in the paper, literal loops and NumPy's FFT.

What starting Python in this folder has to do with it is checked in test_python_starts_here.py.
"""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import tokenize

# Video


def test_a_clip_of_32_frames_of_224_pixels_is_1568_tokens_of_3072_voxels():
    assert tokenize.video_patches(torch.empty(1, 32, 224, 224, 3, device="meta")).shape == (1, 1568, 4 * 16 * 16 * 3)


@pytest.mark.parametrize(("clip", "patch", "tokens"), [
    ((32, 200, 200), (5, 16, 16), 7 * 13 * 13),                           # rows of Table 9
    ((64, 224, 224), (5, 16, 16), 13 * 14 * 14),
    ((32, 224, 224), (8, 32, 32), 4 * 7 * 7),
    ((32, 320, 320), (4, 16, 16), 8 * 20 * 20),                           # Section A.2.5
    ((1, 1, 1), (4, 16, 16), 1),
])  # fmt: skip
def test_a_clip_is_cut_into_the_ceiling_of_its_sizes_over_the_patch_s(clip, patch, tokens):
    t, h, w = patch
    assert tokenize.video_patches(torch.empty(2, *clip, 3, device="meta"), t, h, w).shape == (2, tokens, t * h * w * 3)


def literal_patches(video, t, h, w):
    """Voxel by voxel; a voxel beyond the edge is 0."""
    b, frames, rows, columns, _ = video.shape
    patches = []
    for i, j, k in itertools.product(range(0, frames, t), range(0, rows, h), range(0, columns, w)):
        patch = []
        for di, dj, dk, c in itertools.product(range(t), range(h), range(w), range(3)):
            inside = i + di < frames and j + dj < rows and k + dk < columns
            patch.append(video[:, i + di, j + dj, k + dk, c] if inside else torch.zeros(b))
        patches.append(torch.stack(patch, 1))
    return torch.stack(patches, 1)


@pytest.mark.parametrize("size", [(4, 6, 4), (5, 7, 6), (3, 3, 9)])
def test_tokens_come_in_the_order_time_row_column_and_so_do_their_voxels(size):
    video = torch.randn(2, *size, 3)
    assert torch.equal(tokenize.video_patches(video, 2, 3, 2), literal_patches(video, 2, 3, 2))


def test_the_patches_put_back_in_their_places_give_the_video():
    video = torch.randn(2, 5, 7, 6, 3)
    grid = tokenize.video_patches(video, 2, 3, 4).view(2, 3, 3, 2, 2, 3, 4, 3)
    back = torch.zeros(2, 6, 9, 8, 3)
    for i, j, k in itertools.product(range(3), range(3), range(2)):
        back[:, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3, 4 * k : 4 * k + 4] = grid[:, i, j, k]
    assert torch.equal(back[:, :5, :7, :6], video)
    assert back.abs().sum() == pytest.approx(video.abs().sum())           # the rest is padding: zeros


def test_patches_keep_the_type_of_the_signal():
    for dtype in (torch.uint8, torch.bfloat16, torch.float64):
        assert tokenize.video_patches(torch.ones(1, 5, 17, 17, 3, dtype=dtype)).dtype == dtype


def test_a_gradient_passes_through_padding_to_every_voxel():
    video = torch.randn(1, 5, 7, 6, 3, requires_grad=True)
    tokenize.video_patches(video, 2, 3, 4).sum().backward()
    assert torch.equal(video.grad, torch.ones_like(video))


def test_an_image_is_a_clip_repeated_as_deep_as_one_patch():
    image = torch.randn(2, 8, 8, 3)
    clip = tokenize.image_clip(image)
    assert clip.shape == (2, 4, 8, 8, 3)
    assert all(torch.equal(clip[:, i], image) for i in range(4))
    assert tokenize.video_patches(clip, 4, 4, 4).shape == (2, 4, 4 * 4 * 4 * 3)  # one layer of tokens


# Audio


def test_153600_amplitudes_are_1200_tokens():
    assert tokenize.waveform_patches(torch.empty(2, 153600, device="meta")).shape == (2, 1200, 128)


@pytest.mark.parametrize(("t", "tokens"), [(128, 1200), (256, 600), (512, 300), (1024, 150)])
def test_the_waveform_patches_of_table_10(t, tokens):
    assert tokenize.waveform_patches(torch.empty(1, 153600, device="meta"), t).shape == (1, tokens, t)


@pytest.mark.parametrize("samples", [1, 5, 12, 13])
def test_a_waveform_is_cut_into_segments_and_the_last_one_is_filled_with_zeros(samples):
    wave = torch.randn(2, samples)
    patches = tokenize.waveform_patches(wave, 4)
    assert patches.shape == (2, math.ceil(samples / 4), 4)
    assert torch.equal(patches.flatten(1)[:, :samples], wave)
    assert not patches.flatten(1)[:, samples:].any()


def literal_mel(wave, rate, window, hop, bins=80):
    """The law of `mel_spectrogram`, bin by bin, for one clip; HTK's mel written with a logarithm of base ten."""
    frames = math.ceil(len(wave) / hop)
    wave = np.concatenate([wave, np.zeros(frames * hop + window)])
    hann = np.array([0.5 - 0.5 * math.cos(2 * math.pi * i / window) for i in range(window)])
    mel = lambda hertz: 2595 * np.log10(1 + hertz / 700)
    at = mel(np.arange(window // 2 + 1) * rate / (window if window % 2 == 0 else window - 1))
    edges = np.linspace(mel(80), mel(7600), bins + 2)
    out = np.zeros((frames, bins))
    for i in range(frames):
        magnitude = np.abs(np.fft.rfft(wave[i * hop : i * hop + window] * hann))
        for j in range(bins):
            left, middle, right = edges[j : j + 3]
            triangle = np.maximum(0, np.minimum((at - left) / (middle - left), (right - at) / (right - middle)))
            out[i, j] = math.log(1 + 1e4 * (triangle * magnitude).sum())
    return (out - out.min()) / (out.max() - out.min())


@pytest.mark.parametrize("samples", [700, 1024, 2048, 9000])
def test_the_spectrogram_follows_its_law(samples):
    wave = torch.rand(2, samples, dtype=torch.float64) * 2 - 1
    expected = np.stack([literal_mel(one.numpy(), 48000, 2048, 1024) for one in wave])
    assert_close(tokenize.mel_spectrogram(wave), torch.from_numpy(expected), atol=1e-9, rtol=0)
    assert_close(tokenize.mel_spectrogram(wave.float()).double(), torch.from_numpy(expected), atol=2e-3, rtol=0)


def test_150_frames_of_80_bins_are_10_by_16_patches():
    spectrogram = tokenize.mel_spectrogram(torch.randn(1, 153600).clamp(-1, 1))
    assert spectrogram.shape == (1, 150, 80)
    # Official: 9 x 16 = 144, because a convolution leaves out the last six frames.
    assert tokenize.spectrogram_patches(spectrogram).shape == (1, 10 * 16, 16 * 5)


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_a_tone_is_loudest_in_the_bin_of_its_pitch_at_any_rate(rate):
    mel = lambda hertz: 1127 * math.log(1 + hertz / 700)
    for hertz in (300, 1000, 4000):
        tone = 0.5 * torch.sin(2 * math.pi * hertz / rate * torch.arange(rate // 2))[None]
        loudest = tokenize.mel_spectrogram(tone, rate)[0, 5].argmax().item()
        assert abs(loudest - ((mel(hertz) - mel(80)) / (mel(7600) - mel(80)) * 81 - 1)) <= 1


def test_a_spectrogram_lies_between_zero_and_one_and_silence_is_not_nan():
    waves = torch.cat([torch.zeros(1, 9000), torch.rand(1, 9000) * 2 - 1, torch.full((1, 9000), 1e-12)])
    spectrogram = tokenize.mel_spectrogram(waves)
    assert spectrogram.isfinite().all()
    assert spectrogram.aminmax() == (0, 1)
    assert not spectrogram[0].any()


def test_the_spectrogram_of_a_clip_does_not_depend_on_the_batch():
    waves = torch.stack([torch.rand(9000), 0.01 * torch.rand(9000)])
    assert_close(tokenize.mel_spectrogram(waves)[1:], tokenize.mel_spectrogram(waves[1:]))


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)])
def test_spectrogram_patches_come_in_the_order_time_frequency(size):
    spectrogram = torch.randn(2, *size)
    patches = tokenize.spectrogram_patches(spectrogram, 2, 3)
    for i, j in itertools.product(range(math.ceil(size[0] / 2)), range(math.ceil(size[1] / 3))):
        for t, f in itertools.product(range(2), range(3)):
            inside = 2 * i + t < size[0] and 3 * j + f < size[1]
            expected = spectrogram[:, 2 * i + t, 3 * j + f] if inside else torch.zeros(2)
            assert torch.equal(patches[:, i * math.ceil(size[1] / 3) + j, t * 3 + f], expected)


# Positions


def test_a_position_is_the_sum_of_time_row_and_column():
    time, row, column = torch.randn(2, 5), torch.randn(3, 5), torch.randn(4, 5)
    total = tokenize.position_sum(time, row, column)
    assert total.shape == (2 * 3 * 4, 5)
    for n, (i, j, k) in enumerate(itertools.product(range(2), range(3), range(4))):
        assert torch.equal(total[n], time[i] + row[j] + column[k])


@pytest.mark.parametrize(("tables", "vectors", "patches"), [((8, 14, 14), 36, 1568), ((8, 20, 20), 48, 3200)])
def test_8_and_14_and_14_vectors_place_all_1568_patches(tables, vectors, patches):
    tables = [torch.randn(n, 6) for n in tables]
    assert sum(len(table) for table in tables) == vectors
    assert len(tokenize.position_sum(*tables).unique(dim=0)) == patches


def test_a_patch_and_its_position_have_the_same_place_in_the_order():
    video = torch.zeros(1, 4, 6, 8, 3)
    video[0, 2:, 3:, 4:6] = 1                                             # the patch at time 1, row 1, column 2
    marks = [torch.eye(n)[i][:, None] for n, i in ((2, 1), (2, 1), (4, 2))]
    assert tokenize.video_patches(video, 2, 3, 2).sum(2).argmax() == tokenize.position_sum(*marks).argmax()


def test_two_tables_place_a_spectrogram_and_one_a_waveform():
    time, frequency = torch.randn(3, 5), torch.randn(2, 5)
    total = tokenize.position_sum(time, frequency)
    for n, (i, j) in enumerate(itertools.product(range(3), range(2))):
        assert torch.equal(total[n], time[i] + frequency[j])
    assert torch.equal(tokenize.position_sum(time), time)


# Text


def test_words_are_numbered_by_count_and_then_by_the_alphabet():
    vocabulary = tokenize.Vocabulary.build(["the pan", "the egg the", "pan egg zest"])
    assert vocabulary.words == ["<pad>", "<unk>", "the", "egg", "pan", "zest"]
    assert vocabulary.encode("the egg zest pan", 6) == [2, 3, 5, 4, 0, 0]
    assert len(vocabulary) == 6


def test_the_same_captions_in_another_order_give_the_same_ids():
    captions = ["b a", "c c", "a d"]
    assert tokenize.Vocabulary.build(captions).words == tokenize.Vocabulary.build(iter(captions[::-1])).words


def test_a_caption_is_cut_or_padded_to_16_words():
    vocabulary = tokenize.Vocabulary.build(["a b"])
    assert vocabulary.encode("a b") == [2, 3] + [0] * 14
    assert vocabulary.encode("a " * 15 + "b b b") == [2] * 15 + [3]
    assert vocabulary.encode("") == [0] * 16


def test_an_unknown_word_is_id_1_and_the_special_names_are_no_words():
    vocabulary = tokenize.Vocabulary.build(["pad a"])
    assert vocabulary.encode("a zebra <pad> <unk>", 4) == [2, 1, vocabulary.ids["pad"], 1]


def test_the_vocabulary_ends_at_2_to_the_16_words():
    captions = [f"word{i} word{i}" for i in range(2**16 - 2)] + [f"rare{i}" for i in range(100)]
    vocabulary = tokenize.Vocabulary.build(captions)
    assert len(vocabulary) == 2**16
    assert not any(word.startswith("rare") for word in vocabulary.words)
    assert len(tokenize.Vocabulary.build(captions, size=10)) == 10


@pytest.mark.parametrize(("caption", "words"), [
    ("Don't STOP, now!", ["dont", "stop", "now"]),                        # as the official tokenizer
    ("well-known 2.5 cups", ["wellknown", "25", "cups"]),
    ("a\tb\nc\u00a0d\u3000e", ["a", "b", "c", "d", "e"]),
    ("don’t “quote”", ["dont", "quote"]),                                 # curly quotes
    ("CAFÉ cafe\u0301 Straße", ["café", "café", "straße"]),               # composed or not
    ("Добрый ДЕНЬ", ["добрый", "день"]),
    ("今日は 元気", ["今日は", "元気"]),
    ("नमस्ते", ["नमस्ते"]),                                                   # vowel signs are kept
    ("5€ + $3 = ?", ["5", "3"]),
    ("a\0b", ["a", "b"]),
    ("!!! ... —", []),
    ("", []),
])  # fmt: skip
def test_a_caption_is_lower_case_words_without_punctuation(caption, words):
    assert tokenize.split(caption) == words


def test_a_caption_of_10_megabytes_is_cut_before_it_is_read():
    assert len(tokenize.split("a " * 5_000_000)) == 2048


CAPTIONS = ["don’t stop", "CAFÉ au lait", "Добрый день", "今日は", "नमस्ते", "مرحبا بكم", "🍳 egg", "a\0b", "x\u2028y\x85z\x1cw",
            "carriage\r\nreturn", "\ufeffmark", "\x01control", json.loads('"lone \\ud800 surro\\udc00gate"')]  # fmt: skip


def test_a_vocabulary_of_any_alphabet_is_saved_and_loaded(tmp_path):
    vocabulary = tokenize.Vocabulary.build(CAPTIONS)
    vocabulary.save(tmp_path / "vocabulary.txt")
    loaded = tokenize.Vocabulary.load(tmp_path / "vocabulary.txt")
    assert loaded.words == vocabulary.words
    for caption in CAPTIONS:
        assert loaded.encode(caption) == vocabulary.encode(caption)
        assert 1 not in loaded.encode(caption)


def test_a_saved_vocabulary_is_text_whose_line_is_the_id(tmp_path):
    tokenize.Vocabulary.build(["an egg, an OMELETTE"]).save(tmp_path / "vocabulary.txt")
    assert (tmp_path / "vocabulary.txt").read_bytes() == b"<pad>\n<unk>\nan\negg\nomelette\n"


@pytest.mark.parametrize("content", ["", "the\nof\n", "<unk>\n<pad>\n", "<pad>\n<unk>\negg\npan\negg\n"])
def test_a_file_that_is_no_vocabulary_is_refused_by_name(tmp_path, content):
    (tmp_path / "words.txt").write_text(content)
    with pytest.raises(ValueError, match=r"words\.txt is no vocabulary"):
        tokenize.Vocabulary.load(tmp_path / "words.txt")
