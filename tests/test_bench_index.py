"""What drawing from an index of many clips costs (bench/index.py)."""

from bench import index as scale


def test_memory_of_a_worker_does_not_grow_with_the_number_of_clips(tmp_path, capsys):
    few, many = scale.measure(200_000, batch=64, steps=3, folder=tmp_path)
    assert (few["clips"], many["clips"]) == (1000, 200_000)
    assert many["bytes"] > 15e6
    assert abs(many["worker_bytes"] - few["worker_bytes"]) < 3e6
    assert "index of 200,000 clips" in capsys.readouterr().out
