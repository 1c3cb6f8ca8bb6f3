"""Subtitle files as the world writes them, against the cues they say; `nearest` against Eq. 5 read literally."""

import json
import math
import os
import random

import pytest

from media import captions
from media.captions import Caption, merge_rolling, nearest, read

TWO = [Caption(1.0, 2.5, "Stir the dough."), Caption(62.25, 3604.0, "Then wait & see")]

SRT = "1\n00:00:01,000 --> 00:00:02,500\nStir the\ndough.\n\n2\n00:01:02,250 --> 01:00:04,000\nThen wait & see\n"
VTT = """WEBVTT - a title
Kind: captions

NOTE made by hand
--

STYLE
::cue { color: red }

REGION
id:fred

first of all
00:01.000 --> 00:02.500 align:start position:0% line:80%
<v Ann>Stir <i>the</i> <c.yellow.bg>dough</c>.</v>

01:02.250 --> 01:00:04.000
{\\an8}Then<00:01:02.900><c> wait</c> &amp; see
"""
CSV = "text,,end,start\nStir the dough.,x,2.5,1.0\nThen wait & see,,3604,62.25\n"
LISTS = json.dumps({"start": [1, 62.25], "end": [2.5, 3604], "text": ["Stir the dough.", "Then wait &amp; see"]})
ENTRIES = json.dumps([{"start": 62.25, "end": 3604, "text": "Then wait & see", "speaker": 1},
                      {"text": "Stir the dough.", "start": "1", "end": "00:02,5"}])
WHISPER = json.dumps({"text": " Stir the dough. Then", "language": "en", "segments": [
    {"id": 0, "seek": 0, "start": 1.0, "end": 2.5, "text": " Stir the dough.", "tokens": [1], "words": [{"word": " Stir"}]},
    {"id": 1, "seek": 0, "start": 62.25, "end": 3604.0, "text": " Then wait & see", "tokens": [2]}]})
CPP = json.dumps({"result": {"language": "en"}, "transcription": [
    {"timestamps": {"from": "00:00:01,000"}, "offsets": {"from": 1000, "to": 2500}, "text": " Stir the dough."},
    {"timestamps": {}, "offsets": {"from": 62250, "to": 3604000}, "text": " Then wait & see"}]})
CHUNKS = json.dumps({"text": "..", "chunks": [{"timestamp": [1.0, 2.5], "text": " Stir the dough."},
                                             {"timestamp": [62.25, 3604], "text": "Then wait & see"}]})
JSON3 = json.dumps({"wireMagic": "pb3", "events": [{"tStartMs": 0, "dDurationMs": 9, "id": 1}, {
    "tStartMs": 1000, "dDurationMs": 1500, "segs": [{"utf8": "Stir the"}, {"utf8": " dough.", "tOffsetMs": 300}]},
    {"tStartMs": 62250, "dDurationMs": 3541750, "segs": [{"utf8": "Then wait & see"}]}]})
SPANS = json.dumps([{"text": "Stir the dough.", "start": 1.0, "duration": 1.5},
                    {"text": "Then wait & see", "start": 62.25, "duration": 3541.75}])
SBV = "0:00:01.000,0:00:02.500\nStir the\ndough.\n\n0:01:02.250,1:00:04.000\nThen wait & see\n"
TSV = "start\tend\ttext\n1000\t2500\tStir the dough.\n62250\t3604000\tThen wait & see\n"
ASS = """[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname
Style: Default,Arial

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Comment: 0,0:00:00.00,0:00:01.00,Default,,0,0,0,,not said
Dialogue: 0,0:01:02.25,1:00:04.00,Default,,0,0,0,,{\\an8}Then\\Nwait{note}\\h& {\\k20}s{\\k30}ee
Dialogue: 0,0:00:05.00,0:00:06.00,Default,,0,0,0,,{\\p1}m 0 0 l 10 10{\\p0}
Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,Stir{\\i1}the{\\i0} dough.
"""
TTML = """<?xml version="1.0"?><tt xmlns="http://www.w3.org/ns/ttml" xmlns:ttp="x" ttp:tickRate="1000"><body><div>
<p begin="00:00:01.000" end="00:00:02.500">Stir the<br/>dough.</p><p xml:id="b" begin="62250t"
 dur="3541.75s"><span tts:color="red">Then</span> wait &amp;<tt:br/>see</p></div></body></tt>"""
