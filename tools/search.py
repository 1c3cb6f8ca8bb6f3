"""Search: the moments of videos that are nearest to some words (Section A.3.3)."""

import torch

import vatt
from engine.errors import printable
from tools import figures
from tools.embed import Reading, Wanted, digest, embed, read
from weights import files


def search(args, how: Reading) -> None:
    """Print the moments of the videos in a folder that are nearest to the words, and draw them to `out`.

    A moment is as long as a clip of the model; no two of those printed overlap. Their vectors are kept in the run's folder.
    ValueError where the run knows none of the words, or no video can be read.
    """
    run, words, source, out, top = args.run, args.words, args.source, args.out, args.top
    model = vatt.load_as(vatt.Trained, run).to(how.processes.device)
    asked = model.vocabulary.split(words)
    unknown = [word for word in asked if word not in model.vocabulary.ids]
    if len(unknown) == len(asked):
        raise ValueError(f"{run} knows no word of {words!r}: it knows those in its vocabulary.txt")
    if unknown:
        how.processes.print(f"not in the run's vocabulary, and so of no use: {', '.join(unknown)}")
    table = files.folder(run) / f"moments-{digest(str(source.resolve()))[:8]}.npz"
    embed(run, Wanted(source, "video", "vt", model.config.frames / model.config.fps, 1), table, how)
    if not how.processes.first:
        return
    found = read(table)
    if not len(found["ids"]):
        raise ValueError(f"no video below {source} can be read: name a folder that holds some")
    cosines = torch.from_numpy(found["vectors"]) @ model.embed_text(words)
    best = best_apart(cosines.tolist(), found["ids"].tolist(), found["times"].tolist(), top)
    print(f"\n{words!r}: the best of {len(cosines)} moments in {len(set(found['ids'].tolist()))} videos; their median "
          f"cosine is {cosines.median():.2f}\n\n cosine   seconds        video")
    shown = []
    for i in best:
        name, (start, end) = str(found["ids"][i]), found["times"][i].tolist()
        print(f"{cosines[i]:7.2f}{start:9.1f} - {end:<8.1f}{printable(name)}")
        shown.append((source / name, start, end, f"{cosines[i]:.2f}  {printable(name)}  {start:.1f} - {end:.1f} s"))
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn = figures.contact_sheet(shown, words, out)
    print(f"\n{out if drawn else 'pip install matplotlib draws these moments too'}")


def best_apart(scores: list[float], videos: list[str], times: list[list[float]], top: int) -> list[int]:
    """The numbers of the `top` best moments, the best first, none of which overlaps a better one of its video"""
    chosen: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if len(chosen) == top:
            break
        if all(videos[i] != videos[j] or times[i][0] >= times[j][1] or times[j][0] >= times[i][1] for j in chosen):
            chosen.append(i)
    return chosen
