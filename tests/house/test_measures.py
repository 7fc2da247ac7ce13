"""The measures see what they are for, on a small tree with one offence each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house import measures

TREE = {
    "hhmpn_fast/data/a.py": """from hhmpn_fast.model import x
def f(a, b, c, d, e, g, h, i, *, j):
    return a[:5], b[0], k[i + 1]
""",
    "hhmpn_fast/model.py": """def f():
    from hhmpn_fast.frozen import y
""",
    "hhmpn_fast/frozen.py": "from hhmpn_fast import model",
    "hhmpn_fast/config.py": """from hhmpn_fast import ops
if TYPE_CHECKING:
    from hhmpn_fast import cli
""",
    "hhmpn_fast/ops/__init__.py": """x = Op("f2f(Tensor v, Tensor q, Tensor k, int n) -> Tensor z")
def f2f(v, q, k, n): ...
""",
    "hhmpn_fast/cli.py": """def again(v, q, k, n): ...
m = re.match("(.)(.)", t)
m[1], m[2], t.shape[3], f"{t[:40]}", t[i, 3]
""",
    "kernels/kernels_a.py": """@triton.jit
def f(a, b, c, d, e, f, g, h, i, j, k, l, m, n: tl.constexpr): ...
"""
    + "#\n" * 349,
    "csrc/cuda/a.cu": """void f(void* const* t, const long long* n) {
  p.x = t[1], y = n[4 + 2 * i];
  float a[4]; a[2] = o[i + 1];
}
""",
    "csrc/cpu/base/a.h": f"""#include "ops/b.cpp"
// a comment may be wide {120 * "."}
int x;{120 * " "}int y;
""",
    "csrc/cpu/ops/b.cpp": """#include <torch/library.h>
#include "base/a.h"
A::A(int a, int b, int c, int d, int e, int f, int g, T<int, int> h, int i) : a(a) {
  saved[7]; std::get<2>(x); for (int i = 0;;) {}
}
""",
}
EXPECTED = {
    "slots_python": ["hhmpn_fast/data/a.py:3: a[:5]"],
    "slots_cuda": ["csrc/cuda/a.cu:2: t[1]", "csrc/cuda/a.cu:2: n[4 + 2 * i]"],
    "slots_cpu": ["csrc/cpu/ops/b.cpp:4: saved[7]", "csrc/cpu/ops/b.cpp:4: std::get<2>"],
    "long_lists_python": ["hhmpn_fast/data/a.py:2: f takes 9"],
    "long_lists_triton": ["kernels/kernels_a.py:2: f takes 13, and 1 constexpr"],
    "long_lists_cpp": ["csrc/cpu/ops/b.cpp:3: A takes 9"],
    "signatures": [
        "f2f is spelled 3 times: hhmpn_fast/cli.py:1, hhmpn_fast/ops/__init__.py:1, hhmpn_fast/ops/__init__.py:2"
    ],
    "crowded_folders": [],
    "includes": [
        "csrc/cpu/base/a.h:1: csrc/cpu/base includes csrc/cpu/ops/b.cpp, which is above",
        "circle: csrc/cpu/base/a.h <-> csrc/cpu/ops/b.cpp",
        "circle: csrc/cpu/base <-> csrc/cpu/ops",
    ],
    "imports": [
        "hhmpn_fast/config.py:1: hhmpn_fast.config imports hhmpn_fast.ops",
        "hhmpn_fast/data/a.py:1: hhmpn_fast.data.a imports hhmpn_fast.model",
        "circle: hhmpn_fast.frozen <-> hhmpn_fast.model",
    ],
    "long_files": ["kernels/kernels_a.py has 351 lines"],
    "wide_lines": ["csrc/cpu/base/a.h:3: 132 columns"],
    "file_names": ["kernels/kernels_a.py says kernels"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_measure_sees_its_offence(name: str, tmp_path: Path, monkeypatch) -> None:
    for path, text in TREE.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(measures, "ROOT", tmp_path)
    assert list(getattr(measures, name)()) == EXPECTED[name]
