"""The cost tables against the figures printed in the paper, and the clock's bookkeeping; no test depends on a time."""

import dataclasses
import json
import re
from pathlib import Path

import films
import pytest
import torch
from torch import nn

import pretrain
import vatt
from bench import __main__ as bench
from bench import audit, device, model, study
from transformer import SIZES, Size, Transformer

TINY = Size(layers=2, d=32, d_mlp=64, heads=4)
CPU = torch.device("cpu")


# The paper's figures


@pytest.fixture(scope="module")
def rows():
    return audit.rows()


@pytest.mark.parametrize(("table", "count"), [("1", 4), ("5", 4), ("6", 6), ("7", 4)])
def test_every_printed_figure_is_reproduced_within_one_percent(rows, table, count):
    found = [r for r in rows if r["table"] == table]
    assert len(found) == count
    for r in found:
        assert r["paper_way"] == pytest.approx(r["paper"], rel=0.01), r["row"]
        assert r["paper_way_diff"] == pytest.approx(100 * (r["paper_way"] - r["paper"]) / r["paper"])


def test_the_figures_are_those_of_the_paper(rows):
    assert [r["paper"] for r in rows] == [9.09, 15.02, 29.80, 15.02, 188.1, 375.4, 574.2, 784.8,
                                          548.1, 1222.1, 279.8, 572.5, 898.9, 1252.3, 20.9, 87.9, 155.0, 306.1]


@pytest.mark.parametrize("name", SIZES)
def test_torch_counts_two_for_each_multiplication_of_our_encoder_scores_included(name):
    layers, d, d_mlp, _ = SIZES[name]
    with torch.device("meta"):
        encoder, x = Transformer(SIZES[name]), torch.empty(3, 100, d)
    n, forward = 101, audit.flops(lambda: encoder(x))
    assert forward == 3 * layers * (2 * n * (4 * d * d + 2 * d * d_mlp) + 2 * 2 * n * n * d)
    assert audit.flops(lambda: encoder(x).sum().backward()) == 3 * forward


def test_our_count_of_table_6_has_the_scores_and_projects_only_what_is_kept(rows):
    layers, d, d_mlp, _ = SIZES["medium"]
    for r, kept in zip([r for r in rows if r["table"] == "6"], (1568, 3136, 800, 1600, 2400, 3200), strict=True):
        n = kept + 1
        whole = 2 * kept * 3072 * d + layers * (2 * n * (4 * d * d + 2 * d * d_mlp) + 4 * n * n * d)
        assert r["ours"] == pytest.approx(whole / 1e9, rel=1e-12)


def test_the_drop_columns_fit_a_training_graph_better_and_the_others_inference():
    for (frames, pixels, drop), paper in audit.TABLE_6.items():
        far = [abs(audit.profiled(SIZES["medium"], audit.video_patches(frames, pixels), 3072, drop, training) / 1e9 - paper)
               for training in (False, True)]
        assert (far[1] < far[0]) == (drop > 0)


@pytest.mark.parametrize("name", SIZES)
def test_table_7_is_the_encoder_without_agg_a_video_projection_and_two_linear_layers(name):
    d = SIZES[name].d
    with torch.device("meta"):
        linear = [nn.Linear(n, m, bias=False) for n, m in ((3072, d), (d, 512), (512, 256))]
        parts = Transformer(SIZES[name]), *linear
    assert audit.parameters_by_fit(SIZES[name]) == sum(p.numel() for part in parts for p in part.parameters()) - d
    assert round(audit.parameters_by_fit(SIZES[name]) / 1e6, 1) == audit.TABLE_7[name]


