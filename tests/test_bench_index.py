"""The made-up index of many clips (bench/index.py) against one written for true rows, and what it costs to draw from it."""

import numpy as np

from bench import index as scale
from sources import index


def test_the_made_up_index_is_what_an_index_is(tmp_path):
    scale.write(tmp_path / "index", 3000)
    made = index.Index(tmp_path / "index")
    true = tmp_path / "true" / "index"
    index.write(true, tmp_path, (made[i] for i in range(len(made))), packed=True)
    assert [made[i] for i in (0, 1, 2999)] == [index.Index(true)[i] for i in (0, 1, 2999)]
    assert made.inside(2999) == "000002999.mp4"
    assert made[17].captions[0].text.endswith("000000017")
    for name in ("path_ends", "spans", "times", "texts", "text_ends", "places"):
        assert (tmp_path / "index" / name).read_bytes() == (true / name).read_bytes()
    assert len(np.unique(made.data["hashes"])) == 3000
    assert len(index.held_out(made)) == 60


def test_memory_of_a_worker_does_not_grow_with_the_number_of_clips(tmp_path):
    few, many = scale.measure(200_000, batch=64, steps=3, folder=tmp_path)
    assert (few["clips"], many["clips"]) == (1000, 200_000)
    assert many["bytes"] > 20e6
    assert abs(many["worker_bytes"] - few["worker_bytes"]) < 3e6
    assert "index of 200,000 clips" in scale.report([few, many])
