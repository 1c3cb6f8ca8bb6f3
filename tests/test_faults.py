"""What a run survives, by really doing it: kills, freezes, signals, full disks, flipped bits, other flags on one process.

Each test starts the scripts as a user does, in processes of their own. Where a fault must come at a certain file, the script is
started with a few lines in front that do harm when that file is read.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from films import TINY, folder
from runs import rows

import evaluate
import finetune
import pretrain
from engine.run import Run, read_checkpoint
from weights import files

HERE = Path(__file__).parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STARTED: list[subprocess.Popen] = []
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("films"), films=10, silent=1, captioned=7)


@pytest.fixture(scope="module")
def finished(films, tmp_path_factory):
    """A run of two processes that nothing disturbed"""
    out = tmp_path_factory.mktemp("runs") / "whole"
    said, code = end(start([*TORCHRUN, "pretrain.py"], argv(films, out), films))
    assert code == 0, said
    return out


def argv(films, out, *more):
    return ["--data", str(films), "--val", str(films), "--out", str(out), *TINY, *map(str, more)]


def start(command, more, cwd, harm="", script="pretrain", **settings) -> subprocess.Popen:
    """A script in a session of its own; `harm`: Python that runs in it before `main`"""
    if harm:
        path = Path(cwd) / f"start-{time.monotonic_ns()}.txt"  # no file of Python: the folder may be one of data
        path.write_text(f"import os, signal, sys, time, {script}\n{harm}\nif __name__ == '__main__': {script}.main()\n")
        command = [*command[:-1], str(path)]
    elif command[-1].endswith(".py"):
        command = [*command[:-1], str(HERE / command[-1])]
    STARTED.append(subprocess.Popen([*command, *more], env=ENV, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                    text=True, start_new_session=True, **settings))
    return STARTED[-1]


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Also of a test that fails"""
    yield
    for child in STARTED:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    STARTED.clear()


def end(child: subprocess.Popen, timeout=240) -> tuple[str, int]:
    """-> what it said, its exit code"""
    return child.communicate(timeout=timeout)[0], child.returncode


def until(true, what, seconds=120):
    """Waits until true()"""
    deadline = time.time() + seconds
    while not true():
        assert time.time() < deadline, what
        time.sleep(0.01)


def logged(out, n):
    """A test of whether n rows are in the log"""
    log = out / "metrics.jsonl"
    return lambda: log.exists() and log.read_bytes().count(b"\n") >= n


def ranks_of(child) -> list[int]:
    """The processes that torchrun has started, in no order"""
    found = subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def at(path, harm, where="data.caption_ids") -> str:
    """Lines that do harm when the row of this path is read, in training and in evaluation"""
    module, name = where.split(".")
    return (f"import {module}\ninside = {where}\n"
            f"def {name}(row, *rest):\n    if row.path == {path!r}: {harm}\n    return inside(row, *rest)\n{where} = {name}")


ONE = [sys.executable, "pretrain.py"]


# kills


def kill_a_rank_until_it_is_done(films, out, kills, generator):
    child = start([*TORCHRUN, "--max-restarts", "8", "pretrain.py"], argv(films, out), films)
    for _ in range(kills):
        before = set(ranks_of(child))
        n = len(rows(out)) if (out / "metrics.jsonl").exists() else 0
        until(lambda n=n: logged(out, min(5, n + 1))() or child.poll() is not None, "no step is done")
        alive = ranks_of(child)
        if child.poll() is not None or not alive:
            break
        os.kill(alive[int(torch.randint(len(alive), (), generator=generator))], signal.SIGKILL)
        until(lambda before=before: child.poll() is not None or not set(ranks_of(child)) & before, "torchrun did not restart")
    return end(child)


def test_a_run_whose_ranks_are_killed_goes_on_under_torchrun_bit_for_bit(films, finished, tmp_path):
    said, code = kill_a_rank_until_it_is_done(films, tmp_path / "run", 2, torch.Generator().manual_seed(0))
    assert code == 0, said
    assert rows(tmp_path / "run") == rows(finished)
    assert (tmp_path / "run" / "results.json").read_text() == (finished / "results.json").read_text()


@pytest.mark.slow
def test_twenty_kills_of_random_ranks_are_all_survived(films, finished, tmp_path):
    generator = torch.Generator().manual_seed(1)
    for i in range(10):
        said, code = kill_a_rank_until_it_is_done(films, tmp_path / f"{i}", 2, generator)
        assert code == 0, said
        assert rows(tmp_path / f"{i}") == rows(finished)


