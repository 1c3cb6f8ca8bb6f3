"""The memory-mapped index against the rows that were written, and the choice of held-out files against its law."""

import json
import math
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from media import Unreadable
from media.captions import Caption
from sources.index import Index, Place, Row, complement, held_out, point, starts, windows, write

ROWS = [
    Row("a.mp4", 0.0, math.inf, [Caption(0.0, 1.5, "stir"), Caption(2.0, 3.0, "der Löffel, 匙")]),
    Row("b/-x [1].webm", 30.0, 40.0, []),
    Row("b/ü c.mkv", 0.0, math.inf, [Caption(7.25, 7.25, "end")]),
    Row("b/-x [1].webm", 50.0, 60.5, [Caption(1.0, 2.0, "")]),
]


def index_of(folder, paths_or_rows, root="/films"):
    rows = [row if isinstance(row, Row) else Row(row, 0.0, math.inf, []) for row in paths_or_rows]
    write(folder / "index", Path(root), iter(rows))
    return Index(folder / "index")


def test_the_index_holds_the_rows_that_were_written(tmp_path):
    index = index_of(tmp_path, ROWS)
    assert len(index) == 4
    assert [index[i] for i in range(4)] == ROWS
    assert [index[i] for i in np.arange(4)] == list(index) == ROWS
    assert index.path(2) == "/films/b/ü c.mkv"
    assert {p.name for p in tmp_path.iterdir()} == {"index"}


def test_rows_beyond_the_ends_are_refused(tmp_path):
    index = index_of(tmp_path, ROWS)
    for i in (-1, 4):
        with pytest.raises(IndexError, match="4"):
            index[i]


def test_an_index_without_any_caption_can_be_read(tmp_path):
    index = index_of(tmp_path, ["a.mp4", "b.mp4"])
    assert index[1] == Row("b.mp4", 0.0, math.inf, [])
    assert list(index.texts()) == []


def test_texts_are_all_captions_but_those_of_the_rows_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr("sources.index.MANY", 2)
    rows = [Row(f"{i}.mp4", 0.0, math.inf, [Caption(0.0, 1.0, f"{i}{j}é") for j in range(i % 4)]) for i in range(11)]
    index = index_of(tmp_path, rows)
    for skip in ((), (0,), (10,), (3, 4, 9), (9, 3, 3), range(11)):
        expected = [cue.text for i, row in enumerate(rows) if i not in skip for cue in row.captions]
        assert list(index.texts(np.array(skip, dtype=np.int64))) == expected
    assert list(index.texts()) == [cue.text for row in rows for cue in row.captions]


def test_names_and_texts_that_are_no_unicode_survive_or_are_replaced(tmp_path):
    index = index_of(tmp_path, [Row("caf\udce9.mp4", 0.0, 1.0, [Caption(0.0, 1.0, "a\ud800b")])])
    assert index[0] == Row("caf\udce9.mp4", 0.0, 1.0, [Caption(0.0, 1.0, "a?b")])


def test_a_pickled_index_is_its_folder_alone(tmp_path):
    rows = [Row(f"{i}.mp4", 0.0, math.inf, [Caption(0.0, 1.0, "words " * 20)]) for i in range(1000)]
    index = index_of(tmp_path, rows)
    pickled = pickle.dumps(index)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[999] == rows[999]


def test_reading_every_row_leaves_nothing_in_memory(tmp_path):
    rows = (Row(f"{i}.mp4", 0.0, math.inf, [Caption(0.0, 1.0, "word " * 40)] * 5) for i in range(2000))
    write(tmp_path / "index", Path("/films"), rows)
    index = Index(tmp_path / "index")
    index[0], index.path(0)
    tracemalloc.start(10)
    for i in range(len(index)):
        index[i], index.path(i)
    # Of these calls alone: a thread that an earlier test has left may still be at work.
    mine = tracemalloc.Filter(True, "*index.py", all_frames=True)
    left = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([mine]).traces)
    tracemalloc.stop()
    assert left < 20_000                                # the texts alone are 2 MB


def test_an_empty_list_and_an_index_that_is_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no video found under /films"):
        index_of(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    index_of(tmp_path, ROWS)
    with pytest.raises(FileExistsError, match="delete it"):
        index_of(tmp_path, ROWS)
    assert len(Index(tmp_path / "index")) == 4


def test_a_writing_that_fails_leaves_nothing_and_one_that_was_killed_is_written_over(tmp_path):
    def rows():
        yield ROWS[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "index", Path("/films"), rows())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "index.partial").mkdir()
    (tmp_path / "index.partial" / "texts").write_text("half a capt")
    assert len(index_of(tmp_path, ROWS)) == 4
    assert {p.name for p in tmp_path.iterdir()} == {"index"}


