"""Schedule, checkpoints, logs, and how a run ends, by killing, tearing and filling what a run must survive."""

import json
import math
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from engine.processes import GracefulShutdown
from engine.run import Run, load_weights, read_checkpoint, write_text
from finetune import SGD, half_cosine
from pretrain import learning_rate

HERE = Path(__file__).parent.parent
PAPER = dict(steps=500_000, lr=1e-4, lr_end=5e-5, warmup=10_000)


def test_the_learning_rate_is_a_quarter_period_from_1e_4_to_5e_5_after_10k_steps_of_warm_up():
    assert learning_rate(0, **PAPER) == pytest.approx(1e-8)
    assert learning_rate(9_999, **PAPER) == learning_rate(10_000, **PAPER) == pytest.approx(1e-4)
    assert learning_rate(255_000, **PAPER) == pytest.approx(5e-5 + 5e-5 * math.cos(math.pi / 4))
    assert learning_rate(500_000, **PAPER) == pytest.approx(5e-5)
    assert learning_rate(600_000, **PAPER) == pytest.approx(5e-5), "clamped: it does not climb again"


def test_the_learning_rate_never_rises_after_the_warm_up():
    rates = [learning_rate(s, 500, 1.0, 0.1, 50) for s in range(500)]
    assert all(a < b for a, b in pairwise(rates[:50]))
    assert all(a >= b for a, b in pairwise(rates[50:]))


def test_a_kill_while_saving_leaves_a_checkpoint_that_can_be_read(tmp_path):
    code = ("import torch\nfrom pathlib import Path\nfrom engine.run import Run\nrun = Run(Path('.'))\n"
            "for step in range(100000):\n"
            "    run.save(step, {'model': {'w': torch.randn(300, 1000)}}); print(step, flush=True)\n")
    saved = -1
    for wait in (0.0, 0.004, 0.011):
        child = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                                 env={**os.environ, "PYTHONPATH": str(HERE)})
        saved = max(saved, *(int(child.stdout.readline()) for _ in range(3)))
        time.sleep(wait)
        child.kill()
        saved = max([saved, *map(int, child.communicate()[0].split())])
        assert Run(tmp_path).newest()["step"] >= min(saved, 2)
    assert not [p for p in Run(tmp_path).checkpoints() if "tmp" in p.name]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path, capsys, share):
    run = Run(tmp_path)
    for step in (5, 10):
        run.save(step, {"model": {"w": torch.arange(1000.0)}})
    newest = run.checkpoints()[0]
    newest.write_bytes(newest.read_bytes()[: int(share * newest.stat().st_size)])
    assert run.newest()["step"] == 5
    assert "checkpoint-00000010.pt" in capsys.readouterr().err


def test_the_last_two_checkpoints_are_kept(tmp_path):
    run = Run(tmp_path)
    for step in range(1, 6):
        run.save(step, {"model": {}})
    assert [p.name for p in run.checkpoints()] == ["checkpoint-00000005.pt", "checkpoint-00000004.pt"]


