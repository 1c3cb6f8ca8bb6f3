"""Pictures (figures.py): drawn where matplotlib is installed, and where it is not, a line says how to have them."""

import json
import sys

import numpy as np
import pytest

from tools import figures


@pytest.fixture(params=["matplotlib", "no matplotlib"])
def installed(request, monkeypatch):
    if request.param == "matplotlib":
        pytest.importorskip("matplotlib")
        return True
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    return False


@pytest.mark.parametrize("classes", [1, 5, 60])
def test_a_confusion_matrix_of_any_number_of_classes(tmp_path, installed, classes):
    counts = [[3 * (i == j) for j in range(classes)] for i in range(classes)]
    counts[0] = [0] * classes
    said = figures.confusion(counts, [f"class $\\{i}$" for i in range(classes)], tmp_path / "confusion.png")
    assert said == installed
    assert (tmp_path / "confusion.png").exists() == installed


def test_a_contact_sheet_of_moments(tmp_path, installed):
    rows = [(text, np.full((6, 90, 180, 3), 80, np.uint8)) for text in ("one $\\moment$", "another")]
    said = figures.contact_sheet(rows, "a $\\red$ cloth", tmp_path / "sheet.png")
    assert said == installed
    assert (tmp_path / "sheet.png").exists() == installed


def test_curves_draw_the_rows_of_the_log_and_the_losses_at_chance(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    rows = [{"step": step, "nce": 5.0 - step, "mil_nce": None if step == 1 else 3.0, "sounding": 8, "captioned": 4,
             **{f"{kind}_{space}": step / 10 for kind in ("pos", "neg") for space in ("va", "vt")}} for step in range(3)]
    rows[1]["held_out"] = {"text_to_video": 0.25}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"batch": 8}, "model": {}, "versions": {}}))
    (tmp_path / "results.json").write_text(json.dumps({"text_to_video": {"R@10": 0.5}, "unreadable": []}))
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    assert figures.curves(tmp_path)
    loss, _, recall = drawn[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in loss.get_lines()}
    assert lines["NCE"] == [[1, 5], [2, 4], [3, 3]]
    assert [y for _, y in lines["NCE at chance"]] == pytest.approx([np.log(15)] * 3)
    assert [y for _, y in lines["MIL-NCE at chance"]] == pytest.approx([np.log(11)] * 3)
    assert np.isnan(lines["MIL-NCE"][1][1])
    assert recall.get_lines()[0].get_xydata().tolist() == [[2, 25], [3, 50]]
