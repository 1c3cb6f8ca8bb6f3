"""Crops, flips, colours, noise (data.py) against slow, literal versions, pixel by pixel, with colorsys."""

import colorsys

import numpy as np
import pytest
import torch

import data

RNG = np.random.default_rng


def clips(seed=0, shape=(3, 2, 6, 5, 3)):
    """Random clips with a few grey, black and white pixels"""
    video = RNG(seed).integers(0, 256, shape, np.uint8)
    video[:, :, 0, :3] = np.array([0, 128, 255])[:, None]
    return torch.from_numpy(video)


def literally(clip, on, brightness, saturation, contrast, hue):
    """(T, H, W, 3) uint8 -> [-1, 1] in float64, as the official code's TensorFlow operations define it"""
    x = clip.astype(np.float64) / 255
    if on:
        x = x + brightness
        for i in np.ndindex(x.shape[:3]):
            if max(x[i]) > 0:
                h, s, v = colorsys.rgb_to_hsv(*x[i])
                x[i] = colorsys.hsv_to_rgb(h, min(max(s * saturation, 0), 1), v)
            else:  # too dark to have a colour
                x[i] = max(x[i])
        for t, c in np.ndindex(len(x), 3):
            mean = x[t, :, :, c].mean()
            x[t, :, :, c] = (x[t, :, :, c] - mean) * contrast + mean
        for i in np.ndindex(x.shape[:3]):
            low, high = min(x[i]), max(x[i])
            if high > low:  # the colour is what is above the grey
                h, _, _ = colorsys.rgb_to_hsv(*(x[i] - low))
                x[i] = low + np.array(colorsys.hsv_to_rgb((h + hue) % 1, 1, high - low))
        x = np.clip(x, 0, 1)
    return 2 * x - 1


# -------------------------------------------------------------------------------------------------------------- boxes


@pytest.mark.parametrize(("width", "height", "area", "aspect"), [(320, 240, 0.371, 1.251), (640, 480, 0.371, 1.251)])
def test_boxes_follow_the_official_law(width, height, area, aspect):
    rng = RNG(0)
    boxes = np.array([data.random_box(rng, width, height) for _ in range(6000)])
    w, h = (boxes[:, 2] - boxes[:, 0]) * width, (boxes[:, 3] - boxes[:, 1]) * height
    assert np.allclose([w, h], np.rint([w, h]))
    share, ratio = w * h / width / height, w / h
    assert share.mean() == pytest.approx(area, abs=0.01)
    assert ratio.mean() == pytest.approx(aspect, abs=0.02)
    assert share.min() >= 0.1 - 1e-9                                       # not 0.08: a tenth must be covered
    assert share.max() <= 1
    assert 0.49 < ratio.min() < 0.52
    assert 1.9 < ratio.max() < 2.05
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert np.mean(boxes[:, 0] + boxes[:, 2]) == pytest.approx(1, abs=0.02)
    assert np.corrcoef(boxes[:, 0], boxes[:, 1])[0, 1] < 0.5               # places are drawn apart


def test_the_aspect_is_uniform_where_it_fits():
    rng = RNG(0)
    boxes = np.array([data.random_box(rng, 400, 400, area=(0.1, 0.4)) for _ in range(6000)])
    ratio = (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])
    counts, _ = np.histogram(ratio, 6, (0.5, 2))
    assert np.abs(counts / 1000 - 1).max() < 0.12                          # log-uniform would be off by 0.6
    height = boxes[:, 3] - boxes[:, 1]
    assert np.median(height * np.sqrt(ratio)) == pytest.approx((0.1**0.5 + 0.4**0.5) / 2, abs=0.01)  # so is the height


def test_narrower_ranges_are_kept_to():
    rng = RNG(0)
    for width, height in ((300, 200), (33, 50), (64, 64)):
        for _ in range(300):
            left, top, right, bottom = data.random_box(rng, width, height, (0.5, 0.9), (0.8, 1.25))
            assert 0.5 - 1e-9 <= (right - left) * (bottom - top) <= 0.9 + 1e-9
            w, h = (right - left) * width, (bottom - top) * height
            assert abs(w - 0.8 * h) <= 0.51 or abs(w - 1.25 * h) <= 0.51 or 0.8 <= w / h <= 1.25


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 112), (500, 2)])
def test_a_picture_that_no_box_fits_is_kept_whole(width, height):
    assert data.random_box(RNG(0), width, height) == (0, 0, 1, 1)


def test_a_box_is_a_function_of_its_generator():
    assert data.random_box(RNG(7), 320, 240) == data.random_box(RNG(7), 320, 240)
    assert data.random_box(RNG(7), 320, 240) != data.random_box(RNG(8), 320, 240)


# ------------------------------------------------------------------------------------------------------------- colours


def test_four_clips_in_five_change_their_colours_within_the_strengths():
    rng = RNG(0)
    draws = np.array([data.colour_draws(rng) for _ in range(5000)])
    assert draws.dtype == np.float32
    assert draws[:, 0].mean() == pytest.approx(0.8, abs=0.02)
    changed = draws[draws[:, 0] == 1, 1:]
    none, reach = np.array([0, 1, 1, 0]), np.array([32 / 255, 0.4, 0.4, 0.2])
    assert np.allclose(changed.min(0), none - reach, atol=0.01)
    assert np.allclose(changed.max(0), none + reach, atol=0.01)
    assert np.allclose(changed.std(0), reach / 3**0.5, rtol=0.05)          # uniform
    assert np.abs(np.corrcoef(changed.T) - np.eye(4)).max() < 0.06         # and apart
    assert (draws[draws[:, 0] == 0, 1:] == none).all()
    assert (data.colour_draws(rng, p=0.0) == [0, 0, 1, 1, 0]).all()


