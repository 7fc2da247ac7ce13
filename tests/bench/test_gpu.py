"""`make bench-gpu` without a GPU: plan, cells on CPU tensors through a GPU's code, what a failure leaves, the page."""

from __future__ import annotations

import copy
import inspect
import json
from contextlib import nullcontext

import pytest
import torch

from bench.gpu import cell, clock, measure, measured, model, plan
from bench.gpu.plan import Cell
from bench.gpu.record import checked
from bench.race.contestants import CONTESTANTS, Gate, WrongResult
from hhmpn_fast import InputError

TINY = Cell("model", "length-3", "infer", ("padded eager", "packed, varlen_attn", "ours (torch)"), "bf16", 2)


def rows(capsys) -> list[dict]:
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line["row"] for line in said if "row" in line]


def made(rows: list[dict], **fields) -> dict:
    run = {"name": "made", "machine": "a made machine", "commit": "none", "date": "2026-01-01", "how": "Made."}
    ceilings = {"bf16_flop_s": 1e14, "tf32_flop_s": 5e13, "fp32_flop_s": 1e13, "copy_bytes_s": 1e12}
    return (
        run | {"versions": {}, "ceilings": [ceilings], "rows": rows, "left_out": [], "tables": [], "notes": []} | fields
    )


def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measure.main([]) == 2
    said = capsys.readouterr()
    expected = "bench-gpu: torch finds no GPU here, so there is nothing to measure; see `make gpu-report`."
    assert said.out == "" and said.err.splitlines() == [expected]


def test_the_command_line(capsys) -> None:
    assert measure.arguments([]).budget == 240
    for wrong, words in (
        (["--budget", "1"], "found 1.0; expected more than"),
        (["--device", "cpu"], "without --smoke"),
    ):
        with pytest.raises(SystemExit):
            measure.arguments(wrong)
        assert words in capsys.readouterr().err
    assert measure.main(["--list", "--only", "*-nemu-train-bf16-B64", "--skip", "packed*"]) == 0
    assert (
        capsys.readouterr().out == "model-nemu-train-bf16-B64: ours (cuda), ours (triton), padded eager, ours (torch)\n"
    )


def test_the_plan_holds_everything_once_and_its_smoke_everyone() -> None:
    full, smoke = plan.full(), plan.smoke()
    assert len(set(full)) == len(full) and all(Cell.of(json.loads(json.dumps(c.values()))) == c for c in full)
    whole = [c for c in full if c.part == "model"]
    assert {c.batch for c in whole} == {1, 64, 256, 1024} and {c.dtype for c in full} == {"bf16", "fp32", "tf32"}
    assert {c.length for c in full if c.part == "attention"} == {c.length for c in full if c.part == "update"}
    assert {min(c.length for c in full if c.length), max(c.length for c in full)} == {8, 4096}
    assert {n for c in whole for n in c.contestants} <= set(CONTESTANTS)
    for part in plan.MODES:
        names = [{(n, c.mode) for c in cells if c.part == part for n in c.contestants} for cells in (full, smoke)]
        assert {n for n, _ in names[0]} == {n for n, _ in names[1]} and {m for _, m in names[1]} == set(
            plan.MODES[part]
        )


def test_a_cell_of_models(monkeypatch, capsys) -> None:
    monkeypatch.setattr(cell, "SECONDS", 0.001)
    cell.measure(TINY, "cpu")
    refused, *held = rows(capsys)
    assert refused["contestant"] == "packed, varlen_attn" and refused["reason"] == "flash-attention runs on CUDA GPUs"
    assert [row["contestant"] for row in held] == ["padded eager", "ours (torch)"]
    checked(made([refused, *held]))
    for row in held:
        assert row["rounds"] >= 5 and row["launches"] > 100 and 0 < row["errors"]["logits"] < 0.04
        assert 0 < row["quartiles_ms"][0] <= row["wall_ms"] <= row["quartiles_ms"][1] and row["kernel_ms"] > 0


