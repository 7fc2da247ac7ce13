"""Registers, local memory and instructions of the CUDA library, held to their budget."""

import pytest

from tests.cuda import budget as cuda_budget

reason = cuda_budget.why_not()


@pytest.mark.skipif(reason is not None, reason=str(reason))
def test_budget() -> None:
    kernels = cuda_budget.facts(cuda_budget.library())
    assert {k.arch for k in kernels} == {"sm_80", "sm_90"}
    assert not [b for k in kernels for b in cuda_budget.broken(k)]
