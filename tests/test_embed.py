"""Vectors in one file, begun again where they stopped, and the search among moments (embed.py)."""

import base64
import io
import itertools
import json
import re
import wave
from html.parser import HTMLParser
from urllib.parse import unquote

import av
import numpy as np
import pytest
import torch
from films import film, folder
from runs import pretrained, refused

import evaluate
import vatt
from media import Media
from media.container import Container
from tools import embed
from tools.search import Moment, best_apart


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    root = folder(tmp_path_factory.mktemp("films"), films=5, silent=1)
    (root / "03.mp4").rename(root / "-3 ä.mp4")
    (root / "broken.mp4").write_bytes(b"no film")
    return root


def load(path):
    return dict(np.load(path, allow_pickle=False))


def test_a_film_has_the_vector_that_the_model_gives_it_alone(run, films, tmp_path):
    evaluate.main(["embed", str(run), str(films), str(tmp_path / "x.npz"), "--windows", "1"])
    found, model = load(tmp_path / "x.npz"), vatt.load(run)
    assert found["ids"].tolist() == ["-3 ä.mp4", "00.mp4", "01.mp4", "02.mp4", "04.mp4"], "in order"
    assert found["unreadable"].tolist() == ["broken.mp4"]
    assert (str(found["space"]), str(found["kind"])) == ("vt", "video")
    assert np.allclose(np.linalg.norm(found["vectors"], axis=1), 1, atol=1e-5)
    alone = torch.stack([model.embed_video(films / name, windows=3) for name in found["ids"].tolist()])
    evaluate.main(["embed", str(run), str(films), str(tmp_path / "y.npz"), "--windows", "3"])
    # Their windows may begin a frame apart, and squares are cut before or after the frames are made smaller.
    assert (load(tmp_path / "y.npz")["vectors"] * alone.numpy()).sum(1).min() > 0.95


def test_sounds_are_those_of_films_too_and_only_in_the_space_with_video(run, films, tmp_path, capsys):
    evaluate.main(["embed", str(run), str(films), str(tmp_path / "x.npz"), "--kind", "audio"])
    found = load(tmp_path / "x.npz")
    assert found["vectors"].shape == (4, 16)
    assert found["unreadable"].tolist() == ["04.mp4", "broken.mp4"]
    assert "04.mp4: no audio" in capsys.readouterr().err


def test_sentences_are_the_lines_of_a_text_file(run, tmp_path):
    (tmp_path / "words.txt").write_text("a red cloth\r\n\na blue film\nçelloß\n", encoding="utf-8")
    evaluate.main(["embed", str(run), str(tmp_path / "words.txt"), str(tmp_path / "x.npz")])
    found, model = load(tmp_path / "x.npz"), vatt.load(run)
    assert found["ids"].tolist() == ["a red cloth", "a blue film", "çelloß"]
    np.testing.assert_allclose(found["vectors"], [model.embed_text(text).numpy() for text in found["ids"].tolist()], atol=1e-6)