def test_the_contradictions_that_the_docs_name_have_these_numbers():
    medium, mbs, patches = SIZES["medium"], vatt.PRESETS["mbs"], audit.video_patches(32, 320)
    one, table = audit.TABLE_6[32, 320, 0.0], audit.TABLE_7
    again = lambda drop, training: f"{audit.profiled(medium, patches, 3072, drop, training) / 1e9:.1f}"
    totals = ", ".join(f"{table[video] + table['base'] + table['small']:.1f}" for video in ("base", "medium", "large"))
    ours = audit.counted(dataclasses.replace(mbs, size=320)) / 1e9
    said = [f"is {audit.VIEWS * one / 1e3:.2f}",
            *(f"({', '.join(again(drop, training) for drop in (0.75, 0.5, 0.25))})" for training in (True, False)),
            f"takes {ours:.0f} GFLOP, not {one} ({100 * (ours / one - 1):+.0f}%)",
            f"{4 * audit.profiled(mbs.text, mbs.words, 300) / 1e9:.1f} GFLOP more",
            "cost {:.3f} of all, a quarter {:.3f}".format(*(audit.TABLE_5[drop] / audit.TABLE_5[0.0] for drop in (0.5, 0.75))),
            f"({totals})",
            f"{audit.VIEWS * (one / 1e3 + 2 * (2 * patches + 1) * medium.d**2 / 1e12):.2f} TFLOP by the paper's way"]
    text = (Path(__file__).parent.parent / "docs" / "results.md").read_text(encoding="utf-8").replace("\n  ", " ")
    assert [x for x in said if x not in text] == []


def test_the_audit_prints_every_row_and_writes_it(tmp_path, capsys, monkeypatch, rows):
    monkeypatch.setattr(audit, "rows", lambda: rows)
    bench.main(["audit", "--json", str(tmp_path / "audit.json")])
    printed = capsys.readouterr().out
    assert all(f"{r['paper']:.{2 if r['unit'] == 'TFLOP' else 1}f}" in printed and r["row"] in printed for r in rows)
    assert json.loads((tmp_path / "audit.json").read_text())["rows"] == rows


# Measuring