def harm_at(step, what) -> str:
    """Lines that do `what` before the gradients of a step, in each process"""
    return (f"inside = pretrain.Step.__call__\ndef call(self, batch, step):\n    if step == {step}: {what}\n"
            "    return inside(self, batch, step)\npretrain.Step.__call__ = call")


def test_a_rank_that_raises_is_started_again_and_the_rows_are_the_same(films, finished, tmp_path):
    harm = harm_at(3, "os.environ['RANK'] == '1' and not os.path.exists('raised') and (open('raised', 'w'), 1 / 0)")
    said, code = end(start([*TORCHRUN, "--max-restarts", "3", "pretrain.py"], argv(films, tmp_path / "run"), tmp_path, harm))
    assert code == 0, said
    assert "ZeroDivisionError" in said
    assert rows(tmp_path / "run") == rows(finished)


def test_the_number_of_processes_may_change_when_a_run_goes_on(films, finished, tmp_path):
    said, code = end(start(ONE, argv(films, tmp_path / "run"), tmp_path, harm_at(2, "os._exit(9)")))
    assert code == 9, said
    said, code = end(start([*TORCHRUN, "pretrain.py"], argv(films, tmp_path / "run"), films))
    assert code == 0, said
    ours, theirs = ([row["loss"] for row in rows(out)] for out in (tmp_path / "run", finished))
    assert ours[:3] == pytest.approx(theirs[:3], rel=1e-4)
    assert ours == pytest.approx(theirs, rel=1e-2)  # what rounding grows to in three steps of four clips


# freezes


def test_a_process_that_freezes_in_an_evaluation_ends_the_run_in_its_timeout(films, tmp_path):
    harm = ("import data\ninside = data.TestDataset.__getitem__\ndef get(self, i):\n"
            "    if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGSTOP)\n"
            "    return inside(self, i)\ndata.TestDataset.__getitem__ = get")
    child = start([*TORCHRUN, "pretrain.py"], argv(films, tmp_path / "run", "--timeout", 5), tmp_path, harm)
    until(logged(tmp_path / "run", 3), "no step is done")
    began = time.time()
    until(lambda: child.poll() is not None or "stopped" in states(child), "nothing froze")
    said, code = end(child)
    assert code != 0
    assert "process 1 has not shown that it works for 5 s" in said, said
    assert time.time() - began < 60


def states(child) -> str:
    """The states of the ranks of torchrun, in words"""
    found = ""
    for pid in ranks_of(child):
        try:
            found += Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0].replace("T", "stopped ")
        except OSError:
            continue
    return found


# signals


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_hang_up_and_slurms_signal_save_and_leave(films, tmp_path, number):
    heard = lambda: signal.signal(number, signal.SIG_DFL)  # below nohup, pytest hands on that a hang-up is to be ignored
    more = argv(films, tmp_path / "run", "--steps", 100_000, "--save-every", 99_999)
    child = start(ONE, more, tmp_path, preexec_fn=heard)
    until(logged(tmp_path / "run", 2), "no step is done")
    os.kill(child.pid, number)
    said, code = end(child)
    assert code == 128 + number, said
    assert "saving after this step" in said
    assert len(Run(tmp_path / "run").checkpoints()) == 1


def test_sigterm_to_torchrun_saves_once_at_the_end_of_the_step(films, tmp_path):
    more = argv(films, tmp_path / "run", "--steps", 100_000, "--save-every", 99_999, "--eval-every", 99_999)
    child = start([*TORCHRUN, "pretrain.py"], more, tmp_path)
    until(logged(tmp_path / "run", 2), "no step is done")
    os.kill(child.pid, signal.SIGTERM)
    end(child)
    path, = Run(tmp_path / "run").checkpoints()
    assert read_checkpoint(path)["step"] == len(rows(tmp_path / "run"))


