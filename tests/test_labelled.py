"""One's own labelled data (labelled.py): a folder for each class, csv files, films with subtitles."""

import math
import pickle
from pathlib import Path

import pytest

from sources.labelled import Items, apart
from sources.official import load


def put(root, *names, text=""):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def names(items):
    return [(item.path.name, item.target) for item in items]


@pytest.mark.parametrize("sides", [("train", "val"), ("training", "validation"), ("Train", "test")])
def test_a_folder_for_each_class_below_train_and_val(tmp_path, sides):
    root = put(tmp_path, f"{sides[0]}/zebra/1.jpg", f"{sides[0]}/ant/sub/2.PNG", f"{sides[1]}/zebra/3.jpg")
    data = load(str(root), [])
    assert (data.kind, data.classes, data.multi) == ("image", ["ant", "zebra"], False)
    assert names(data.train) == [("2.PNG", 0), ("1.jpg", 1)]
    assert names(data.test) == [("3.jpg", 1)]
    assert data.train[0][1:3] == (0, math.inf)


def test_a_folder_without_parts_holds_a_fifth_of_each_class_out_whatever_the_order(tmp_path):
    put(tmp_path, *(f"{name}/{i}.wav" for name, n in (("a", 20), ("b", 3), ("c", 1)) for i in range(n)))
    data = load(str(tmp_path), [])
    assert [sum(item.target == k for item in data.test) for k in range(3)] == [4, 1, 0]
    assert len(data.train) + len(data.test) == 24
    rows = [(f"{i}.wav", "a") for i in range(20)]
    assert sorted(apart(rows)[1]) == sorted(apart(rows[::-1])[1])


def test_files_in_no_class_and_files_of_another_kind_are_told(tmp_path):
    problems = []
    put(tmp_path, "train/a/1.mp4", "train/a/2.jpg", "train/a/3.mp4", "val/a/1.mp4", "val/loose.mp4", "else/x/1.mp4")
    load(str(tmp_path), problems)
    assert "2 files lie outside train/CLASS and val/CLASS and are left out, first else/x/1.mp4" in problems[0]
    assert "several kinds (3 of video, 1 of image): all are taken as video" in problems[1]


def test_a_class_to_test_on_that_training_lacks_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="'bee' is none of the 1 classes of the folders of training"):
        load(str(put(tmp_path, "train/ant/1.jpg", "val/bee/2.jpg")), [])


def test_films_with_subtitles_are_films_with_captions(tmp_path):
    put(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,500\na red cloth\n")
    data = load(str(tmp_path), [])
    assert data.classes == []
    assert [(item.path.name, *item[1:]) for item in data.test] == [("a.mp4", 1.0, 2.5, "a red cloth")]


def test_items_are_a_sequence_of_what_was_listed_and_small_to_send_to_workers():
    rows = [("a b/ü.mp4", 0.0, math.inf, 3), ("x.mp4", 1.25, 2.0, (1, 5)),
            ("y\udcff.mp4", 0.5, 1.0, 'a "caption"'), ("z", 0, 1, ())]
    items = pickle.loads(pickle.dumps(Items(Path("/root"), rows)))
    assert list(items) == [(Path("/root", path), *rest) for path, *rest in rows]
    assert items[-1] == items[3]
    assert items[1:4:2] == [items[1], items[3]]
    with pytest.raises(IndexError):
        items[4]
    many = Items(Path("/data"), ((f"part{i % 40:02}/Y{i:011}.wav", i, i + 10.0, (i % 527, 3)) for i in range(10_000)))
    assert len(pickle.dumps(many)) < 80 * len(many)


def test_a_folder_without_any_labels_says_what_labels_look_like(tmp_path):
    with pytest.raises(ValueError, match="put the files of a class in a folder of its name"):
        load(str(put(tmp_path, "a.mp4")), [])


def table(root, text, name="labels.csv"):
    put(root, *(f"clips/{i}.mp4" for i in range(5)))
    (root / name).write_text(text, encoding="utf-8")
    return root


def test_a_csv_of_path_label_times_and_split(tmp_path):
    text = ("\ufeffPath, label, start, end, split\nclips/0.mp4,\"run, fast\",0,1.5,train\nclips/0.mp4,jump,1.5,,train\n"
            "clips/1.mp4,jump,,,val\nclips/9.mp4,jump,,,val\n")
    data = load(str(table(tmp_path, text)), [])
    assert (data.name, data.kind, data.classes) == ("labels", "video", ["jump", "run, fast"])
    assert [(item.path.name, *item[1:]) for item in data.train] == [("0.mp4", 0, 1.5, 1), ("0.mp4", 1.5, math.inf, 0)]
    assert names(data.test) == [("1.mp4", 0)]
    assert data.missing == ["clips/9.mp4"]


def test_a_csv_without_split_keeps_all_parts_of_a_film_on_one_side(tmp_path):
    rows = [f"clips/{i}.mp4,{name},{k},{k + 1}\n" for i in range(5) for k, name in enumerate("ab")]
    text = "path,label,start,end\n" + "".join(rows)
    data = load(f"csv={table(tmp_path, text)}/labels.csv", [])
    assert data.test
    assert not {item.path for item in data.train} & {item.path for item in data.test}


def test_a_csv_takes_its_labels_from_a_named_column(tmp_path):
    root = table(tmp_path, "path,colour,split\nclips/0.mp4,red,train\nclips/1.mp4,red,val\n")
    assert load(f"csv={root}/labels.csv:colour", []).classes == ["red"]
    with pytest.raises(ValueError, match=r"names no column label, but path, colour, split: .*csv=.*labels.csv:COLUMN"):
        load(str(root), [])


@pytest.mark.parametrize("column", ["caption", "text", "sentence"])
def test_a_csv_of_captions_is_for_retrieval(tmp_path, column):
    text = f"path,{column},start,end\nclips/0.mp4,a red cloth,1,2\nclips/1.mp4,a blue cloth,,\n"
    root = table(tmp_path, text, "captions.csv")
    data = load(str(root), [])
    assert data.classes == list(data.train) == []
    assert names(data.test) == [("0.mp4", "a red cloth"), ("1.mp4", "a blue cloth")]


@pytest.mark.parametrize(("row", "said"), [
    ("clips/1.mp4,a,5,3,train", "labels.csv:3: 'clips/1.mp4' from 5 to 3 s"), ("clips/1.mp4,a,-1,3,train", "from -1 to 3 s"),
    ("clips/1.mp4,a,nan,3,train", "from nan to 3 s"), ("clips/1.mp4,a,x,3,train", "from nan to 3 s"),
    ("clips/1.mp4,,0,3,train", "a path, a label"), ("clips/1.mp4,a,0,3,dev", "split is 'dev': write train or val"),
    ("clips/1.mp4", "a path, a label"), ("clips/1.mp4,b,0,1,val", "'b' is none of the 1 classes of the rows of training")])
def test_a_row_that_cannot_be_is_an_error_with_its_line(tmp_path, row, said):
    with pytest.raises(ValueError, match=said):
        load(str(table(tmp_path, f"path,label,start,end,split\nclips/0.mp4,a,0,1,train\n{row}\n")), [])
