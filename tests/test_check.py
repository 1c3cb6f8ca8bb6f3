"""Looking at data before training (check.py, show.py): broken clips found with their reasons, a picture of the rest."""

import csv
import sys
from pathlib import Path

import pytest
from films import captioned, film, folder
from runs import pretrained

import evaluate
from sources import index
from tools import show


def run(argv, capsys):
    """-> exit code, what is printed, errors"""
    code = 0
    try:
        show.main(list(map(str, argv)))
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code, said.out, [line for line in said.err.splitlines() if "error: " in line]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("films"), films=4, silent=1, captioned=3)


@pytest.fixture
def packed(films, tmp_path, capsys):
    assert run(["pack", films, tmp_path / "out", "--rate", "8000", "--workers", "1"], capsys)[0] == 0
    return tmp_path / "out"


@pytest.mark.parametrize("whole", [[], ["--whole"]])
def test_a_folder_and_shards_without_fault_pass(films, packed, tmp_path, capsys, whole):
    for path in (films, packed):
        code, said, _ = run(["check", path, "--out", tmp_path / "broken.csv", "--workers", "2", *whole], capsys)
        assert (code, said) == (0, "4 clips read, 0 broken\nvideos with captions: 3, without: 1; captions: 6, words: 18\n")


def test_broken_films_are_listed_with_reasons_and_counted(tmp_path, capsys):
    film(tmp_path / "films" / "good.mp4")
    for i in range(2):
        (tmp_path / "films" / f"zero{i}.mp4").touch()
    (tmp_path / "films" / "text, or so.mp4").write_text("not a film")
    whole = film(tmp_path / "films" / "cut.mp4", seconds=4).read_bytes()
    (tmp_path / "films" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    code, said, _ = run(["check", tmp_path / "films", "--out", tmp_path / "broken.csv", "--workers", "2"], capsys)
    assert code == 3
    assert "5 clips read, 4 broken" in said
    assert "2  empty file " in said
    assert "2  not a media file " in said
    with (tmp_path / "broken.csv").open() as file:
        rows = [(row["path"].rsplit("/", 1)[1], row["reason"]) for row in csv.DictReader(file)]
    assert rows == [("cut.mp4", "not a media file"), ("text, or so.mp4", "not a media file"), ("zero0.mp4", "empty file"),
                    ("zero1.mp4", "empty file")]


def test_pack_and_embed_leave_out_what_is_on_the_list(tmp_path, capsys):
    for i in range(3):
        film(tmp_path / "films" / f"{i}.mp4", seed=i)
    (tmp_path / "films" / "a.mp4").touch()
    table = tmp_path / "broken.csv"
    assert run(["check", tmp_path / "films", "--out", table, "--workers", "1"], capsys)[0] == 3
    code, said, _ = run(["pack", tmp_path / "films", tmp_path / "out", "--workers", "1", "--skip", table], capsys)
    assert code == 0
    assert "3 clips" in said
    assert "could not be packed" not in said
    argv = ["embed", str(pretrained(tmp_path / "run")), str(tmp_path / "films"), str(tmp_path / "x.npz")]
    for more, unreadable in (([], 1), (["--skip", str(table)], 0)):
        evaluate.main([*argv, *more])
        assert f"{unreadable} could not be read" in capsys.readouterr().out


def test_captions_inside_of_videos_are_counted(tmp_path, capsys):
    (tmp_path / "films").mkdir()
    captioned(tmp_path / "films" / "a.mkv", "1\n00:00:00,000 --> 00:00:01,000\nsaid\n")
    code, said, _ = run(["check", tmp_path / "films", "--out", tmp_path / "broken.csv", "--workers", "1"], capsys)
    assert code == 0
    assert f"1 of those hold captions inside, first {tmp_path}/films/a.mkv: ffmpeg -i VIDEO -map 0:s:0 VIDEO.srt" in said


def test_a_bit_that_flipped_in_a_shard_is_found_by_its_checksum(packed, tmp_path, capsys):
    rows = index.Index(packed / "index")
    path, place = Path(rows.path(2)), rows.place(2)
    content = bytearray(path.read_bytes())
    content[place.offset + place.size // 2] ^= 1
    path.write_bytes(content)
    code, said, _ = run(["check", packed, "--out", tmp_path / "broken.csv", "--workers", "1"], capsys)
    assert code == 3
    assert "1  wrong checksum" in said
    assert f"{path}/000000002 (02.mp4)" in (tmp_path / "broken.csv").read_text()


def test_a_shard_that_is_cut_short_or_missing_breaks_its_clips_only(packed, tmp_path, capsys):
    rows = index.Index(packed / "index")
    path, place = Path(rows.path(2)), rows.place(2)
    path.write_bytes(path.read_bytes()[: place.offset + 10])
    assert "2  file cut short" in run(["check", packed, "--out", tmp_path / "b.csv", "--workers", "1"], capsys)[1]
    path.unlink()
    assert "4  no such file" in run(["check", f"shards={packed}", "--out", tmp_path / "b.csv", "--workers", "1"], capsys)[1]


def test_a_contact_sheet_shows_the_clips_with_their_words(films, packed, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for path in (films, packed):
        code, said, _ = run(["show", path, tmp_path / "sheet.png", "--clips", "2"], capsys)
        assert code == 0
        assert "2 of 4 clips" in said
        assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_missing_or_wrong_is_one_line_and_exit_code_2(films, tmp_path, capsys, monkeypatch):
    sheet = tmp_path / "sheet.png"
    for argv, says in (
        (["check", tmp_path / "nowhere"], "there is no"),
        (["check", films, "--workers", "0"], "--workers: must be at least 1"),
        (["show", films, sheet, "--clips", "0"], "--clips: must be at least 1"),
        (["show", films, sheet, "--run", films], "is no run"),
        (["show", films, tmp_path / "no" / "folder.png", "--clips", "1"], "folder.png"),
        (["polish", films], "invalid choice: 'polish'"),
    ):
        code, _, errors = run(argv, capsys)
        assert (code, len(errors)) == (2, 1), argv
        assert says in errors[0]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in run(["show", films, sheet], capsys)[2][0]
