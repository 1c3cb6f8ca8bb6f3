"""The sources of a run: listed when it begins, and looked at again whenever it goes on.

A run goes on with the rows that it began with, in RUN/index/0, 1, .. and val; in each, files.txt says which files lay
there, and how large they were. So a source may be named otherwise or be moved, and what came, went or changed since is told.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from engine.errors import printable
from media.captions import PARSERS
from sources import index, layouts
from sources.files import VIDEOS, suffix, walk
from sources.index import Index

KEPT = "files.txt"


def folders(out: Path, trained: list[str], held: str | None) -> dict[Path, str]:
    """The folders of the indexes of a run in `out`, those of the sources to train on first, and the sources "[KIND=]PATH"."""
    sources = {out / "index" / str(number): text for number, text in enumerate(trained)}
    return {**sources, out / "index" / "val": held} if held else sources


def settle(out: Path, trained: list[str], held: str | None, language: str = "") -> None:
    """Lists the sources of a run in the folder `out`, or sees that they are those that it began with.

    ValueError where one is not, or where held-out videos lie among those to train on.
    """
    sources, there = folders(out, trained, held), {path.parent for path in (out / "index").glob("*/index.json")}
    if there and there != set(sources):
        raise ValueError(f"--data and --val name other sources than those that {out} began with: repeat them to go on")
    for folder, text in sources.items():
        kind, root = layouts.parse_source(text)
        if (folder / "index.json").is_file():
            compare(text, kind, root, folder)
            continue
        if folder.name == "val":
            apart(held, root, [layouts.parse_source(other)[1].resolve() for other in trained])
        layouts.list_files(kind, root, folder, out / f"problems-{folder.name}.txt", language)
        if kind != "shards":
            with (folder / KEPT).open("w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in files(root))


def captions(indexes: list[Index]) -> str:
    """A line: how many videos have captions, and how many captions and words those are; what it means where there are none."""
    videos, captioned, texts, words = map(sum, zip(*((len(rows), *rows.counts()) for rows in indexes), strict=True))
    return (f"videos with captions: {captioned}, without: {videos - captioned}; captions: {texts}, words: {words}"
            + ("" if captioned else "; nothing can be learned of text (data.py check says what lies beside the videos)"))


def apart(held: str, root: Path, roots: list[Path]) -> None:
    """ValueError where the held-out videos lie below those to train on; a warning where it is the other way round."""
    if any(other in root.resolve().parents for other in roots):
        raise ValueError(f"--val {held} lies inside --data and would be trained on: move it out")
    if any(root.resolve() in (other, *other.parents) for other in roots):
        print(f"warning: --val {held} holds videos that are trained on: its scores are no held-out scores", file=sys.stderr,
              flush=True)


def files(root: Path) -> Iterator[str]:
    """A line "name size" for each video and each text below root, in the order of `walk`."""
    for inside, names in walk(root, []):
        for name in names:
            if suffix(name) in VIDEOS | PARSERS.keys():
                yield json.dumps([inside + name, os.path.getsize(root / inside / name)])


def compare(text: str, kind: str, root: Path, folder: Path) -> None:
    """Sees that a source is the one of which the index `folder` was made, and points it there if it was moved.

    ValueError where it is another one; what came, went or changed is a warning.
    """
    head = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    began, packed = Path(head.get("at") or head["root"]), "at" in head
    if packed != (kind == "shards"):
        raise ValueError(f"{text} is not what the run began with, {began}: name that to go on, or another --out")
    if not (packed or (folder / KEPT).is_file()):
        raise ValueError(f"{folder} is of an older version: delete {folder.parent} to have the sources listed again")
    if packed:
        if (root / "index").resolve() != began.resolve():
            now = Index(root / "index")
            if (now.rows, now.crc) != (head["rows"], head["crc"]):
                raise ValueError(f"{text} holds other shards than those that the run began with, {began}: name those to go on")
            index.point(folder, now.folder)
        return
    with (folder / KEPT).open(encoding="utf-8") as file:
        then, now = dict(map(json.loads, file)), dict(map(json.loads, files(root)))
    found = {"came": [name for name in now if name not in then], "went": [name for name in then if name not in now],
             "changed": [name for name in now if then.get(name, now[name]) != now[name]]}
    told = ", ".join(printable(f"{len(names)} files {what} (first {names[0]})") for what, names in found.items() if names)
    if os.path.realpath(root) != os.path.realpath(began):
        if found["went"] or found["changed"]:
            raise ValueError(f"{text} is not what the run began with, {began}: {told}; name that, or another --out")
        (folder / "index.json").write_text(json.dumps({**head, "root": str(root.absolute())}), encoding="utf-8")
    if told:
        print(f"warning: {text}: {told} since the run began; it goes on with the videos and captions of then",
              file=sys.stderr, flush=True)
