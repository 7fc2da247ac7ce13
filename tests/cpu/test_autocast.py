"""bf16 autocast keeps float32 weights beside bfloat16 rows: the bits of rounded inputs, and gradients unrounded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hhmpn_fast.backends.cpu.library import isa, load_error
from hhmpn_fast.backends.cpu.tower import tower as cpu_tower
from hhmpn_fast.ops.dropout import Dropout
from hhmpn_fast.ops.embed import ABSORB
from hhmpn_fast.weights import BlockWeights
from tests.cpu.cases import LENGTHS, inputs
from tests.cpu.tower_cases import tower_case
from tests.ops.registration import check
from tests.ops.under import cpu

pytestmark = pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
keeps = pytest.mark.skipif(isa() != "avx512_bf16", reason="without the bf16 product every input is rounded first")
OFFSETS = torch.tensor([0, *torch.tensor(LENGTHS).flatten().cumsum(0).tolist()], dtype=torch.int32)


def embed(t: list[Tensor]) -> Tensor:
    return cpu.embed(t[:3], t[3:6], t[6:9])


def f2f(t: list[Tensor]) -> Tensor:
    v, query, value, hidden, b1, output, b2 = t[9:]
    w = BlockWeights(query, value, hidden, b1, output, b2)
    return cpu.f2f(v, OFFSETS, w, Dropout(0.25, torch.tensor([3, 5]), 0), 0)


@keeps
@pytest.mark.parametrize("run", [embed, f2f])
def test_bits_and_gradients_of_rounded_inputs(run: Callable) -> None:
    wide = [t.detach().to(torch.bfloat16).float().requires_grad_() for t in inputs(torch.float32)]
    low = [t.detach().to(torch.bfloat16).requires_grad_() for t in wide]
    with torch.autocast("cpu", torch.bfloat16):
        found = run(wide)
    want = run(low)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, want)
    grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    pairs = zip(
        torch.autograd.grad(found, wide, grad, allow_unused=True),
        torch.autograd.grad(want, low, grad, allow_unused=True),
    )
    kept = 0
    for g, expected in pairs:
        if expected is None:
            continue
        assert g.dtype == torch.float32
        assert torch.equal(g.to(torch.bfloat16), expected)
        kept += not torch.equal(g, expected.float())
    assert kept > 0


@keeps
def test_tower() -> None:
    case = tower_case(16, batch=3, dim=24).to(torch.bfloat16)
    low = [t.requires_grad_() for t in case.leaves()]
    want = cpu_tower(*case.arguments())
    grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    expected = torch.autograd.grad(want, low, grad)
    case = case.to(torch.float32)
    wide = [t.requires_grad_() for t in case.leaves()]
    with torch.autocast("cpu", torch.bfloat16):
        found = cpu_tower(*case.arguments())
    assert torch.equal(found, want)
    for g, e in zip(torch.autograd.grad(found, wide, grad), expected):
        assert g.dtype == torch.float32
        assert torch.equal(g.to(torch.bfloat16), e)


@keeps
@pytest.mark.parametrize("transposed", [False, True])
def test_absorb_keeps_float32_and_the_order_of_memory(transposed: bool) -> None:
    g = torch.Generator().manual_seed(3)
    a, b, grad = (torch.randn(3, 40, 40, generator=g).to(torch.bfloat16).float() for _ in range(3))
    left = a.transpose(-1, -2).contiguous().transpose(-1, -2) if transposed else a.clone()
    left, right = left.requires_grad_(), b.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = cpu.absorb(left, right, 0.25)
    low = [t.to(torch.bfloat16).requires_grad_() for t in (a, b)]
    want = cpu.absorb(*low, 0.25)
    assert found.dtype == torch.float32
    assert torch.equal(found.to(torch.bfloat16), want)
    got = torch.autograd.grad(found, (left, right), grad)
    for mine, other in zip(got, torch.autograd.grad(want, low, grad.to(torch.bfloat16))):
        assert torch.equal(mine.to(torch.bfloat16), other)
    assert got[0].stride() == left.stride()
    with pytest.raises(ValueError, match="half products of Double; expected float32"):
        ABSORB("cpu", left=a.double(), right=b.double(), scale=1.0, half=True)


def test_gradient_of_a_view_fits_its_parameter() -> None:
    g = torch.Generator().manual_seed(4)
    wr, wv = (torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_() for s in ((20, 3 * 20), (20, 20)))
    view = wr.unflatten(-1, (3, -1)).movedim(-2, -3)
    out = cpu.absorb(view, wv.expand(3, 20, 20), 1.0)
    grad = torch.randn(out.shape, generator=g, dtype=torch.float64)
    got, want = torch.autograd.grad(out, (view, wv), grad), torch.autograd.grad(view @ wv, (view, wv), grad)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert got[0].stride() == view.stride()
    left, right = (t.detach().requires_grad_() for t in (view, wv.expand(3, 20, 20)))
    check(ABSORB, left=left, right=right, scale=1.0, half=False)
