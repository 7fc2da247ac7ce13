"""Registers, local memory and instructions of the built CUDA library, held to their budget."""

import cuda_budget
import pytest

reason = "no libhhmpn_cuda.so: the package was installed without nvcc" if not cuda_budget.LIBRARY.exists() else None
reason = reason or ("no cuobjdump (it comes with Triton)" if cuda_budget.cuobjdump() is None else None)


@pytest.mark.skipif(reason is not None, reason=str(reason))
def test_budget() -> None:
    kernels = cuda_budget.facts()
    assert {k.arch for k in kernels} == {"sm_80", "sm_90"}
    assert not [b for k in kernels for b in cuda_budget.broken(k)]
