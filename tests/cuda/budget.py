"""What the CUDA library asks of an SM: `python tests/cuda/budget.py` builds it and prints the table of the docs."""

from __future__ import annotations

import collections
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.cuda import harness as cuda_harness  # noqa: E402

TEMP = cuda_harness.ROOT / "build" / "cuda"
DIMS = (64, 128, 256)
# Most registers a thread of 256 may have where shared memory leaves one block to an SM, and where two are to fit.
ONE_BLOCK, TWO_BLOCKS = 255, 128


@dataclass
class Kernel:
    """One kernel's facts on one architecture."""

    name: str
    dtype: str
    dim: int
    arch: str
    registers: int
    stack: int
    local: int
    ops: collections.Counter = field(default_factory=collections.Counter)

    def count(self, pattern: str) -> int:
        return sum(n for op, n in self.ops.items() if re.match(pattern, op))


def cuobjdump() -> Path | None:
    """The disassembler: the toolkit's, or the one that comes with Triton."""
    try:
        import triton
    except ImportError:
        return None
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return path if path.exists() else None


def why_not() -> str | None:
    """Why the budget cannot be looked at here, or None."""
    if cuda_harness.nvcc() is None:
        return "no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda"
    return "no cuobjdump (it comes with Triton)" if cuobjdump() is None else None


def library() -> Path:
    """The library for every architecture, of the sources as they are: an installation may hold this machine's only."""
    target = TEMP / "libhhmpn_cuda.so"
    cuda_harness.build_backend().compile_library(target, TEMP, cuda_harness.nvcc())
    return target


def _parts(text: str) -> list[tuple[str, str]]:
    """(architecture, text) of every embedded binary."""
    pieces = re.split(r"\narch = (sm_\d+)", text)
    return list(zip(pieces[1::2], pieces[2::2]))


def facts(library: Path) -> list[Kernel]:
    """Every kernel of the library on every architecture."""
    tool = str(cuobjdump())

    def dump(flag: str) -> str:
        return subprocess.run([tool, flag, str(library)], check=True, capture_output=True, text=True).stdout

    found: dict[tuple[str, str], Kernel] = {}
    for arch, text in _parts(dump("-res-usage")):
        for symbol, line in re.findall(r"Function (\S+):\s*\n\s*(.*)", text):
            use = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", line)}
            named = re.match(r"_ZN2hh\d+(\w+?)_kernelI(f|13__nv_bfloat16|6__half)Li(\d+)E(?:Lb([01])E)?", symbol)
            name, kind, dim = named[1], named[2], named[3]
            if named[4]:
                name += "_features" if named[4] == "1" else "_labels"
            dtype = {"f": "fp32", "6__half": "fp16"}.get(kind, "bf16")
            found[arch, symbol] = Kernel(name, dtype, int(dim), arch, use["REG"], use["STACK"], use["LOCAL"])
    for arch, text in _parts(dump("-sass")):
        for part in re.split(r"\n\s*Function : ", text)[1:]:
            ops = found[arch, part.split()[0]].ops
            for line in part.splitlines():
                match = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line)
                if match:
                    ops[match[1]] += 1
    return sorted(found.values(), key=lambda k: (k.name, k.dtype, k.dim, k.arch))


def limit(kernel: str) -> int:
    """The most registers a thread of a kernel may have; the features' gradient holds two tiles of sums."""
    return ONE_BLOCK if kernel.startswith("tower") or kernel == "update_backward_features" else TWO_BLOCKS


def broken(k: Kernel) -> list[str]:
    """What a kernel does not keep of its budget."""
    bad = []
    if k.stack or k.local or k.count("LDL|STL"):
        bad.append(f"local memory: stack {k.stack}, {k.count('LDL')} LDL, {k.count('STL')} STL")
    if k.registers > limit(k.name):
        bad.append(f"{k.registers} registers > {limit(k.name)}")
    if k.name != "sum_parts":
        if k.dtype != "fp32" and not (k.count("HMMA") and k.count("LDSM")):
            bad.append("no tensor-core product from ldmatrix")
        if not k.count(r"LDGSTS.*\.128"):
            bad.append("no 128-bit cp.async")
    if k.count("RED|ATOM"):
        bad.append("an atomic")
    return [f"{k.name} {k.dtype} d{k.dim} {k.arch}: {b}" for b in bad]


def table(kernels: list[Kernel]) -> str:
    """Markdown, a row a kernel and dtype: registers at d = 64, 128, 256, and instructions of the sm_90 code at 256."""
    lines = ["| kernel | dtype | registers sm_80 | sm_90 | at most | HMMA | LDSM | FFMA | cp.async 128 | BAR |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    held = {(k.name, k.dtype, k.dim, k.arch): k for k in kernels}
    for name, dtype in dict.fromkeys((k.name, k.dtype) for k in kernels):
        registers = [" / ".join(str(held[name, dtype, d, a].registers) for d in DIMS) for a in ("sm_80", "sm_90")]
        largest = held[name, dtype, 256, "sm_90"]
        counts = [largest.count(p) for p in ("HMMA", "LDSM", "FFMA", r"LDGSTS.*\.128", r"BAR\.")]
        lines.append("| " + " | ".join(map(str, (name, dtype, *registers, limit(name), *counts))) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(facts(library())))