def test_sigterm_ends_an_evaluation_at_once(films, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for i in range(400):
        os.link(films / f"{i % 9:02d}.mp4", many / f"{i:03d}.mp4")
    slow = "import data\ninside = data.TestDataset.__getitem__\n" \
           "data.TestDataset.__getitem__ = lambda self, i: (time.sleep(0.1), inside(self, i))[1]"
    more = argv(films, tmp_path / "run", "--steps", 40, "--eval-every", 2, "--val", many)
    child = start(ONE, more, tmp_path, slow)
    until(logged(tmp_path / "run", 1), "no step is done")
    time.sleep(2)
    assert len(rows(tmp_path / "run")) == 1, "the evaluation, of 40 s, is over"
    began = time.time()
    os.kill(child.pid, signal.SIGTERM)
    until(lambda: (tmp_path / "run" / "checkpoint-00000002.pt").exists(), "nothing is saved", 30)
    took = time.time() - began
    said, code = end(child)
    assert code == 143, said
    assert took < 5, f"{took:.1f} s"
    assert "held_out" not in rows(tmp_path / "run")[1]


def test_sigterm_saves_while_the_loader_is_stuck(films, tmp_path):
    more = argv(films, tmp_path / "run", "--workers", 2, "--timeout", 300, "--save-every", 1000, "--eval-every", 1000,
                "--steps", 2000)
    child = start(ONE, more, tmp_path, at("03.mp4", "os.path.exists('now') and time.sleep(1000)"))
    until(logged(tmp_path / "run", 3), "no step is done")
    (tmp_path / "now").touch()
    n = -1
    while n != (n := len(rows(tmp_path / "run"))):
        time.sleep(2)
    began = time.time()
    os.kill(child.pid, signal.SIGTERM)
    said, code = end(child)
    assert code == 143, said
    assert f"stopped at step {n}, saved" in said
    assert time.time() - began < 15
    assert Run(tmp_path / "run").newest()["step"] == n


def test_features_that_are_computed_survive_a_signal(films, tmp_path):
    import runs

    init = runs.pretrained(tmp_path / "init")
    table = tmp_path / "labels.csv"
    table.write_text("path,label,split\n" + "".join(
        f"{films}/{i:02d}.mp4,{'ab'[i % 2]},{'train' if i < 6 else 'test'}\n" for i in range(9)))
    more = ["--task", "linear", "--modality", "video", "--data", f"csv={table}", "--allow-outside", "--init", str(init),
            "--out", str(tmp_path / "run"), "--batch", "1", "--steps", "4", "--cache", "0"]
    slow = "import data\ninside = data.TestDataset.__getitem__\nopen('first', 'w')\n" \
           "data.TestDataset.__getitem__ = lambda self, i: (open('reads', 'a').write('x'), time.sleep(1), inside(self, i))[2]"
    child = start([sys.executable, "finetune.py"], more, tmp_path, slow, "finetune")
    until(lambda: (tmp_path / "reads").exists() and (tmp_path / "reads").stat().st_size >= 3, "nothing is read")
    os.kill(child.pid, signal.SIGTERM)
    said, code = end(child)
    assert code == 143, said
    kept = int(said.split("stopped with ")[1].split()[0])
    assert kept >= 1
    (tmp_path / "reads").unlink()
    said, code = end(start([sys.executable, "finetune.py"], more, tmp_path, slow.replace("time.sleep(1)", "0"), "finetune"))
    assert code == 0, said
    assert (tmp_path / "reads").stat().st_size == 9 - kept
    assert json.loads((tmp_path / "run" / "results.json").read_text())["linear"]["N"] == 3


def test_a_closed_pipe_does_not_end_a_run(films, tmp_path):
    child = start(ONE, argv(films, tmp_path / "run"), tmp_path)
    child.stdout.close()
    assert child.wait(120) == 0
    assert (tmp_path / "run" / "results.json").exists()


# disks, bits and numbers


def test_a_run_is_finished_only_when_its_last_step_is_on_disk(films, tmp_path):
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    said, code = end(start(ONE, argv(films, tmp_path / "run"), tmp_path, preexec_fn=small))
    assert code == 3, said
    assert "the run is not finished" in said
    assert not (tmp_path / "run" / "results.json").exists()
    assert not list((tmp_path / "run").glob("*.tmp"))
    said, code = end(start(ONE, argv(films, tmp_path / "run"), tmp_path))
    assert code == 0, said
    assert Run(tmp_path / "run").newest()["step"] == 6
    assert (tmp_path / "run" / "results.json").exists()


def test_weights_that_are_not_finite_are_never_saved_and_the_last_good_ones_stay(films, tmp_path):
    harm = ("import torch\ntrue = torch.optim.Adam.step\ndef step(self):\n    true(self)\n"
            "    w = self.param_groups[0]['params'][0].data\n"
            "    if self.state_dict()['state'][0]['step'] == 4: w.fill_(float('nan'))\ntorch.optim.Adam.step = step")
    for _ in range(2):
        said, code = end(start(ONE, argv(films, tmp_path / "run", "--steps", 60, "--save-every", 1), tmp_path, harm))
        assert code == 3, said
        assert "could not be written" in said
        assert "ten losses or gradients in a row were not finite" in said
        assert [int(path.stem[-8:]) for path in Run(tmp_path / "run").checkpoints()] == [3, 2]
        for path in Run(tmp_path / "run").checkpoints():
            assert all(w.isfinite().all() for w in torch.load(path, weights_only=True)["model"].values())


def test_a_gradient_that_is_not_finite_on_one_process_changes_nothing_on_any(films, tmp_path):
    harm = ("import hashlib\ninside = pretrain.Step.__call__\ndef call(self, batch, step):\n"
            "    text = repr([w.tolist() for w in self.model.state_dict().values()])\n"
            "    open(f'{step}-' + os.environ['RANK'], 'w').write(hashlib.sha256(text.encode()).hexdigest())\n"
            "    row = inside(self, batch, step)\n"
            "    if step == 3 and os.environ['RANK'] == '1': next(self.model.parameters()).grad.fill_(float('nan'))\n"
            "    return row\npretrain.Step.__call__ = call")
    said, code = end(start([*TORCHRUN, "pretrain.py"], argv(films, tmp_path / "run", "--save-every", 1), tmp_path, harm))
    assert code == 0, said
    hashes = {step: {(tmp_path / f"{step}-{rank}").read_text() for rank in (0, 1)} for step in (3, 4, 5)}
    assert len(hashes[3]) == len(hashes[5]) == 1
    assert hashes[3] == hashes[4] != hashes[5]
    assert "not_finite" in rows(tmp_path / "run")[3]


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint-00000006.pt"])
def test_weights_that_are_not_finite_are_refused_by_name(films, finished, tmp_path, capsys, name):
    shutil.copytree(finished, tmp_path / "run")
    weights = {k: w * float("nan") for k, w in files.of_run(tmp_path / "run").items()}
    if name.endswith(".pt"):
        torch.save({**read_checkpoint(tmp_path / "run" / name), "model": weights}, tmp_path / "run" / name)
    else:
        files.write(tmp_path / "run" / name, weights)
    run = str(tmp_path / "run" / name)
    labels = tmp_path / "labels.csv"
    rows_of = [f"{films}/0{i}.mp4,{i % 2},{'test' if i > 5 else 'train'}" for i in range(9)]
    labels.write_text("\n".join(["path,label,split", *rows_of]))
    tuning = ["--data", f"csv={labels}", "--allow-outside", "--init", run, "--out", str(tmp_path / "new")]
    for script, command in ((finetune, ["--task", "video", *tuning]),
                            (finetune, ["--task", "linear", "--modality", "video", *tuning]),
                            (pretrain, argv(films, tmp_path / "new", "--init", run)),
                            (evaluate, ["embed", run, str(films), str(tmp_path / "new.npz")])):
        with pytest.raises(SystemExit):
            script.main(command)
        assert "not finite" in capsys.readouterr().err, script


def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_taken(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    run = Run(tmp_path / "run")
    newest, before = run.checkpoints()
    whole = newest.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        flipped = bytearray(whole)
        flipped[int(torch.randint(len(whole), (), generator=generator))] ^= 1 << int(torch.randint(8, (), generator=generator))
        newest.write_bytes(flipped)
        try:
            state = read_checkpoint(newest)
        except ValueError:
            assert run.newest()["step"] == read_checkpoint(before)["step"] == 4
        else:  # a bit between the parts of the zip, which nobody reads
            assert all(torch.equal(w, v) for w, v in zip(state["model"].values(), torch.load(
                finished / newest.name, weights_only=True)["model"].values(), strict=True))


def test_files_of_other_names_are_neither_deleted_nor_loaded_and_multiples_are_kept(films, tmp_path):
    out = tmp_path / "run"
    pretrain.main(argv(films, out, "--steps", 5, "--save-every", 1, "--keep", 1, "--keep-every", 2))
    assert [p.name for p in Run(out).checkpoints()] == [f"checkpoint-0000000{i}.pt" for i in (5, 4, 2)]
    for name in ("checkpoint-00000002-backup.pt", "checkpoint-best-so-far.pt"):
        shutil.copy(out / "checkpoint-00000002.pt", out / name)
    (out / "results.json").unlink()
    assert Run(out).newest()["step"] == 5
    Run(out).save(6, read_checkpoint(out / "checkpoint-00000005.pt"), keep=1)
    assert (out / "checkpoint-00000002-backup.pt").exists()
    assert (out / "checkpoint-best-so-far.pt").exists()


# files


def test_a_file_that_kills_its_worker_twice_is_left_out_the_third_time(films, tmp_path):
    more, harm = argv(films, tmp_path / "run", "--workers", 1), at("03.mp4", "os.kill(os.getpid(), 11)")
    for says in ("the same command goes on; a second time, without it", "the same command goes on without that file"):
        said, code = end(start(ONE, more, tmp_path, harm))
        assert code == 3, said
        assert "died (SIGSEGV)" in said
        assert "03.mp4" in said
        assert says in said
    said, code = end(start(ONE, more, tmp_path, harm))
    assert code == 0, said
    assert "03.mp4: killed or hung its worker twice" in said
    bad = [pair for row in rows(tmp_path / "run") for pair in row.get("bad", [])]
    assert {Path(path).name for path, _ in bad} == {"03.mp4"}


# processes that differ, machines that lack something


@pytest.mark.parametrize("flag", ["--lr 0.5 0.25", "--seed 1 2", "--steps 6 8"])
def test_processes_with_other_flags_end_in_one_line_that_names_both_values(films, tmp_path, flag):
    name, *values = flag.split()
    harm = f"sys.argv += [{name!r}, {values!r}[int(os.environ['RANK'])]]"
    said, code = end(start([*TORCHRUN, "pretrain.py"], argv(films, tmp_path / "run"), tmp_path, harm))
    assert code != 0
    lines = {line for line in said.splitlines() if line.startswith("error: ")}
    assert len(lines) == 1, said
    assert f"{name} is {values[1]} on process 1 and {values[0]} on process 0" in said, said
    assert not logged(tmp_path / "run", 1)()


def test_a_process_that_fails_ends_the_threads_of_its_groups_before_python_ends(films, tmp_path):
    """One that still held a tensor would abort the process, with a line of C++ and another exit code, now and then"""
    last = "lambda: print('threads:', [open(f).read() for f in glob.glob('/proc/self/task/*/comm')], file=sys.stderr)"
    harm = f"import atexit, glob; atexit.register({last}); sys.argv += ['--seed', os.environ['RANK']]"
    said, code = end(start([*TORCHRUN, "pretrain.py"], argv(films, tmp_path / "run"), tmp_path, harm))
    assert code != 0
    assert "threads: [" in said, said
    assert "gloo" not in said, said


def test_two_first_runs_in_one_clone_share_the_demos_data(tmp_path):
    small = "from sources import demo\ntrue = demo.write\ndemo.write = lambda folder: true(folder, train=12, val=6)"
    short = [*TINY, "--steps", "1"]
    children = [start(ONE, ["--out", str(tmp_path / str(i)), *short], tmp_path, small) for i in range(2)]
    for child in children:
        said, code = end(child)
        assert code == 0, said
    assert rows(tmp_path / "0") == rows(tmp_path / "1")


def test_too_few_open_files_are_told_at_once(films, tmp_path):
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
    said, code = end(start(ONE, argv(films, tmp_path / "run", "--workers", 2), tmp_path, preexec_fn=few))
    assert code == 2, said
    assert "ulimit -n" in said


def test_shared_memory_that_is_too_small_is_one_line_with_the_remedy(films, tmp_path):
    inside = [sys.executable, str(HERE / "pretrain.py"), *argv(films, tmp_path / "run", "--workers", 2)]
    said = subprocess.run(["unshare", "--mount", "sh", "-c", "mount -t tmpfs -o size=100k tmpfs /dev/shm && exec \"$@\"", "sh",
                           *inside], env=ENV, cwd=tmp_path, capture_output=True, text=True, check=False)
    if "unshare" in said.stderr or "mount:" in said.stderr:
        pytest.skip("another /dev/shm cannot be mounted here")
    assert said.returncode in (0, 2, 3), said.stderr
    assert "Traceback" not in said.stderr
    assert "--shm-size" in said.stderr


def test_nothing_needs_fcntl_to_start(tmp_path):
    code = "import sys; sys.modules['fcntl'] = None; import pretrain, finetune, evaluate, data; from sources import pack, check"
    subprocess.run([sys.executable, "-c", code], cwd=HERE, env=ENV, check=True)
    code = ("import sys; sys.modules['fcntl'] = None; from pathlib import Path; from engine.run import Run\n"
            "run = Run(Path(sys.argv[1])); run.claim(); run.save(1, {'model': {}})")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], env=ENV, check=True)
