"""Vectors of files in the common spaces, kept in one .npz, and the search for words among moments of films (Section A.3.3).

    space "vt"   films, images, sentences         space "va"   films, images, sounds

A file's vector is the mean of those of its windows; it is normalised after that, so that a dot product is a cosine similarity.
"""

import hashlib
import math
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import vatt
from engine import loading
from engine.errors import printable
from engine.processes import Processes
from engine.run import hold, write_whole
from media import Media, Unreadable
from sources import index
from sources.index import Index, Row
from sources.labelled import TYPES, Files
from tools import figures, views
from weights import files

SPACES = {"video": ("vt", "va"), "image": ("vt", "va"), "audio": ("va",), "text": ("vt",)}  # the first is taken unasked


def recipe(config: vatt.Config, kind: str, windows: int = 4, fps: float | None = None) -> views.Recipe:
    """Central crops of the model's size, `windows` over the file (A.3.3); an image is a film that stands still"""
    return views.Recipe("audio" if kind == "audio" else "video", config.frames, fps or config.fps, config.size, config.rate,
                        1 if kind == "image" else windows, 1)


@torch.no_grad()
def vectors(model: vatt.Trained, files: Index, rows: range, recipe: views.Recipe, space: str, batch: int, workers: int,
            precision: str = "fp32") -> Iterator[tuple[torch.Tensor, list[tuple[str, str]]]]:
    """Batch by batch: vectors (B, d) of length 1 of those `rows` of `files`, NaN where unreadable; what failed, and why.

    Raises FloatingPointError where the model has no numbers to say, ChildProcessError where a worker died.
    """
    dataset = views.Testing(files, 0, recipe, rows)
    width, done = model.config.d_va if space == "va" else model.config.d_vt, 0
    for part, failed in survived(views.loader(dataset, batch, None, workers), dataset):
        rows = torch.full((len(failed) + (len(part["x"]) if part else 0), width), math.nan)
        if part:
            x = views.inputs(part["x"].flatten(0, 1).to(model.device))
            with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
                z = model.backbones.audio(x) if recipe.kind == "audio" else model.backbones.video(x)
            z = model.heads.audio(z) if recipe.kind == "audio" else model.heads.video(z)[("va", "vt").index(space)]
            z = z.unflatten(0, part["x"].shape[:2]).mean(1)
            if not z.isfinite().all():
                raise FloatingPointError("the run gives vectors that are not finite: name one whose training went well")
            rows[part["number"] - done] = F.normalize(z, dim=1).float().cpu()
        done += len(rows)
        yield rows, failed


def survived(batches: Iterable, dataset: views.Testing) -> Iterator:
    """The batches; ChildProcessError, which names the files in hand, where a process that decodes them dies"""
    try:
        yield from batches
    except loading.WorkerError as error:
        raise ChildProcessError(f"{error}: move them away, and try again") from None


@torch.no_grad()
def sentences(model: vatt.Trained, texts: list[str], batch: int = 256) -> torch.Tensor:
    """Vectors of sentences in the space "vt", of length 1: (N, d_vt)"""
    ids = torch.tensor([model.vocabulary.encode(text, model.config.words) for text in texts])
    parts = [model.heads.text(model.backbones.text(part[None].to(model.device)))[0].float().cpu() for part in ids.split(batch)]
    return F.normalize(torch.cat(parts), dim=1)


# ---------------------------------------------------------------------------------------------------------------------
# embed

