"""One's own labelled data (labelled.py): a folder for each class, csv files, films with subtitles."""

import math
import pickle
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from media.captions import Caption
from sources import layouts, official
from sources.labelled import fifth


def load(text, problems, part=1, **how):
    return official.load(text, Path(tempfile.mkdtemp()), problems, part, **how)


def put(root, *names, text=""):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def names(rows):
    """The rows as (name of the file, class or caption)"""
    return [(Path(row.path).name, *row.labels, *(caption.text for caption in row.captions)) for row in rows]


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
    assert [sum(row.labels == (k,) for row in data.test) for k in range(3)] == [4, 1, 0]
    assert len(data.train) + len(data.test) == 24
    keys = np.arange(20, dtype=np.uint64) * 7919 % 20
    assert fifth(keys, np.zeros(20, int)).tolist() == fifth(keys[::-1], np.zeros(20, int)).tolist() == [0, 1, 2, 3]


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
    assert [row[:4] for row in data.test] == [("a.mp4", 1.0, 2.5, [Caption(1.0, 2.5, "a red cloth")])]


def test_a_data_set_is_small_to_send_to_workers_however_many_rows_it_has(tmp_path):
    root = put(tmp_path, "train/a/0.wav", *(f"val/a/{i}.wav" for i in range(500)))
    data = load(str(root), [])
    assert len(pickle.dumps(data)) < 1500
    assert list(pickle.loads(pickle.dumps(data)).test) == list(data.test)


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
    assert [(row.path, row.start, row.end, row.labels) for row in data.train] == [
        ("clips/0.mp4", 0, 1.5, (1,)), ("clips/0.mp4", 1.5, math.inf, (0,))]
    assert names(data.test) == [("1.mp4", 0)]
    assert data.missing == ["clips/9.mp4"]


def test_a_csv_without_split_keeps_all_parts_of_a_film_on_one_side(tmp_path):
    rows = [f"clips/{i}.mp4,{name},{k},{k + 1}\n" for i in range(5) for k, name in enumerate("ab")]
    text = "path,label,start,end\n" + "".join(rows)
    data = load(f"csv={table(tmp_path, text)}/labels.csv", [])
    assert data.test
    assert not {row.path for row in data.train} & {row.path for row in data.test}


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


def test_files_outside_the_folder_of_a_list_are_taken_only_where_that_is_allowed(tmp_path):
    put(tmp_path, "other/1.mp4", "lists/2.mp4")
    inside, outside = str(tmp_path / "lists/2.mp4"), str(tmp_path / "other/1.mp4")
    path = tmp_path / "lists" / "labels.csv"
    for odd in (outside, "../other/1.mp4"):
        path.write_text(f"path,label,split\n{inside},a,train\n{odd},a,val\n")
        with pytest.raises(ValueError, match=r"labels.csv:3: .*1.mp4' lies outside .*lists: .*--allow-outside"):
            load(str(path), [])
        data = load(str(path), [], outside=True)
        assert [data.train.name(0), data.test.name(0)] == [inside, outside]
    path.write_text(f"path,label,split\n{inside},a,train\n2.mp4,a,val\n")
    data = load(str(path), [])
    assert [row.path for row in (data.train[0], data.test[0])] == ["2.mp4", "2.mp4"]


def test_a_row_of_a_list_that_is_a_link_out_of_its_folder_is_told(tmp_path):
    put(tmp_path, "other/1.mp4", "lists/2.mp4")
    (tmp_path / "lists" / "1.mp4").symlink_to(tmp_path / "other" / "1.mp4")
    (tmp_path / "lists" / "labels.csv").write_text("path,label,split\n1.mp4,a,train\n2.mp4,a,val\n")
    data = load(str(tmp_path / "lists" / "labels.csv"), problems := [])
    assert (len(data.train), len(data.test)) == (1, 1)
    assert [line for line in problems if "lead out of it" in line and "1.mp4 -> " in line]


def test_lines_of_path_and_label_need_no_header_and_their_numbers_are_in_order(tmp_path):
    put(tmp_path, *(f"clips/a b {i}.mp4" for i in range(12)))
    for name, between in (("train.csv", " "), ("train.txt", "\t"), ("any.csv", ",")):
        (tmp_path / name).write_text("".join(f"clips/a b {i}.mp4{between}{i % 11}\n" for i in range(12)))
        data = load(str(tmp_path / name), [])
        assert data.classes == [str(i) for i in range(11)]
        assert sorted(names(data.train) + names(data.test)) == sorted((f"a b {i}.mp4", i % 11) for i in range(12))


