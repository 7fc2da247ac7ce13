"""Random ragged cases and the rule they are held to: error against float64 within a factor of eager PyTorch's own."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, Phase, settings
from torch import Tensor

from hhmpn_fast.weights import BlockWeights

# Interpreted kernels are slow: a failing case is reported as drawn, not shrunk.
sweep = settings(
    max_examples=int(os.environ.get("HHMPN_TRITON_EXAMPLES", "6")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
DTYPES = tuple(ROUNDING)


def offsets_of(lengths: list[int]) -> Tensor:
    """int32 offsets of segments."""
    return torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32)


def leaves(*tensors: Tensor) -> list[Tensor]:
    """Copies that gradients flow to."""
    return [t.detach().clone().requires_grad_() for t in tensors]


def pull(outputs: list[Tensor], inputs: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Gradients of sum(outputs * weights), zeros where there is no path."""
    total = sum((o * w.to(o.dtype)).sum() for o, w in zip(outputs, weights))
    if not total.requires_grad:  # no rows: plain PyTorch gives constants
        return [torch.zeros_like(i) for i in inputs]
    grads = torch.autograd.grad(total, inputs, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, grads)]


def clear_rows(op: str, state: Tensor, context: Tensor, w: BlockWeights, margin: float) -> Tensor:
    """1 for output rows whose hidden units are all farther than `margin` from 0, else 0: (..., rows, 1).

    Nearer to 0 a rounding decides whether the ReLU's gate is open, and with it a gradient of full size.
    """
    if op == "update_labels":
        hidden = (state + context @ w.value.T) @ w.hidden.T + w.b1
    else:
        hidden = (context @ w.hidden.mT).sum(0) + w.b1
    return (hidden.abs() > margin).all(-1, keepdim=True)


def assert_close(name: str, found: Tensor, exact: Tensor, eager: Tensor | list[Tensor], factor: float) -> None:
    """max |found - exact| <= factor * max |eager - exact| + a few roundings of the largest value.

    `eager` may be one result in several orders of summation: where a tensor hangs on a single rounding, one alone can
    be right by luck.
    """
    runs = eager if isinstance(eager, list) else [eager]
    dtype = runs[0].dtype
    assert found.dtype == dtype and found.shape == exact.shape, name
    found, exact = found.detach().double(), exact.detach().double()
    assert torch.equal(torch.isinf(found), torch.isinf(exact)), name
    finite = torch.isfinite(exact)
    assert torch.isfinite(found[finite]).all(), name
    if not finite.any():
        return
    error = float((found - exact)[finite].abs().max())
    own = max(float((run.detach().double() - exact)[finite].nan_to_num().abs().max()) for run in runs)
    floor = ROUNDING[dtype] * max(float(exact[finite].abs().max()), 1e-3)
    assert error <= factor * own + floor, f"{name}: error {error:.2e}, eager {own:.2e}, floor {floor:.2e}"
