"""Fake kernels of the label tower: shapes and dtypes for torch.compile, opcheck and FakeTensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hhmpn_fast.ops.cpu_library import accumulate_dtype

_fake = torch.library.register_fake


@_fake("hhmpn_fast::tower")
def _tower(
    z: Tensor,
    offsets: Tensor,
    present: Tensor,
    f2l: Sequence[Tensor],
    l2l: Sequence[Tensor],
    readout: Sequence[Tensor],
    mask: Tensor | None,
    rng: Tensor | None,
    steps: int,
    dropout: float,
) -> Tensor:
    return z.new_empty(steps, present.shape[1], readout[0].shape[0])


@_fake("hhmpn_fast::tower_save")
def _tower_save(
    z: Tensor,
    offsets: Tensor,
    present: Tensor,
    f2l: Sequence[Tensor],
    l2l: Sequence[Tensor],
    readout: Sequence[Tensor],
    mask: Tensor | None,
    rng: Tensor | None,
    steps: int,
    dropout: float,
) -> list[Tensor]:
    (modalities, batch), (labels, d), wide = present.shape, readout[0].shape, accumulate_dtype(z.dtype)
    rows = modalities * batch * labels
    kinds = 7 if l2l else 3  # `TowerKind` of csrc/cpu/tower.h
    queries = labels + (steps - 1) * batch * labels if len(f2l) == 6 else 0
    return [
        z.new_empty(steps, batch, labels),
        z.new_empty(steps, kinds, rows, d),
        z.new_empty(steps, batch * labels, d),
        z.new_empty(queries, d),
        z.new_empty(steps, z.shape[0] * labels, dtype=wide),
        z.new_empty(steps, rows if l2l else 0, labels, dtype=wide),
        z.new_empty(steps, rows, dtype=wide),
    ]


@_fake("hhmpn_fast::tower_backward")
def _tower_backward(
    grad: Tensor,
    saved: Sequence[Tensor],
    z: Tensor,
    offsets: Tensor,
    present: Tensor,
    f2l: Sequence[Tensor],
    l2l: Sequence[Tensor],
    readout: Sequence[Tensor],
    mask: Tensor | None,
    rng: Tensor | None,
    steps: int,
    dropout: float,
    need_z: bool,
) -> list[Tensor]:
    (labels, d), new = readout[0].shape, readout[0].new_empty
    wl = new(readout[2].shape if len(readout) == 3 else 0)
    dz = z.new_empty(z.shape if need_z else 0)
    return [dz, new(labels, d), new(labels, d), wl, *(new(t.shape) for t in (*f2l, *l2l))]
