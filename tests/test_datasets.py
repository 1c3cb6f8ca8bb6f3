"""Folders as users have them on disk, against the rows that they stand for (layouts: Section 4.1's data sets)."""

import io
import json
import math
import os
from types import SimpleNamespace

import av
import numpy as np
import pytest
from films import captioned, film

from media import Media
from media.captions import Caption
from sources import layouts
from sources.index import Row
from sources.layouts import audioset, folder, howto100m, members, parse_source

SRT = "1\n00:00:01,000 --> 00:00:02,000\n{}\n"
ALL = (0.0, math.inf)


def plant(root, *names, **texts):
    """Empty files of these names, and files with a text: a dictionary's."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, text in texts.items():
        (root / name).write_text(text)


def rows_of(source, root):
    problems = []
    return list(source(root, problems)), problems


# A folder of videos

def test_any_folder_of_videos_is_a_data_set_in_a_sorted_order(tmp_path):
    plant(tmp_path, "b/z.mkv", "b/a.MP4", "-dash.webm", "a b ü.Mov", "x.mp4/inner.avi", "b.mpg", "notes.txt", "s.wav",
          ".hidden.mp4", ".trash/c.mp4", "b/._a.MP4")
    (tmp_path / "film.mp4").mkdir()
    rows, problems = rows_of(folder, tmp_path)
    assert [row.path for row in rows] == ["-dash.webm", "a b ü.Mov", "b.mpg", "b/a.MP4", "b/z.mkv", "x.mp4/inner.avi"]
    assert all(row[1:4] == (*ALL, []) for row in rows)
    assert problems == []


@pytest.mark.parametrize(("texts", "said"), [
    (["f.srt", "f.vtt", "f.csv", "f.json", "f.en.srt"], "f.srt"), (["f.en.srt", "f.vtt"], "f.vtt"),
    (["f.de.srt", "f.en-US.srt", "f.en.vtt"], "f.en.vtt"), (["f.de.vtt", "f.en-US.vtt"], "f.en-US.vtt"),
    (["f.zh-Hans.vtt"], "f.zh-Hans.vtt"), (["f.SRT"], "f.SRT"), (["g.srt", "f.part2.srt", "f.txt"], None),
])
def test_the_subtitles_of_a_film_stand_beside_it(tmp_path, texts, said):
    plant(tmp_path, "f.mp4")
    for name in texts:
        (tmp_path / name).write_text(("" if "srt" in name.lower() else "WEBVTT\n\n") + SRT.format(name))
    rows, problems = rows_of(folder, tmp_path)
    assert rows == [Row("f.mp4", *ALL, [Caption(1, 2, said)] if said else [])]
    assert [line for line in problems if "several" not in line and "not used" not in line and "not read" not in line] == []


@pytest.mark.parametrize(("video", "text"), [
    *(("clay.mp4", f"clay{marks}.srt") for marks in (
        ".mp4", ".en.sdh", ".sdh.en", ".english", ".en.0f8fad5b-d9cb-469f-a165-70867728950e", "_en", ".en-orig", ".pt-BR",
        ".mp4.en", ".es-419.cc", ".forced", " [en]", "_track3_[eng]", ".2_English", "-fr")),
    ("Clay.mp4", "clay.srt"), ("clay.MP4", "CLAY.EN.SRT"), ("my clay.v2.mp4", "my clay.v2.de.srt"),
    ("caf\u00e9.mp4", "cafe\u0301.srt"), ("cafe\u0301.mp4", "caf\u00e9.en.srt"), ("clay.f137.mp4", "clay.en.srt"),
    ("clay [dQw4w9WgXcQ].mp4", "clay.en.srt"), ("clay [dQw4w9WgXcQ].mp4", "clay [dQw4w9WgXcQ].en.srt"),
])
def test_captions_are_found_by_what_programs_call_them(tmp_path, video, text):
    plant(tmp_path, video, **{text: SRT.format("said")})
    assert rows_of(folder, tmp_path) == ([Row(video, *ALL, [Caption(1, 2, "said")])], [])


@pytest.mark.parametrize(("texts", "language", "said"), [
    (["f.en.forced.srt", "f.de.srt"], "", "f.de.srt"), (["f.en-orig.srt", "f.en.vtt"], "", "f.en.vtt"),
    (["f.auto.srt", "f.cc.srt"], "", "f.cc.srt"), (["f.sdh.srt", "f.srt"], "", "f.srt"),
    (["f.fr.srt", "f.srt"], "French", "f.fr.srt"),
    (["f.en.srt", "f.pt-BR.srt"], "pt", "f.pt-BR.srt"), (["f.en.srt", "f.srt"], "de", "f.srt"), (["f.en.srt"], "de", None),
])
def test_of_several_captions_the_choice_is_told_and_can_be_set(tmp_path, texts, language, said):
    plant(tmp_path, "f.mp4", **{name: SRT.format(name) for name in texts})
    problems = []
    (row,) = folder(tmp_path, problems, language)
    assert [caption.text for caption in row.captions] == ([said] if said else [])
    if said and not language:
        assert f"1 videos have several caption files (--language NAME chooses another), first: {said} is" in problems[0]
    elif language == "de":
        assert "1 caption files are of no video of their folder, or in a language that is not wanted" in problems[0]


def test_of_videos_whose_names_differ_in_capitals_alone_each_has_its_own_captions(tmp_path):
    plant(tmp_path, "Clay.mp4", "clay.mkv", **{name: SRT.format(name) for name in ("clay.srt", "Clay.srt", "CLAY.en.srt")})
    rows, problems = rows_of(folder, tmp_path)
    assert [[caption.text for caption in row.captions] for row in rows] == [["Clay.srt"], ["clay.srt"]]
    assert "not used" in problems[0]
    assert problems[0].endswith("first: CLAY.en.srt")


@pytest.mark.parametrize("name", ["Subs/2_English.srt", "Talk 2.srt", "how_to.srt", "f.part2.en.srt", "g.ass"])
def test_captions_that_are_of_no_video_are_told(tmp_path, name):
    plant(tmp_path, "f.mp4", "Talk.mp4", "how.mp4")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(SRT.format("said"))
    rows, problems = rows_of(folder, tmp_path)
    assert not any(row.captions for row in rows)
    assert problems == [f"{tmp_path}: 1 caption files are of no video of their folder, or in a language that is not wanted, "
                        f"and are not used (name them clip.srt or clip.en.srt beside clip.mp4; where they have a "
                        f"folder of their own: cp -n CAPTIONS/* VIDEOS/), first: {name}"]


def test_texts_of_kinds_that_are_not_read_are_told_where_a_video_has_no_others(tmp_path):
    plant(tmp_path, "a.mp4", "b.mp4", "a.sup", "a.idx", "b.txt", "c.smi", "notes.txt", "film.info.json", "x.csv")
    plant(tmp_path, "d.mp4", "d.txt", "d.sub", **{"d.srt": SRT.format("said")})
    problems = rows_of(folder, tmp_path)[1]
    assert len(problems) == 1
    assert "4 texts beside videos are of a kind that is not read" in problems[0]


def test_captions_inside_of_videos_are_told_with_the_command_that_takes_them_out(tmp_path):
    film(tmp_path / "a.mp4")
    captioned(tmp_path / "b.mkv", SRT.format("said"))
    assert rows_of(folder, tmp_path)[1] == [
        f"{tmp_path}: 1 of the first 2 videos that have no captions beside them hold some inside, which are not read "
        "(ffmpeg -i VIDEO -map 0:s:0 VIDEO.srt takes them out), first: b.mkv"]


def test_a_folder_of_tars_says_that_they_are_to_be_unpacked(tmp_path):
    plant(tmp_path, "a-000000.tar", "a-000001.tar")
    with pytest.raises(ValueError, match=r"holds no videos but tars .* first a-000000.tar: unpack them .*data.py pack"):
        rows_of(folder, tmp_path)


def test_an_mxf_is_a_video(tmp_path):
    with av.open(str(tmp_path / "a.mxf"), "w") as out:
        stream = out.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(50):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 4 * i, np.uint8), "rgb24")))
        out.mux(stream.encode(None))
    (row,) = rows_of(folder, tmp_path)[0]
    with Media(tmp_path / row.path) as media:
        assert media.duration == pytest.approx(2.0)


def test_a_file_that_says_nothing_gives_way_to_the_next_one(tmp_path):
    plant(tmp_path, "f.mp4", **{"f.srt": "", "f.en.vtt": "WEBVTT\n\n" + SRT.format("said")})
    assert rows_of(folder, tmp_path)[0] == [Row("f.mp4", *ALL, [Caption(1, 2, "said")])]


def test_subtitles_belong_to_the_film_of_their_own_folder_only(tmp_path):
    plant(tmp_path, "a/f.mp4", "b/f.mp4", "b/g.v2.mp4")
    (tmp_path / "a/f.srt").write_text(SRT.format("in a"))
    (tmp_path / "b/g.v2.srt").write_text(SRT.format("in b"))
    rows, _ = rows_of(folder, tmp_path)
    assert [[cue.text for cue in row.captions] for row in rows] == [["in a"], [], ["in b"]]


def test_linked_folders_are_walked_once_and_loops_end(tmp_path):
    plant(tmp_path / "root", "a/f.mp4")
    plant(tmp_path / "elsewhere", "g.mp4")
    for link, target in (("loop", "."), ("a/up", ".."), ("again", "a"), ("out", "../elsewhere"), ("self", "self"),
                         ("broken.mp4", "nowhere"), ("h.mp4", "a/f.mp4")):
        (tmp_path / "root" / link).symlink_to(target)
    rows, problems = rows_of(folder, tmp_path / "root")
    assert [row.path for row in rows] == ["h.mp4", "a/f.mp4", "out/g.mp4"]
    assert problems == [f"{tmp_path}/root: 1 links lead out of it and are followed, first: out -> {tmp_path}/elsewhere"]


def test_a_named_pipe_is_neither_a_film_nor_its_subtitles(tmp_path):
    plant(tmp_path, "f.mp4")
    os.mkfifo(tmp_path / "f.srt")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert rows_of(folder, tmp_path) == ([Row("f.mp4", *ALL, [])], [])


def test_a_folder_that_cannot_be_read_is_a_problem(tmp_path):
    rows, problems = rows_of(folder, tmp_path / "nowhere")
    assert rows == []
    assert len(problems) == 1
    assert "nowhere" in problems[0]


# HowTo100M

CAPTIONS = {
    "-_id1": {"start": [4, 0.5], "end": [5, 1], "text": ["two", "one"]},
    "gone0": {"start": [0], "end": [1], "text": ["of a film that was taken down"]},
    "dotted.name": {"start": [0], "end": [1], "text": ["dots"]},
    "id3": {"start": [0, 0], "end": [1, -1], "text": ["drei ü", "backwards"]},
}


def howto100m_folder(root):
    plant(root, "videos/-_id1.mp4", "id3.f137.webm", "videos/part/dotted.name.mkv", "silent.mp4", "videos/silent.webm")
    return [Row("videos/-_id1.mp4", *ALL, [Caption(0.5, 1, "one"), Caption(4, 5, "two")]),
            Row("videos/part/dotted.name.mkv", *ALL, [Caption(0, 1, "dots")]),
            Row("id3.f137.webm", *ALL, [Caption(0, 1, "drei ü")]),
            Row("silent.mp4", *ALL, [])]


@pytest.mark.parametrize("name", ["caption.json", "raw_caption.json", "raw_caption_superclean.json"])
def test_howto100m_captions_come_from_one_json_by_the_id_of_the_film(tmp_path, name):
    expected = howto100m_folder(tmp_path)
    (tmp_path / name).write_text(json.dumps(CAPTIONS), encoding="utf-8")
    assert parse_source(str(tmp_path)) == ("howto100m", tmp_path)
    rows, problems = rows_of(howto100m, tmp_path)
    assert rows == expected
    assert len(problems) == 4
    assert problems[0].startswith(f"{tmp_path / name}:id3:2: 'backwards'")
    assert problems[1].endswith("1 videos have the id of another and are passed over, first: videos/silent.webm")
    assert problems[2].endswith("1 videos with captions have no file, first: gone0")
    assert problems[3].endswith("1 videos have no captions, first: silent.mp4")


def test_howto100m_prefers_caption_json(tmp_path):
    plant(tmp_path, "a.mp4")
    for name in ("caption", "raw_caption"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"a": {"start": [0], "end": [1], "text": [name]}}))
    assert rows_of(howto100m, tmp_path)[0] == [Row("a.mp4", *ALL, [Caption(0, 1, "caption")])]


def test_howto100m_captions_may_be_a_csv_a_film_anywhere(tmp_path):
    expected = howto100m_folder(tmp_path)
    (tmp_path / "csv").mkdir()
    for key, captions in CAPTIONS.items():
        lines = [",".join(map(str, line)) for line in zip(*captions.values(), strict=True)]
        (tmp_path / "csv" / f"{key}.csv").write_text("\n".join(["start,end,text", *lines]))
    (tmp_path / "HowTo100M_v1.csv").write_text("video_id,category_1,category_2,rank,task_id\n")
    rows, problems = rows_of(howto100m, tmp_path)
    assert sorted(rows) == sorted(expected)
    assert rows[-1] == expected[-1]
    assert [line.split(", first")[0].split(": ")[-1] for line in problems[2:4]] == [
        "1 videos with captions have no file", "1 videos have no captions"]


def test_an_entry_of_another_form_is_a_problem_and_a_film_without_cues(tmp_path):
    plant(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "caption.json").write_text('{"a": 12, "b": {"start": [0], "end": [1], "text": ["b"]}}')
    rows, problems = rows_of(howto100m, tmp_path)
    assert rows == [Row("a.mp4", *ALL, []), Row("b.mp4", *ALL, [Caption(0, 1, "b")])]
    assert len(problems) == 1
    assert "caption.json:a:1:" in problems[0]


@pytest.mark.parametrize("form", [{}, {"indent": 1}, {"ensure_ascii": False}])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1 << 20])
def test_a_json_of_any_length_is_read_entry_by_entry_through_a_buffer_of_any_size(tmp_path, size, form):
    parsed = CAPTIONS | {"ü\\\"}{,:": [1, {"a": "匙"}], "n": 123456, "e": {}, "t": True}
    file = tmp_path / "caption.json"
    file.write_text("\ufeff" + json.dumps(parsed, **form) + "\n", encoding="utf-8")
    assert list(members(file, size)) == list(parsed.items())


def test_a_wrong_byte_in_a_json_costs_that_letter_alone(tmp_path):
    plant(tmp_path, "id3.mp4")
    (tmp_path / "caption.json").write_bytes(json.dumps(CAPTIONS, ensure_ascii=False).encode("latin-1"))
    assert rows_of(howto100m, tmp_path)[0] == [Row("id3.mp4", *ALL, [Caption(0, 1, "drei ?")])]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_a_json_that_breaks_off_is_refused_with_its_name_and_the_place(tmp_path, size):
    whole = json.dumps(CAPTIONS).encode()
    file = tmp_path / "caption.json"
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        read, left = [], members(file, size)
        with pytest.raises(ValueError, match=r"caption.json breaks off .* after byte \d+") as error:
            read.extend(left)
        place = int(str(error.value).split("after byte ")[1].split(":")[0])
        assert len(read) == (0 if length < 2 else 1 if length < len(whole) - 1 else 3)
        assert (json.loads(whole[:place] + b"}") if place else {}) == dict(list(CAPTIONS.items())[: len(read)])


@pytest.mark.parametrize("text", [
    "[1]", "7", '{"a": 1 "b": 2}', '{"a" 1}', "{1: 2}", '{"a": 1,}', '{"a": ' + "[" * 99_999,
])
def test_what_is_no_json_object_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "caption.json").write_text(text)
    with pytest.raises(ValueError, match=r"caption\.json .* move it away") as error:
        list(members(tmp_path / "caption.json"))
    assert "\n" not in str(error.value)


def test_a_broken_json_is_not_read_to_its_end(monkeypatch):
    class Stream(io.StringIO):
        taken = 0

        def read(self, size):
            self.taken += size
            return super().read(size)

    stream = Stream('{"a": nonsense' + " " * 100_000)
    monkeypatch.setattr("media.captions.MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="after byte 0"):
        next(members(SimpleNamespace(open=lambda **_: stream), size=10))
    assert 1000 < stream.taken < 5000


def test_an_id_that_comes_twice_in_a_json_is_one_film(tmp_path):
    plant(tmp_path, "a.mp4")
    (tmp_path / "caption.json").write_text('{"a": {"start": [0], "end": [1], "text": ["first"]}, "a": []}')
    assert rows_of(howto100m, tmp_path)[0] == [Row("a.mp4", *ALL, [Caption(0, 1, "first")])]


def test_an_empty_object_has_no_members(tmp_path):
    (tmp_path / "caption.json").write_text(" { } ")
    assert list(members(tmp_path / "caption.json")) == []


# AudioSet

OFFICIAL = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=5, num_segs=5, num_unique_labels=3, num_positive_labels=7
# YTID, start_seconds, end_seconds, positive_labels
--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"
Yabcdefghij, 0.000, 10.000, "/m/012xff"
_aE2O5G5W_E, 1130.000, 1136.500, "/m/03fwl,/m/04rlf"
--aO5cdqSAg, 30.000, 40.000, "/g/122z_qxw"
--aaILOrkII, 200.000, 210.000, "/m/032s66"
"""
SEGMENTS = [
    ("--PJHxphWEs", 30.0, 40.0, ["/m/09x0r", "/t/dd00088"]), ("Yabcdefghij", 0.0, 10.0, ["/m/012xff"]),
    ("_aE2O5G5W_E", 1130.0, 1136.5, ["/m/03fwl", "/m/04rlf"]), ("--aO5cdqSAg", 30.0, 40.0, ["/g/122z_qxw"]),
    ("--aaILOrkII", 200.0, 210.0, ["/m/032s66"]),
]
PLAIN = OFFICIAL.partition("# YTID")[2].replace(", ", ",")
MANGLED = PLAIN.replace('"/m', '"""/m').replace('"\n', '""",,,,\n')


