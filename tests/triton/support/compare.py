"""What the interpreted cases share: sweeps, ragged tables, and gradients of weighted sums."""

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