def test_a_missing_or_damaged_index_is_refused_by_name_and_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere .*delete it"):
        Index(tmp_path / "nowhere")
    index_of(tmp_path, ROWS)
    for file in sorted((tmp_path / "index").iterdir()):
        whole = file.read_bytes()
        for damage in (whole[:-1], b"", None):
            file.unlink() if damage is None else file.write_bytes(damage)
            with pytest.raises(ValueError, match=r"index holds no whole index .*delete it"):
                Index(tmp_path / "index")
        file.write_bytes(whole)
    head = json.loads((tmp_path / "index" / "index.json").read_text())
    for wrong in ({"format": 0}, {"rows": 5}, {"cues": 1}, {"rows": "4"}, {"root": 7}):
        (tmp_path / "index" / "index.json").write_text(json.dumps(head | wrong))
        with pytest.raises(ValueError, match="delete it"):
            Index(tmp_path / "index")


@pytest.mark.parametrize("path", [
    "../x.mp4", "a/../../x.mp4", "a/..", "/etc/passwd", "//etc/passwd", "file:///etc/passwd", "file:x", "http://host/x.mp4",
    "concat:a.mp4|b.mp4", "C:\\x.mp4", "c:/x.mp4", "", "a\0b.mp4",
])
def test_a_path_that_leaves_the_root_is_refused(tmp_path, path):
    index = index_of(tmp_path, [path])
    with pytest.raises(Unreadable, match="path leaves its folder"):
        index.path(0)
    assert index.name(0) == os.path.join("/films", path)


def test_odd_names_of_real_files_are_not_mistaken_for_protocols(tmp_path):
    names = ["-dash.mp4", "..dots.mp4", "a..b/c.mp4", "Part2:end.mp4", "back\\slash.mp4", "100% ü.mp4"]
    (tmp_path / "Part2:end.mp4").touch()
    index = index_of(tmp_path, names, root=tmp_path)
    assert [index.path(i) for i in range(len(names))] == [str(tmp_path / name) for name in names]


@pytest.mark.parametrize("packed", [False, True])
def test_the_classes_of_rows_are_kept_and_take_no_room_where_there_are_none(tmp_path, packed):
    place = Place(0, 0, 0, 0) if packed else None
    rows = [Row("a.wav", 0.1, 0.7, [], (3,), place), Row("b.wav", 0.0, math.inf, [Caption(0.0, 1.0, "x")], (0, 526, 7), place),
            Row("c.wav", 0.0, math.inf, [], (), place)]
    index = write(tmp_path / "index", tmp_path, rows, packed)
    assert list(index) == rows
    assert "labels" in {p.name for p in (tmp_path / "index").iterdir()}
    none = write(tmp_path / "none", tmp_path, [row._replace(labels=()) for row in rows], packed)
    assert [row.labels for row in none] == [()] * 3
    assert not {"labels", "label_ends"} & {p.name for p in (tmp_path / "none").iterdir()}


# Where clips begin

def test_a_clip_begins_where_a_whole_one_follows_or_at_the_start_of_a_row_that_is_too_short():
    row = Row("a.mp4", 2.0, 9.0, [])
    assert starts(row, 20.0, 3.0) == (2.0, 6.0)
    assert starts(row, 6.0, 3.0) == (2.0, 3.0)
    assert starts(row, 4.0, 3.0) == (2.0, 2.0)
    assert starts(row._replace(end=math.inf), 20.0, 3.0) == (2.0, 17.0)
    for begin in (20.0, 25.0, -1.0, math.nan):
        with pytest.raises(Unreadable, match="start past the end"):
            starts(row._replace(start=begin), 20.0, 3.0)


def test_windows_cover_the_file_and_begin_on_frames():
    assert windows(0.0, 251 / 25 - 64 / 25, 4, 25.0) == [0, 62 / 25, 124 / 25, 187 / 25]
    assert windows(1.0, 2.0, 1, 10.0) == [1.5]
    assert windows(3.0, 3.0, 4, 10.0) == [3.0] * 4


# Held-out files

def held_paths(folder, paths, **law):
    index = index_of(folder, paths)
    rows = held_out(index, **law)
    assert rows.tolist() == sorted(set(rows.tolist()))
    held = {index[i].path for i in rows}
    assert rows.tolist() == [i for i, path in enumerate(paths) if path in held]       # whole files, all their rows
    return held


@pytest.mark.parametrize(("files", "held"), [(1, 0), (2, 1), (3, 1), (49, 1), (100, 2), (1000, 20), (12_000, 200)])
def test_two_percent_of_the_files_are_held_out_at_least_1_at_most_200_never_all(tmp_path, files, held):
    assert len(held_paths(tmp_path, [f"{i}.mp4" for i in range(files)])) == held


def test_the_share_counts_files_and_not_rows(tmp_path):
    paths = [f"{i}.mp4" for i in range(99)] + ["long.mp4"] * 5000
    assert len(held_paths(tmp_path, paths)) == 2