@pytest.mark.parametrize("text", [
    OFFICIAL, "YTID" + PLAIN, "YTID" + MANGLED, "\ufeff" + OFFICIAL.replace("\n", "\r\n"),
])
def test_official_and_mangled_segment_lists_say_the_same(tmp_path, text):
    (tmp_path / "a_segments.csv").write_text(text, encoding="utf-8", newline="")
    problems = []
    assert list(layouts.segments(tmp_path / "a_segments.csv", problems)) == SEGMENTS
    assert problems == []


def test_a_bad_row_of_a_segment_list_is_told_with_its_line(tmp_path):
    bad = ['#NAME?,30.000,40.000,"/m/09x0r"', "--PJHxphWEs,30.000,40.000,", "--PJHxphWEs,40,30,/m/09x0r", "--PJHxphWEs",
           "--PJHxphWEs,nan,40,/m/09x0r", "../../../ab,0,10,/m/09x0r", "x" * 200_000 + ",0,10,/m/09x0r"]
    (tmp_path / "a_segments.csv").write_text(OFFICIAL + "\n".join(bad))
    problems = []
    assert len(list(layouts.segments(tmp_path / "a_segments.csv", problems))) == 5
    assert [line.split(":")[1] for line in problems] == [str(9 + i) for i in range(7)]
    assert max(map(len, problems)) < 1000


