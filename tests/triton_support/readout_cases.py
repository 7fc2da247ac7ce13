"""readout and the joint loss in the guarded interpreter. Run by test_triton_interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hhmpn_fast import ops
from hhmpn_fast.backends.plain import BACKEND as plain
from hhmpn_fast.kernels import BACKEND as kernels
from triton_support import guard
from triton_support.compare import DTYPES, assert_close, leaves, pull, sweep

guard.install()


def hold(modalities: int, batch: int, labels: int, dim: int, dtype: torch.dtype) -> None:
    """Outputs and gradients against float64 beside eager PyTorch's own error, its columns in four orders.

    Some modalities are absent.
    """
    u, wl, wo = torch.randn(modalities, batch, labels, dim), torch.randn(dim), torch.randn(labels, dim)
    present = torch.rand(modalities, batch) < 0.6
    present[0] |= ~present.any(0)
    orders, runs = [torch.arange(dim), *(torch.randperm(dim) for _ in range(3))], []
    eager = [(dtype, plain, order) for order in orders]
    for kind, module, order in ((dtype, kernels, orders[0]), (torch.float64, plain, orders[0]), *eager):
        inputs = leaves(*(t[..., order].to(dtype).to(kind) for t in (u, wl, wo)))
        outputs = module.readout(inputs[0], present, *inputs[1:])
        if not runs:
            weights = [torch.randn(o.shape) for o in outputs]
        fused, logits, alpha = outputs
        grads = pull(list(outputs), inputs, [weights[0][..., order], *weights[1:]])
        back = order.argsort()
        runs.append([fused[..., back], logits, alpha, *(g[..., back] for g in grads)])
    for name, found, exact, *eager in zip(("fused", "logits", "alpha", "d_u", "d_wl", "d_wo"), *runs):
        assert_close(name, found, exact, eager, 3 if name.startswith("d_") else 2)


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
    right = ops.joint_bce(exact, targets.double(), 0.3, None if weights is None else weights.double())
    # A term is a difference of logit-sized numbers, so their rounding stays where the loss is small.
    rounding = 2**-23 * float((logits.abs() * (1 if weights is None else weights)).max())
    assert float((loss - right).detach().abs()) <= 2e-6 * float(right.detach()) + rounding
    one, other = torch.autograd.grad(2 * loss, found)[0], torch.autograd.grad(2 * right, exact)[0]
    assert float((one - other).abs().max()) <= 2e-6 * float(other.abs().max())


def test_joint_loss_refuses_a_second_derivative_and_carries_nan() -> None:
    (logits,) = leaves(torch.randn(2, 3, 4))
    with pytest.raises(RuntimeError, match="no second derivative"):
        (grad,) = torch.autograd.grad(kernels.joint_bce(logits, torch.ones(3, 4), 0.2), logits, create_graph=True)
        torch.autograd.grad(grad.sum(), logits)
    broken = torch.full((1, 3, 4), float("nan"))
    assert kernels.joint_bce(broken, torch.ones(3, 4), 0.2).isnan()
