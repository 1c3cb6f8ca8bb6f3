"""Sources of a run: the same by another name or in another place; what came, went or changed since it began is told."""

import shutil

import pytest
import runs
from films import TINY, folder

import pretrain
from sources import index
from sources.census import captions, folders, settle
from tools import show


def begun(tmp_path):
    root = folder(tmp_path / "films", films=3, captioned=2)
    settle(tmp_path / "run", [str(root)], None)
    return root


def rows(tmp_path):
    return list(index.Index(tmp_path / "run" / "index" / "0"))


def test_a_source_is_the_same_whatever_it_is_called(tmp_path, monkeypatch, capsys):
    root = begun(tmp_path)
    before = rows(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(root)
    for text in ("films", "films/", "./films", "folder=films", "link", str(root)):
        settle(tmp_path / "run", [text], None)
    assert rows(tmp_path) == before
    assert capsys.readouterr().err == ""


def test_a_source_that_was_moved_goes_on_where_its_files_are_the_same_and_is_refused_otherwise(tmp_path, capsys):
    root = begun(tmp_path)
    shutil.copytree(root, tmp_path / "fewer")
    (tmp_path / "fewer" / "01.mp4").unlink()
    (tmp_path / "fewer" / "00.csv").write_text("start,end,text\n")
    with pytest.raises(ValueError, match=r"not what the run began with, .*films: 1 files went \(first 01.mp4\), 1 files "
                                         r"changed \(first 00.csv\); name that"):
        settle(tmp_path / "run", [str(tmp_path / "fewer")], None)
    root.rename(tmp_path / "moved")
    settle(tmp_path / "run", [str(tmp_path / "moved")], None)
    assert index.Index(tmp_path / "run" / "index" / "0").path(0) == str(tmp_path / "moved" / "00.mp4")
    assert capsys.readouterr().err == ""


def test_what_came_went_or_changed_is_told_and_the_run_goes_on_with_what_it_began_with(tmp_path, capsys):
    root = begun(tmp_path)
    before = rows(tmp_path)
    (root / "02.csv").write_text("start,end,text\n0,1,new\n")
    (root / "01.csv").unlink()
    (root / "00.csv").write_text("start,end,text\n0,1,other\n")
    settle(tmp_path / "run", [str(root)], None)
    assert capsys.readouterr().err.startswith(
        f"warning: {root}: 1 files came (first 02.csv), 1 files went (first 01.csv), 1 files changed (first 00.csv) since")
    assert rows(tmp_path) == before


def test_another_number_of_sources_is_refused(tmp_path):
    root = begun(tmp_path)
    other = folder(tmp_path / "other", films=2)
    for trained, held in (([str(root), str(other)], None), ([str(root)], str(other))):
        with pytest.raises(ValueError, match=r"name other sources than those that .*run began with"):
            settle(tmp_path / "run", trained, held)
    settle(tmp_path / "two", [str(root)], str(other))
    assert [path.name for path in folders(tmp_path / "two", [str(root)], str(other))] == ["0", "val"]
    with pytest.raises(ValueError, match="other sources"):
        settle(tmp_path / "two", [str(root)], None)


def test_shards_may_be_moved_and_others_are_refused(tmp_path):
    root = folder(tmp_path / "films", films=2)
    for name, crf in (("packed", "20"), ("other", "40")):
        show.main(["pack", str(root), str(tmp_path / name), "--rate", "8000", "--workers", "1", "--crf", crf])
    settle(tmp_path / "run", [str(tmp_path / "packed")], None)
    (tmp_path / "packed").rename(tmp_path / "moved")
    settle(tmp_path / "run", [str(tmp_path / "moved")], None)
    assert index.Index(tmp_path / "run" / "index" / "0").path(0) == str(tmp_path / "moved" / "shard-000000.tar")
    with pytest.raises(ValueError, match="holds other shards"):
        settle(tmp_path / "run", [str(tmp_path / "other")], None)
    with pytest.raises(ValueError, match="not what the run began with"):
        settle(tmp_path / "run", [str(root)], None)


def test_captions_are_counted_in_one_line(tmp_path):
    begun(tmp_path)
    assert captions([index.Index(tmp_path / "run" / "index" / "0")]) == (
        "videos with captions: 2, without: 1; captions: 4, words: 12")
    settle(tmp_path / "silent", [str(folder(tmp_path / "without", films=2, captioned=0))], None)
    assert captions([index.Index(tmp_path / "silent" / "index" / "0")]).startswith(
        "videos with captions: 0, without: 2; captions: 0, words: 0; nothing can be learned of text")


def test_a_run_goes_on_with_its_data_by_another_name(tmp_path, monkeypatch, capsys):
    folder(tmp_path / "films", films=6)
    monkeypatch.chdir(tmp_path)
    argv = ["--out", "run", *TINY, "--workers", "0", "--data"]
    pretrain.main([*argv, "films"])
    assert "videos with captions: 6, without: 0; captions: 12, words: 36" in capsys.readouterr().out
    whole = runs.rows(tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    max((tmp_path / "run").glob("checkpoint-*.pt")).unlink()
    pretrain.main([*argv, str(tmp_path / "films")])
    assert runs.rows(tmp_path / "run") == whole
