"""nvcc's PTX of every CUDA kernel, run by the PTX interpreter on fixed shapes.

What the host harness cannot see is the compiler and the inline instructions."""

import contextlib
import functools

import pytest
import torch

from hhmpn_fast.ops.dropout import Dropout
from tests.cuda import harness as cuda_harness
from tests.cuda.cases import DTYPES, library, needs_harness, watched
from tests.cuda.ptx import PtxLauncher
from tests.cuda.test_tower import LEAVES, Shape, tower, tower_allowed, tower_case, tower_run
from tests.cuda.test_update import NAMES, allowed, inputs
from tests.cuda.test_update import run as run_update
from tests.ops.bounds import bounds, check_all
from tests.ops.under import cuda, plain

NVCC = cuda_harness.nvcc()
pytestmark = [
    needs_harness,
    pytest.mark.skipif(NVCC is None, reason="no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda"),
]


@functools.cache
def launcher(mode: str) -> PtxLauncher:
    return PtxLauncher(library(), NVCC, mode)


def through_ptx(mode: str) -> contextlib.AbstractContextManager[PtxLauncher]:
    """Runs a block's kernels through the PTX interpreter; fails on a reported race."""
    return watched(launcher(mode))


@pytest.mark.parametrize(("dtype", "mode"), [("fp32", "lockstep"), ("bf16", "warps")])
def test_attention(dtype: str, mode: str) -> None:
    generator = torch.Generator().manual_seed(5)
    offsets = torch.tensor([0, 3, 3, 36, 38], dtype=torch.int32)
    q = (torch.randn(38, 64, generator=generator) / 8).to(DTYPES[dtype])
    x = torch.randn(38, 64, generator=generator).to(DTYPES[dtype])
    dropout = Dropout(0.25, torch.tensor([99, 3]), 256)
    grad = torch.randn(2, 38, 64, generator=generator).to(DTYPES[dtype])

    def run(function, q, x):
        q, x = q.clone().requires_grad_(), x.clone().requires_grad_()
        context, _ = function(q, x, offsets, offsets, 2, dropout=dropout)
        (context * grad.to(context.dtype)).sum().backward()
        return context.detach(), q.grad, x.grad

    with through_ptx(mode):
        found = run(cuda.attention, q, x)
    wide = q.double(), x.double()
    check_all(("context", "dq", "dx"), found, bounds(lambda: run(plain.attention, *wide), q.dtype))


@pytest.mark.parametrize(("dtype", "kind", "mode"), [("fp32", "labels", "warps"), ("bf16", "features", "lockstep")])
def test_update(dtype: str, kind: str, mode: str) -> None:
    ours, theirs = (
        (cuda.update_features, plain.update_features)
        if kind == "features"
        else (cuda.update_labels, plain.update_labels)
    )
    tensors, dropout = inputs(kind, 3, 64, DTYPES[dtype], 1), Dropout(0.25, torch.tensor([99, 3]), 256)
    with through_ptx(mode):
        found = run_update(ours, tensors, dropout)
    check_all(NAMES, found, allowed(theirs, tensors, dropout))


@pytest.mark.parametrize(("dtype", "mode"), [("fp32", "lockstep"), ("bf16", "warps")])
def test_tower(dtype: str, mode: str) -> None:
    case = tower_case(Shape(2, 2, 3, 2, 2, dropout=0.25, masked=True, longest=5), DTYPES[dtype], 1)
    # Where a softmax gives one key all the weight, its gradient cancels: exactly in plain PyTorch, to rounding of dO.O
    # in a kernel that recomputes. So every row may read two keys or more, and small A keep the weights apart from 1.
    case.mask |= torch.eye(3, dtype=torch.bool).roll(1, 0)
    for a in ("f2l_query", "l2l_query"):
        case.leaves[LEAVES.index(a)] /= 8
    with through_ptx(mode):
        found = tower_run(tower, case, case.leaves)
    check_all(case.names, found, tower_allowed(case))
