"""The Triton kernels in Triton's interpreter, guarded: each file of cases in a process of its own.

The interpreter is chosen when the kernels are imported, so it cannot share a process with the compiler's tests.
HHMPN_TRITON_EXAMPLES sets the number of random examples a sweep draws.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CASES = (
    *("attention_cases", "update_cases", "readout_cases", "model_cases", "autocast_cases", "registration_cases"),
    "mutants",
)


def run(case: str, examples: str) -> None:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "HHMPN_TRITON_EXAMPLES": examples,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    file = HERE / "support" / f"{case}.py"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(ROOT), str(file)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-2000:]


@pytest.mark.parametrize("case", CASES)
def test_interpreted(case: str) -> None:
    run(case, "6")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_interpreted_at_length(case: str) -> None:
    run(case, "100")


def test_bfloat16_is_refused_to_an_interpreter_that_is_wrong_in_it() -> None:
    """The refusal, and that it is still needed: the day this fails the triton installed multiplies bfloat16."""
    code = (
        "import torch; from hhmpn_fast import InputError, backends, ops\n"
        "from hhmpn_fast.kernels.attention.op import attention\n"
        "x, table = torch.randn(4, 16), torch.tensor([0, 4], dtype=torch.int32)\n"
        "for dtype in (torch.float32, torch.float16, torch.bfloat16):\n"
        "    with torch.autocast('cpu', dtype, enabled=dtype != torch.float32), backends.use_backend('triton'):\n"
        "        try:\n"
        "            ops.attention(x, x, table, table); print('ran in', dtype)\n"
        "        except InputError as error:\n"
        "            print(error)\n"
        "low = {'q': x.bfloat16(), 'x': x.bfloat16(), 'q_offsets': table, 'x_offsets': table, 'groups': 1}\n"
        "low |= {'mask': None, 'exclude_self': False, 'p': 0.0, 'rng': None, 'site': 0}\n"
        "print('off by', float((attention(**low)[0] - x).abs().max()))"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    *said, off = done.stdout.splitlines()
    assert said == [
        "ran in torch.float32",
        "ran in torch.float16",
        "backend 'triton' cannot run attention: Triton's interpreter is wrong in torch.bfloat16; expected float32, "
        "float16 or a GPU.",
    ], done.stderr[-2000:]
    assert not float(off.split()[-1]) < 10, off


def test_asking_for_reasons_imports_no_triton() -> None:
    code = (
        "import sys, torch; from hhmpn_fast import backends; call = backends.Call('cpu', torch.float32, 256); "
        "reason = backends.why_not('triton', 'attention', call); "
        "assert reason.startswith('the tensors are on cpu, the kernels run on a GPU'), reason; "
        "assert 'triton' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
