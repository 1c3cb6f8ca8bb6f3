"""Which clip fills which slot (sampling.py), against the definition of a permutation and a count of what was drawn."""

import numpy as np
import pytest

from engine.sampling import Sampler, generator, key, permute, pieces


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000])
def test_the_computed_permutation_is_one(n):
    assert sorted(permute(i, n, 5) for i in range(n)) == list(range(n))


def test_another_key_is_another_permutation():
    assert [permute(i, 1000, 1) for i in range(1000)] != [permute(i, 1000, 2) for i in range(1000)]


def test_the_permutation_mixes_neighbours():
    places = np.array([permute(i, 10_000, 3) for i in range(10_000)])
    assert abs(np.corrcoef(places, np.arange(10_000))[0, 1]) < 0.05
    assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.05


def test_a_hundred_million_clips_need_no_list():
    drawn = {permute(i, 100_000_000, 9) for i in range(2000)}
    assert len(drawn) == 2000
    assert max(drawn) < 100_000_000


def test_a_source_passes_through_all_of_its_clips_before_one_repeats():
    slots = Sampler([12], [1.0], batch=4, seed=0)
    drawn = [slots(step, slot)[1] for step in range(6) for slot in range(4)]
    assert sorted(drawn[:12]) == sorted(drawn[12:]) == list(range(12))
    assert drawn[:12] != drawn[12:]


def test_a_mini_batch_contains_samples_from_both_datasets_in_fixed_shares():
    slots = Sampler([50, 50], [3, 1], batch=16, seed=0)
    sources = [slots(7, slot)[0] for slot in range(16)]
    assert sources.count(0) == 12
    assert all(1 in sources[part : part + 4] for part in (0, 4, 8, 12)), "every one of four processes gets each source"
    assert sources == [slots(8, slot)[0] for slot in range(16)]


def test_two_processes_have_the_slots_of_one_between_them():
    whole = list(pieces(3, 5, range(8)))
    halves = [a + b for a, b in zip(pieces(3, 5, range(4)), pieces(3, 5, range(4, 8)), strict=True)]
    assert whole == halves


def test_random_draws_are_a_function_of_their_numbers():
    assert generator(1, 2, 3).random(4).tolist() == generator(1, 2, 3).random(4).tolist()
    assert len({key(seed, step, slot) for seed in range(3) for step in range(5) for slot in range(5)}) == 75
    assert 0 <= key(0) < 2**62
