"""What the README and docs/ say of the code, against it: files, equations, claims, departures, flags, commands."""

import argparse
import collections
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from films import TINY, folder

import evaluate
import finetune
import pretrain
from bench import __main__ as bench
from tools import show
from weights import __main__ as weights

HERE = Path(__file__).parent.parent
README = (HERE / "README.md").read_text(encoding="utf-8")
PAPER = (HERE / "docs" / "paper.md").read_text(encoding="utf-8")
DOCS = {path: path.read_text("utf-8") for path in (HERE / "README.md", *sorted((HERE / "docs").glob("*.md")))}
FILES = sorted(str(path.relative_to(HERE)) for name in ("", "media", "sources", "engine", "weights", "tools", "bench")
               for path in (HERE / name).glob("*.py"))
MARK = re.compile(r"^\s*# (Paper|Official|Ours): ", re.MULTILINE)


def table(text, title):
    """The cells of the rows of the first table after a heading"""
    part = text.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
    return rows[2:]


def length(file):
    return len((HERE / file).read_text(encoding="utf-8").splitlines())


def test_the_map_names_the_files_of_the_paper_with_their_lines_and_sections():
    rows = table(README, "Read it")
    assert sorted(row[0].strip("`") for row in rows) == sorted(path.name for path in HERE.glob("*.py"))
    for file, sections, _, lines in rows:
        assert abs(length(file.strip("`")) - int(lines)) <= max(15, int(lines) // 10), f"{file} has {length(file.strip('`'))}"
        source = (HERE / file.strip("`")).read_text("utf-8")
        for section in re.findall(r"[\d.A]+\.\d|Eq\. \d|Table \d+|Figure \d", sections):
            assert section in source, f"{file} does not name {section}"
    model = ["tokenize", "droptoken", "transformer", "heads", "losses", "vatt"]
    promised = int(re.search(r"about ([\d,]+) lines for the whole model", README)[1].replace(",", ""))
    assert sum(length(f"{name}.py") for name in model) == pytest.approx(promised, rel=0.15)


def test_the_readme_is_short_and_what_it_links_to_is_there():
    assert len(README.splitlines()) <= 130
    for path, text in DOCS.items():
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


@pytest.mark.parametrize("row", table(PAPER, "Where each equation is"), ids=lambda row: f"{row[0]} {row[1]}")
def test_every_place_of_the_map_exists(row):
    file, name = row[2].strip("`").split(":")
    source = (HERE / file).read_text(encoding="utf-8")
    assert re.search(rf"^\s*(def|class) {name}\b", source, re.MULTILINE), f"{file} has no {name}"
    assert row[0].removeprefix("Section ") in source, f"{file} does not name {row[0]}"


def test_the_map_covers_every_section_and_equation_of_the_approach():
    named = {row[0] for row in table(PAPER, "Where each equation is")}
    assert {"Section 3.1", "Section 3.1.1", "Section 3.2", *(f"Eq. {i}" for i in range(1, 7)), "Table 7", "Figure 1"} <= named


def test_every_claim_is_checked_by_a_test_that_exists_or_says_why_not():
    tests = "\n".join(path.read_text("utf-8") for path in (HERE / "tests").glob("test_*.py"))
    rows = table(PAPER, "Claims")
    for place, claim, by in rows:
        names = re.findall(r"`(test_\w+)`", by)
        assert names or re.match(r"no: |open: |sums |`tests/|`python (-m bench|evaluate)", by), (place, claim)
        assert all(f"def {name}(" in tests for name in names), (place, names)
        assert all((HERE / file).exists() for file in re.findall(r"`(tests/\w+\.py)`", by))
    holds = sum(not re.match(r"no: |open: ", by) for *_, by in rows)
    assert f"{holds} of the {len(rows)} hold" in PAPER


def test_the_departures_are_those_marked_in_the_code():
    marked = collections.Counter((file, mark) for file in FILES for mark in MARK.findall((HERE / file).read_text("utf-8")))
    said = collections.Counter((row[2].strip("`"), row[1]) for row in table(PAPER, "Departures"))
    assert said == marked


def test_every_mark_begins_a_comment_of_its_own():
    for file in FILES:
        text = (HERE / file).read_text("utf-8")
        assert len(re.findall(r"\b(?:Paper|Official|Ours): ", text)) == len(MARK.findall(text)), file


def known(parser):
    """All flags of a command line and of its commands"""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from known(command)


def test_the_docs_name_flags_that_exist():
    parsers = (*(script.flags() for script in (pretrain, evaluate, bench, weights)),
               finetune.flags(finetune.defaults({"task": "video"})))
    ours = {flag for parser in parsers for flag in known(parser)}
    ours |= set(known(show.flags_of_data()))
    torchrun = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--max-restarts",
                "--shutdown-timeout"}
    slurm = {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--requeue", "--signal", "--open-mode"}
    docker = {"--network", "--read-only", "--user"}
    for path, text in DOCS.items():
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= ours | torchrun | slurm | docker, path.name


COMMAND = re.compile(r"^(?:torchrun .*? )?(?:python )?((?:(?:pretrain|finetune|evaluate|data)\.py|-m bench|-m weights) ?"
                     r"[^#\n]*?) *(?:#.*)?$", re.MULTILINE)
COMMANDS = sorted({command for text in DOCS.values() for command in COMMAND.findall(text)})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_docs_can_be_parsed(command):
    script, *words = shlex.split(command.removeprefix("-m ").rstrip("\\&"))
    if script == "finetune.py":
        finetune.parse(words)
    else:
        parser = {"pretrain.py": pretrain, "evaluate.py": evaluate, "bench": bench, "weights": weights,
                  "data.py": SimpleNamespace(flags=show.flags_of_data)}
        parser[script].flags().parse_args(words)


def test_the_commands_of_your_own_videos_do_what_they_say(tmp_path):
    folder(tmp_path / "videos", films=4)
    for captions in (tmp_path / "videos").glob("*.csv"):
        captions.write_text("start,end,text\n0,1,now chop the onions\n")
    part = README.split("## Your own videos\n")[1].split("\n## ")[0]
    commands = re.search(r"```sh\n(.*?)```", part, re.DOTALL)[1]
    commands = re.sub(r"python (\w+\.py)", rf"{sys.executable} {HERE}/\1", commands)
    train = re.search(r"\S+ \S+pretrain\.py [^#\n]*", commands)[0].strip()
    commands = commands.replace(train, f"{train} --preset demo {' '.join(TINY)}")  # the last --preset counts
    done = subprocess.run(["bash", "-ec", commands], cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)}, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "held-out retrieval" in done.stdout
    for made in ("broken.csv", "packed/shard-000000.tar", "runs/videos/results.json", "vectors.npz"):
        assert (tmp_path / made).is_file(), made