def test_contenders_take_turns_and_another_begins_each_round():
    order = []
    seconds = model.alternate({name: lambda name=name: order.append(name) for name in "abc"}, 3, CPU, "")
    assert {name: len(s) for name, s in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert ["".join(order[i : i + 3]) for i in range(0, 15, 3)] == ["bca", "cab", "abc", "bca", "cab"]  # two to warm up


def test_peak_memory_is_the_most_that_is_held_at_once():
    module, more = nn.Linear(1000, 250, bias=False), torch.empty(250_000)                     # 1 MB each

    def run():
        for _ in range(3):
            x = torch.ones(500_000) + 1                                                       # 2 MB beside 2 MB
            del x

    assert model.peak_memory(run, CPU, module, more) == pytest.approx(6e6, rel=0.01)


def test_a_gradient_of_the_step_before_is_not_counted():
    module = nn.Linear(1000, 250, bias=False)
    run = lambda: module(torch.ones(1, 1000)).sum().backward()
    assert model.peak_memory(run, CPU, module) == model.peak_memory(run, CPU, module) == pytest.approx(2e6, rel=0.02)


@pytest.mark.parametrize("limit", [2, 3, 7, 8, 45, 64, 300])
def test_the_largest_batch_fits_and_hardly_more_does(limit):
    found = model.largest(lambda batch: batch <= limit)
    assert found <= limit <= found + max(1, found // 8)


def test_a_model_that_never_fits_is_an_error():
    with pytest.raises(ValueError, match="not even 2 clips"):
        model.largest(lambda batch: False)


# Contenders


def test_all_encoders_need_the_same_matmuls():
    found = model.contenders(TINY, 2, 10)
    assert {"ours", "torch"} <= set(found)
    assert len(set(found.values())) == 1


def test_the_encoder_of_torch_gives_our_output_with_our_weights():
    ours, theirs = model.encoder("ours", TINY), model.encoder("torch", TINY)
    order = ("attention.qkv", "attention.out", "mlp.0", "mlp.3", "norm1", "norm2")
    with torch.no_grad():
        theirs.x_agg.copy_(ours.x_agg[0])
        for a, b in zip(ours.blocks, theirs.blocks.layers, strict=True):
            weights = [a.get_parameter(f"{part}.{kind}") for part in order for kind in ("weight", "bias")]
            b.load_state_dict(dict(zip(b.state_dict(), weights, strict=True)))
    x = torch.randn(2, 10, TINY.d)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("problem", [ImportError("No module named 'absent'"), RuntimeError("operator is\nof another torch")])
def test_a_library_that_cannot_be_imported_is_skipped_with_a_word(monkeypatch, capsys, problem):
    def absent(size):
        raise problem

    monkeypatch.setattr(model, "PEERS", {"absent": absent, "torch": model.of_torch})
    assert list(model.contenders(TINY, 2, 10)) == ["ours", "torch"]
    assert re.fullmatch(r"absent: skipped, .*(No module|another torch).*\n", capsys.readouterr().out)


# The command


COMMON = {"part", "name", "preset", "batch", "precision", "compile", "recompute", "steps", "step_s", "quartiles_s",
          "clips_per_s", "flop", "flop_per_s", "matmul_flop_per_s", "mfu", "peak_bytes"}
MODEL = ["model", "--preset", "demo", "--batch", "2", "--steps", "2"]


@pytest.fixture
def two_contenders(monkeypatch):
    monkeypatch.setattr(model, "PEERS", {"torch": model.of_torch})


@pytest.mark.usefixtures("two_contenders")
def test_the_model_command_writes_what_it_prints(tmp_path, capsys):
    bench.main([*MODEL, "--parts", "encoder", "droptoken", "step", "--drop", "0.5", "--json", str(tmp_path / "model.json")])
    written, printed = json.loads((tmp_path / "model.json").read_text()), capsys.readouterr().out
    assert written["device"] in printed
    ours, theirs, whole, half, step = written["rows"]
    assert set(ours) == COMMON | {"tokens", "vs_torch"}
    assert set(theirs) == COMMON | {"tokens"}
    assert set(whole) == set(half) == COMMON | {"tokens", "drop", "cost", "ideal"}
    assert set(step) == COMMON | {"drop", "chunk"}
    assert ours["vs_torch"] == theirs["step_s"] / ours["step_s"]
    assert f"ours is {ours['vs_torch']:.3f} times as fast" in printed
    assert (ours["tokens"], whole["tokens"], half["tokens"]) == (32, 64, 32)
    assert (whole["cost"], whole["ideal"]) == (1, 1)
    assert half["cost"] == half["step_s"] / whole["step_s"]
    for r in written["rows"]:
        assert r["clips_per_s"] == 2 / r["step_s"]
        assert r["mfu"] == pytest.approx(r["flop"] / r["step_s"] / r["matmul_flop_per_s"])
        assert f"{r['mfu']:.1%}" in printed


@pytest.mark.usefixtures("two_contenders")
def test_the_ideal_cost_is_that_of_the_matmuls(tmp_path):
    bench.main([*MODEL, "--parts", "droptoken", "--drop", "0.75", "--json", str(tmp_path / "model.json")])
    flop = lambda kept: (kept * 2 * 256 * 3 * 128 * 2                                         # W_vp: forward, its gradient
                         + 3 * 2 * (2 * (kept + 1) * (4 * 128**2 + 2 * 128 * 512) + 4 * (kept + 1) ** 2 * 128))
    quarter = json.loads((tmp_path / "model.json").read_text())["rows"][1]
    assert quarter["flop"] == 2 * flop(16)
    assert quarter["ideal"] == pytest.approx(flop(16) / flop(64))


@pytest.mark.usefixtures("two_contenders")
def test_recomputing_takes_less_memory_and_counts_the_same_work(tmp_path):
    found = []
    for more in ([], ["--recompute"]):
        bench.main([*MODEL, "--parts", "encoder", "--tokens", "400", "--json", str(tmp_path / "model.json"), *more])
        found.append(json.loads((tmp_path / "model.json").read_text())["rows"])
    assert found[1][0]["peak_bytes"] < 0.8 * found[0][0]["peak_bytes"]
    assert found[1][0]["flop"] == found[0][0]["flop"]
    assert found[1][1]["peak_bytes"] == found[0][1]["peak_bytes"]                             # torch's is as before


@pytest.mark.parametrize(("wrong", "says"), [
    (["--drop", "1"], "--drop"),
    (["--batch", "0"], "--batch"),
    (["--batch", "many"], "--batch"),
    (["--batch", "max"], "--parts step"),
    (["--parts", "step", "--batch", "1"], "batch norm"),
    (["--steps", "1"], "--steps"),
    (["--json", "absent/model.json"], "absent"),
])
def test_a_flag_that_cannot_be_is_one_line_and_exit_code_2(wrong, says, capsys):
    with pytest.raises(SystemExit) as end:
        bench.main([*MODEL, *wrong])
    assert end.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


# Device


def test_the_device_command_keeps_what_a_part_measured_and_says_which_failed(tmp_path, capsys):
    bench.main(["device", "--parts", "costs", "chunk", "--minutes", "2", "--json", str(tmp_path / "device.json")])
    rows, printed = json.loads((tmp_path / "device.json").read_text())["rows"], capsys.readouterr().out
    assert [r["part"] for r in rows] == ["costs"] * 11 + ["chunk"] * 2
    assert sum(r["seconds"] for r in rows[:10]) < rows[10]["seconds"]
    assert rows[11]["batch"] == 32
    assert rows[11]["clips_per_s"] > 0
    assert [r["note"] for r in rows if r["name"] == ""] == ["done", "done"]
    assert all(r["name"] in printed for r in rows)


def test_a_part_of_the_device_command_that_takes_too_long_is_ended_and_the_next_one_goes_on(tmp_path, capsys):
    bench.main(["device", "--parts", "chunk", "encoder", "--minutes", "0.01", "--json", str(tmp_path / "device.json")])
    rows = json.loads((tmp_path / "device.json").read_text())["rows"]
    assert [(r["part"], r["note"].split(":")[0]) for r in rows] == [("chunk", "FAILED"), ("encoder", "FAILED")]
    assert all(r["seconds"] < 5 for r in rows)
    assert device.in_a_process("nothing", 60)[1].startswith("FAILED with 2: ")


# Study


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(("what", "values"), [("drop", 4), ("patch", 6), ("audio", 5)])
def test_each_value_of_a_study_is_a_command_that_can_be_parsed_beside_the_scores_of_the_paper(what, values, small):
    found = study.runs(what, small)
    assert len(found) == values
    for flags, paper in found.values():
        args = pretrain.flags().parse_args(flags)
        assert len(paper) == 5
        if what == "patch" and not small:
            assert args.size in (200, 224)
            assert args.patch[0] in (4, 5, 8)


@pytest.mark.slow
def test_a_study_trains_every_value_and_prints_it_beside_the_paper(tmp_path, capsys):
    videos = films.folder(tmp_path / "videos", films=10)
    more = ["--data", str(videos), "--val", str(videos), *films.TINY]
    argv = ["study", "drop", "--out", str(tmp_path / "runs"), "--json", str(tmp_path / "study.json"), "--", *more]
    for _ in range(2):                                                      # what is finished is read again
        bench.main(argv)
        rows, printed = json.loads((tmp_path / "study.json").read_text())["rows"], capsys.readouterr().out
        assert [r["name"] for r in rows] == ["75% dropped", "50% dropped", "25% dropped", "0% dropped"]
        settings = [json.loads((tmp_path / f"runs/drop-{i}/config.json").read_text())["settings"]["drop"] for i in range(4)]
        assert settings == [[0.75] * 2, [0.5] * 2, [0.25] * 2, [0.0] * 2]
        assert "14.10" in printed.splitlines()[-4]
