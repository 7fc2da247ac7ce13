"""Inference on packed weights: the whole forward pass of the `cpu` backend as one op, and what it needs beforehand.

embed, then F2F layer after layer, then the label tower: the sums of those ops, bit for bit. One sample is run by all
threads together: each owns columns of every product, so that a weight passes one thread's cache once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hhmpn_fast.ops.cpu_library import accumulate_dtype
from hhmpn_fast.ops.cpu_tower import readout_weights
from hhmpn_fast.weights import BlockWeights, ModelWeights


class Packed(NamedTuple):
    """Weights in the layout of the kernels' products, for this process only: it depends on the instruction set.

    embed: a matrix and then a bias a modality.  f2f: A, W^v, C, b1, W^b, b2 a layer.  f2l, l2l: [A,] W^v, W^r, b1, W^b,
    b2, or nothing.  readout: label embedding, W^o[, W^l].
    """

    embed: list[Tensor]
    f2f: list[Tensor]
    f2l: list[Tensor]
    l2l: list[Tensor]
    readout: list[Tensor]


def digest(tensors: Sequence[Tensor]) -> int:
    """64 bits of what the tensors hold; see csrc/cpu/digest.cpp."""
    return torch.ops.hhmpn_fast.digest(list(tensors))


def pack(w: ModelWeights, dtype: torch.dtype) -> Packed:
    """Copies of a model's weights for rows of `dtype`."""

    def bias(t: Tensor) -> Tensor:
        return t.detach().to(dtype).to(accumulate_dtype(dtype), copy=True).contiguous()

    def matrices(t: Tensor, transposed: bool = True) -> Tensor:
        return torch.ops.hhmpn_fast.pack(t.detach().to(dtype), transposed)

    def block(w: BlockWeights) -> list[Tensor]:
        query = [] if w.query is None else [matrices(w.query, False)]
        return [*query, matrices(w.value), matrices(w.hidden), bias(w.b1), matrices(w.output), bias(w.b2)]

    weights = [matrices(t) for t in w.embed]
    biases = [bias(t.new_zeros(t.shape[0]) if b is None else b) for t, b in zip(w.embed, w.embed_bias)]
    return Packed(
        weights + biases,
        [t for layer in w.f2f for t in block(layer)],
        block(w.f2l),
        [] if w.l2l is None else block(w.l2l),
        [t.detach().to(dtype, copy=True) for t in readout_weights(w.label_embedding, w.wl, w.wo)],
    )


def infer(
    xs: Sequence[Tensor], offsets: Tensor, present: Tensor, packed: Packed, mask: Tensor | None, steps: int
) -> Tensor:
    """Logits (T, B, L) from features xs[m] (N_m, e_m); offsets, present and mask as `tower` takes them."""
    return torch.ops.hhmpn_fast.infer(list(xs), offsets, present, *packed, mask, steps)