@pytest.mark.parametrize("part", ["attention", "update"])
@pytest.mark.parametrize("mode", ["forward", "both"])
def test_a_cell_of_one_op(part: str, mode: str, capsys) -> None:
    small = next(c for c in plan.smoke() if (c.part, c.mode, c.dtype) == (part, mode, "fp32"))
    cell.measure(small, "cpu")
    found = {row["contestant"]: row for row in rows(capsys)}
    assert set(found) == set(small.contestants)
    checked(made(list(found.values())))
    assert "no CUDA library" in found["ours (cuda)"]["reason"] or "GPU" in found["ours (cuda)"]["reason"]
    for name in {"ours (torch)", "SDPA, equal lengths"} & set(found):
        assert found[name]["errors"]["output"] < 1e-5 and found[name]["useful_flop"] > 0
        assert (mode == "both") == ("grad" in found[name]["errors"])


def test_a_failure_is_a_row_and_not_an_end(monkeypatch, capsys) -> None:
    monkeypatch.setattr(cell, "SECONDS", 0.001)
    admit = Gate.admit

    def failing(gate: Gate, name: str):
        if name == "padded eager":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate a lot")
        task, errors = admit(gate, name)
        monkeypatch.setattr(task, "run", task.infer if name == "ours (torch)" else lambda: 1 / 0)
        return task, errors

    monkeypatch.setattr(Gate, "admit", failing)
    cell.measure(
        Cell(
            "model", "length-3", "infer", ("padded eager", "ours (torch)", "packed, SDPA by length bucket"), "bf16", 2
        ),
        "cpu",
    )
    found = {row["contestant"]: row.get("reason") for row in rows(capsys)}
    assert found == {
        "padded eager": "OutOfMemoryError: CUDA out of memory.",
        "ours (torch)": None,
        "packed, SDPA by length bucket": "ZeroDivisionError: division by zero",
    }


@pytest.fixture
def graphs(monkeypatch) -> list[str]:
    """CUDA's graphs and streams, as far as `captured` sees them: a replay runs what was captured."""
    log: list[str] = []

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    class Stream:
        def wait_stream(self, other: Stream) -> None:
            assert isinstance(other, Stream)

    for name, made_up in (("Stream", Stream), ("current_stream", Stream), ("CUDAGraph", Graph)):
        monkeypatch.setattr(torch.cuda, name, made_up)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext(log.append("capture")))
    return log


@pytest.mark.parametrize("batch", [2, 3])
def test_a_captured_step_is_held_against_the_truth(graphs, monkeypatch, batch: int) -> None:
    monkeypatch.setattr(model, "GATE", 2)
    field = model.Models(Cell("model", "length-3", "train", ("packed, SDPA by length bucket",), "fp32", batch), "cpu")
    name = field.enter("packed, SDPA by length bucket") and "packed, SDPA by length bucket"
    task = field.tasks[name]
    task.optimizer = torch.optim.Adam(task.parameters, lr=0.0)  # on a GPU the rate is a tensor, 0 for the while
    assert field.capture(name).errors["grad"] < 1e-5 and graphs == ["capture", "replay"]
    monkeypatch.setattr(task, "run", lambda run=task.run: run() * 1.01)
    with pytest.raises(WrongResult, match="logits of the whole batch are off by"):
        field.capture(name)


def test_what_a_gpu_is_asked_for_exists() -> None:
    testing = pytest.importorskip("triton.testing")
    assert {"warmup", "rep", "quantiles"} <= set(inspect.signature(testing.do_bench).parameters)
    assert {"rep", "return_mode"} <= set(inspect.signature(testing.do_bench_cudagraph).parameters)
    with clock.products("tf32"):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    found = clock.ceilings("cpu", 16, 1024)
    assert set(found) == {"bf16_flop_s", "tf32_flop_s", "fp32_flop_s", "copy_bytes_s"} and min(found.values()) > 0


