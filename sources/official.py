"""The paper's labelled data sets as they lie on disk (Section A.1.2): one function each, from a folder to what is listed.

    ucf101 hmdb51 kinetics mit    videos, a class each           esc50 audioset      audio, a class or several each
    imagenet                      images, a folder a class       youcook2 msrvtt     videos with captions
    folder csv                    one's own, of any sort: see `labelled.py`

To add one, write a function here and name it in `KINDS`; `load("esc50=~/ESC-50", out, problems, part=2)` is what others call.
Lists are in their official form, anywhere below the folder; videos and audio are found by their ids, wherever they lie and in
whatever container.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from media import captions
from sources import layouts
from sources.files import Files, columns, lines, stem
from sources.labelled import TEST, WHOLE, Found, Labelled, folder, known, lists, table, write

ANNOTATIONS = re.compile(r"(ucfTrainTestlist|testTrainMulti.*|annotations?|meta|csv|lists?|splits?)", re.IGNORECASE)


class Kind(NamedTuple):
    """A data set."""

    find: Callable[[Files, int], Found]     # of a folder, and which official split or fold
    media: str = ""                         # what its files are: "video", "audio", "image"
    lists: str = "(?!)"                     # pattern of the list by whose name a folder is recognised
    where: str = ""                         # to get its lists from
    parts: int = 1                          # official splits or folds
    classes: tuple[int, ...] = ()           # how many it has, in which of its versions
    multi: bool = False                     # whether a file may have several


# ---------------------------------------------------------------------------------------------------------------------
# [KIND=]PATH

def load(text: str, out: Path, problems: list[str], part: int = 1, outside: bool = False) -> Labelled:
    """"[KIND=]PATH" -> the data set there, its kind found out where it is not given; `part`: which official split or fold.

    Its indexes are written to train/ and test/ in the folder `out`. "csv=FILE:COLUMN" takes the labels from that column;
    `outside`: a csv may name files that do not lie below its folder. ValueError, with the remedy, for all that cannot be.
    """
    name, path, column = parse(text)
    kind = KINDS[name]
    files = Files(path.parent if path.is_file() else path, problems, kind.where)
    if not 1 <= part <= kind.parts:
        raise ValueError(f"there is no split or fold {part} of {text}: {name} has "
                         f"{f'1 to {kind.parts}' if kind.parts > 1 else 'only one'}")
    found = (table(files, [path] if path.is_file() else lists(path), column, outside) if name == "csv"
             else kind.find(files, part))
    if kind.classes and len(found.classes) not in kind.classes:
        problems.append(f"{path}: the lists name {len(found.classes)} classes, not {' or '.join(map(str, kind.classes))}")
    own = path.resolve().stem if name in ("folder", "csv") else name
    data = write(found, files, out, own, kind.media, kind.multi)
    if not data.train and not data.test:
        first = f": put them there, the first is {data.missing[0]}" if data.missing else ""
        raise ValueError(f"{text}: none of the {len(data.missing)} listed files lies below "
                         f"{path.parent if path.is_file() else path}{first}")
    return data


def parts(text: str) -> int:
    """How many official splits or folds a source has: 3, 5, or 1."""
    return KINDS[parse(text)[0]].parts


def parse(text: str) -> tuple[str, Path, str]:
    """"[KIND=]PATH" -> (kind, path, column of a csv or ""); ValueError for an unknown kind or a path that is not there"""
    name, rest = layouts.parse(text, KINDS)
    path, column = Path(rest), ""
    if not path.exists() and ":" in rest:
        rest, _, column = rest.rpartition(":")
        path = Path(rest)
    if not path.exists():
        raise ValueError(f"{text}: there is no {path}: name a folder of media, or a csv")
    if path.is_file():
        if name not in ("", "csv"):
            raise ValueError(f"{text}: {path} is a file: name the folder that holds it")
        if not name and path.suffix.lower() not in (".csv", ".txt"):
            raise ValueError(f"{text}: {path} is neither a folder nor a csv")
        return "csv", path, column
    own = lists(path) if name in ("", "csv") else []
    if name == "csv" and not own:
        raise ValueError(f"{text}: {path} is a folder without labels.csv or captions.csv: name the csv")
    if len(own) == 1:
        return "csv", own[0], column
    return name or detect(path), path, column


def detect(root: Path) -> str:
    """The kind of a folder by the lists in it, or in a folder of lists in it; "folder" where there are none"""
    folders = [root, *(entry.path for entry in os.scandir(root) if entry.is_dir() and ANNOTATIONS.fullmatch(entry.name))]
    found = [Path(inside, name) for inside in folders for name in os.listdir(inside)]
    for name, kind in KINDS.items():
        for path in found:
            if re.fullmatch(kind.lists, path.name, re.IGNORECASE) and path.is_file() and (
                    name != "kinetics" or "youtube_id" in next(lines(path), (0, ""))[1]):  # others have a train.csv too
                return name
    if lists(root):
        return "csv"
    return "imagenet" if any(re.fullmatch("n[0-9]{8}", path.name) for path in root.glob("train/*")) else "folder"


# ---------------------------------------------------------------------------------------------------------------------
# Videos

def ucf101(files: Files, part: int) -> Found:
    """UCF101: ucfTrainTestlist/classInd.txt, trainlist0P.txt and testlist0P.txt; classes in the order of classInd.txt."""
    path, classes = files.one("classInd.txt"), []
    for at, line in lines(path):
        index, _, name = line.partition(" ")
        classes.append(name.strip())
        if index != str(len(classes)):
            raise ValueError(f"{path}:{at}: {line!r} is not class {len(classes)}: get the list again")
    number = {name.lower(): i for i, name in enumerate(classes)}    # lists and folders differ in capitals: HandStandPushups
    videos = files.by(lambda path: stem(path).lower())

    def rows(path):
        for at, line in lines(path):
            name, _, label = line.partition(" ")                    # the list for training has labels, from 1
            target = known(number, name.partition("/")[0].lower(), f"{path}:{at}", "classInd.txt")
            if label.strip() not in ("", str(target + 1)):
                raise ValueError(f"{path}:{at}: {name} is class {target + 1} of classInd.txt, not {label}: get the lists again")
            yield name, videos.get(stem(name).lower()), *WHOLE, target

    return Found(classes, *(rows(files.one(f"{side}list0{part}.txt")) for side in ("train", "test")))


def hmdb51(files: Files, part: int) -> Found:
    """HMDB51: *_test_splitP.txt (name and 1 train, 2 test, 0 neither), or all in one csv; classes in the alphabet's order."""
    split = f"split{part}"
    listed = [(f"{path}:{at}", line.rpartition(" ")[0].strip(), path.name.rpartition("_test_")[0], line.rpartition(" ")[2])
              for path in files.lists(rf".+_test_{split}\.txt") for at, line in lines(path)]
    if not listed:
        path = files.one(f"<class>_test_{split}.txt", r".*hmdb51.*\.csv")
        listed = [(f"{path}:{at}", row["video_id"], row["label"].removesuffix("_test"), row[split])
                  for at, row in columns(path, "video_id", "label", split)]
    classes = sorted({label for _, _, label, _ in listed})
    videos, sides = files.by(lambda path: stem(path).lower()), {"1": [], "2": [], "0": []}
    for at, name, label, code in listed:
        if code not in sides:
            raise ValueError(f"{at}: {name!r} has the code {code!r}, not 1 (train), 2 (test) or 0 (neither)")
        sides[code].append((name, videos.get(stem(name).lower()), *WHOLE, classes.index(label)))
    return Found(classes, sides["1"], sides["2"])


