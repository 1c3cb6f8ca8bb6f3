"""The demo's data set, read back from disk by PyAV, and its table of ceilings against a simulated guesser.

    pytest tests/test_demo.py
"""

import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from sources import demo

HERE = Path(__file__).parent.parent

EVERY = list(itertools.product(*demo.ATTRIBUTES.values()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six files to train on and four held out, written once."""
    folder = tmp_path_factory.mktemp("demo") / "data"
    demo.write(folder, train=6, val=4, workers=1)
    return folder


def read(path):
    """Picture (T, 64, 64, 3) float in 0 to 1 and sound (S,) of a file."""
    with av.open(str(path)) as file:
        picture = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]) / 255
    with av.open(str(path)) as file:
        return picture, np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])


def cues(path):
    """(start, end, text) of a subtitle file, by a reader of our own."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith("WEBVTT\n\n") == (path.suffix == ".vtt")
    comma = "," if path.suffix == ".srt" else r"\."
    clock = rf"(\d\d):(\d\d):(\d\d){comma}(\d\d\d)"
    found = re.findall(rf"^\d+\n{clock} --> {clock}\n(.+)\n$", text, re.MULTILINE)
    assert len(found) == text.count("-->")
    times = np.array([row[:8] for row in found], int).reshape(-1, 2, 4) @ [3600, 60, 1, 0.001]
    return [(*pair, row[8]) for pair, row in zip(times, found, strict=True)]


def meant(text):
    """Every attribute value that the words of a caption name."""
    return [value for value, words in demo.WORDS.items()
            if re.search(rf"(?<!\w)({'|'.join(filter(None, words))})(?!\w)", text)]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}


# files

def test_files_are_h264_of_64_pixels_at_10_frames_and_mono_aac_at_16_khz(folder):
    assert len(list(folder.glob("train/*.mp4"))) == 6
    assert len(list(folder.glob("val/*.mp4"))) == 4
    for path in folder.glob("*/*.mp4"):
        with av.open(str(path)) as file:
            video, audio = file.streams.video[0], file.streams.audio[0]
            assert (video.codec_context.name, video.width, video.height) == ("h264", 64, 64)
            assert (audio.codec_context.name, audio.rate, audio.channels) == ("aac", 16_000, 1)
            times = [frame.time for frame in file.decode(video=0)]
        assert times == pytest.approx(np.arange(len(times)) / 10)


def test_labels_are_one_row_an_event_and_together_cover_each_file(folder):
    rows = demo.labels(folder)
    assert [row["split"] for row in rows] == 12 * ["train"] + 4 * ["val"]
    for path, events in itertools.groupby(rows, lambda row: row["path"]):
        events = list(events)
        picture, sound = read(folder / path)
        assert len(events) == (2 if path.startswith("train") else 1)
        assert events[0]["start"] == 0
        assert events[-1]["end"] == pytest.approx(len(picture) / 10)
        assert 0 <= len(sound) / 16_000 - len(picture) / 10 < 0.1          # the last AAC frame may be padded
        assert all(a["end"] == b["start"] for a, b in itertools.pairwise(events))
        assert all(3.199 < row["end"] - row["start"] < 3.401 for row in events)
        assert all(row[name] in values for row in events for name, values in demo.ATTRIBUTES.items())


def test_subtitles_alternate_in_kind_and_start_in_their_file_unless_late(folder):
    ends = {row["path"]: row["end"] for row in demo.labels(folder)}
    for path in [*folder.glob("*/*.srt"), *folder.glob("*/*.vtt")]:
        assert path.suffix == (".srt" if int(path.stem) % 2 == 0 else ".vtt")
        end = ends[f"{path.parent.name}/{path.stem}.mp4"]
        found = cues(path)
        least, most = (1, 1) if path.parent.name == "val" else (4, 10)      # two events of two to five captions
        assert least <= len(found) <= most
        assert found == sorted(found)
        for start, stop, text in found:
            assert 0 <= start < stop <= end + (0 if path.parent.name == "val" else 4)
            assert len(text.split()) <= 16


def test_each_held_out_clip_has_one_caption_that_names_all_four_attributes(folder):
    for row in demo.labels(folder)[-4:]:
        (path,) = (path for path in (folder / row["path"]).parent.glob(f"{Path(row['path']).stem}.*")
                   if path.suffix != ".mp4")
        ((_, _, text),) = cues(path)
        assert meant(text) == [row[name] for name in demo.ATTRIBUTES]


# sight, sound and words

@pytest.mark.parametrize("rhythm", ["flicker", "blink", "flash", "fade"])
def test_picture_and_sound_keep_the_same_rhythm_in_the_file(rhythm, tmp_path):
    """The lag at which loudness follows the picture best is under half a frame, and there they agree."""
    for seed in range(3):
        demo.encode(tmp_path / "x.mp4", *demo.event(("red", "checks", rhythm, "night"), np.random.default_rng(seed)))
        picture, sound = read(tmp_path / "x.mp4")
        red = (picture[..., 0] - picture[..., 2]).mean((1, 2))
        middles = (np.arange(len(red)) + 0.5) / 10
        lags = np.arange(-0.10, 0.101, 0.01)
        heard = [[np.square(sound[int((t + lag - 0.01) * 16_000):int((t + lag + 0.01) * 16_000)]).mean() ** 0.5
                  for t in middles[2:-2]] for lag in lags]
        agreement = [np.corrcoef(red[2:-2], row)[0, 1] for row in heard]
        best = np.flatnonzero(agreement > max(agreement) - 0.01)            # a square rhythm leaves a plateau
        assert max(agreement) > 0.9
        assert abs(lags[best].mean()) <= 0.05


def test_colour_is_seen_and_not_heard():
    red, blue = (demo.event((colour, "dots", "blink", "rain"), np.random.default_rng(0)) for colour in ("red", "blue"))
    assert np.array_equal(red[1], blue[1])
    assert not np.array_equal(red[0], blue[0])


@pytest.mark.parametrize("attribute", ["texture", "rhythm", "place"])
def test_each_other_attribute_is_heard_through_all_that_varies(attribute):
    """The nearest mean spectrum (of 8 events) tells the value of others."""
    rng = np.random.default_rng(0)
    spectra = []
    for value in demo.ATTRIBUTES[attribute]:
        known = {"colour": "red", "texture": "plain", "rhythm": "blink", "place": "snow"} | {attribute: value}
        sounds = [demo.event(tuple(known.values()), rng)[1][:51_200] for _ in range(16)]
        bands = np.abs(np.fft.rfft(sounds))[:, :25_600].reshape(16, 50, 512).mean(2) ** 0.5
        spectra.append(bands / np.linalg.norm(bands, axis=1, keepdims=True))
    means = np.stack([bands[:8].mean(0) for bands in spectra])
    told = [np.square(bands[8:, None] - means).sum(2).argmin(1) == i for i, bands in enumerate(spectra)]
    assert np.mean(told) > 0.9


def test_two_events_of_the_same_attributes_differ_in_picture_and_sound():
    rng = np.random.default_rng(0)
    (picture, sound), (other, noise) = (demo.event(("red", "dots", "steady", "rain"), rng) for _ in range(2))
    assert np.abs(picture[:32].astype(float) - other[:32]).mean() > 10
    assert abs(np.corrcoef(sound[:51_200], noise[:51_200])[0, 1]) < 0.5


def test_the_words_of_a_sentence_name_just_what_is_meant():
    rng = np.random.default_rng(0)
    said = set()
    for _ in range(10):
        for combination in EVERY:
            text = demo.sentence(combination, rng)
            said.add(text)
            assert meant(text) == list(combination)
            assert len(text.split()) <= 16
    assert len(said) > 2900
    assert not any(meant(text) for text in demo.TALK.split("|"))


def test_training_captions_name_late_and_err_as_often_as_stated():
    rng = np.random.default_rng(0)
    combination = ("red", "dots", "blink", "rain")
    others = [("blue", "checks", "fade", "snow")]
    events = [demo.loose_captions(combination, others, 0, 3.2, rng) for _ in range(2000)]
    captions = list(itertools.chain(*events))
    n = len(captions)
    assert {len(event) for event in events} == {2, 3, 4, 5}
    talk = sum(text in demo.TALK.split("|") for _, _, text in captions) / n
    wrong = sum(bool({*others[0]} & {*meant(text)}) for _, _, text in captions) / n
    assert talk == pytest.approx(demo.CHATTER, abs=0.02)
    assert wrong == pytest.approx(demo.OTHERS, abs=0.02)
    for name, value in zip(demo.ATTRIBUTES, combination, strict=True):
        named = sum(value in meant(text) for _, _, text in captions) / n
        assert named == pytest.approx(demo.NAMED[name] * (1 - demo.CHATTER - demo.OTHERS), abs=0.03)
    late = sum(event[-1][1] > 3.2 for event in events) / len(events)        # the last caption ends with its event or is late
    assert late == pytest.approx(demo.LATE, abs=0.03)


def test_a_tenth_of_the_training_files_is_without_words(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "encode", lambda path, picture, sound: path.touch())
    monkeypatch.setattr(demo, "event", lambda combination, rng: (np.zeros((32, 1)), np.zeros(1)))
    demo.write(tmp_path / "data", train=1200, val=240, workers=1)
    files = [path.suffix for path in (tmp_path / "data").glob("train/*")]
    assert (files.count(".srt") + files.count(".vtt")) / 1200 == pytest.approx(0.9, abs=0.03)
    assert len([path for path in (tmp_path / "data").glob("val/*") if path.suffix != ".mp4"]) == 240


# the split

def test_held_out_clips_are_all_different_and_45_combinations_are_never_trained_on():
    for seed in range(3):
        jobs = demo.jobs(Path("x"), seed, 1, 240)
        seen = {*jobs[0][-1]}
        held_out = [combination for *_, (combination,) in jobs[1:]]
        assert len(seen) == 300 - 45
        assert len({*held_out}) == 240
        assert len({*held_out} - seen) == 45


def test_training_files_show_only_combinations_that_may_be_seen(folder):
    seen = {*demo.jobs(folder, 0, 6, 4)[0][-1]}
    rows = demo.labels(folder)
    shown = [tuple(row[name] for name in demo.ATTRIBUTES) for row in rows]
    assert {*shown[:12]} <= seen
    assert not {*shown[12:]} & seen                                         # the first held out are the never seen


# the folder

def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(folder, tmp_path):
    demo.write(tmp_path / "again", train=6, val=4, workers=2)
    assert contents(tmp_path / "again") == contents(folder)


def test_another_seed_gives_other_files(folder, tmp_path):
    demo.write(tmp_path / "other", seed=1, train=6, val=4, workers=1)
    ours, theirs = contents(folder), contents(tmp_path / "other")
    assert not any(ours[path] == theirs[path] for path in ours if path.suffix == ".mp4")


def test_a_complete_data_set_is_used_again_untouched(folder, monkeypatch):
    monkeypatch.setattr(demo, "write_file", None)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    demo.write(folder, train=6, val=4)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_write_that_was_killed_leaves_no_process_and_is_begun_again(folder, tmp_path):
    out = str(tmp_path / "data")
    code = f"import pathlib; from sources import demo; demo.write(pathlib.Path({out!r}), train=400, val=4, workers=2)"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=HERE, stderr=subprocess.PIPE)
    while child.poll() is None and not list(tmp_path.glob("data.partial/train/*.mp4")):
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate(timeout=30)                                           # the last holder of its stderr has ended
    assert not (tmp_path / "data").exists()
    demo.write(tmp_path / "data", train=6, val=4, workers=1)
    assert contents(tmp_path / "data") == contents(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_that_holds_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not the demo's data set: name another folder"):
        demo.write(tmp_path, train=1, val=1, workers=1)
    with pytest.raises(ValueError, match="is not the demo's data set"):
        demo.write(tmp_path / "notes.txt", train=1, val=1, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_foreign_folder_of_the_partial_name_is_refused_and_kept(tmp_path):
    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial" / "mine").touch()
    with pytest.raises(ValueError, match="is in the way"):
        demo.write(tmp_path / "data", train=1, val=1, workers=1)
    assert (tmp_path / "data.partial" / "mine").exists()


@pytest.mark.parametrize("change", [{"seed": 1}, {"train": 5}, {"val": 3}])
def test_another_demo_is_refused_and_both_are_named(folder, change):
    with pytest.raises(ValueError, match=r"holds another demo, .*: name another folder or remove it"):
        demo.write(folder, **({"train": 6, "val": 4} | change))


def test_a_data_set_of_an_older_version_or_with_a_video_lost_is_refused(tmp_path):
    demo.write(tmp_path / "data", train=1, val=1, workers=1)
    card = tmp_path / "data" / "demo.json"
    new = card.read_text()
    card.write_text(json.dumps(json.loads(new) | {"version": 0}))
    with pytest.raises(ValueError, match="holds another demo"):
        demo.write(tmp_path / "data", train=1, val=1)
    card.write_text(new)
    (tmp_path / "data" / "val" / "000000.mp4").unlink()
    with pytest.raises(ValueError, match="has lost videos: remove it"):
        demo.write(tmp_path / "data", train=1, val=1)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"train": 0}, {"val": 0}, {"val": 301}])