def test_who_takes_the_process_down_is_left_out_of_the_next() -> None:
    first, second = TINY, Cell("attention", "one group", "forward", ("ours (cuda)",), length=8)
    state = measure.Pass([first, second], "cpu")
    row = {k: v for k, v in TINY.values().items() if k != "contestants"} | {"graph": False}
    state.hear(json.dumps({"at": [first.name, "padded eager"]}))
    state.hear(json.dumps({"row": row | {"contestant": "padded eager", "reason": "x"}}))
    state.hear(json.dumps({"at": [first.name, "ours (torch)"]}))
    state.drop("took its process down")
    assert [(r["contestant"], r["reason"]) for r in state.rows] == [("ours (torch)", "took its process down")]
    assert state.todo[0].contestants == ("padded eager", "packed, varlen_attn")
    state.hear(json.dumps({"at": [first.name, "padded eager"]}))
    state.hear(json.dumps({"row": row | {"contestant": "padded eager", "reason": "x"}}))
    state.stop()
    assert state.left_out() == [f"{first.name}: packed, varlen_attn", f"{second.name}: ours (cuda)"]
    checked(made(state.rows))


def test_a_whole_run_from_the_command_line_to_the_page(tmp_path, capsys) -> None:
    asked = ["--device", "cpu", "--smoke", "--only", "attention*forward*", "--out", str(tmp_path), "--budget", "120"]
    assert measure.main(asked) == 0
    assert "bench-gpu: 12 rows, " in capsys.readouterr().out
    (run,) = measured.load(tmp_path)
    assert run["ceilings"] and not run["left_out"]
    page = (tmp_path / "measured.md").read_text()
    assert "### attention, one group, forward, fp32, B = 4, segments of 8" in page and "| ours (torch) | " in page
    assert str(tmp_path) not in page and str(measure.ROOT) not in page


@pytest.mark.slow
def test_the_whole_smoke(tmp_path) -> None:
    assert measure.main(["--device", "cpu", "--smoke", "--out", str(tmp_path), "--budget", "900"]) == 0


def test_the_page_is_made_of_the_results() -> None:
    assert (measured.FOLDER / "measured.md").read_text() == measured.page(measured.load())


def test_the_page_of_a_made_run() -> None:
    row = {"part": "model", "workload": "nemu", "mode": "train", "dtype": "bf16", "batch": 64, "length": 0}
    timed = {"wall_ms": 2.0, "quartiles_ms": [1.5, 250.0], "rounds": 9, "kernel_ms": 1.0, "launches": 124.0}
    counted = {"useful_flop": int(2e10), "least_bytes": int(5e8), "errors": {"logits": 1e-3, "grad": 2e-3}}
    held = row | {"contestant": "ours (cuda)", "graph": True} | timed | counted
    page = measured.page([made([held, row | {"contestant": "padded eager", "graph": False, "reason": "too large"}])])
    assert "| ours (cuda), graph | 2 (1.5 to 250) | 1 | 124 | 20 | 20 % | 0.5 | 50 % | 2.0e-03 |" in page
    assert "- padded eager: too large" in page


def test_a_wrong_record_is_refused_by_name() -> None:
    run = measured.load()[0]
    for change, words in (
        (lambda r: r["rows"][0].pop("dtype"), r"rows\[0\]: found the fields"),
        (lambda r: r["rows"][1].update(wall_ms="6.6"), r"rows\[1\]: wall_ms: found str; expected int or float"),
        (lambda r: r["rows"][0].update(graph=1), r"rows\[0\]: graph: found int; expected bool"),
        (lambda r: r["tables"][0]["rows"].append(["short"]), r"tables\[0\]: found a row of another length"),
        (lambda r: r.pop("ceilings"), "run: found the fields"),
    ):
        wrong = copy.deepcopy(run)
        change(wrong)
        with pytest.raises(InputError, match=words):
            checked(wrong)