FILES = [
    ("a.srt", SRT), ("a.vtt", VTT), ("a.csv", CSV), ("a.json", LISTS), ("b.json", ENTRIES), ("A.SRT", SRT), ("c.json", WHISPER),
    ("cpp.json", CPP), ("chunks.json", CHUNKS), ("youtube.json3", JSON3), ("spans.json", SPANS), ("a.sbv", SBV), ("a.tsv", TSV),
    ("a.ass", ASS), ("a.ssa", ASS), ("a.ttml", TTML), ("a.dfxp", TTML.replace("<p ", "<tt:p ").replace("</p>", "</tt:p>"))]


def cues_of(folder, name, content, encoding="utf-8"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    problems = []
    return read(path, problems), problems


@pytest.mark.parametrize(("name", "content"), FILES)
def test_every_format_says_the_same_cues_sorted_by_start(tmp_path, name, content):
    assert cues_of(tmp_path, name, content) == (TWO, [])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("name", "content"), FILES[:4])
def test_byte_order_marks_and_line_ends_change_nothing(tmp_path, name, content, newline, encoding):
    assert cues_of(tmp_path, name, content.replace("\n", newline), encoding) == (TWO, [])


def test_empty_lines_may_be_missing_between_srt_cues(tmp_path):
    assert cues_of(tmp_path, "a.srt", SRT.replace("\n\n", "\n"))[0] == TWO
    assert cues_of(tmp_path, "b.srt", SRT.replace("\n\n", "\n \n"))[0] == TWO


def test_lines_of_a_song_go_on_to_the_next_one(tmp_path):
    text = "[ti:Dough]\n[00:01.00][01:02.25]Stir the <00:01.50>dough.\n[00:02.50]\n[01:04.5] Then wait\n"
    assert cues_of(tmp_path, "a.lrc", text) == ([
        Caption(1.0, 2.5, "Stir the dough."), Caption(62.25, 64.5, "Stir the dough."), Caption(64.5, 69.5, "Then wait")], [])


@pytest.mark.parametrize("said", [r"one\Ntwo\hthree", r"one{\an8}two{\r}three", r"{\i1}one{\i0}\ntwo {\b1}three"])
def test_breaks_and_tags_of_ass_never_glue_words_whatever_the_file(tmp_path, said):
    assert cues_of(tmp_path, "a.srt", SRT.replace("Stir the\ndough.", said))[0][0].text == "one two three"


def test_words_that_are_not_utf8_are_told_with_a_remedy_and_left_out(tmp_path):
    cues, problems = cues_of(tmp_path, "a.srt", SRT.replace("dough", "pâte"), "latin-1")
    assert cues[0].text == "Stir the"
    assert "iconv -f WINDOWS-1252 -t UTF-8" in problems[0]
    assert len(problems) == 1
    assert problems[0].startswith(f"{tmp_path / 'a.srt'}:4: not UTF-8")


def test_text_can_always_be_encoded_and_printed(tmp_path):
    cues, _ = cues_of(tmp_path, "a.json", r'[{"start": 0, "end": 1, "text": "a\ud800b\u0000c\u001b[31m\nd&nbsp;e"}]')
    assert cues == [Caption(0, 1, "a?b c [31m d e")]
    cues[0].text.encode()
    cues, _ = cues_of(tmp_path, "b.srt", SRT.replace("dough", "d\0ough"))
    assert cues[0].text == "Stir the dough."


def test_a_less_than_sign_in_speech_is_no_tag():
    assert captions.clean("a < b and c > d, <b>3 &lt;i&gt;</b> <ok> 2<br>3") == "a < b and c > d, 3 <i> <ok> 2 3"


def test_cues_without_a_valid_time_or_text_are_dropped_one_line_each(tmp_path):
    rows = [["x", 1, "a"], [-1, 1, "a"], [2, 1, "a"], [0, math.nan, "a"], [0, math.inf, "a"], [0, 10**400, "a"],
            [0, 1, None], [0, 1, 7], [0, 1, " <i></i>"], [0, 1], [[], {}, "a"], [1, 1, "an instant"]]
    entries = [dict(zip(("start", "end", "text"), row, strict=False)) for row in rows]
    cues, problems = cues_of(tmp_path, "a.json", json.dumps(entries))
    assert cues == [Caption(1, 1, "an instant")]
    assert [line.removeprefix(f"{tmp_path / 'a.json'}:").partition(":")[0] for line in problems] == [
        str(i) for i in range(1, 12)]
    cues, problems = cues_of(tmp_path, "a.srt", SRT.replace("00:00:02,500", "00:00:00,500").replace("01:02", "x"))
    assert cues == []
    assert [line.split(":")[1] for line in problems] == ["2", "6"]