def embed(run: Path, source: Path, out: Path, kind: str | None, space: str | None, seconds: float | None, windows: int,
          batch: int, workers: int, precision: str, processes: Processes) -> None:
    """Writes `out`: ids (N,), vectors (N, d) of length 1, times (N, 2) in seconds, space, kind, source, unreadable (M,).

    `source`: a folder of films, sounds or images, by their paths in order, or a text file, by its lines. `seconds`: films in
    moments of that length, each overlapping half of the next. What is done stays beside `out` until all is, so that the same
    command goes on. ValueError, with the remedy, for what cannot be.
    """
    if out.suffix != ".npz":
        raise ValueError(f"{out}: the name of the file to write ends in .npz")
    model = vatt.load(run).to(processes.device)
    kind, items, ids, problems = contents(source, kind, seconds)
    space = space or SPACES[kind][0]
    if space not in SPACES[kind]:
        raise ValueError(f"--space {space}: {kind} has vectors in {' and '.join(SPACES[kind])} alone")
    windows = windows if kind in ("video", "audio") else 1
    paths = dict.fromkeys(source / row.path for row in items)
    changed = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, paths)]
    key = digest(weights_of(model), kind, space, windows, changed, *zip(ids, items, strict=True))
    if out.is_file() and read(out)["key"] == key:
        return processes.print(f"{out} holds all {len(ids)} already")
    mine = range(processes.rank, len(ids), processes.world)
    kept = Partial(out, processes, model.config.d_va if space == "va" else model.config.d_vt, key, len(mine))
    unit = f"moments of {seconds:g} s" if seconds and kind == "video" else "sentences" if kind == "text" else f"{kind} files"
    processes.print(f"{source}: {len(ids)} {unit}, {windows} windows each, space {space}; {kept.rows} done before")
    if kind == "text":
        texts = [ids[i] for i in mine][kept.rows :]
        steps = ((sentences(model, texts[i : i + batch]), []) for i in range(0, len(texts), batch))
    else:
        scratch = tempfile.TemporaryDirectory()
        files = index.write(Path(scratch.name) / "index", source, items)
        steps = vectors(model, files, mine[kept.rows :], recipe(model.config, kind, windows), space, batch, workers, precision)
    pause = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=len(mine), initial=kept.rows, mininterval=pause, disable=not processes.first) as bar:
        for rows, failed in steps:
            kept.add(rows)
            bar.update(len(rows))
            problems += [printable(f"{path}: {reason}") for path, reason in failed]
    parts = processes.collect(kept.read())
    problems = [line for part in processes.collect(problems) for line in part]
    if processes.first:
        table = np.empty((len(ids), kept.width), np.float32)
        for rank, part in enumerate(parts):
            table[rank :: processes.world] = part
        good = ~np.isnan(table[:, 0])
        names, times = np.array(ids, str), np.array([item[1:3] for item in items])
        write_whole(out, lambda file: np.savez(file, ids=names[good], vectors=table[good], times=times[good], space=space,
                                               kind=kind, unreadable=names[~good], source=str(source), key=key))
        for line in list(dict.fromkeys(problems))[:10]:
            print(f"warning: {line}", file=sys.stderr)
        print(f"{out}: ids and vectors ({good.sum()} x {kept.width}); {(~good).sum()} could not be read")
    processes.wait()
    kept.remove()


def contents(source: Path, kind: str | None, seconds: float | None) -> tuple[str, list[Row], list[str], list[str]]:
    """A folder or a text file -> (kind, rows, their ids in order, problems)"""
    problems: list[str] = []
    if source.is_file():
        if TYPES.get(source.suffix.lower()):
            raise ValueError(f"{source} is one file: name the folder that holds it, or a text file of one sentence a line")
        texts = [line.strip() for line in source.read_text(encoding="utf-8-sig", errors="replace").splitlines() if line.strip()]
        if not texts or kind not in (None, "text"):
            raise ValueError(f"{source} holds no sentence" if not texts else f"--kind {kind}: {source} is a text file")
        return "text", [Row("", 0.0, math.inf, [])] * len(texts), texts, problems
    if not source.is_dir():
        raise ValueError(f"there is no {source}: name a folder of films, sounds or images, or a text file")
    files = Files(source, problems)
    kinds = [TYPES[os.path.splitext(path)[1].lower()] for path in files.media]
    if not kinds:
        raise ValueError(f"{source} holds no film, sound or image")
    if kind is None:
        kind = max(set(kinds), key=lambda k: (kinds.count(k), k))
        if kinds.count(kind) < len(kinds):
            problems.append(f"{source}: {len(kinds) - kinds.count(kind)} files are no {kind} and left out: --kind takes others")
    takes = ("audio", "video") if kind == "audio" and "audio" not in kinds else (kind,)
    paths = [path for path, k in zip(files.media, kinds, strict=True) if k in takes]
    if not paths:
        raise ValueError(f"{source} holds no {kind}")
    if seconds and kind == "video":
        items, ids = moments(source, paths, seconds, problems)
        return kind, items, ids, problems
    return kind, [Row(path, 0.0, math.inf, []) for path in paths], paths, problems


def moments(source: Path, paths: list[str], seconds: float, problems: list[str]) -> tuple[list[Row], list[str]]:
    """Films in parts of `seconds` that overlap by half, the last one at the end; ids are the films' paths"""
    items, ids = [], []
    for path in paths:
        try:
            with Media(source / path) as media:
                last = max(0.0, media.duration - seconds)
        except Unreadable as e:
            problems.append(f"{printable(path)}: {e.reason}")
            continue
        steps = math.ceil(2 * last / seconds)
        items += [Row(path, start, start + seconds, [])
                  for start in (last * i / max(1, steps) for i in range(steps + 1))]
        ids += [path] * (steps + 1)
    if not items:
        raise ValueError(f"none of the {len(paths)} films below {source} can be read, first {problems[-1]}")
    return items, ids


