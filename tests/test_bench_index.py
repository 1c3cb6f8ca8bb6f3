"""The made-up index of many clips (bench/index.py) against one written for true rows, and what it costs to draw from it."""

import numpy as np

from bench import index as scale
from sources import index


def test_the_made_up_index_is_what_an_index_is(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "SHARD", 100)
    assert scale.write(tmp_path / "index", 350) == 300
    made = index.Index(tmp_path / "index")
    true = tmp_path / "true" / "index"
    index.write(true, tmp_path, (made[i] for i in range(len(made))), packed=True)
    assert [made[i] for i in range(300)] == [index.Index(true)[i] for i in range(300)]
    assert made.inside(217) == made.inside(17) == "000000017.mp4"
    assert made[217].captions[0].text.endswith("000000017")
    assert made.place(217) == made.place(17)._replace(shard=2)
    for name in index.columns(packed=True, labels=False):
        assert name == "hashes" or (tmp_path / "index" / name).read_bytes() == (true / name).read_bytes()
    assert len(np.unique(made.data["hashes"])) == 300


def test_memory_of_a_worker_does_not_grow_with_the_number_of_clips(tmp_path):
    few, many = scale.measure(200_000, batch=64, steps=3, folder=tmp_path)
    assert (few["clips"], many["clips"]) == (1000, 200_000)
    assert many["bytes"] > 20e6
    assert abs(many["worker_bytes"] - few["worker_bytes"]) < 3e6
    assert "index of 200,000 clips" in scale.report([few, many])
