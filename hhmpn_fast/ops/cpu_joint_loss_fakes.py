"""Fake kernels of the joint loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hhmpn_fast.ops.cpu_library import accumulate_dtype

_fake = torch.library.register_fake


@_fake("hhmpn_fast::joint_loss")
def _joint_loss(
    xs: Sequence[Tensor],
    offsets: Tensor,
    present: Tensor,
    targets: Tensor,
    label_weights: Tensor | None,
    embed: Sequence[Tensor],
    f2f: Sequence[Tensor],
    f2l: Sequence[Tensor],
    l2l: Sequence[Tensor],
    readout: Sequence[Tensor],
    mask: Tensor | None,
    rng: Tensor | None,
    sites: Sequence[int],
    steps: int,
    intermediate_weight: float,
    dropout: float,
    budget: int,
) -> tuple[Tensor, Tensor]:
    x = xs[0]
    wide = accumulate_dtype(x.dtype)
    return x.new_empty((), dtype=wide), x.new_empty(steps, *targets.shape)


@_fake("hhmpn_fast::joint_loss_save")
def _joint_loss_save(*args: object) -> list[Tensor]:
    embed, f2f, f2l, l2l, readout = args[5:10]
    return [*_joint_loss(*args), *(t.new_empty(t.shape) for t in (*embed, *f2f, *f2l, *l2l, *readout))]


@_fake("hhmpn_fast::joint_loss_backward")
def _joint_loss_backward(upstream: Tensor, gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in gradients]