def test_what_was_stopped_goes_on_and_gives_the_same_file(run, films, tmp_path, monkeypatch, capsys):
    evaluate.main(["embed", str(run), str(films), str(tmp_path / "whole.npz"), "--batch", "4"])
    rows_of = embed.rows_of

    def stopped(*args):
        yield from itertools.islice(rows_of(*args), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(embed, "rows_of", stopped)
    command = ["embed", str(run), str(films), str(tmp_path / "x.npz"), "--batch", "4"]
    with pytest.raises(SystemExit) as end:
        evaluate.main(command)
    assert end.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()
    monkeypatch.undo()
    with next(tmp_path.glob("*.partial")).open("ab") as file:
        file.write(b"half a row")
    evaluate.main(command)
    assert "2 done before" in capsys.readouterr().out
    whole, found = load(tmp_path / "whole.npz"), load(tmp_path / "x.npz")
    assert all(np.array_equal(whole[k], found[k]) for k in whole)
    assert not list(tmp_path.glob("*.partial*"))
    evaluate.main(command)
    assert "holds all 6 already" in capsys.readouterr().out


def test_vectors_of_other_weights_or_other_files_are_made_anew(run, films, tmp_path, capsys):
    command = lambda run, source: ["embed", str(run), str(source), str(tmp_path / "x.npz"), "--windows", "1"]
    evaluate.main(command(run, films))
    before = load(tmp_path / "x.npz")["vectors"]
    evaluate.main(command(pretrained(tmp_path / "other", seed=1), films))
    assert not np.allclose(before, load(tmp_path / "x.npz")["vectors"])
    evaluate.main(command(run, folder(tmp_path / "more", films=2)))
    assert load(tmp_path / "x.npz")["ids"].tolist() == ["00.mp4", "01.mp4"]
    film(tmp_path / "more" / "01.mp4", seconds=1.0, seed=9)
    evaluate.main(command(run, tmp_path / "more"))
    assert "already" not in capsys.readouterr().out


def test_weights_that_are_not_finite_are_not_taken_for_files_that_cannot_be_read(films, tmp_path, capsys):
    run = pretrained(tmp_path / "nan")
    state = torch.load(run / "checkpoint-00000001.pt", weights_only=True)
    state["model"]["backbones.W_vp"].fill_(float("nan"))
    torch.save(state, run / "checkpoint-00000001.pt")
    with pytest.raises(SystemExit) as end:
        evaluate.main(["embed", str(run), str(films), str(tmp_path / "x.npz")])
    assert end.value.code == 2
    assert "not finite" in capsys.readouterr().err


def test_search_finds_moments_in_long_films_and_draws_them(run, tmp_path, capsys):
    root = tmp_path / "films"
    film(root / "long.mp4", seconds=3, seed=1)
    film(root / "short.mp4", seconds=0.2, seed=2)
    out = tmp_path / "found.png"
    evaluate.main(["search", str(run), "a red cloth, please", "--in", str(root), "--top", "3", "--out", str(out)])
    said = capsys.readouterr().out
    assert "not in the run's vocabulary, and so of no use: please" in said
    assert "the best of 15 moments in 2 videos" in said
    table = load(next(run.glob("moments-*.npz")))
    assert table["times"][:14, 0].tolist() == pytest.approx([0.2 * i for i in range(14)]), "each overlaps half of the next"
    assert table["times"][13, 1] == pytest.approx(3.0), "the last one ends with the film"
    cosines = table["vectors"] @ vatt.load(run).embed_text("a red cloth please").numpy()
    first = next(line for line in said.splitlines() if " - " in line)
    assert float(first.split()[0]) == pytest.approx(cosines.max(), abs=0.006)
    assert float(first.split()[2]) == pytest.approx(table["times"][cosines.argmax(), 0], abs=0.06)
    assert all(line.endswith("s  (without: please)") for line in said.splitlines() if " - " in line), "beside every score"
    evaluate.main(["search", str(run), "blue", "--in", str(root), "--top", "1", "--out", str(out)])
    assert "holds all 15 already" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    assert out.stat().st_size > 1000


def test_a_folder_of_films_without_pictures_has_nothing_to_search(run, tmp_path, capsys):
    (tmp_path / "films").mkdir()
    with wave.open(str(tmp_path / "films" / "sound.mp4"), "wb") as file:
        file.setparams((1, 2, 8000, 8000, "NONE", ""))
        file.writeframes(bytes(16000))
    with pytest.raises(SystemExit) as end:
        evaluate.main(["search", str(run), "red", "--in", str(tmp_path / "films")])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "sound.mp4: no video" in said
    assert "no video below" in said


def test_of_moments_that_overlap_only_the_best_is_shown_and_of_one_video_at_most_two():
    videos, times = ["a", "a", "a", "b", "a"], [[0, 2], [1, 3], [2, 4], [1, 3], [4, 6]]
    shown = lambda cosines, top, each: [(m.video, m.start) for m in best_apart(
        [Moment(video, *time, cosine) for video, time, cosine in zip(videos, times, cosines, strict=True)], top, each)]
    assert shown([0.5, 0.9, 0.8, 0.7, 0.1], 9, 2) == [("a", 1), ("b", 1), ("a", 4)]
    assert shown([0.9, 0.5, 0.8, 0.7, 0.6], 9, 2) == [("a", 0), ("a", 2), ("b", 1)]
    assert shown([0.9, 0.5, 0.8, 0.7, 0.6], 9, 3)[-1] == ("a", 4)
    assert shown([0.9, 0.5, 0.8, 0.7, 0.6], 1, 2) == [("a", 0)]


class Page(HTMLParser):
    """Links, sources of pictures and text of a page, and every tag"""

    def __init__(self, path):
        super().__init__()
        self.links, self.pictures, self.tags, self.text = [], [], set(), ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name == "href"]
        self.pictures += [value for name, value in attrs if name == "src"]

    def handle_data(self, data):
        self.text += data


