"""The kernels under older tritons: they use only what the lowest has, and compile where one lies at hand."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")
from bench.gpu import versions  # noqa: E402

KERNELS = versions.ROOT / "kernels"
# What the kernels take from triton.language, all of it there in 3.5. Look a new name up there before it is added.
LOWEST = {
    *("abs", "arange", "broadcast_to", "cdiv", "constexpr", "dot", "exp", "exp2", "float32", "full", "int32", "int64"),
    *("int8", "join", "load", "log", "max", "maximum", "minimum", "num_programs", "philox", "program_id", "reshape"),
    *("store", "sum", "trans", "uint32", "where", "zeros"),
}
AT_HAND = [v for v in versions.VERSIONS if (versions.ROOT / "build" / f"triton-{v}" / "triton").is_dir()]


def test_the_lowest_triton_has_every_name_that_the_kernels_use() -> None:
    used = set()
    for file in KERNELS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tl":
                used.add(node.attr)
    assert used == LOWEST


def test_the_declared_range_starts_at_the_lowest_version_compiled() -> None:
    major, minor, _ = versions.VERSIONS[0].split(".")
    text = (versions.ROOT / "pyproject.toml").read_text()
    assert text.count("triton>=") == text.count(f"triton>={major}.{minor}") == 2


@pytest.mark.slow
@pytest.mark.parametrize("version", AT_HAND)
def test_every_launched_form_compiles(version: str) -> None:
    """After `make gpu-versions` has fetched a version."""
    path = os.pathsep.join([str(versions.installed(version)), str(versions.ROOT)])
    code = "from bench.gpu.versions import compile_here; assert compile_here() == 0"
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and f"triton {version}: none" in done.stdout, done.stdout + done.stderr[-2000:]