class Partial:
    """The vectors that this process has so far, in a file beside `out`; begun anew where they are of other files or flags."""

    def __init__(self, out: Path, processes: Processes, width: int, key: str, most: int):
        self.path, self.width = out.with_name(f"{out.name}.{processes.rank}-of-{processes.world}.partial"), width
        self.head = self.path.with_suffix(".key")
        out.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("ab")
        try:
            hold(self.file)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"another process is writing {out}: wait for it, or name another file") from None
        self.rows = self.path.stat().st_size // (4 * width)
        if not self.head.is_file() or self.head.read_text() != key or self.rows > most:
            self.rows = 0
        self.file.truncate(self.rows * 4 * width)               # a row that a kill cut short, or all of them
        self.head.write_text(key)

    def add(self, rows: torch.Tensor) -> None:
        """More of them, (B, d) float32"""
        self.file.write(rows.numpy().astype("<f4").tobytes())
        self.file.flush()

    def read(self) -> np.ndarray:
        """All of them, (n, d)"""
        return np.fromfile(self.path, "<f4").reshape(-1, self.width)

    def remove(self) -> None:
        """When `out` is whole"""
        self.path.unlink()
        self.head.unlink()


def read(path: Path) -> dict[str, np.ndarray]:
    """What `embed` wrote; ValueError where it is something else"""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {**file, "key": str(file["key"])}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not of this program ({error}): name another file") from None


def weights_of(model: torch.nn.Module) -> str:
    """A digest of all weights: vectors of two models must not stand in one file"""
    return digest(*(hashlib.sha256(w.cpu().numpy().tobytes()).hexdigest() for w in model.state_dict().values()))


def digest(*things) -> str:
    """The same for the same things only"""
    total = hashlib.sha256()
    for thing in things:
        total.update(repr(thing).encode("utf-8", "backslashreplace"))
    return total.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# search

def search(run: Path, words: str, source: Path, out: Path, top: int, batch: int, workers: int, precision: str,
           processes: Processes) -> None:
    """Prints the moments of the films in a folder that are nearest to the words, and draws them to `out`.

    A moment is as long as a clip of the model; no two of those printed overlap. Their vectors are kept in the run's folder.
    """
    model = vatt.load(run).to(processes.device)
    unknown = [word for word in model.vocabulary.split(words) if word not in model.vocabulary.ids]
    if len(unknown) == len(model.vocabulary.split(words)):
        raise ValueError(f"{run} knows no word of {words!r}: it knows those in its vocabulary.txt")
    if unknown:
        processes.print(f"not in the run's vocabulary, and so of no use: {', '.join(unknown)}")
    table = files.folder(run) / f"moments-{digest(str(source.resolve()))[:8]}.npz"
    embed(run, source, table, "video", "vt", model.config.frames / model.config.fps, 1, batch, workers, precision, processes)
    if not processes.first:
        return
    found = read(table)
    if not len(found["ids"]):
        raise ValueError(f"no film below {source} can be read: name a folder that holds some")
    cosines = torch.from_numpy(found["vectors"]) @ sentences(model, [words])[0]
    best = apart(cosines.tolist(), found["ids"].tolist(), found["times"].tolist(), top)
    print(f"\n{words!r}: the best of {len(cosines)} moments in {len(set(found['ids'].tolist()))} films; their median cosine is "
          f"{cosines.median():.2f}\n\n cosine   seconds        film")
    shown = []
    for i in best:
        name, (start, end) = str(found["ids"][i]), found["times"][i].tolist()
        print(f"{cosines[i]:7.2f}{start:9.1f} - {end:<8.1f}{printable(name)}")
        shown.append((source / name, start, end, f"{cosines[i]:.2f}  {printable(name)}  {start:.1f} - {end:.1f} s"))
    out.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n{figures.contact_sheet(shown, words, out)}")


def apart(scores: list[float], films: list[str], times: list[list[float]], top: int) -> list[int]:
    """The numbers of the `top` best moments, the best first, none of which overlaps a better one of its film"""
    chosen: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if len(chosen) == top:
            break
        if all(films[i] != films[j] or times[i][0] >= times[j][1] or times[j][0] >= times[i][1] for j in chosen):
            chosen.append(i)
    return chosen
