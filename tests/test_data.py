"""What is in a clip (data.py), on films made here: purity, replacement and counts of bad files, captions, silence."""

import gc
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from films import film, folder
from runs import Rank

import data
import vatt
from engine import loading
from engine.errors import TooManyBad
from engine.loop import FailureBudget
from engine.sampling import Sampler
from media import Unreadable
from sources import index, layouts

SPEC = data.ClipSpec(frames=4, fps=10.0, size=16, rate=8000, words=6, noise=0.01)
WORDS = vatt.tokenize.Vocabulary.build(["film number0 number1 number2 number3 number4 number5 begins goes on"] * 2)


def clips(root, where, spec=SPEC, seed=0, batch=4, held=False):
    index.write(where, root, layouts.folder(root, []))
    rows = index.Index(where)
    source = data.Source(rows, index.held_out(rows) if held else np.zeros(0, int))
    return data.TrainDataset([source], Sampler([len(source)], [1.0], batch, seed), spec, seed, vocabulary=WORDS)


def same(a, b):
    return all(np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("films"), films=6, silent=1, captioned=4)


@pytest.fixture(scope="module")
def plain(root, tmp_path_factory):
    return clips(root, tmp_path_factory.mktemp("index") / "0")


def test_a_clip_is_frames_waveform_and_five_captions(plain):
    clip, failed = plain[0, 0]
    assert not failed
    assert clip["video"].shape == (4, 16, 16, 3)
    assert clip["video"].dtype == np.uint8
    assert clip["audio"].shape == (3200,)
    assert clip["text"].shape == (5, 6)


def test_every_random_choice_is_a_function_of_seed_step_and_slot(plain, root, tmp_path):
    again = clips(root, tmp_path / "0")
    order = list(itertools.product(range(3), range(4)))
    first = {at: plain[at][0] for at in order}
    assert all(same(first[at], again[at][0]) for at in reversed(order))
    other = clips(root, tmp_path / "1", seed=1)
    assert not all(same(first[at], other[at][0]) for at in order)


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_processes_and_workers_makes_the_same_global_batch(plain, workers):
    one = [batch for batch, _ in loading.train_batches(plain, 4, Rank(), 0, 2, 0)]
    halves = [list(loading.train_batches(plain, 4, Rank(rank, 2), 0, 2, workers)) for rank in range(2)]
    for step, whole in enumerate(one):
        assert whole["path"] == halves[0][step][0]["path"] + halves[1][step][0]["path"]
        for k in whole:
            if k != "path":
                assert torch.equal(whole[k], torch.cat([halves[0][step][0][k], halves[1][step][0][k]]))


def test_a_run_that_goes_on_at_step_two_sees_what_it_would_have_seen(plain):
    whole = list(loading.train_batches(plain, 4, Rank(), 0, 4, 0))[2:]
    later = list(loading.train_batches(plain, 4, Rank(), 2, 4, 0))
    assert all(torch.equal(a[0]["video"], b[0]["video"]) for a, b in zip(whole, later, strict=True))


def test_a_film_without_sound_is_marked_and_kept(plain):
    seen = [plain[step, slot][0] for step in range(3) for slot in range(4)]
    silent = [c for c in seen if c["path"].endswith("05.mp4")]
    assert silent
    assert not any(c["has_audio"] or c["audio"].any() for c in silent)
    assert all(c["has_audio"] and c["audio"].any() for c in seen if not c["path"].endswith("05.mp4"))


def test_the_captions_nearest_in_time_come_first_and_the_rest_are_missing(root):
    row = index.Row("00.mp4", 0.0, float("inf"), layouts.captions.read(root / "00.csv", []))
    text, has = data.caption_ids(row, 0.9, SPEC, WORDS)
    assert has.tolist() == [True, True, False, False, False]
    assert text[0].tolist() == WORDS.encode("number0 goes on", 6)
    assert text[1].tolist() == WORDS.encode("film number0 begins", 6)
    assert not text[2:].any()


def test_a_caption_without_a_known_word_counts_as_missing():
    row = index.Row("a", 0.0, 1.0, [data_cue("zzz qqq"), data_cue("!!!"), data_cue("film")])
    assert sorted(data.caption_ids(row, 0.0, SPEC, WORDS)[1].tolist()) == [False, False, False, False, True]


def data_cue(text):
    return layouts.captions.Caption(0.0, 1.0, text)


def test_an_unreadable_film_is_replaced_by_a_deterministic_other_and_counted_by_reason(root, tmp_path):
    for name in ("a", "b", "c"):
        film(tmp_path / "films" / f"{name}.mp4")
    (tmp_path / "films" / "zero.mp4").touch()
    (tmp_path / "films" / "text.mp4").write_text("not a film")
    first, second = (clips(tmp_path / "films", tmp_path / n) for n in "xy")
    drawn = [[c[step, slot] for step in range(5) for slot in range(4)] for c in (first, second)]
    assert all(same(a[0], b[0]) and a[1] == b[1] for a, b in zip(*drawn, strict=True))
    failed = [reason for _, bad in drawn[0] for _, reason in bad]
    assert set(failed) == {"empty file", "not a media file"}
    assert failed.count("empty file") >= 4, "five films a pass, four passes: each is the first choice four times"


