"""`make gpu-tune` without a GPU: candidates stand in the table's place, wrong and refused ones are told from slow ones,
and the diff it writes gives the table with the winners."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from bench.gpu import tune  # noqa: E402
from bench.gpu.launches import recorded  # noqa: E402
from hhmpn_fast.kernels import launch_table  # noqa: E402
from hhmpn_fast.kernels.launch import Launch  # noqa: E402
from hhmpn_fast.kernels.launch_table import TABLE  # noqa: E402

KERNELS = ("rows_product", "readout_forward")
KEY = tune.Key("rows_product", "half", 256, "sm90")


class Recorded:
    """A step on shapes alone; what it gives is wrong with tiles of 32 columns."""

    def __init__(self, chosen: object) -> None:
        self.dtype, self.architecture = "bf16", "sm90"

    def run(self) -> tuple[dict[str, Launch], list[Tensor]]:
        first = {kernel: launch for (kernel, form), launch in recorded("bf16", 256, "sm90").items() if not form}
        wrong = first["rows_product"].entry.n == 32
        return {k: first[k] for k in KERNELS}, [torch.full((3,), 2.0 if wrong else 1.0)]


def clock(launch: Launch, device: str) -> float:
    entry = launch.entry
    if entry.stages == 4:
        raise RuntimeError("out of resource: shared memory")
    return 40.0 if entry.n == 32 else 60.0 if entry.warps == 8 else 98.0 if entry.warps == 2 else 100.0


@pytest.fixture
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tune, "Step", Recorded)
    monkeypatch.setattr(tune, "timed", clock)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert tune.main(["--out", str(tmp_path), "--kernels", *KERNELS]) == 0
    return tmp_path


def test_a_sweep(swept: Path) -> None:
    assert (swept / "gpu-tune.diff").read_text().count("\n+_line(") == 2
    product, readout = json.loads((swept / "gpu-tune-table.json").read_text())["kernels"]
    assert product["key"] == KEY._asdict() and product["finished"] and readout["finished"]
    assert product["tries"][0]["entry"] == dataclasses.asdict(TABLE[KEY]) and product["tries"][0]["us"] == 100.0
    assert product["winner"]["us"] == 60.0 and product["winner"]["entry"]["warps"] == 8
    refused = {t["entry"]["n"]: t["refused"] for t in product["tries"] if t["refused"]}
    assert refused[32].startswith("results differ by 1.0e+00") and "out of resource" in refused[64]


def test_its_diff_gives_the_table_with_the_winners(swept: Path) -> None:
    copy = swept / "kernels" / "launch_table.py"
    copy.parent.mkdir()
    copy.write_text(Path(launch_table.__file__).read_text())
    diff = (swept / "gpu-tune.diff").read_text()
    subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=swept, check=True)
    table = {"__name__": "hhmpn_fast.kernels.launch_table"}
    exec(compile(copy.read_text(), str(copy), "exec"), table)
    both = {key: (dataclasses.astuple(entry), dataclasses.astuple(TABLE[key])) for key, entry in table["TABLE"].items()}
    changed = {key for key, (new, old) in both.items() if new != old}
    # A line for halves serves halves beside fp32 weights too.
    assert changed == {(kernel, kind, 256, "sm90") for kernel in KERNELS for kind in ("half", "mixed")}
    winner = table["TABLE"][KEY]
    assert (winner.warps, winner.m, winner.why) == (8, TABLE[KEY].m, "measured: 0.60 of the time before")
    assert table["TABLE"]["readout_forward", "half", 256, "sm90"].fused is False


def test_a_candidate_differs_in_one_field_and_the_table_stays() -> None:
    entry, before = TABLE[KEY], dict(TABLE)
    for other in tune.candidates(entry):
        assert sum(a != b for a, b in zip(dataclasses.astuple(entry), dataclasses.astuple(other))) == 1
        with tune.in_table(KEY, other):
            assert recorded("bf16", 256, "sm90")["rows_product", ""].entry == other
    assert before == TABLE


def test_gains_within_noise_change_nothing() -> None:
    entry = TABLE[KEY]
    table, near, none = (tune.Try(entry, us) for us in (100.0, 98.0, None))
    assert tune.best([table, near, none]) is table
    assert tune.Swept(KEY, (table, near), True).line() == "" and tune.diff([]) == ""


def test_no_time_leaves_a_sweep_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "Step", Recorded)
    monkeypatch.setattr(tune, "timed", clock)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert tune.main(["--out", str(tmp_path), "--seconds", "0"]) == 0
    assert "1 tried, more left" in capsys.readouterr().out
    (kernel,) = json.loads((tmp_path / "gpu-tune-table.json").read_text())["kernels"]
    assert not kernel["finished"] and len(kernel["tries"]) == 1


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main(["--out", "/nowhere"]) == 2
    assert capsys.readouterr().err == "gpu-tune: torch finds no GPU here, so there is nothing to time.\n"


@pytest.mark.slow
def test_a_real_step_in_the_interpreter(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    options = "--device cpu --dtype ieee --workload length-3 --batch 1 --dim 64 --seconds 0 --kernels readout_forward"
    command = [sys.executable, "-W", "ignore", "-m", "bench.gpu.tune", *options.split(), "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tune.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (kernel,) = json.loads((tmp_path / "gpu-tune-table.json").read_text())["kernels"]
    assert kernel["key"]["kernel"] == "readout_forward" and kernel["tries"][0]["us"] > 0