def kinetics(files: Files, part: int) -> Found:
    """Kinetics-400, 600 or 700: train.csv and val.csv; videos <id>_<start>_<end> or <id>, in whatever folders.

    Classes are the labels of train.csv (of val.csv, where it is alone) in the alphabet's order.
    """
    sides = []
    for name, pattern in (("train.csv", "train"), ("val.csv", "val|validate")):
        pattern = rf"(kinetics.*[-_])?({pattern})\.csv"
        path = files.one(name, pattern) if files.lists(pattern) or sides == [[]] else None
        if not path:
            files.problems.append(f"{files.root} holds no {name}: it is in {files.where}")
        wanted = ("label", "youtube_id", "time_start", "time_end")
        sides.append([(f"{path}:{at}", row) for at, row in columns(path, *wanted)] if path else [])
    classes = sorted({row["label"] for _, row in sides[0] or sides[1]})
    number, cuts = {name: i for i, name in enumerate(classes)}, layouts.Cuts(files, files.media)

    def rows(side):
        for at, row in side:
            if not layouts.YOUTUBE_ID.fullmatch(youtube := row["youtube_id"]):
                raise ValueError(f"{at}: {youtube!r} is no id of YouTube's: get the list again")
            said, *times = segment(at, youtube, row["time_start"], row["time_end"])
            yield said, *cuts.find(youtube, *times), known(number, row["label"], at, "train.csv")

    return Found(classes, rows(sides[0]), rows(sides[1]))