def test_counts_out_of_range_are_refused_before_anything_is_written(wrong, tmp_path):
    with pytest.raises(ValueError, match="seed is 0 or more, train 1 or more, val 1 to 300"):
        demo.write(tmp_path / "data", **wrong)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    demo.write(tmp_path / "data", train=1, val=1, workers=1)
    assert len(demo.labels(tmp_path / "disk")) == 3
    assert (tmp_path / "data").is_symlink()


# the ceilings

def test_ceilings_are_those_of_a_hand_count():
    values = [("red", "dots", "blink", "rain"), ("red", "dots", "fade", "rain"), ("red", "plain", "fade", "rain"),
              ("blue", "dots", "fade", "snow")]
    rows = [dict(zip(demo.ATTRIBUTES, value, strict=True), split="val") for value in values]
    rows.append(rows[0] | {"split": "train"})                               # not in the pool
    table = demo.ceilings(rows)
    assert len(table) == 4 + 6 + 4
    assert table["colour"] == pytest.approx({"R@1": (3 * 1 / 3 + 1) / 4, "R@5": 1, "R@10": 1})
    assert table["colour+texture"]["R@1"] == pytest.approx((2 * 1 / 2 + 1 + 1) / 4)
    assert table[demo.HEARD]["R@1"] == 1