def test_a_folder_without_a_readable_film_is_given_up_with_its_reasons(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.mp4").write_text("not a film")
    with pytest.raises(TooManyBad, match=r"not a media file: 100.*/0.mp4"):
        clips(tmp_path, tmp_path / "index")[0, 0]


def test_held_out_films_are_never_trained_on(root, tmp_path):
    some = clips(root, tmp_path / "0", held=True)
    held = data.TestDataset(some.sources, SPEC, vocabulary=WORDS)
    kept = {held[i][0]["path"] for i in range(len(held))}
    seen = {some[step, slot][0]["path"] for step in range(5) for slot in range(4)}
    assert len(kept) == 1
    assert kept.isdisjoint(seen)
    assert len(kept | seen) == 6


def test_every_held_out_film_is_read_once_with_any_number_of_processes(root, tmp_path):
    whole = data.Source(clips(root, tmp_path / "0").sources[0].index, np.arange(6))
    held = data.TestDataset([whole], SPEC, vocabulary=WORDS)
    paths = [p for rank in range(4) for batch, _ in loading.eval_batches(held, 2, Rank(rank, 4)) for p in batch["path"]]
    assert len(paths) == len(set(paths)) == 6


@pytest.mark.parametrize("control", ["captions", "audio"])
def test_a_control_takes_a_modality_from_another_film(root, tmp_path, plain, control):
    other = clips(root, tmp_path / "0", SPEC._replace(control=control, noise=0.0))
    key = "text" if control == "captions" else "audio"
    true = clips(root, tmp_path / "1", SPEC._replace(noise=0.0))
    differ = 0
    for at in itertools.product(range(2), range(4)):
        a, b = other[at][0], true[at][0]
        assert np.array_equal(a["video"], b["video"])
        differ += not np.array_equal(a[key], b[key])
    assert differ >= 6


def test_a_decoded_film_in_memory_gives_the_same_clip_at_every_reading(root, tmp_path):
    kept = clips(root, tmp_path / "0", SPEC._replace(cache=0.9))
    full = clips(root, tmp_path / "1", SPEC._replace(cache=1e-9))
    at = list(itertools.product(range(3), range(4)))
    assert all(same(kept[x][0], full[x][0]) for x in at + at)
    assert len(kept.reader.kept) == 6
    assert not full.reader.kept


def test_a_long_film_is_not_decoded_whole(root, tmp_path, plain, monkeypatch):
    monkeypatch.setattr("media.cache.LONGEST", 1.0)
    kept = clips(root, tmp_path / "0", SPEC._replace(cache=0.8))
    assert all(same(kept[0, k][0], plain[0, k][0]) for k in range(4))
    assert not kept.reader.kept


def test_a_start_past_the_end_is_unreadable():
    with pytest.raises(Unreadable, match="past the end"):
        data.starts(index.Row("a.mp4", 10.0, 20.0, []), 5.0, SPEC.seconds)


def test_clips_start_anywhere_in_their_row_and_end_within_it():
    rng = np.random.default_rng(0)
    drawn = [data.random_start(rng, index.Row("a", 2.0, 4.0, []), 9.0, SPEC) for _ in range(500)]
    assert min(drawn) == pytest.approx(2.0)
    assert max(drawn) == pytest.approx(3.6)
    assert len({round(x, 3) for x in drawn}) == 17


def test_the_share_of_bad_files_is_of_distinct_files_over_those_seen_once_five_draws_are_bad():
    bad = FailureBudget(0.05, files=100)
    for i in range(4):
        bad.add(4, [(f"{i}", "empty file")])
    assert not bad.too_many
    bad.add(4, [("4", "empty file")])
    assert "5 of some 25 files seen" in bad.too_many
    assert "--skip broken.csv" in bad.too_many
    for _ in range(20):
        bad.add(4, [("4", "empty file")])  # again and again one file
    assert not bad.too_many, "5 of all 100"
    bad.add(4, [("5", "empty file")])
    assert "6 of some 100 files seen" in bad.too_many
    assert bad.reasons == {"empty file": 26}
    never = FailureBudget(1.0, files=10)
    never.add(1, [("a", "r")] * 100)
    assert not never.too_many


# The loader


@pytest.fixture
def child_signals_as_they_were():
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


def failing(monkeypatch, what):
    """Loading that does `what` in a worker while it reads the film 03.mp4, until it fails -> the error"""
    inside = data.caption_ids
    monkeypatch.setattr(data, "caption_ids",
                        lambda row, *rest: (what() if row.path == "03.mp4" else None, inside(row, *rest))[1])


@pytest.mark.parametrize(("what", "says"), [
    (lambda: os.kill(os.getpid(), signal.SIGKILL), "died (SIGKILL)"),
    (lambda: os.kill(os.getpid(), signal.SIGSEGV), "died (SIGSEGV)"),
    (lambda: os._exit(7), "died (exit code 7)"),
    (lambda: time.sleep(60), "took more than --timeout"),
    (lambda: os.kill(os.getpid(), signal.SIGSTOP), "took more than --timeout"),
], ids=["killed", "segfault", "exit", "hangs", "frozen"])
def test_a_worker_that_dies_or_hangs_is_reported_with_the_file_it_held_and_none_is_left(
    root, tmp_path, monkeypatch, child_signals_as_they_were, what, says
):
    failing(monkeypatch, what)
    some = clips(root, tmp_path / "0")
    with pytest.raises(loading.WorkerError) as error:
        list(loading.train_batches(some, 4, Rank(), 0, 50, 2, timeout=2))
    line = str(error.value)
    assert says in line
    assert line.split("it had in hand: ")[1].startswith(str(root / "03.mp4"))
    for child in multiprocessing.active_children():
        child.join(5)
    assert not any(Path(f"/proc/{pid}").exists() for pid in some.in_flight.table[:, 0].int().tolist())


def test_without_workers_too_a_file_that_hangs_is_named_also_where_no_core_is_to_spare(root, tmp_path, monkeypatch):
    threads, free = torch.get_num_threads(), threading.Event()
    failing(monkeypatch, lambda: free.wait(60))
    torch.set_num_threads(os.cpu_count())
    try:
        with pytest.raises(loading.WorkerError, match=r"took more than --timeout .*03\.mp4"):
            list(loading.train_batches(clips(root, tmp_path / "0"), 4, Rank(), 0, 50, 0, timeout=2))
        assert torch.get_num_threads() == os.cpu_count()
    finally:
        free.set()
        torch.set_num_threads(threads)


def test_shared_memory_that_cannot_hold_the_batches_is_told_at_the_start_with_the_remedy(monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(loading.shutil, "disk_usage", lambda _: usage._replace(free=64 << 20))
    clip = 32 * 224 * 224 * 3 + 153600 * 4 + 5 * 16 * 8
    assert data.ClipSpec().nbytes == clip
    need = loading.shared_memory(clip, 2048, 8)
    assert need == (loading.PIECE + loading.HELD_OUT) * 8 * 3 * clip, "whatever the batch"
    warning = loading.short_of_memory(need, 8)
    assert f"{need / 1e9:.1f} GB" in warning
    assert "--shm-size=" in warning
    assert "--workers" in warning
    assert loading.short_of_memory(loading.shared_memory(clip, 64, 0), 0) is None
    assert loading.short_of_memory(loading.shared_memory(1000, 2, 1), 1) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_comes_in_pieces_is_the_batch(plain, monkeypatch, workers):
    whole = list(loading.train_batches(plain, 4, Rank(), 0, 3, 0))
    monkeypatch.setattr(loading, "PIECE", 3)
    pieces = list(loading.train_batches(plain, 4, Rank(), 0, 3, workers))
    assert len(pieces) == len(whole) == 3
    for (batch, failed), (again, said) in zip(whole, pieces, strict=True):
        assert failed == said
        assert batch["path"] == again["path"]
        assert all(torch.equal(batch[k], again[k]) for k in batch if k != "path")


def test_loading_leaves_no_file_open_and_no_memory_taken(root, tmp_path):
    for name in ("zero.mp4", "text.mp4"):
        (tmp_path / "films" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "films" / name).write_text("not a film"[: 10 * (name == "text.mp4")])
    for path in root.iterdir():
        shutil.copy(path, tmp_path / "films")
    some = clips(tmp_path / "films", tmp_path / "index")
    held = lambda: (len(os.listdir("/proc/self/fd")), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    for step in range(20):
        loading.collate([some[step, slot] for slot in range(4)])
    gc.collect()  # of the tests before
    files, memory = held()
    for step in range(20, 150):
        loading.collate([some[step, slot] for slot in range(4)])
    assert held()[0] <= files
    assert held()[1] - memory < 5000, "kB, over 520 clips"


@pytest.mark.slow
def test_files_and_memory_stay_flat_over_ten_thousand_clips(root, tmp_path):
    some = clips(root, tmp_path / "index")
    held = lambda: (len(os.listdir("/proc/self/fd")), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    for i in range(10_000):
        if i == 1000:
            files, memory = held()
        some[i // 4, i % 4]
    assert held()[0] <= files
    assert held()[1] - memory < 5000


def test_a_path_that_leaves_its_folder_is_unreadable_and_not_opened(root, tmp_path):
    rows = [index.Row(name, 0.0, float("inf"), []) for name in ("../secret.mp4", "00.mp4", "/etc/passwd", "file:x.mp4")]
    index.write(tmp_path / "index", root, rows)
    some = index.Index(tmp_path / "index")
    spec = data.TrainDataset([data.Source.to_train(some)], Sampler([4], [1.0], 4, 0), SPEC, vocabulary=WORDS)
    drawn = [spec[0, slot] for slot in range(4)]
    assert {clip["path"] for clip, _ in drawn} == {str(root / "00.mp4")}
    assert {reason for _, failed in drawn for _, reason in failed} == {"path leaves its folder"}