def mit(files: Files, part: int) -> Found:
    """Moments in Time, version 1: moments_categories.txt, trainingSet.csv and validationSet.csv, which have no header."""
    plain = lambda name: name.replace("+", " ").replace("_", " ").lower()           # "adult+female+singing"
    path = files.one("moments_categories.txt")
    names = [line.rpartition(",") for _, line in lines(path)]
    if len(names) != 339 or not all(index.isdecimal() for _, _, index in names):
        raise ValueError(f"{path} has {len(names)} lines: version 1 has 339, each name,index")
    classes = [name for name, _, _ in sorted(names, key=lambda row: int(row[2]))]   # the file's order is no alphabet's
    number = {plain(name): i for i, name in enumerate(classes)}
    videos = files.by(lambda path: plain(os.path.splitext("/".join(path.split("/")[-3:]))[0]))       # training/class/name

    def rows(name, side):
        path = files.one(name)
        for at, row in columns(path, "name", "label", header=False):
            target = known(number, plain(row["label"]), f"{path}:{at}", "moments_categories.txt")
            yield row["name"], videos.get(plain(f"{side}/{os.path.splitext(row['name'])[0]}")), *WHOLE, target

    return Found(classes, rows("trainingSet.csv", "training"), rows("validationSet.csv", "validation"))


def segment(at: str | Path, name: str, start: str, end: str) -> tuple[str, float, float]:
    """(what it is called, start, end) of a part of a video, in seconds; ValueError where those are no times."""
    first, last = captions.seconds(start), captions.seconds(end)
    if not 0 <= first < last <= captions.MAX_SECONDS:
        raise ValueError(f"{at}: {name} has no valid time: {first:g} to {last:g} s: get the list again")
    return f"{name} {first:g}-{last:g} s", first, last


# ---------------------------------------------------------------------------------------------------------------------
# Audio and images

def esc50(files: Files, part: int) -> Found:
    """ESC-50: meta/esc50.csv; fold `part` is the test. Classes in the order of their targets, those that the list has."""
    path, names, sides, recordings = files.one("esc50.csv"), {}, ([], []), files.by(stem)
    for at, row in columns(path, "filename", "fold", "target", "category"):
        name, fold, target, category = (row[column] for column in ("filename", "fold", "target", "category"))
        if fold not in ("1", "2", "3", "4", "5") or not target.isdecimal():
            raise ValueError(f"{path}:{at}: fold {fold!r} is not 1 to 5, or target {target!r} no number")
        if names.setdefault(int(target), category) != category:
            raise ValueError(f"{path}:{at}: {category} has the target of {names[int(target)]}: get it again")
        sides[int(fold) == part].append((name, recordings.get(stem(name)), *WHOLE, int(target)))
    number = {target: i for i, target in enumerate(sorted(names))}
    return Found([names[target] for target in number], *([(*row[:-1], number[row[-1]]) for row in side] for side in sides))


def audioset(files: Files, part: int) -> Found:
    """AudioSet: class_labels_indices.csv; eval_segments.csv is the test, every other *_segments.csv the training."""
    listed = [row for _, row in columns(files.one("class_labels_indices.csv"), "index", "mid", "display_name")]
    number = {row["mid"]: i for i, row in enumerate(listed)}        # names hold commas, the mid is the key
    lists, cuts = files.lists(KINDS["audioset"].lists), layouts.Cuts(files, files.media)
    if not lists:
        raise ValueError(f"{files.root} holds no *_segments.csv: get eval_segments.csv and the others from {files.where}")

    def rows(test):
        for path in (path for path in lists if path.name.lower().startswith("eval") == test):
            for youtube, start, end, mids in layouts.segments(path, files.problems):
                targets = {known(number, mid, f"{path}: {youtube}", "class_labels_indices.csv") for mid in mids}
                yield f"{youtube} {start:g}-{end:g} s", *cuts.find(youtube, start, end), tuple(sorted(targets))

    return Found([row["display_name"] for row in listed], rows(False), rows(True))


