"""docs/walkthrough.ipynb runs from top to bottom on the demo, and what it writes out by hand is what the code computes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "docs" / "walkthrough.ipynb"


def printed(cells: list[dict]) -> str:
    return "".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", ()))


def test_the_notebook_is_saved_small_with_its_outputs():
    cells = json.loads(BOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert BOOK.stat().st_size < 600_000
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run once, in order"
    assert all(cell["outputs"] for cell in code)
    assert not any(out["output_type"] == "error" for cell in code for out in cell["outputs"])
    agrees(printed(code))


def agrees(text: str) -> None:
    """What stands beside each other as by hand and by the code is the same"""
    differ = [float(x) for x in re.findall(r"differ by ([0-9.e+-]+)", text)]
    assert len(differ) == 6
    assert max(differ) < 1e-4
    same = re.findall(r"by hand ([0-9.]+), losses\.\w+ ([0-9.]+)", text)
    assert len(same) == 2
    assert all(abs(float(a) - float(b)) < 1e-4 for a, b in same)


@pytest.mark.slow
def test_the_notebook_runs_after_the_demo(tmp_path):
    pytest.importorskip("matplotlib")
    client, book = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    for path in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    subprocess.run([sys.executable, "pretrain.py"], cwd=tmp_path, check=True)
    notebook = book.read(tmp_path / "docs" / "walkthrough.ipynb", 4)
    client.NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(tmp_path / "docs")}}).execute()
    agrees(printed(notebook.cells))
