"""What it takes to add an op, a backend, a reading, a reader: toys in copies of the tree, their files counted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hhmpn_fast import Dataset
from hhmpn_fast.backends.cpu.library import load_error
from tests.cuda import harness
from tests.house.copies import TOYS, Copy

# The op's files, a backend after the other.
PLAIN = ("hhmpn_fast/ops/*", "tests/*")
CPU = (*PLAIN, "hhmpn_fast/backends/cpu/*", "csrc/cpu/ops/toy/*")
TRITON, CUDA = (*PLAIN, "kernels/toy/*"), (*PLAIN, "hhmpn_fast/backends/cuda/*", "csrc/cuda/toy/*")
BUILD = "import sys; sys.path.insert(0, 'build_backend'); import cpu; from pathlib import Path; "
BUILD += "cpu.build(Path('hhmpn_fast/_C.so'), True)"
EXPLAIN = "import torch; from hhmpn_fast import backends; "
EXPLAIN += "print(backends.explain(backends.Call('cpu', torch.float32, 256)))"
# The library's module without what reads other ops.
MODULE = """
#include <Python.h>
#include <torch/library.h>
#include "base/isa.h"
#include "adapter/op.h"
TORCH_LIBRARY_FRAGMENT(hhmpn_fast, m) {
  m.def("cpu_isa", [] { return std::string(hhmpn::isa_name(hhmpn::isa())); });
  m.def("pack(Tensor weights, bool transposed) -> Tensor");  // whose shapes backends/cpu/infer.py gives
}
extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  hhmpn::register_ops();
  return PyModule_Create(&module);
}
"""
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler (c++) on PATH")


def explained(copy: Copy, op: str, **environment: str) -> dict[str, str]:
    """What `explain()` says of an op, by backend."""
    lines = [line.split(None, 2) for line in copy.python("-c", EXPLAIN, **environment).splitlines()]
    return {backend: said for name, backend, said in lines[1:] if name == op}


def test_an_op_is_two_files_and_no_list_is_extended(tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    copy.add("new_op", *PLAIN)
    assert (len(copy.added), copy.edited) == (2, [])
    copy.pytest("tests/test_toy.py", "torch")
    found = explained(copy, "toy")
    assert found["torch"] == "can run" and "has no op 'toy'" in found["cuda"] + found["triton"] + found["cpu"]


def _on_the_cpu(copy: Copy) -> None:
    copy.add("new_op", *CPU)
    assert (len(copy.added), copy.edited) == (6, []), copy.added
    copy.python("-c", BUILD, HHMPN_CPU_UNITS="portable", HHMPN_CUDA="0")
    copy.pytest("tests/test_toy.py", "cpu")
    assert explained(copy, "toy")["cpu"] == "can run"


@pytest.mark.slow
@needs_compiler
def test_an_op_on_the_cpu_is_six_files(tmp_path: Path) -> None:
    """Of csrc/cpu only what every op stands on is compiled."""
    copy = Copy(tmp_path)
    for other in (*(tmp_path / "csrc/cpu/ops").iterdir(), tmp_path / "csrc/cpu/simd/dense.unit.cpp"):
        shutil.rmtree(other) if other.is_dir() else other.unlink()
    (tmp_path / "csrc/cpu/host/digest.cpp").unlink()
    (tmp_path / "csrc/cpu/host/library.cpp").write_text(MODULE)
    copy.start()
    _on_the_cpu(copy)


@pytest.mark.slow
@needs_compiler
def test_an_op_joins_the_others_on_the_cpu(tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    _on_the_cpu(copy)
    copy.pytest("tests/cpu/test_readout.py", "not threads")


def test_an_op_on_every_backend_is_eleven_files(tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    copy.add("new_op")
    assert (len(copy.added), copy.edited) == (11, []), copy.added


def test_an_op_in_triton_is_two_files_more(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    copy = Copy(tmp_path)
    copy.add("new_op", *TRITON)
    assert (len(copy.added), copy.edited) == (4, []), copy.added
    copy.pytest("tests/test_toy.py", "triton", TRITON_INTERPRET="1")
    assert explained(copy, "toy", TRITON_INTERPRET="1")["triton"] == "can run"


def test_an_op_in_cuda_is_three_files_more(tmp_path: Path) -> None:
    if harness.why_not() is not None:
        pytest.skip(harness.why_not())
    copy = Copy(tmp_path)
    copy.add("new_op", *CUDA)
    assert (len(copy.added), copy.edited) == (5, []), copy.added
    copy.pytest("tests/test_toy.py", "cuda")
    assert "no CUDA library" in explained(copy, "toy")["cuda"]


BACKEND = """
import torch
from hhmpn_fast import backends, ops
from hhmpn_fast.backends.toy.attention import RAN
q, x, at = torch.randn(3, 8).double(), torch.randn(5, 8).double(), torch.tensor([0, 3]).int()
given = (q, x, at, torch.tensor([0, 5]).int())
with backends.use_backend("toy"):
    found = ops.attention(*given)
    try:
        ops.attention(q, q, at, at, exclude_self=True)
        raise AssertionError
    except backends.registry.InputError as error:
        assert "do not hold the option exclude_self" in str(error), error
