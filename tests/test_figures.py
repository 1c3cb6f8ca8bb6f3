"""Pictures (figures.py): drawn where matplotlib is installed, and where it is not, a line says how to have them."""

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