def test_words_outside_a_cue_are_told_and_lost(tmp_path):
    cues, problems = cues_of(tmp_path, "a.srt", SRT.replace("the\ndough", "the\n\ndough"))
    assert [cue.text for cue in cues] == ["Stir the", "Then wait & see"]
    assert len(problems) == 1
    assert "a.srt:5: 'dough.'" in problems[0]


def test_lists_of_different_lengths_lose_their_ends(tmp_path):
    cues, problems = cues_of(tmp_path, "a.json", '{"start": [0, 2, 4], "end": [1, 3], "text": ["a", "b", "c"]}')
    assert [cue.text for cue in cues] == ["a", "b"]
    assert len(problems) == 1


def test_all_problems_are_told_with_their_lines_up_to_a_limit_for_a_file_and_for_all(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("start,end,text\n" + "1,0,no\n" * 50)
    problems = []
    assert read(tmp_path / "a.csv", problems) == []
    assert [int(line.split("a.csv:")[1].split(":")[0]) for line in problems] == list(range(2, 52))
    monkeypatch.setattr("media.captions.TOLD_PER_FILE", 20)
    monkeypatch.setattr("engine.errors.MAX_PROBLEMS", 1000)
    problems = []
    assert read(tmp_path / "a.csv", problems) == []
    assert len(problems) == 21
    assert "a.csv: 30 more" in problems[-1]
    for _ in range(100):
        read(tmp_path / "a.csv", problems)
    assert len(problems) == 1001


def test_long_text_is_cut_and_long_csv_fields_do_not_raise(tmp_path):
    cues, problems = cues_of(tmp_path, "a.csv", f'start,end,text\n0,1,"{"word " * 60_000}"\n2,3,after\n')
    assert [cue.text[:5] for cue in cues] == ["word ", "after"]
    assert len(cues[0].text) <= captions.MAX_CHARACTERS
    assert len(problems) == 1
    assert "300000 characters" in problems[0]


@pytest.mark.parametrize(("name", "content"), [
    ("a.csv", "who,what\n1,2\n"), ("a.csv", ""), ("a.csv", 'start,end,text\n"0,1,never closed\n'),
    ("a.json", "{"), ("a.json", ""), ("a.json", "[" * 100_000), ("a.json", "7"), ("a.json", "[1]"),
    ("a.json", '{"a": 1}'),
    ("a.json", '{"start": 1, "end": 2, "text": "x"}'), ("a.json", "[" + "9" * 5000 + "]"),
    ("a.ttml", '<tt ttp:tickRate="0"><p begin="5t" end="x">a</p></tt>'),
    ("a.txt", SRT), ("a.srt", "no arrow at all"), ("a.vtt", b"\xff\xfe\x00"), ("a.srt", bytes(range(256)) * 9),
])
def test_a_file_that_says_nothing_is_a_problem_and_never_an_exception(tmp_path, name, content):
    cues, problems = cues_of(tmp_path, name, content)
    assert cues == []
    assert problems
    assert all(line.startswith(str(tmp_path / name)) and line.isprintable() for line in problems)


def test_a_missing_file_a_folder_a_pipe_and_a_name_with_a_nul_are_problems(tmp_path):
    (tmp_path / "a.srt").mkdir()
    os.mkfifo(tmp_path / "pipe.srt")
    problems = []
    assert [read(tmp_path / name, problems) for name in ("a.srt", "b.srt", "c\0\n.srt", "pipe.srt")] == [[]] * 4
    assert len(problems) == 4
    assert all(map(str.isprintable, problems))


def test_a_file_over_the_limit_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "MAX_BYTES", len(SRT) - 1)
    cues, problems = cues_of(tmp_path, "a.srt", SRT)
    assert cues == []
    assert len(problems) == 1
    assert "larger than" in problems[0]


def test_captions_without_end_are_cut_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "MAX_CAPTIONS", 1)
    assert cues_of(tmp_path, "a.srt", SRT)[0] == TWO[:1]
    assert "a.srt:2: more than 1 captions" in cues_of(tmp_path, "a.srt", SRT)[1][0]


