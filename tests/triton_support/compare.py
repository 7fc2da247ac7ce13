"""Random ragged cases and the rule they are held to: error against float64 within a factor of eager PyTorch's own."""

from __future__ import annotations

import torch
from torch import Tensor

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
    grads = torch.autograd.grad(total, inputs, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, grads)]


def assert_close(name: str, found: Tensor, exact: Tensor, eager: Tensor, factor: float) -> None:
    """max |found - exact| <= factor * max |eager - exact| + a few roundings of the largest value."""
    assert found.dtype == eager.dtype and found.shape == exact.shape, name
    dtype = eager.dtype
    found, exact, eager = (t.detach().double() for t in (found, exact, eager))
    assert torch.equal(torch.isinf(found), torch.isinf(exact)), name
    finite = torch.isfinite(exact)
    assert torch.isfinite(found[finite]).all(), name
    if not finite.any():
        return
    error = float((found - exact)[finite].abs().max())
    own = float((eager - exact)[finite].nan_to_num().abs().max())
    floor = ROUNDING[dtype] * max(float(exact[finite].abs().max()), 1e-3)
    assert error <= factor * own + floor, f"{name}: error {error:.2e}, eager {own:.2e}, floor {floor:.2e}"
