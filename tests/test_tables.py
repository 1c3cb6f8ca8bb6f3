"""Tables of scores (tools/tables.py): columns stay below each other, few files and empty pools are told."""

import json

import pytest

from tools import tables

SCORES = {"R@1": 0.25, "R@5": 0.5, "R@10": 1.0, "MedR": 3.0, "N": 12, "chance": {"R@1": 1 / 12, "MedR": 6.5}}
NONE = {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "MedR": 0.0, "N": 0, "chance": {}}


def test_columns_stay_below_each_other_under_long_names():
    said = tables.retrieval({**dict.fromkeys(tables.TASKS, SCORES), "unreadable": []}, {"x" * 60: SCORES}).splitlines()
    ends = {line.rindex(cell) + len(cell) for line, cell in zip(
        said, ("MedR", "3.0", "6.5", "3.0", "6.5", "3.0", "6.5", "3.0"), strict=False)}
    assert len(ends) == 1


def test_an_empty_pool_is_told_and_not_scored():
    said = tables.retrieval({"text_to_video": NONE, "video_to_audio": SCORES, "unreadable": [["a", "no audio"]]}, {})
    line = next(line for line in said.splitlines() if line.startswith("text to video"))
    assert "no held-out clip has both" in line
    assert "0.0" not in line
    assert "1 held-out clip could not be read, in no pool, first a: no audio" in said


@pytest.mark.parametrize(("n", "told"), [(49, True), (50, False), (0, False)])
def test_scores_of_fewer_than_fifty_files_are_said_to_mean_little(n, told):
    scores = {"top-1": 0.5, "top-5": 1.0, "N": n, "chance": {"top-1": 0.1, "top-5": 0.5, "most frequent": 0.2}}
    assert ("mean little: one more that is right is 2 points (more labelled" in tables.classes(scores)) == told
    pools = {"text_to_video": {**SCORES, "N": n}, "unreadable": []}
    assert ("mean little: one more that is right is 2 points (--val" in tables.retrieval(pools, {})) == told


@pytest.mark.parametrize("broken", ["{", "[" * 100_000, "[]", '{"text_to_video": {"N": "x"}}', '{"text_to_video": []}',
                                    '{"text_to_video": {"N": 3, "R@1": "much"}, "unreadable": []}'])
def test_results_that_are_torn_or_of_another_program_are_one_line(tmp_path, monkeypatch, broken):
    monkeypatch.setattr(tables, "DEMO", (tmp_path, tmp_path / "none"))
    (tmp_path / "results.json").write_text(broken)
    with pytest.raises(ValueError, match=r"results\.json is torn or not of this program"):
        tables.left()


@pytest.mark.parametrize("broken", ["{", "[" * 100_000, "[]", "7"])
def test_scores_are_kept_where_evaluate_json_was_torn(tmp_path, broken):
    (tmp_path / "evaluate.json").write_text(broken)
    tables.keep(tmp_path, "a", {"N": 1})
    tables.keep(tmp_path, "b", {"N": 2})
    assert json.loads((tmp_path / "evaluate.json").read_text()) == {"a": {"N": 1}, "b": {"N": 2}}