with backends.use_backend("torch"):
    assert torch.equal(found[0], ops.attention(*given)[0])
assert RAN == [3]
"""


def test_a_backend_is_one_line_and_a_file_an_op(tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    copy.add("new_backend")
    home = '    "torch": "hhmpn_fast.backends.plain",\n'
    copy.edit("hhmpn_fast/backends/registry.py", {home: '    "toy": "hhmpn_fast.backends.toy",\n' + home})
    assert (len(copy.added), copy.edited) == (2, ["hhmpn_fast/backends/registry.py"])
    copy.python("-c", BACKEND)
    found = explained(copy, "attention")
    assert list(found).index("toy") + 1 == list(found).index("torch")
    assert found["toy"] == "cannot run: the dtype is torch.float32, the kernels hold float64"
    assert "it has no op 'readout'" in explained(copy, "readout")["toy"]
    assert "toy         can run (made of wood)" in copy.python("-m", "hhmpn_fast.cli", "info")


FIELD = """
    messages: str = reading(
        "whole",
        choices=("whole", "half"),
        touches=("f2f", "f2l", "l2l"),
        spot="Eq 5: is a message halved",
        options="`whole`; `half`",
        why="the paper prints no factor",
    )
"""
CONFIG, LAST = (
    "hhmpn_fast/config.py",
    '\n    def __post_init__(self) -> None:\n        object.__setattr__(self, "modalities"',
)
READING = {
    CONFIG: {LAST: FIELD + LAST},
    "hhmpn_fast/reference.py": {
        "READINGS = (\n": 'READINGS = (\n    "messages=half",\n',
        "return eq5_messages(weights, sources, block.wv)": (
            'return eq5_messages(weights, sources, block.wv) * (0.5 if self.c.messages == "half" else 1.0)'
        ),
    },
    "hhmpn_fast/composed.py": {
        "_BLOCK = (": '_HALF = {"whole": 1.0, "half": 0.5}\n_BLOCK = ("messages=half", ',
        "context.reshape(modalities, v.shape[0],": "(_HALF[config.messages] * context).reshape(modalities, v.shape[0],",
        "context.reshape(modalities, -1,": "(_HALF[steps.config.messages] * context).reshape(modalities, -1,",
        "context.reshape(*u.shape[:2],": "(_HALF[steps.config.messages] * context).reshape(*u.shape[:2],",
    },
}
BARE = {CONFIG: {LAST: '\n    twist: str = "straight"\n' + LAST}}


@pytest.mark.parametrize(
    ("changes", "said", "outcome"),
    [(READING, "messages=half", "composed"), (BARE, "twist=bent", "refused")],
    ids=["three files", "a bare field"],
)
def test_a_reading_is_three_files(changes: dict, said: str, outcome: str, tmp_path: Path) -> None:
    """Fused paths refuse it, single ops run it; told to nobody it is refused by all. With the old extension, if any."""
    copy = Copy(tmp_path, compiled=load_error() is None)
    for file, texts in changes.items():
        copy.edit(file, texts)
    assert (copy.added, len(copy.edited)) == ([], len(changes))
    assert copy.python("-c", (TOYS / "twisted.py").read_text(), said).strip() == outcome


def test_a_reader_is_one_file(tmp_path: Path) -> None:
    copy, source = Copy(tmp_path / "copy"), tmp_path / "a.toy"
    copy.add("new_reader")
    assert (len(copy.added), copy.edited) == (1, [])
    source.write_text("yes 1 2\n3 4\n\nno 5 6\n\nyes 7 8\n")
    convert = ("-m", "hhmpn_fast.cli", "convert")
    printed = copy.python(*convert, "toy", source, tmp_path / "o", "--scale", 2, "--valid-fraction", 0)
    assert "3 samples" in printed and "numbers 1.3 x 2" in printed and "note: read by a toy" in printed

    data = Dataset.open(tmp_path / "o", "train")  # like any other, whoever made it
    assert data.batch([1, 0]).features.values[0].tolist() == [[10, 12], [2, 4], [6, 8]]
    assert data.labels.tolist() == [[1], [0], [1]] and data.metadata["provenance"]["kind"] == "toy"
    assert list(data.metadata["provenance"]["sources"]) == ["a.toy"]

    assert "Numbers in lines: one node a line" in copy.python(*convert, "--help")
    own = copy.python(*convert, "toy", "--help")
    assert "--scale" in own and "--valid-fraction" in own and "first word" in own
