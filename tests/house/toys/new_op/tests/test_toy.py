"""toy on every backend: values and gradients against plain PyTorch in float64, what PyTorch asks of a registered op."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

from hhmpn_fast.backends import AUTO_ORDER, Call, use_backend, why_not
from hhmpn_fast.ops.toy import TOY, toy
from tests.cuda import harness as cuda_harness
from tests.cuda.cases import watched
from tests.ops import registration


def inputs(rows: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    # Small integers: every product and every sum is exact.
    return [torch.randint(-8, 9, s, generator=generator).to(dtype).requires_grad_() for s in ((rows, 64), (64,))]


@contextlib.contextmanager
def on(backend: str) -> Iterator[None]:
    """Runs the block on a backend, CUDA's kernels under the host harness."""
    with contextlib.ExitStack() as stack:
        if backend == "cuda" and cuda_harness.why_not() is None:
            harness = cuda_harness.Harness(cuda_harness.build(sorted((cuda_harness.SOURCES / "toy").glob("*.cu"))))
            stack.enter_context(watched(harness))
        if why := why_not(backend, "toy", Call("cpu", torch.float32, 64)):
            pytest.skip(why)
        stack.enter_context(use_backend(backend))
        yield


@pytest.mark.parametrize("rows", [0, 1, 70])
@pytest.mark.parametrize("backend", AUTO_ORDER)
def test_equals_plain(backend: str, rows: int) -> None:
    x, w = inputs(rows)
    with on(backend):
        y = toy(x, w)
        d_x, d_w = torch.autograd.grad(y.sum(), (x, w))
    assert torch.equal(y, x * w)
    assert torch.equal(d_x, w.expand_as(x)) and torch.equal(d_w, x.sum(0))


@pytest.mark.parametrize("backend", [name for name in AUTO_ORDER if name != "torch"])
def test_opcheck(backend: str) -> None:
    x, w = inputs(3)
    with on(backend):
        registration.check(TOY, backend, x=x, w=w)