def test_audioset_clips_are_found_by_id_with_y_and_times_in_seconds_or_milliseconds(tmp_path):
    (tmp_path / "balanced_train_segments.csv").write_text(OFFICIAL)
    plant(tmp_path, "v/Y--PJHxphWEs.mp4", "v/Yabcdefghij_0_10000.mkv", "w/Y_aE2O5G5W_E_1130.000.MP4",
          "--aO5cdqSAg_30000_40000.webm", "--aO5cdqSAg_999.webm", "v/holiday.mp4", "--aaILOrkII.wav")
    rows, problems = rows_of(audioset, tmp_path)
    assert rows == [Row("v/Y--PJHxphWEs.mp4", 30.0, 40.0, []), Row("v/Yabcdefghij_0_10000.mkv", *ALL, []),
                    Row("w/Y_aE2O5G5W_E_1130.000.MP4", *ALL, []), Row("--aO5cdqSAg_30000_40000.webm", *ALL, [])]
    assert len(problems) == 2
    assert problems[0].startswith(f"{tmp_path}: 1 videos are not named")
    assert problems[0].endswith("v/holiday.mp4")
    assert problems[1].endswith("1 segments have no file, first: --aaILOrkII")


def test_a_file_named_by_an_id_alone_is_its_segment_where_it_is_hardly_longer_and_else_the_whole_video(tmp_path):
    (tmp_path / "balanced_train_segments.csv").write_text(
        "# YTID, start_seconds, end_seconds, positive_labels\n" + "".join(
            f'{"abcdefghij"}{i}, {start}, {start + 2}, "/m/09x0r"\n' for i, start in enumerate((30.0, 30.0, 1.0, 0.0))))
    for i, seconds in enumerate((2.1, 2.9, 4.0, 2.0)):
        film(tmp_path / f"{'Y' if i % 2 else ''}abcdefghij{i}.mp4", seconds=seconds)
    rows, problems = rows_of(audioset, tmp_path)
    assert [(row.start, row.end) for row in rows] == [ALL, ALL, (1.0, 3.0), (0.0, 2.0)]
    assert problems == [f"{tmp_path}: 2 files named by an id alone are hardly longer than their segments, and are taken for "
                        "them, first: abcdefghij0.mp4"]


