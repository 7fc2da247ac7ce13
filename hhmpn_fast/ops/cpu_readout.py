"""Eqs 15-20 of the `cpu` backend: the readout and the joint loss, gradients in C++."""

from __future__ import annotations

import torch
from torch import Tensor


def readout(
    u: Tensor, present: Tensor, wl: Tensor | None, wo: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused states (B, L, d), logits (B, L), modality weights (M, B, L) of u (M, B, L, d)."""
    fused, logits, alpha = torch.ops.hhmpn_fast.readout(u, present, wl, wo)
    return fused, (logits if bias is None else logits + bias), alpha


def joint_bce(
    logits: Tensor, targets: Tensor, intermediate_weight: float, label_weights: Tensor | None = None
) -> Tensor:
    """Eqs 18-20 for logits (T, B, L) and targets (B, L); the value is float32 for bfloat16 logits."""
    return torch.ops.hhmpn_fast.joint_bce(logits, targets, float(intermediate_weight), label_weights)
