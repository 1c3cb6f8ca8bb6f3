"""What the README and docs/ say of the code, against the code: the map of the paper, the departures, flags and commands."""

import argparse
import collections
import re
import shlex
from pathlib import Path

import pytest

import data
import evaluate
import finetune
import pretrain
from bench import __main__ as benchmark
from weights import __main__ as weights

HERE = Path(__file__).parent.parent
README = (HERE / "README.md").read_text(encoding="utf-8")
PAPER = (HERE / "docs" / "paper.md").read_text(encoding="utf-8")
DOCS = "\n".join([README, *(path.read_text("utf-8") for path in sorted((HERE / "docs").glob("*.md")))])
FILES = sorted(str(path.relative_to(HERE)) for folder in ("", "media", "sources", "engine", "weights", "tools", "bench")
               for path in (HERE / folder).glob("*.py"))
MARK = re.compile(r"^\s*# (Paper|Official|Ours): ", re.MULTILINE)


def table(title):
    """The cells of the rows of the first table after a heading"""
    part = PAPER.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
    return rows[2:]


@pytest.mark.parametrize("row", table("Where each equation is"), ids=lambda row: f"{row[0]} {row[1]}")
def test_every_place_of_the_map_exists(row):
    file, name = row[2].strip("`").split(":")
    source = (HERE / file).read_text(encoding="utf-8")
    assert re.search(rf"^\s*(def|class) {name}\b", source, re.MULTILINE), f"{file} has no {name}"
    assert row[0].removeprefix("Section ") in source, f"{file} does not name {row[0]}"


def test_the_map_covers_every_section_and_equation_of_the_approach():
    named = {row[0] for row in table("Where each equation is")}
    assert {"Section 3.1", "Section 3.1.1", "Section 3.2", *(f"Eq. {i}" for i in range(1, 7)), "Table 7", "Figure 1"} <= named


def test_the_departures_are_those_marked_in_the_code():
    marked = collections.Counter((file, mark) for file in FILES for mark in MARK.findall((HERE / file).read_text("utf-8")))
    said = collections.Counter((row[2].strip("`"), row[1]) for row in table("Departures"))
    assert said == marked


def test_every_mark_begins_a_comment_of_its_own():
    for file in FILES:
        text = (HERE / file).read_text("utf-8")
        assert len(re.findall(r"\b(?:Paper|Official|Ours): ", text)) == len(MARK.findall(text)), file


def test_no_file_is_longer_than_one_concept_needs():
    assert all(len((HERE / file).read_text("utf-8").splitlines()) <= 530 for file in FILES)


def known(parser):
    """All flags of a command line and of its commands"""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from known(command)


def test_the_readme_names_flags_that_exist():
    ours = {flag for script in (pretrain, finetune, evaluate, data, benchmark, weights) for flag in known(script.flags())}
    torchrun = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--max-restarts",
                "--shutdown-timeout"}
    slurm = {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--requeue", "--signal", "--open-mode"}
    docker = {"--network", "--read-only", "--user"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", DOCS)) <= ours | torchrun | slurm | docker


COMMANDS = re.findall(r"^(?:torchrun .*? )?(?:python )?"
                      r"((?:(?:pretrain|finetune|evaluate|data)\.py|-m weights) [^#\n]*?) *(?:#.*)?$", DOCS, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_can_be_parsed(command):
    script, *words = shlex.split(command.removeprefix("-m ").rstrip("\\&"))
    parser = {"pretrain": pretrain, "finetune": finetune, "evaluate": evaluate, "data": data, "weights": weights}
    parser[script.removesuffix(".py")].flags().parse_args(words)