def test_colours_change_as_in_the_official_code():
    video, rng = clips(), RNG(1)
    rows = [data.colour_draws(rng, p=1.0) for _ in range(12)]
    rows += [[1, -0.9, 1.4, 1, 0.2], [1, -0.3, 1.4, 0.1, 0], [1, 0.9, 0.6, 1.4, -0.2], [1, 0, 1, 1, 0.5],
             [1, 0, 3, 1, 0], [1, 0.1, 1, 0, 0]]
    for row in rows:
        colour = torch.tensor(np.array([row] * 3), dtype=torch.float32)
        got = data.augment(video, colour=colour)
        want = np.stack([literally(clip, *colour[0].tolist()) for clip in video.numpy()])
        assert got.dtype == torch.float32
        assert np.abs(got.numpy() - want).max() < 2e-5


def test_each_clip_has_its_own_colours_and_all_its_pictures_share_them():
    video = clips()[:1, :1].expand(3, 4, -1, -1, -1).contiguous()
    colour = torch.tensor([[1, 0.1, 1.3, 0.7, 0.15], [0, 0.1, 1.3, 0.7, 0.15], [1, -0.1, 0.7, 1.3, -0.1]])
    out = data.augment(video, colour=colour)
    assert torch.equal(out, out[:, :1].expand_as(out))
    for i in range(3):
        assert torch.allclose(out[i:i + 1], data.augment(video[i:i + 1], colour=colour[i:i + 1]), atol=1e-6)
        assert np.abs(out[i].numpy() - literally(video[i].numpy(), *colour[i].tolist())).max() < 2e-5


def test_a_clip_that_is_not_changed_is_exact_whatever_its_neighbours_are():
    video = clips()
    plain = video.float() * 2 / 255 - 1
    assert torch.equal(data.augment(video), plain)
    colour = torch.tensor([[1, 0, 1, 1, 0], [1, 0.1, 1.3, 0.7, 0.15], [0, 0.1, 1.3, 0.7, 0.15]])
    out = data.augment(video, torch.zeros(3, dtype=torch.bool), colour)
    assert torch.equal(out[[0, 2]], plain[[0, 2]])
    assert not torch.equal(out[1], plain[1])
    assert torch.equal(data.augment(video, colour=colour[[0, 0, 2]]), plain)


def test_hue_and_saturation_are_left_out_where_no_clip_asks_for_them(monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(data, "saturate", refuse)
    monkeypatch.setattr(data, "shift_hue", refuse)
    data.augment(clips(), colour=torch.tensor([[1, 0.1, 1, 1.2, 0], [0, 0.1, 1.3, 1.2, 0.2], [1, 0, 1, 1, 0]]))
    with pytest.raises(AssertionError):
        data.augment(clips(), colour=torch.tensor([[1, 0.1, 1, 1.2, 0], [1, 0.1, 1, 1.2, 0.2], [1, 0, 1, 1, 0]]))


def test_inputs_are_in_minus_1_to_1_and_reach_both():
    video = clips(shape=(20, 2, 8, 8, 3))
    colour = torch.from_numpy(np.stack([data.colour_draws(RNG(i)) for i in range(20)]))
    for out in (data.augment(video), data.augment(video, colour=colour)):
        assert out.min() == -1
        assert out.max() == 1


def test_a_clip_is_flipped_as_a_whole_or_not_at_all():
    video = clips(shape=(19, 3, 4, 6, 3))
    flip = torch.arange(19) % 3 == 1
    out = data.augment(video, flip)
    plain = data.augment(video)
    assert torch.equal(out[flip], plain[flip].flip(3))
    assert torch.equal(out[~flip], plain[~flip])


def test_the_clips_given_are_not_touched():
    video = clips()
    before = video.clone()
    data.augment(video, torch.ones(3, dtype=torch.bool), torch.tensor([[1, 0.1, 1.3, 0.7, 0.15]] * 3))
    assert torch.equal(video, before)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_and_is_not_waited_for():
    video, flip = clips(shape=(10, 2, 8, 8, 3)), torch.arange(10) % 2 == 0
    colour = torch.from_numpy(np.stack([data.colour_draws(RNG(i)) for i in range(10)]))
    there = [x.cuda() for x in (video, flip, colour)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = data.augment(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(out.cpu(), data.augment(video, flip, colour), atol=1e-5)
    assert torch.equal(out[colour[:, 0] == 0].cpu(), data.augment(video, flip)[colour[:, 0] == 0])


# --------------------------------------------------------------------------------------------------------------- noise


def test_noise_is_a_hundredth_of_the_loudest_sample():
    wave = (0.5 * np.sin(np.arange(50_000) / 9)).astype(np.float32)
    noise = data.audio_noise(wave, RNG(0)) - wave
    assert noise.dtype == np.float32
    assert noise.std() == pytest.approx(0.005, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=1e-4)
    assert np.mean(np.abs(noise) < 0.005) == pytest.approx(0.683, abs=0.01)
    assert (data.audio_noise(wave, RNG(0), 0.1) - wave).std() == pytest.approx(0.05, rel=0.02)
    assert np.array_equal(data.audio_noise(wave, RNG(3)), data.audio_noise(wave, RNG(3)))


def test_silence_stays_silent():
    assert not data.audio_noise(np.zeros(100, np.float32), RNG(0)).any()
    assert data.audio_noise(np.zeros(0, np.float32), RNG(0)).shape == (0,)
