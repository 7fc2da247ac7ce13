"""`make bench-gpu` as far as it goes without a GPU: its command line, the calls it would time, the report it writes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from bench.core.workloads import NAMES
from bench.gpu.measure import BACKENDS, MODES, Record, arguments, calls, report
from hhmpn_fast import InputError


def test_without_a_gpu_it_says_so_in_one_sentence() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-m", "bench.gpu.measure"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    expected = "bench-gpu: torch finds no GPU here, so there is nothing to measure; see `make gpu-report`."
    assert done.stderr.splitlines()[-1] == expected and "Traceback" not in done.stderr


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments([]).workloads == list(NAMES)
    assert arguments(["--rounds", "3", "--workloads", "nemu"]).rounds == 3
    for wrong, words in ((["--rounds", "0"], "found 0; expected at least 1"), (["--workloads", "x"], "invalid choice")):
        with pytest.raises(SystemExit):
            arguments(wrong)
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_calls_run(dtype: torch.dtype) -> None:
    runs = calls("mosei-aligned", dtype, "cpu", size=2)
    assert set(runs) == {(m, b) for m in MODES for b in BACKENDS}
    logits, loss = runs["infer", "torch"](), runs["train", "torch"]()
    assert logits.shape == (3, 2, 6) and logits.dtype == dtype and torch.isfinite(logits).all()
    assert loss.requires_grad and torch.isfinite(loss)
    with pytest.raises(InputError, match="the kernels run on a GPU"):
        runs["infer", "triton"]()


def test_the_report_of_a_made_record() -> None:
    made = [
        Record("nemu", "bfloat16", "infer", "triton", (1.0, 2.0, 9.0)),
        Record("nemu", "bfloat16", "infer", "torch", (5.0, 6.0, 7.0)),
        Record("nemu", "bfloat16", "train", "triton", (4.0,)),
    ]
    lines = report("a made machine", made).splitlines()
    assert lines[2].startswith("a made machine.")
    assert lines[6] == "| nemu | bfloat16 | infer | triton | 3 | 2.000 | 1.000 to 9.000 | 3.00 |"
    assert lines[7] == "| nemu | bfloat16 | infer | torch | 3 | 6.000 | 5.000 to 7.000 |  |"
    assert lines[8] == "| nemu | bfloat16 | train | triton | 1 | 4.000 | 4.000 to 4.000 |  |"