def test_the_evaluation_list_is_used_only_where_it_is_alone(tmp_path):
    plant(tmp_path, *(f"{youtube}.mp4" for youtube, *_ in SEGMENTS))
    lines = OFFICIAL.splitlines(keepends=True)[3:]
    (tmp_path / "eval_segments.csv").write_text(lines[0])
    assert [row.path for row in rows_of(audioset, tmp_path)[0]] == ["--PJHxphWEs.mp4"]
    (tmp_path / "balanced_train_segments.csv").write_text(lines[1])
    (tmp_path / "unbalanced_train_segments.csv").write_text(lines[2])
    assert [row.path for row in rows_of(audioset, tmp_path)[0]] == ["Yabcdefghij.mp4", "_aE2O5G5W_E.mp4"]


def test_audioset_without_a_list_is_refused_with_the_remedy(tmp_path):
    plant(tmp_path, "a.mp4")
    with pytest.raises(ValueError, match=r"no \*_segments.csv: .* --data folder="):
        rows_of(audioset, tmp_path)


# --data

@pytest.mark.parametrize(("names", "found"), [
    ([], "folder"), (["a.mp4", "a.csv", "a.json"], "folder"), (["sub/caption.json"], "folder"),
    (["caption.json"], "howto100m"), (["raw_caption.json", "eval_segments.csv"], "howto100m"),
    (["eval_segments.csv"], "audioset"),
])
def test_the_kind_of_a_source_is_seen_in_its_folder_unless_it_is_said(tmp_path, names, found):
    plant(tmp_path, *names)
    assert parse_source(str(tmp_path)) == (found, tmp_path)
    for name in layouts.KINDS:
        assert parse_source(f"{name}={tmp_path}") == (name, tmp_path)