def test_the_page_of_a_search_holds_its_pictures_and_opens_the_videos_at_the_moments(run, tmp_path, capsys):
    root = tmp_path / "films"
    film(root / "a & <b>'é#?%20.mp4", seconds=3, seed=1)
    film(root / "other.mp4", seconds=1, seed=2)
    command = ["search", str(run), "red <script>alert(1)</script> &", "--in", str(root), "--top", "5",
               "--out", str(tmp_path / "out" / "found.png"), "--json", str(tmp_path / "found.json")]
    evaluate.main(command)
    shown, moments = Page(tmp_path / "out" / "found.html"), json.loads((tmp_path / "found.json").read_text())["moments"]
    assert len(moments) == len(shown.links) == len(shown.pictures) == 4
    for moment, link, picture in zip(moments, shown.links, shown.pictures, strict=True):
        path, _, at = link.partition("#t=")
        assert (tmp_path / "out" / unquote(path)).resolve() == root / moment["video"]
        assert float(at) == pytest.approx(moment["start"], abs=0.06)
        with av.open(io.BytesIO(base64.b64decode(picture.partition("base64,")[2]))) as file:
            frame = next(file.decode(video=0))
        assert (frame.width, frame.height) == (6 * 180, 135)
        mean = lambda x: np.asarray(x, float).reshape(-1, 3).mean(0)
        with Media(root / moment["video"]) as media:
            first = media.video(moment["start"], 1, 10, size=(135, 180))[0]
        assert np.abs(mean(frame.to_ndarray(format="rgb24")[:, :180]) - mean(first)).max() < 6
    assert "script" not in shown.tags
    assert "red <script>alert(1)</script> &" in shown.text
    assert "a & <b>'é#?%20.mp4" in shown.text
    evaluate.main([*command, "--per-video", "5"])
    assert len(Page(tmp_path / "out" / "found.html").links) == 5


@pytest.mark.parametrize(("command", "said"), [
    ("embed RUN NONE OUT.npz", "there is no"), ("embed RUN FILMS OUT.csv", "ends in .npz"),
    ("embed NONE FILMS OUT.npz", "is no run"), ("embed RUN FILMS OUT.npz --kind image", "holds no image"),
    ("embed RUN EMPTY OUT.npz", "holds no video"),
    ("embed RUN FILMS OUT.npz --kind audio --space vt", "audio has vectors in va alone"),
    ("embed RUN FILMS OUT.npz --seconds -1", "must be above"), ("search RUN xyzzy --in FILMS", "knows no word of 'xyzzy'"),
("search RUN red --in EMPTY", "holds no video"), ("search RUN ?! --in FILMS", "knows no word of '[?]!'")])
def test_what_cannot_be_is_one_line_and_exit_code_2(run, films, tmp_path, capsys, command, said):
    (tmp_path / "empty").mkdir()
    places = {"RUN": run, "FILMS": films, "NONE": tmp_path / "none", "EMPTY": tmp_path / "empty", "OUT": tmp_path / "x"}
    words = []
    for word in command.split():
        for name, place in places.items():
            word = word.replace(name, str(place)) if word.startswith(name) else word
        words.append(word)
    with pytest.raises(SystemExit) as end:
        evaluate.main(words)
    assert end.value.code == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_search_does_not_rank_by_the_little_words_that_are_left(run, films, tmp_path, capsys):
    assert "knows no word of 'a xyzzy'" in refused(evaluate.main, ["search", str(run), "a xyzzy", "--in", str(films)], capsys)


def test_a_file_that_is_in_use_or_another_programs_is_not_written_over(run, films, tmp_path, capsys):
    (tmp_path / "x.npz").write_bytes(b"something else")
    with pytest.raises(SystemExit):
        evaluate.main(["embed", str(run), str(films), str(tmp_path / "x.npz")])
    assert "is not of this program" in capsys.readouterr().err
    assert (tmp_path / "x.npz").read_bytes() == b"something else"


def test_moments_are_the_same_with_and_without_workers_and_come_from_one_pass(run, films, tmp_path, monkeypatch):
    film(tmp_path / "more" / "long.mp4", seconds=8)
    film(tmp_path / "more" / "short.mp4", seconds=0.3)
    (tmp_path / "more" / "broken.mp4").write_bytes((tmp_path / "more" / "long.mp4").read_bytes()[:3000])
    for windows in ("1", "2"):
        for workers in ("0", "2"):
            evaluate.main(["embed", str(run), str(tmp_path / "more"), str(tmp_path / f"{workers}.npz"), "--seconds", "1.2",
                           "--windows", windows, "--workers", workers, "--batch", "4"])
        one, two = load(tmp_path / "0.npz"), load(tmp_path / "2.npz")
        assert one["ids"].tolist() == ["long.mp4"] * 13 + ["short.mp4"]
        assert np.array_equal(one["vectors"], two["vectors"])
        assert np.array_equal(one["times"], two["times"])
        for path in tmp_path.glob("*.npz"):
            path.unlink()
    decoded = []
    monkeypatch.setattr(Container, "charge", lambda _, work: decoded.append(work))
    evaluate.main(["embed", str(run), str(tmp_path / "more"), str(tmp_path / "x.npz"), "--seconds", "0.4", "--workers", "0"])
    assert sum(work == 32 * 24 for work in decoded) <= 90                   # frames of both videos: 83
