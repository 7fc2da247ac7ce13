"""What the tests of the CUDA kernels share: the harness of all sources, and the bound that a result must keep."""

from __future__ import annotations

import functools

import cuda_harness
import pytest
import torch

from hhmpn_fast.backends.cuda import launch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
needs_harness = pytest.mark.skipif(cuda_harness.why_not() is not None, reason=str(cuda_harness.why_not()))


@functools.cache
def library() -> cuda_harness.Harness:
    return cuda_harness.Harness(cuda_harness.build(cuda_harness.sources()))


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


def assert_close(name: str, found: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, factor: float = 3.0) -> None:
    """The error against float64 is at most `factor` times plain PyTorch's in the same dtype, plus a few roundings."""
    assert found.shape == exact.shape, name
    if exact.numel() == 0:
        return
    assert torch.isfinite(exact).all() and torch.isfinite(found).all(), f"{name}: not finite"
    eps = torch.finfo(found.dtype).eps
    error, allowed = (found.double() - exact).abs(), (eager.double() - exact).abs()
    floor = 4 * eps * float(exact.abs().max())
    assert float(error.max()) <= factor * float(allowed.max()) + floor, (
        f"{name}: {error.max()} > {factor} * {allowed.max()}"
    )
    rms, rms_allowed = error.pow(2).mean().sqrt(), allowed.pow(2).mean().sqrt()
    assert float(rms) <= factor * float(rms_allowed) + floor, f"{name}: rms {rms} > {factor} * {rms_allowed}"
