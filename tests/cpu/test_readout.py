"""readout and joint_bce of the cpu backend against plain PyTorch in float64, and their registration."""

from __future__ import annotations

import pytest
import torch

from hhmpn_fast.backends.cpu.library import load_error
from hhmpn_fast.ops.readout import JOINT_BCE, READOUT
from tests.ops.bounds import bounds, check_all
from tests.ops.registration import check
from tests.ops.under import cpu, plain

pytestmark = pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
SHAPES = [(1, 1, 1, 1), (3, 9, 6, 33), (4, 17, 12, 64), (2, 8, 5, 16), (2, 0, 3, 8)]


def case(shape: tuple[int, ...], scorer: bool, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple:
    g = torch.Generator().manual_seed(sum(shape) + seed)
    m, b, labels, d = shape
    u, wl, wo = (torch.randn(*s, generator=g, dtype=torch.float64).to(dtype) for s in (shape, (d,), (labels, d)))
    present = torch.rand(m, b, generator=g) < 0.7
    present[torch.arange(b) % m, torch.arange(b)] = True
    return u.requires_grad_(), present, wl.requires_grad_() if scorer else None, wo.requires_grad_()


@pytest.mark.parametrize("scorer", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_readout_in_float64(shape: tuple[int, ...], scorer: bool) -> None:
    arguments = case(shape, scorer)
    leaves = [t for t in arguments if t is not None and t.requires_grad]
    expected, found = plain.readout(*arguments), cpu.readout(*arguments)
    g = torch.Generator().manual_seed(1)
    ups = [torch.randn(e.shape, generator=g, dtype=torch.float64) for e in expected]
    for e, f in zip(expected, found):
        torch.testing.assert_close(f, e, rtol=1e-11, atol=1e-11)
    used = 3 if scorer else 2
    one = torch.autograd.grad(expected[:used], leaves, ups[:used])
    two = torch.autograd.grad(found[:used], leaves, ups[:used])
    for e, f in zip(one, two):
        torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-10)


def test_readout_absent_states_are_never_read() -> None:
    u, present, wl, wo = case((3, 9, 6, 33), True, torch.float32)
    with torch.no_grad():
        clean = cpu.readout(u, present, wl, wo)
        u[~present] = float("nan")
        for a, b in zip(clean, cpu.readout(u, present, wl, wo)):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_readout_errors_are_roundings(dtype: torch.dtype) -> None:
    check_roundings(dtype, 3)


def check_roundings(dtype: torch.dtype, seed: int) -> None:
    u, present, wl, wo = case((3, 30, 6, 128), True, dtype, seed)
    g = torch.Generator().manual_seed(seed)
    grads = [torch.randn(*shape, generator=g).to(dtype) for shape in ((30, 6, 128), (30, 6), (3, 30, 6))]

    def run(op, wide: torch.dtype) -> list[torch.Tensor]:
        leaves = [t.detach().to(wide, copy=True).requires_grad_() for t in (u, wl, wo)]
        outs = op(leaves[0], present, *leaves[1:])
        return [*outs, *torch.autograd.grad(outs, leaves, [g.to(wide) for g in grads])]

    allowed = bounds(lambda: run(plain.readout, torch.float64), dtype)
    check_all(["fused", "logits", "alpha", "u", "wl", "wo"], run(cpu.readout, dtype), allowed)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 6), (4, 0, 2)])
def test_joint_bce_in_float64(shape: tuple[int, ...], weights: bool) -> None:
    g = torch.Generator().manual_seed(3)
    logits = (20 * torch.randn(shape, generator=g, dtype=torch.float64)).requires_grad_()
    targets = torch.rand(shape[1:], generator=g, dtype=torch.float64)
    scale = torch.rand(shape[2], generator=g, dtype=torch.float64) * 4 if weights else None
    e, f = (fn(logits, targets, 0.3, scale) for fn in (plain.joint_bce, cpu.joint_bce))
    torch.testing.assert_close(f, e, rtol=1e-12, atol=1e-12)
    one, two = (torch.autograd.grad(x, logits)[0] for x in (e, f))
    torch.testing.assert_close(two, one, rtol=1e-11, atol=1e-14)


def test_registration() -> None:
    arguments = case((2, 3, 2, 3), True)
    check(READOUT, **dict(zip(READOUT.inputs, arguments)))
    torch.autograd.gradcheck(cpu.readout, arguments)
    logits, targets = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True), torch.rand(3, 2).double()
    check(JOINT_BCE, logits=logits, targets=targets, intermediate_weight=0.5, label_weights=None)
    torch.autograd.gradcheck(lambda x: cpu.joint_bce(x, targets, 0.5), logits)
    (first,) = torch.autograd.grad(cpu.joint_bce(logits, targets, 0.5), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        first.sum().backward()