def test_an_empty_file_with_only_a_header_has_no_cues_and_no_problem(tmp_path):
    assert cues_of(tmp_path, "a.vtt", "WEBVTT\n\nNOTE nothing\nis said\n") == ([], [])
    assert cues_of(tmp_path, "a.csv", "start,end,text\n") == ([], [])
    assert cues_of(tmp_path, "a.json", "[]") == ([], [])


# Rolling captions

def texts(*said, length=2.0):
    """Cues that follow on each other, `length` seconds each -> the texts that are left."""
    cues = [Caption(i * length, (i + 1) * length, text) for i, text in enumerate(said)]
    return [cue.text for cue in merge_rolling(cues)]


def test_rolling_captions_of_a_recogniser_say_each_word_once(tmp_path):
    cues, problems = cues_of(tmp_path, "a.vtt", """WEBVTT
Kind: captions

00:00:00.000 --> 00:00:02.430 align:start position:0%
\x20
hello<00:00:00.480><c> everyone</c><00:00:01.020><c> today</c>

00:00:02.430 --> 00:00:02.440 align:start position:0%
hello everyone today
\x20

00:00:02.440 --> 00:00:05.000 align:start position:0%
hello everyone today
we<00:00:02.800><c> bake</c>

00:00:05.000 --> 00:00:05.010 align:start position:0%
we bake
\x20

00:00:05.010 --> 00:00:07.000 align:start position:0%
we bake
bread<00:00:06.000><c> and</c><00:00:06.500><c> bread</c><00:00:06.800><c> and</c>

00:00:07.000 --> 00:00:07.010 align:start position:0%
bread and bread and

00:00:07.010 --> 00:00:09.000 align:start position:0%
bread and bread and
[Music]

00:00:09.000 --> 00:00:09.010 align:start position:0%
[Music]

00:00:09.010 --> 00:00:12.000 align:start position:0%
[Music]
cake
""")
    assert problems == []
    assert cues == [Caption(0, 2.44, "hello everyone today"), Caption(2.44, 5.01, "we bake"),
                    Caption(5.01, 7.01, "bread and bread and"), Caption(7.01, 9.01, "[Music]"), Caption(9.01, 12, "cake")]


def test_a_caption_that_grows_word_by_word_says_each_word_once():
    assert texts("now", "now take", "now take the", "now take the pan") == ["now", "take", "the", "pan"]


def test_ordinary_speech_that_repeats_itself_is_left_alone():
    for said in (["no no", "no no", "no never"], ["it is very", "very very good"], ["so we wait", "we wait and see"],
                 ["no", "no no", "no no no"], ["la la la", "la la la"], ["thank you.", "thank you all"]):
        assert texts(*said) == said


def test_a_long_repeat_is_cut_in_a_file_that_does_not_roll_and_a_short_one_is_not():
    said = ["one two three four", "two three four five", "a", "b", "c and d", "and d e", "f"]
    assert texts(*said) == ["one two three four", "five", "a", "b", "c and d", "and d e", "f"]


def test_a_repeat_after_a_pause_is_speech():
    cues = [Caption(0, 2, "stir the soup well"), Caption(2.5, 4, "stir the soup well"), Caption(3, 5, "the soup well done")]
    assert merge_rolling(cues) == [*cues[:2], Caption(3, 5, "done")]


def test_a_repeat_extends_the_last_cue_and_never_shortens_it():
    cues = [Caption(0, 5, "stir the soup"), Caption(1, 2, "stir the soup")]
    assert merge_rolling(cues) == [Caption(0, 5, "stir the soup")]
    assert merge_rolling([]) == []


# Eq. 5

def test_the_nearest_cues_are_those_with_the_smallest_gap_in_order_of_nearness():
    draw = random.Random(0)
    for _ in range(200):
        starts = [draw.randint(0, 40) for _ in range(draw.randint(0, 12))]
        times = [(start, start + draw.randint(0, 6)) for start in starts]
        start, k = draw.randint(0, 40), draw.randint(0, 8)
        end = start + 3
        order = []
        for i, (first, last) in enumerate(times):
            gap = first - end if first > end else start - last if last < start else 0
            order.append((gap, abs((first + last) / 2 - (start + end) / 2), i))
        assert nearest(times, start, end, k) == [i for *_, i in sorted(order)][:k]


def test_five_cues_around_a_clip_come_before_the_rest_of_the_film():
    times = [(10.0 * i, 10.0 * i + 4) for i in range(20)]
    assert nearest(times, 100.0, 103.2, 5) == [10, 9, 11, 8, 12]
