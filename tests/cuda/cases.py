"""What the tests of the CUDA kernels share: the harness of all sources, loaded once."""

from __future__ import annotations

import functools

import pytest
import torch

from hhmpn_fast.backends.cuda import launch
from tests.cuda import harness as cuda_harness

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
needs_harness = pytest.mark.skipif(cuda_harness.why_not() is not None, reason=str(cuda_harness.why_not()))


@functools.cache
def library() -> cuda_harness.Harness:
    with cuda_harness.alone("harness"):
        built = cuda_harness.build(cuda_harness.sources())
    return cuda_harness.Harness(built)


class on_cpu:
    """Runs a block's kernels under the harness in one thread order; fails on anything the checks report."""

    def __init__(self, order: int) -> None:
        self.harness = library()
        self.harness.order = order

    def __enter__(self) -> cuda_harness.Harness:
        self.harness.reports, self.harness.calls = [], []
        self.context = launch.using(self.harness)
        self.context.__enter__()
        return self.harness

    def __exit__(self, *error: object) -> None:
        self.context.__exit__(None, None, None)
        if error[0] is None:
            assert not self.harness.reports, "\n".join(self.harness.reports)
