"""What the tests of the CUDA kernels share: the harness of all sources, loaded once."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TypeVar

import pytest
import torch

from hhmpn_fast.backends.cuda import launch
from tests.cuda import harness as cuda_harness

Launcher = TypeVar("Launcher")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SWEPT = ("fp32", "bf16")  # in every case; fp16 is bf16's code with another type, and has one a kernel
needs_harness = pytest.mark.skipif(cuda_harness.why_not() is not None, reason=str(cuda_harness.why_not()))


@functools.cache
def library() -> cuda_harness.Harness:
    with cuda_harness.alone("harness"):
        built = cuda_harness.build(cuda_harness.sources())
    return cuda_harness.Harness(built)


@contextlib.contextmanager
def watched(launcher: Launcher) -> Iterator[Launcher]:
    """Runs a block's kernels through a library of the tests; fails on anything it reports."""
    launcher.reports = []
    with launch.using(launcher):
        yield launcher
    assert not launcher.reports, "\n".join(launcher.reports)


@contextlib.contextmanager
def on_cpu(order: int) -> Iterator[cuda_harness.Harness]:
    """Runs a block's kernels under the harness in one thread order; fails on anything the checks report."""
    harness = library()
    harness.order, harness.calls = order, []
    with watched(harness):
        yield harness
