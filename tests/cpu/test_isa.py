"""Every ISA unit gives the ops' results, the choice is named, and no unit's instructions leak into baseline code."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hhmpn_fast.backends.cpu import library as cpu_library
from hhmpn_fast.backends.cpu.library import ISAS, load_error

pytestmark = pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
HERE = Path(__file__).parent


def under(isa, *command):
    paths = [str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "HHMPN_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("isa", ISAS)
def test_every_unit_computes_the_same(isa):
    out = under(isa, str(HERE / "cases.py"))
    if "does not have" in out.stderr + out.stdout:
        pytest.skip(f"no {isa} here")
    assert out.returncode == 0, out.stdout + out.stderr
    assert out.stdout.count(f"{isa} torch.") == 3


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_every_unit_passes_the_sweeps(isa):
    names = ("embed", "absorb", "attention", "update", "f2f", "joint_loss")
    out = under(isa, "-m", "pytest", "-q", *(str(HERE / f"test_{name}.py") for name in names))
    assert out.returncode == 0, out.stdout[-3000:]


def test_an_unknown_isa_is_a_reason():
    code = "from hhmpn_fast.backends.cpu.library import load_error; print(load_error())"
    out = under("sse9", "-c", code)
    assert "HHMPN_CPU_ISA is 'sse9'; expected avx512_bf16, avx512, avx2 or portable" in out.stdout


def test_describe_names_the_choice():
    assert cpu_library.describe()["isa"] in ISAS


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("objdump") is None or shutil.which("nm") is None, reason="no binutils here")
def test_wide_registers_stay_in_the_units():
    """Only local functions of the units may hold ymm or zmm: a global or weak one could be called on any CPU."""
    import hhmpn_fast._C as library

    names = subprocess.run(["nm", library.__file__], capture_output=True, text=True, check=True).stdout
    local = {line.split()[2] for line in names.splitlines() if len(line.split()) == 3 and line.split()[1] == "t"}
    command = ["objdump", "-d", "--no-show-raw-insn", library.__file__]
    wide, current = set(), ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as code:
        for line in code.stdout:
            if line.endswith(">:\n"):
                current = line.split("<")[1][:-3]
            elif "%ymm" in line or "%zmm" in line:
                wide.add(current)
    assert code.returncode == 0 and wide, "the library holds no wide code: the units were not built"
    outside = {name for name in wide if not (name in local and ("_GLOBAL__N_1" in name or "_unit_avx" in name))}
    assert not {n for n in outside if not re.search(r"_unit_avx(2|512|512_bf16)", n)}, sorted(outside)[:5]