def imagenet(files: Files, part: int) -> Found:
    """ImageNet: train/<wnid>/ and val/<wnid>/; the number of a class is the place of its wnid in the alphabet."""
    # The numbers in ILSVRC's own lists are others, and names repeat (two are "crane"): only the wnid is sure.
    loose = [path for path in files.media if path.count("/") == 1 and path.split("/")[0].lower() in TEST]
    if loose:
        raise ValueError(f"{files.root / loose[0]}: {len(loose)} images lie loose: sort them into val/<wnid>/ (valprep.sh, or "
                         f"torchvision.datasets.ImageNet, does it)")
    return folder(files)


# ---------------------------------------------------------------------------------------------------------------------
# Captions

def youcook2(files: Files, part: int) -> Found:
    """YouCook2: validation_youcook.csv, or the validation videos of youcookii_annotations_trainval.json: parts of them."""
    name, pattern = "validation_youcook.csv", r"validation_youcook.*\.csv"
    official = files.lists(r"youcookii_annotations.*\.json")
    if official and not files.lists(pattern):
        path = official[0]
        try:
            videos = json.loads(path.read_text(encoding="utf-8"))["database"].items()
            listed = [(path, name, *part["segment"][:2], part["sentence"])
                      for name, video in videos if video["subset"] == "validation" for part in video["annotations"]]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not of the official form ({error!r}): get {name} from {files.where}") from None
    else:
        path = files.one(name, pattern)                     # columns by name: in this file, end comes before start
        listed = [(f"{path}:{at}", row["video_id"], row["start"], row["end"], row["text"])
                  for at, row in columns(path, "video_id", "start", "end", "text")]
    videos, rows = files.by(stem), []
    for at, video, first, last, text in listed:
        said, start, end = segment(at, video, first, last)
        rows.append((said, videos.get(video), start, end, text))
    return Found([], [], rows)


def msrvtt(files: Files, part: int) -> Found:
    """MSR-VTT 1k-A: MSRVTT_JSFUSION_test.csv, also known as msrvtt_test.csv: one caption for each of 1000 videos."""
    path = files.one("MSRVTT_JSFUSION_test.csv", KINDS["msrvtt"].lists)
    videos = files.by(stem)
    rows = [(row["video_id"], videos.get(row["video_id"]), *WHOLE, row["sentence"])
            for _, row in columns(path, "video_id", "sentence")]
    return Found([], [], rows)


KINDS = {
    "ucf101": Kind(ucf101, "video", r"classInd\.txt", "www.crcv.ucf.edu/data/UCF101.php (ucfTrainTestlist)", 3),
    "hmdb51": Kind(hmdb51, "video", r".+_test_split[123]\.txt|.*hmdb51.*\.csv", "serre-lab.clps.brown.edu/resource/"
                   "hmdb-a-large-human-motion-database (test_train_splits.rar)", 3, (51,)),
    "mit": Kind(mit, "video", r"moments_categories\.txt", "moments.csail.mit.edu"),
    "esc50": Kind(esc50, "audio", r"esc50\.csv", "github.com/karolpiczak/ESC-50 (meta)", 5),
    "audioset": Kind(audioset, "audio", layouts.SEGMENTS.pattern, "research.google.com/audioset/download.html", multi=True),
    "youcook2": Kind(youcook2, "video", r"validation_youcook.*\.csv|youcookii_annotations.*\.json",
                     "github.com/antoine77340/MIL-NCE_HowTo100M (csv)"),
    "msrvtt": Kind(msrvtt, "video", r"msrvtt_(jsfusion_)?test\.csv", "github.com/ArrowLuo/CLIP4Clip (data)"),
    "kinetics": Kind(kinetics, "video", r"(kinetics.*[-_])?(train|val|validate)\.csv",
                     "github.com/cvdfoundation/kinetics-dataset (annotations)", classes=(400, 600, 700)),
    "imagenet": Kind(imagenet, classes=(1000,)),
    "folder": Kind(folder),
    "csv": Kind(table),
}