def test_lists_to_train_and_to_test_on_say_what_a_folder_is(tmp_path):
    put(tmp_path, *(f"clips/v{i}.mp4" for i in range(4)))
    for name, numbers in (("train.csv", (0, 1)), ("val.csv", (2, 3)), ("test.csv", (0,))):
        (tmp_path / name).write_text("".join(f"clips/v{i}.mp4 {i % 2}\n" for i in numbers))
    data = load(str(tmp_path), [])
    assert (data.classes, names(data.train), names(data.test)) == (["0", "1"], [("v0.mp4", 0), ("v1.mp4", 1)],
                                                                    [("v2.mp4", 0), ("v3.mp4", 1)])


def test_a_list_in_a_folder_of_classes_is_told(tmp_path):
    put(tmp_path, "train/a/1.mp4", "val/a/2.mp4", "readme.txt", "notes.txt")
    (tmp_path / "clips.csv").write_text("file,what\ntrain/a/1.mp4,a\n")
    problems = []
    load(str(tmp_path), problems)
    assert problems == [f"{tmp_path}: 1 lists in it are not read, first clips.csv (--data csv={tmp_path}/clips.csv reads it)"]


@pytest.mark.parametrize(("text", "said"), [
    ("path,label,split\nclips/0.mp4,a,train\nclips/1.mp4,a,train\nclips/0.mp4,a,val\nclips/1.mp4,a,val\n",
     "2 rows name a file to train on and to test on: its scores mean nothing, first: lines 2 and 4"),
    ("path,label\nclips/1.mp4,b\nclips/0.mp4,a\nclips/0.mp4,b\nclips/1.mp4,a\n",
     "2 rows give a file two labels: each row counts, first: lines 3 and 4"),
    ("path,label\nclips/0.mp4,a\nclips/1.mp4,b|c\n", "1 labels hold a |, and each is one class, first: 'b|c', line 3"),
    ("path,label,start,end\nclips/0.mp4,a,0,1\nclips/0.mp4,b,1,2\nclips/1.mp4,a,0,1\n", None),
])
def test_lists_that_contradict_themselves_are_told_with_their_lines(tmp_path, text, said):
    problems = []
    load(str(table(tmp_path, text)), problems)
    assert problems == ([f"{tmp_path}/labels.csv: {said}"] if said else [])


@pytest.mark.parametrize("text", ["path,label\n", "path,caption\n", ""])
def test_a_list_without_a_row_is_an_error(tmp_path, text):
    with pytest.raises(ValueError, match=r"labels.csv( lists no file|: the first line names no column)"):
        load(str(table(tmp_path, text)), [])


def test_names_that_begin_with_dots_lie_in_the_folder(tmp_path):
    put(tmp_path, "..a.mp4", "...b.mp4")
    data = load(str(table(tmp_path, "path,label,split\n..a.mp4,x,train\n...b.mp4,x,val\n")), [])
    assert [row.path for row in (data.train[0], data.test[0])] == ["..a.mp4", "...b.mp4"]


def test_a_large_list_takes_a_few_times_its_own_bytes_and_one_of_too_many_classes_is_refused(tmp_path, monkeypatch):
    put(tmp_path, "clips/0.mp4", "clips/1.mp4")
    most = []
    for rows in (2_000, 22_000):
        (tmp_path / "labels.csv").write_text("path,label\n" + "clips/0.mp4,running\nclips/1.mp4,jumping\n" * (rows // 2))
        tracemalloc.start()
        data = load(str(tmp_path), [])
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(data.train) + len(data.test) == rows
    assert most[1] - most[0] < 5 * (tmp_path / "labels.csv").stat().st_size
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"clips/0.mp4,{i}\n" for i in range(8)))
    monkeypatch.setattr("sources.labelled.MOST", 5)
    with pytest.raises(ValueError, match=r"labels.csv:7: more than 5 classes"):
        load(str(tmp_path), [])


def test_a_listing_says_how_far_it_is_also_in_a_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sources.files.PAUSE", (0, 0))
    put(tmp_path, "train/a/0.mp4", "val/a/1.mp4")
    load(str(tmp_path), [])
    layouts.list_files("howto100m", tmp_path, tmp_path / "index", tmp_path / "problems")
    said = capsys.readouterr().err
    for what in (f"listing {tmp_path}: 5 folders", f"reading {tmp_path}: 1 rows", f"reading {tmp_path}: 2 videos"):
        assert what in said, said