def test_a_full_disk_leaves_the_last_checkpoint_and_a_warning(tmp_path, capfd):
    run = Run(tmp_path)
    run.save(1, {"model": {"w": torch.zeros(10)}})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        assert not run.save(2, {"model": {"w": torch.zeros(100_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "could not be written" in capfd.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000001.pt"]


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {Path(__file__).parent / 'owned'}",)


def test_a_checkpoint_cannot_run_code(tmp_path):
    path = tmp_path / "checkpoint-00000001.pt"
    torch.save({"model": Evil()}, path)
    with pytest.raises(ValueError, match="no readable checkpoint"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="no readable checkpoint"):
        read_checkpoint(path)
    assert not (Path(__file__).parent / "owned").exists()


def test_nothing_in_the_project_unpickles_what_it_reads():
    for path in HERE.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "weights_only=False" not in text
        assert "allow_pickle=True" not in text
        assert "import pickle" not in text


def test_weights_of_another_shape_are_refused_by_name():
    small, large = torch.nn.Linear(2, 3), torch.nn.Linear(2, 4)
    with pytest.raises(ValueError, match=r"weight is \(3, 2\), the model has \(4, 2\)"):
        load_weights(large, small.state_dict(), "runs/x")
    with pytest.raises(ValueError, match="bias is missing"):
        load_weights(small, {"weight": small.weight.data}, "runs/x")
    with pytest.raises(ValueError, match=r"more is \(1,\), the model has none"):
        load_weights(small, {**small.state_dict(), "more": torch.zeros(1)}, "runs/x")


def test_a_run_of_other_settings_is_refused_naming_what_differs(tmp_path):
    run = Run(tmp_path / "run")
    run.begin({"lr": 1e-4, "workers": 2}, {"workers"})
    run.describe({"lr": 1e-4, "workers": 2}, {})
    run.log({"step": 0})
    with pytest.raises(ValueError, match=r"--lr was 0.0001 and is 0.1"):
        Run(tmp_path / "run").begin({"lr": 0.1, "workers": 2}, {"workers"})
    Run(tmp_path / "run").begin({"lr": 1e-4, "workers": 0}, {"workers"})


def test_two_processes_never_train_in_one_folder(tmp_path):
    code = ("from pathlib import Path\nfrom engine.run import Run\nrun = Run(Path('run'))\n"
            "run.begin({}, set()); print('in', flush=True); input()")
    child = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True, env={**os.environ, "PYTHONPATH": str(HERE)})
    assert child.stdout.readline() == "in\n"
    with pytest.raises(ValueError, match=f"in use by process {child.pid}"):
        Run(tmp_path / "run").begin({}, set())
    child.kill()
    child.communicate()
    Run(tmp_path / "run").begin({}, set())


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is no run"):
        Run(tmp_path).begin({}, set())
    with pytest.raises(ValueError, match="is a file"):
        Run(tmp_path / "thesis.txt").begin({}, set())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_rows_past_the_checkpoint_and_torn_rows_are_cut_from_the_log(tmp_path):
    run = Run(tmp_path)
    write_text(tmp_path / "metrics.jsonl", "".join(json.dumps({"step": i}) + "\n" for i in range(5)) + '{"step": 5, "lo')
    run.forget(3)
    assert [row["step"] for row in run.rows()] == [0, 1, 2]


def test_each_script_writes_only_its_own_results(tmp_path):
    run = Run(tmp_path)
    run.add_results({"text_to_video": {"R@1": 0.5}})
    run.add_results({"linear_video": {"pretrained": 0.9}})
    assert set(run.results()) == {"text_to_video", "linear_video"}


def test_the_first_signal_asks_and_only_sets_a_flag():
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    try:
        stop = GracefulShutdown()
        assert stop.code == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.code == 143
    finally:
        for s, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(s, handler)


def test_half_a_cosine_falls_from_the_learning_rate_to_0_after_a_linear_warm_up():
    rate = lambda step: half_cosine(step, 100_000, 0.005, 2500)
    assert rate(0) == 0.005 / 2500
    assert rate(2499) == 0.005
    assert rate(2500 + 97_500 // 2) == pytest.approx(0.0025)
    assert rate(100_000) == rate(150_000) == 0
    rates = [rate(step) for step in range(2500, 100_000, 500)]
    assert rates == sorted(rates, reverse=True)


def test_sgd_has_the_rate_inside_of_the_momentum_and_is_torchs_where_the_rate_stays():
    ours, theirs = torch.tensor([1.0, -2.0]).requires_grad_(), torch.tensor([1.0, -2.0]).requires_grad_()
    optimizers = SGD([ours], 0.1), torch.optim.SGD([theirs], 0.1, momentum=0.9)
    for _ in range(5):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (p**4).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
    w, v, p = 3.0, 0.0, torch.tensor([3.0]).requires_grad_()
    optimizer = SGD([p], 0.0)
    for lr in (0.1, 0.05, 0.01):
        optimizer.param_groups[0]["lr"] = lr
        p.grad = 2 * p.detach()
        optimizer.step()
        v = 0.9 * v - lr * 2 * w
        w += v
        assert p.item() == pytest.approx(w, rel=1e-6)


def test_after_its_end_signals_do_what_they_did_before():
    before = signal.getsignal(signal.SIGTERM)
    stop = GracefulShutdown()
    assert signal.getsignal(signal.SIGTERM) == stop.handle
    stop.end()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("chosen", "waits"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")])
def test_threads_sleep_beside_other_programs_unless_the_user_says_otherwise(chosen, waits):
    """Read where OpenMP itself says it, when torch has loaded it"""
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        for script in ("pretrain", "finetune", "evaluate"):
            said = subprocess.run([sys.executable, "-c", f"import {script}"], cwd=HERE, check=True, capture_output=True,
                                  text=True, env={**env, "OMP_DISPLAY_ENV": "true", **chosen}).stderr
            assert f"OMP_WAIT_POLICY = '{waits}'" in said
    finally:
        for other in others:
            other.kill()
            other.wait()
