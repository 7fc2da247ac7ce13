"""Fake kernels of readout and joint_bce."""

from __future__ import annotations

import torch
from torch import Tensor

from hhmpn_fast.ops.cpu_library import accumulate_dtype

_fake = torch.library.register_fake


@_fake("hhmpn_fast::readout")
def _readout(u: Tensor, present: Tensor, wl: Tensor | None, wo: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return u.new_empty(u.shape[1:]), u.new_empty(u.shape[1:3]), u.new_empty(u.shape[:3])


@_fake("hhmpn_fast::readout_backward")
def _readout_backward(
    d_fused: Tensor | None,
    d_logits: Tensor | None,
    d_alpha: Tensor | None,
    u: Tensor,
    present: Tensor,
    wl: Tensor | None,
    wo: Tensor,
    fused: Tensor,
    alpha: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(0 if wl is None else wl.shape), wo.new_empty(wo.shape)


@_fake("hhmpn_fast::joint_bce")
def _joint_bce(logits: Tensor, targets: Tensor, weight: float, label_weights: Tensor | None) -> Tensor:
    return logits.new_empty((), dtype=accumulate_dtype(logits.dtype))


@_fake("hhmpn_fast::joint_bce_save")
def _joint_bce_save(
    logits: Tensor, targets: Tensor, weight: float, label_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    return logits.new_empty((), dtype=accumulate_dtype(logits.dtype)), logits.new_empty(logits.shape)


@_fake("hhmpn_fast::joint_bce_backward")
def _joint_bce_backward(upstream: Tensor, grad: Tensor, logits: Tensor) -> Tensor:
    return grad.new_empty(grad.shape)
