"""Views of labelled files (data.py): one at random, or several that cover a file; each a pure function of its numbers."""

import math

import numpy as np
import pytest
import torch
from films import film, image
from runs import Rank, clips_to_test, clips_to_train

import data
from media import Media
from sources import index
from sources.index import Row
from tools.embed import Reading

SPEC = data.ClipSpec(("video",), 4, 10.0, 16, 8000, windows=3, crops=3)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    rows = [Row(film(folder / f"{i}.mp4", sound=i < 3, seed=i).name, 0.0, math.inf, [], (i % 3,)) for i in range(4)]
    return index.write(folder / "index", folder, rows)


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_a_random_view_is_a_function_of_seed_step_and_slot(films):
    views_of = lambda seed: clips_to_train(films, 3, SPEC, 4, seed)
    assert same(views_of(0)[5, 2][0], views_of(0)[5, 2][0])
    assert not same(views_of(0)[5, 2][0], views_of(1)[5, 2][0])
    taken = [views_of(0)[0, slot][0]["path"] for slot in range(4)]
    assert sorted(taken) == sorted(map(films.name, range(4))), "a pass takes each file once"


@pytest.mark.parametrize("cache", [0.0, 1.0])
def test_test_views_are_windows_times_crops_of_each_file_in_order(films, cache):
    item, failed = clips_to_test(films, 3, SPEC._replace(cache=cache))[1]
    assert item["video"].shape == (9, 4, 16, 16, 3)
    assert (item["number"], item["labels"].tolist(), failed) == (1, [0, 1, 0], [])
    early, late = item["video"][1].astype(int), item["video"][7].astype(int)  # central crops of the first, last window
    assert np.abs(early - late).max() > 20
    if not cache:
        with Media(*films.media(1)) as media:
            assert np.array_equal(early, media.video(0.0, 4, 10.0, (0, 0, 1, 1), (16, 21))[:, :, 2:18])


@pytest.mark.parametrize(("h", "w"), [(16, 40), (40, 16), (16, 16)])
def test_crops_go_from_one_end_of_the_longer_side_to_the_other(h, w):
    x = np.arange(h * w).reshape(1, h, w, 1).repeat(3, 3)
    first, middle, last = data.crops(x, 16, 3)
    assert first.shape == middle.shape == last.shape == (1, 16, 16, 3)
    assert np.array_equal(first, x[:, :16, :16])
    assert np.array_equal(last, x[:, -16:, -16:])
    assert np.array_equal(middle, data.crops(x, 16, 1)[0])


def test_sound_is_as_long_as_the_frames_and_a_film_without_it_is_counted(films):
    tests = clips_to_test(films, 3, SPEC._replace(modalities=("audio",)))
    assert tests[0][0]["audio"].shape == (3, 3200)
    assert tests[3] == (None, [(films.name(3), "no audio")])
    view, failed = clips_to_train(films, 3, SPEC._replace(modalities=("audio",)), 4)[0, 1]
    assert view["audio"].shape == (3200,)
    for step in range(8):
        _, more = clips_to_train(films, 3, SPEC._replace(modalities=("audio",)), 4)[step, 0]
        failed = failed + more
    assert (films.name(3), "no audio") in failed


def test_an_image_is_one_frame(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    image(tmp_path / "a.png", picture)
    items = index.write(tmp_path / "index", tmp_path, [Row("a.png", 0.0, math.inf, [], (0,))])
    spec = SPEC._replace(modalities=("image",), frames=2, size=20, crops=1)
    x = clips_to_test(items, 1, spec)[0][0]["image"]
    assert x.shape == (1, 20, 20, 3)
    assert np.abs(x[0].astype(int) - picture[:, 5:25]).max() <= 1
    assert clips_to_train(items, 1, spec, 2)[0, 0][0]["image"].shape == (20, 20, 3)


def test_several_classes_are_several_ones_and_have_the_numbers_that_the_model_knows_them_by(films, tmp_path):
    items = index.write(tmp_path / "index", films.root, [films[0]._replace(labels=(0, 4))])
    assert clips_to_test(items, 5, SPEC, numbers=[3, 0, 1, 2, 4])[0][0]["labels"].tolist() == [0, 0, 0, 1, 1]
    assert clips_to_test(items, 5, SPEC)[0][0]["labels"].tolist() == [1, 0, 0, 0, 1]


def test_mixing_shares_are_from_beta_5_5(films):
    spec = SPEC._replace(mixup=5.0, cache=1.0)
    shares = np.array([clips_to_train(films, 3, spec, 4)[step, 0][0]["mix"] for step in range(200)])
    assert abs(shares.mean() - 0.5) < 0.04
    assert abs(shares.var() - 1 / 44) < 0.008
    assert clips_to_train(films, 3, SPEC, 4)[0, 0][0]["mix"] == 1


def test_every_file_is_tested_once_with_any_number_of_processes(films):
    numbers = [n for rank in range(3) for batch, _ in Reading(Rank(rank, 3), 10).batches(clips_to_test(films, 3, SPEC))
               for n in batch["number"].tolist()]
    assert sorted(numbers) == [0, 1, 2, 3]


def test_pixels_reach_minus_one_and_one_and_sound_stays():
    x = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 2, 2, 3)
    assert data.augment(x).unique().tolist() == [-1, 1]
    assert torch.equal(data.augment(x, torch.tensor([True])), data.augment(x).flip(2))
    sound = torch.rand(2, 100)
    assert data.augment(sound) is sound


def test_a_part_shorter_than_a_view_shows_and_sounds_nothing_of_what_comes_after_it(films, tmp_path):
    part = index.write(tmp_path / "index", films.root, [films[0]._replace(start=0.2, end=0.4)])  # two frames, 1600 amplitudes
    seen = clips_to_test(part, 3, SPEC._replace(windows=1, crops=1))[0][0]["video"][0]
    assert np.array_equal(seen[:2], seen[2:])
    assert not np.array_equal(seen[0], seen[1])
    heard = clips_to_test(part, 3, SPEC._replace(modalities=("audio",), windows=1, crops=1))[0][0]["audio"][0]
    assert np.abs(heard[1000:1600]).max() > 0.1
    assert not heard[1600:].any()
