"""The runner end to end on a cell of a few milliseconds: timing, probes, tables and plots; and the timer itself."""

from __future__ import annotations

import json
import sys
import time

import pytest
import torch

from bench.core import timing
from bench.core.rate import Product
from bench.gpu import plan as gpu_plan
from bench.race import cell, plan, report, run, step
from bench.race.contestants import CONTESTANTS
from bench.race.plan import Cell

PAIR = ("ours (torch)", "packed, SDPA by sample")


def pretend_rate(monkeypatch) -> None:
    monkeypatch.setattr(Product, "rate", lambda self: 1e11)
    monkeypatch.setattr(timing, "fastest", lambda dtype: (Product("pretended", 1, lambda: None), 1e11))


@pytest.fixture
def cells(tmp_path, monkeypatch) -> list[dict]:
    pretend_rate(monkeypatch)
    small = [Cell("length", f"length-{n}", "infer", PAIR, batch=1, budget=0.001) for n in (3, 6)]
    small += [Cell("main", "length-3", "train", ("padded eager", "FlexAttention"), batch=1, budget=0.001)]
    assert cell.main([str(tmp_path), "", *(c.dumps() for c in small)]) == 0
    return [json.loads(f.read_text()) for f in sorted(tmp_path.glob("*.json"))]


def test_cells_hold_what_the_report_needs(cells, tmp_path) -> None:
    assert len(cells) == 3
    for record in cells:
        assert record["useful_flop"] > 0 and record["rate"] == 1e11
        for found in record["results"].values():
            assert 0 < found["median"] < 10 and found["rounds"] >= 3 and found["mad"] >= 0
            assert found["errors"]["logits"] < 1e-5
    trained = next(r for r in cells if r["mode"] == "train")
    assert trained["skipped"] == {"FlexAttention": "FlexAttention has no backward on CPUs"}
    assert set(trained["results"]) == {"padded eager"}


def test_the_report_tells_every_figure(cells, tmp_path) -> None:
    out = tmp_path / "out"
    report.write_report(tmp_path, out)
    page = (out / "README.md").read_text()
    assert json.loads((out / "results.json").read_text())["cells"]
    for name in (*PAIR, "padded eager"):
        assert f"| {name} |" in page
    median = next(r for r in cells if r["workload"] == "length-6")["results"][PAIR[0]]["median"]
    assert f"| {report.three(median * 1e3)} ± " in page
    assert [report.three(x) for x in (1083.4, 2.4, 44.26, 0.358)] == ["1083", "2.40", "44.3", "0.358"]
    assert "- FlexAttention: FlexAttention has no backward on CPUs" in page
    assert (out / "length.png").stat().st_size > 5000 and (out / "roofline.png").stat().st_size > 5000


def test_the_report_names_disturbed_cells(cells, tmp_path) -> None:
    quiet = [r | {"cores_busy_elsewhere": 0.0} for r in cells]
    assert "Disturbed" not in report.page(report.machine(), quiet, [])
    quiet[1]["cores_busy_elsewhere"] = 1.25
    assert f"- {quiet[1]['name']}: 1.2 cores" in report.page(report.machine(), quiet, [])


def test_interleave_gives_everyone_a_turn_and_stops_at_the_budget(monkeypatch) -> None:
    pretend_rate(monkeypatch)
    calls: list[str] = []

    def runner(name: str, seconds: float):
        def call() -> None:
            calls.append(name)
            time.sleep(seconds)

        return call

    session = timing.Session(torch.float32)
    found = timing.interleave({"slow": runner("slow", 0.03), "fast": runner("fast", 0.001)}, session, budget=0.02)
    assert len(found["slow"].seconds) == 3  # the least, though its budget was gone after one
    assert len(found["fast"].seconds) > 3 and 0.001 <= found["fast"].median < 0.01 < 0.03 <= found["slow"].median
    assert calls[:2] == ["slow", "fast"]  # warm-up
    assert {tuple(calls[i : i + 2]) for i in (2, 4, 6)} == {("slow", "fast"), ("fast", "slow")}
    assert session.busy[0] >= 0 and session.cut_short == 0


def test_a_hold_brackets_the_section(monkeypatch, tmp_path) -> None:
    pretend_rate(monkeypatch)
    log = tmp_path / "log"
    script = tmp_path / "hold"
    script.write_text(f'#!/bin/sh\necho begin >> {log}\n"$@"\necho end >> {log}\n')
    script.chmod(0o755)
    session = timing.Session(torch.float32, str(script))
    with session.section():
        assert log.read_text() == "begin\n"
    assert log.read_text() == "begin\nend\n" and session.cut_short == 0
    short = timing.Session(torch.float32, "timeout 0.2")
    with short.section():
        time.sleep(0.5)
    assert short.cut_short == 1


def test_median_and_spread() -> None:
    times = timing.Times((1.0, 2.0, 4.0, 8.0, 100.0))
    assert times.median == 4.0 and times.mad == 3.0


def test_every_cell_has_a_name_of_its_own_and_small_ones_share_a_process() -> None:
    for cells in (plan.full(), plan.quick()):
        assert len({c.name for c in cells}) == len(cells)
        assert all(Cell.loads(c.dumps()) == c for c in cells)
        grouped = run.groups(cells)
        assert sum(len({c.name for c in g}) for g in grouped) >= len(cells)
        assert all(len({c.table for c in g}) == 1 for g in grouped)
        for group in grouped:
            if group[0].kind != "time":
                assert len(group) == 1 and len(group[0].contestants) == 1
    assert set(plan.EVERYONE) <= set(CONTESTANTS)
    elsewhere = {n for c in gpu_plan.full() if c.part == "model" for n in c.contestants}
    assert set(plan.EVERYONE) | elsewhere == set(CONTESTANTS)


def test_step_prints_the_ratio_to_the_floor(monkeypatch, capsys) -> None:
    pretend_rate(monkeypatch)
    monkeypatch.setattr(sys, "argv", "step --workload length-3 --backend torch --batch 1 --seconds 0.01".split())
    assert step.main() == 0
    printed = capsys.readouterr().out
    assert "at 100/s, pretended" in printed and "ratio" in printed and "clip + Adam" in printed
    monkeypatch.setattr(sys, "argv", "step --backend nobody".split())
    assert step.main() == 2
    assert "expected one of ours (cpu)" in capsys.readouterr().err


def test_memory_probe_sees_what_a_call_allocates(monkeypatch) -> None:
    class Eater:
        class peer:
            compiles = True

        class optimizer:
            @staticmethod
            def zero_grad() -> None:
                pass

        @staticmethod
        def run() -> None:
            torch.ones(64 * 2**18).sum()

    found = cell.added_memory(Eater, Cell("main", "length-3", "train", (), "memory"))
    assert 60 < found["mib"] < 80