def test_ceilings_are_those_of_a_simulated_guesser():
    """Similarity is whether the known attributes agree, ties in random order; the match is on the diagonal."""
    jobs = demo.jobs(Path("x"), 0, 1, 240)
    rows = [dict(zip(demo.ATTRIBUTES, combination, strict=True), split="val") for *_, (combination,) in jobs[1:]]
    rng = np.random.default_rng(0)
    for known, scores in demo.ceilings(rows).items():
        keys = np.array(["|".join(row[name] for name in known.split("+")) for row in rows])
        agree = keys[:, None] == keys
        hits = {1: [], 5: [], 10: []}
        for _ in range(60):
            similarity = agree + 0.5 * rng.random(agree.shape)
            rank = (similarity > similarity.diagonal()[:, None]).sum(1)
            for k, found in hits.items():
                found.append((rank < k).mean())
        for k, found in hits.items():
            assert scores[f"R@{k}"] == pytest.approx(np.mean(found), abs=0.015)


def test_labels_are_plain_csv_that_other_readers_understand(folder):
    with open(folder / "labels.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["path", "start", "end", "split", "colour", "texture", "rhythm", "place"]
    assert all((folder / row[0]).is_file() for row in rows)
    assert [float(row[1]) for row in rows] == [row["start"] for row in demo.labels(folder)]
