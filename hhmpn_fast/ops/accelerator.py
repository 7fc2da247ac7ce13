"""Plain PyTorch has two forms: on the processor it saves work, elsewhere launches, and never waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor


def saves_launches(device: torch.device) -> bool:
    """Whether ops on a device take the form of few launches."""
    return device.type != "cpu"


class Dropped(torch.autograd.Function):
    """`values` where kept, times 1 / (1 - p), and 0 elsewhere: one launch in each pass."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor, kept: Tensor, p: float) -> Tensor:
        """values and kept of one shape, any dtype and bool; 0 <= p < 1."""
        ctx.save_for_backward(kept)
        ctx.p = p
        return torch.ops.aten.native_dropout_backward(values, kept, 1.0 / (1.0 - p))

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, upstream: Tensor) -> tuple[Tensor, None, None]:
        """The upstream gradient where kept, times 1 / (1 - p)."""
        return Dropped.apply(upstream, *ctx.saved_tensors, ctx.p), None, None