def test_the_same_files_are_held_out_in_any_order(tmp_path):
    paths = [f"{i % 700}.mp4" for i in range(1000)]
    expected = held_paths(tmp_path / "a", paths)
    assert held_paths(tmp_path / "b", paths[::-1]) == expected
    assert held_paths(tmp_path / "c", sorted(paths)) == expected
    assert len(expected) == 14


def test_more_films_leave_the_held_out_ones_among_the_first_to_be_held_out(tmp_path):
    few = held_paths(tmp_path / "a", [f"{i}.mp4" for i in range(1000)])
    many = held_paths(tmp_path / "b", [f"{i}.mp4" for i in range(1200)], share=0.05)
    assert few < many


def test_nothing_is_held_out_where_nothing_is_asked_for(tmp_path):
    assert held_paths(tmp_path, [f"{i}.mp4" for i in range(100)], share=0, least=0) == set()


def test_the_complement_numbers_the_rows_that_are_not_held_out():
    for held in ([], [0], [4], [0, 1, 2], [2, 3, 7], [0, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9]):
        held = np.array(held, dtype=np.int64)
        left = [i for i in range(10) if i not in held]
        assert complement(np.arange(len(left)), held).tolist() == left
        assert [int(complement(k, held)) for k in range(len(left))] == left


def test_a_strangers_index_does_not_point_to_files_elsewhere(tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    write(tmp_path / "packed" / "index", films, [Row("a.mp4", 0.0, 1.0, [])])
    with pytest.raises(ValueError, match="points to files elsewhere"):
        point(tmp_path / "mine", tmp_path / "packed" / "index")


@pytest.mark.parametrize("how", ["at", "root", "link of a shard", "link of a file", "link of index.json"])
def test_shards_of_others_never_point_elsewhere(tmp_path, how):
    out, place, secret = tmp_path / "packed", Place(0, 0, 0, 10), tmp_path / "secret"
    row = Row("a.mp4", 0.0, 1.0, [], (), place)
    write(out / "index", out, [row], packed=True)
    write(tmp_path / "other" / "index", tmp_path, [row], packed=True)
    (out / "shard-000000.tar").write_bytes(bytes(10))
    secret.write_bytes(bytes(10))
    point(tmp_path / "fine", out / "index")
    head = out / "index" / "index.json"
    if how == "at":
        index = Index(tmp_path / "other" / "index")
        head.write_text(json.dumps({"format": 3, "at": str(index.folder), "rows": index.rows, "crc": index.crc}))
    elif how == "root":
        head.write_text(json.dumps(json.loads(head.read_text()) | {"root": str(tmp_path)}))
    else:
        link = {"link of a shard": out / "shard-000000.tar", "link of a file": out / "index" / "paths"}.get(how, head)
        secret.write_bytes(link.read_bytes())
        link.unlink()
        link.symlink_to(secret)
    with pytest.raises(ValueError, match="points to files elsewhere"):
        point(tmp_path / "mine", out / "index")


@pytest.mark.parametrize("name", ["path_ends", "cue_ends", "text_ends", "label_ends"])
def test_offsets_that_go_back_or_are_far_apart_are_refused_before_a_run_begins(tmp_path, name):
    place = Place(0, 0, 0, 0)
    rows = [Row("a.mp4", 0.0, 1.0, [Caption(0, 1, "a"), Caption(1, 2, "b")], (1, 2), place)] * 3
    for change in (lambda ends: ends[[0, 2, 1, *range(3, len(ends))]], lambda ends: ends - [1, *[0] * (len(ends) - 1)]):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        write(out / "index", out, rows, packed=True)
        path = out / "index" / name
        change(np.fromfile(path, "<i8")).astype("<i8").tofile(path)
        with pytest.raises(ValueError, match=rf"damaged or made up \({name}\): pack"):
            point(tmp_path / "mine", out / "index")


def test_a_row_of_more_captions_than_a_draw_should_cost_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sources.index.MAX_CAPTIONS", 2)
    row = Row("a.mp4", 0.0, 1.0, [Caption(0, 1, "a")] * 3, (), Place(0, 0, 0, 0))
    write(tmp_path / "out" / "index", tmp_path, [row], packed=True)
    with pytest.raises(ValueError, match="damaged or made up"):
        point(tmp_path / "mine", tmp_path / "out" / "index")


def test_an_index_that_is_a_pipe_or_a_device_is_refused_at_once(tmp_path):
    for i, make in enumerate((os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.write_text("[" * 60_000),
                              lambda path: path.write_text("[1]"), lambda path: path.write_text(" " * 99_999))):
        (tmp_path / str(i)).mkdir()
        make(tmp_path / str(i) / "index.json")
        with pytest.raises(ValueError, match="holds no whole index"):
            Index(tmp_path / str(i))
    index_of(tmp_path, ROWS)
    (tmp_path / "index" / "paths").unlink()
    os.mkfifo(tmp_path / "index" / "paths")
    with pytest.raises(ValueError, match="holds no whole index"):
        Index(tmp_path / "index")
