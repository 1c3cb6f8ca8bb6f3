"""The house: what stands at the top, that imports go downwards only, also those inside of functions, and how long files are."""

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
# Each floor may import those below it; engine/errors.py may be imported by all.
FLOORS = ["media engine tokenize droptoken transformer heads losses", "sources", "data", "weights", "vatt", "tools", "evaluate",
          "pretrain finetune", "bench"]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
COMMANDS = {"weights/__main__.py": "tools"}  # what stands in a package and is not of its floor
FILES = [path for path in sorted(path.relative_to(HERE) for path in HERE.rglob("*.py"))
         if path.parts[0].removesuffix(".py") in FLOOR]


def imports(path):
    """The modules that a file imports anywhere in it, but for what it does as a script"""
    tree = ast.parse((HERE / path).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def lines(path):
    return len((HERE / path).read_text(encoding="utf-8").splitlines())


def test_the_top_level_is_the_paper():
    assert sorted(path.stem for path in HERE.glob("*.py")) == [
        "data", "droptoken", "evaluate", "finetune", "heads", "losses", "pretrain", "tokenize", "transformer", "vatt"]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_downwards_only(path):
    package = path.parts[0].removesuffix(".py")
    floor = FLOOR[COMMANDS.get(str(path), package)]
    for module in imports(path):
        there = module.split(".")[0]
        if there in FLOOR and there != package and not module.startswith("engine.errors"):
            assert FLOOR[there] < floor, f"{path} imports {module}"


def test_no_file_is_longer_than_a_reader_can_bear():
    assert {str(path): lines(path) for path in FILES if lines(path) > 500} == {}


def test_the_source_does_not_grow():
    assert sum(map(lines, FILES)) <= 11_450
