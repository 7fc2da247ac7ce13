"""readout and the joint loss in the guarded interpreter. Run by test_triton_interpreter."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.bounds import bounds, check_all
from tests.ops.under import kernels, plain
from tests.triton.support import guard
from tests.triton.support.compare import DTYPES, leaves, pull, sweep

guard.install()


def hold(modalities: int, batch: int, labels: int, dim: int, dtype: torch.dtype) -> None:
    """Outputs and gradients against float64, within roundings of the dtype; some modalities are absent."""
    u, wl, wo = torch.randn(modalities, batch, labels, dim), torch.randn(dim), torch.randn(labels, dim)
    present = torch.rand(modalities, batch) < 0.6
    present[0] |= ~present.any(0)
    weights = [torch.randn(s).to(dtype) for s in (u.shape[1:], u.shape[1:3], u.shape[:3])]

    def run(module: ModuleType, kind: torch.dtype) -> list[Tensor]:
        inputs = leaves(*(t.to(dtype).to(kind) for t in (u, wl, wo)))
        outputs = list(module.readout(inputs[0], present, *inputs[1:]))
        return [*outputs, *pull(outputs, inputs, weights)]

    found = run(kernels, dtype)
    assert all(t.dtype == dtype for t in found)
    names = ("fused", "logits", "alpha", "d_u", "d_wl", "d_wo")
    check_all(names, found, bounds(lambda: run(plain, torch.float64), dtype))


@sweep
@given(st.data())
def test_readout(data: st.DataObject) -> None:
    modalities, batch, labels = (data.draw(st.integers(1, n)) for n in (5, 6, 4))
    dim, dtype = data.draw(st.sampled_from([3, 16, 24, 130])), data.draw(st.sampled_from(DTYPES))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    hold(modalities, batch, labels, dim, dtype)


def test_what_an_absent_modality_holds_reaches_nothing() -> None:
    u, present = torch.randn(3, 2, 4, 16), torch.tensor([[True, True], [False, True], [True, False]])
    u[~present] = float("nan")
    inputs = leaves(u, torch.randn(16), torch.randn(4, 16))
    outputs = kernels.readout(inputs[0], present, *inputs[1:], bias=torch.ones(4))
    grads = torch.autograd.grad(sum(o.sum() for o in outputs), inputs)
    assert all(torch.isfinite(t).all() for t in (*outputs, *grads))
    assert (grads[0][~present] == 0).all() and (outputs[2][~present] == 0).all()


def test_no_samples() -> None:
    inputs = leaves(torch.zeros(2, 0, 4, 8), torch.randn(8), torch.randn(4, 8))
    outputs = kernels.readout(inputs[0], torch.zeros(2, 0, dtype=torch.bool), *inputs[1:])
    assert outputs[1].shape == (0, 4)
    assert (torch.autograd.grad(outputs[1].sum(), inputs[2])[0] == 0).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 4), (2, 300, 7)])
def test_joint_loss(shape: tuple[int, int, int], weighted: bool) -> None:
    logits, targets = torch.randn(*shape) * 20, torch.rand(*shape[1:])
    weights = torch.rand(shape[2]) + 0.5 if weighted else None
    (found,), (exact,) = leaves(logits), leaves(logits.double())
    loss = kernels.joint_bce(found, targets, 0.3, weights)
    right = plain.joint_bce(exact, targets.double(), 0.3, None if weights is None else weights.double())
    # A term is a difference of logit-sized numbers, so their rounding stays where the loss is small.
    rounding = 2**-23 * float((logits.abs() * (1 if weights is None else weights)).max())
    assert float((loss - right).detach().abs()) <= 2e-6 * float(right.detach()) + rounding
    one, other = torch.autograd.grad(2 * loss, found)[0], torch.autograd.grad(2 * right, exact)[0]
    # sigmoid - target is a difference of numbers up to 1, times 2 / (B L) and the weight.
    rounding = 2**-22 / targets.numel() * (1.0 if weights is None else float(weights.max()))
    assert float((one - other).abs().max()) <= 2e-6 * float(other.abs().max()) + rounding


def test_joint_loss_refuses_a_second_derivative_and_carries_nan() -> None:
    (logits,) = leaves(torch.randn(2, 3, 4))
    (grad,) = torch.autograd.grad(kernels.joint_bce(logits, torch.ones(3, 4), 0.2), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(grad.sum(), logits)
    broken = torch.full((1, 3, 4), float("nan"))
    assert kernels.joint_bce(broken, torch.ones(3, 4), 0.2).isnan()