def test_a_path_may_hold_an_equals_sign_or_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    plant(tmp_path, "x=y/a.mp4", "folder=z/b.mp4")
    for text, name in (("x=y", "x=y"), ("folder=x=y", "x=y"), ("folder=z", "folder=z"), (f"{tmp_path}/x=y", None)):
        assert parse_source(text)[1].samefile(tmp_path / (name or "x=y"))
    assert parse_source("folder=~/x=y") == ("folder", tmp_path / "x=y")


@pytest.mark.parametrize(("text", "error", "said"), [
    ("kinetics=.", ValueError, "'kinetics' is no kind of data: write howto100m=, audioset=, folder=, shards= or the path"),
    ("nowhere", FileNotFoundError, "nowhere: there is no nowhere: name a folder"),
    ("no/where=x", FileNotFoundError, "there is no no/where=x"),
    ("folder=nowhere", FileNotFoundError, "there is no nowhere"),
    ("film.mp4", ValueError, "film.mp4 is a file: name the folder"),
    ("folder=", ValueError, "write folder=FOLDER"), ("", ValueError, "write FOLDER"),
])
def test_a_source_that_is_none_is_refused_in_one_line_with_the_remedy(tmp_path, monkeypatch, text, error, said):
    monkeypatch.chdir(tmp_path)
    plant(tmp_path, "film.mp4")
    with pytest.raises(error) as raised:
        parse_source(text)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
