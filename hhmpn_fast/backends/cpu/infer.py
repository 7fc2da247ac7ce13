"""Inference on packed weights: csrc/cpu/ops/infer, and what it needs beforehand.

embed, then F2F layer after layer, then the label tower: the sums of those ops, bit for bit. One sample is run by all
threads together: each owns columns of every product, so that a weight passes one thread's cache once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from hhmpn_fast.backends.cpu import f2f, tower
from hhmpn_fast.backends.cpu.embed import biases_of
from hhmpn_fast.backends.cpu.library import accumulate_dtype, load_error
from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.infer import INFER
from hhmpn_fast.ops.joint_loss import named
from hhmpn_fast.weights import BlockWeights, ModelWeights


def _shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    u0 = i.label_embedding
    return {"logits": u0.new_empty(i.steps, i.present.shape[1], u0.shape[0])}


INFER.define("cpu", _shapes)


def _packed(weights: Tensor, transposed: bool) -> Tensor:
    size = torch.ops.hhmpn_fast.pack_bytes(*weights.shape[-2:], transposed, weights.dtype)
    return weights.new_empty(math.prod(weights.shape[:-2]), size, dtype=torch.uint8)


if load_error() is None:  # the schema is the extension's
    torch.library.register_fake("hhmpn_fast::pack")(_packed)


def digest(tensors: Sequence[Tensor]) -> int:
    """64 bits of what the tensors hold; see csrc/cpu/host/digest.cpp."""
    return torch.ops.hhmpn_fast.digest(list(tensors))


def pack(w: ModelWeights, dtype: torch.dtype) -> Mapping[str, object]:
    """Copies of a model's weights by the op's names, for rows of `dtype`, matrices as the kernels' products read them.

    For this process only: the layout depends on the instruction set.
    """

    def bias(t: Tensor) -> Tensor:
        return t.detach().to(dtype).to(accumulate_dtype(dtype), copy=True).contiguous()

    def matrices(t: Tensor, transposed: bool = True) -> Tensor:
        return torch.ops.hhmpn_fast.pack(t.detach().to(dtype), transposed)

    def copy(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.detach().to(dtype, copy=True)

    def block(w: BlockWeights) -> BlockWeights:
        packed = {name: matrices(getattr(w, name)) for name in ("value", "hidden", "output")}
        query = None if w.query is None else matrices(w.query, False)
        return BlockWeights(query=query, b1=bias(w.b1), b2=bias(w.b2), **packed)

    packed = ModelWeights(
        embed=[matrices(t) for t in w.embed],
        embed_bias=[bias(t) for t in biases_of(w.embed, w.embed_bias)],
        f2f=[block(layer) for layer in w.f2f],
        f2l=block(w.f2l),
        l2l=None if w.l2l is None else block(w.l2l),
        label_embedding=copy(w.label_embedding),
        wl=copy(w.wl),
        wo=copy(w.wo),
    )
    return named(packed)


def infer(
    xs: Sequence[Tensor],
    offsets: Tensor,
    present: Tensor,
    packed: Mapping[str, object],
    mask: Tensor | None,
    steps: int,
) -> Tensor:
    """Logits (T, B, L) from features xs[m] (N_m, e_m); offsets, present and mask as `tower` takes them."""
    return INFER("cpu", xs=list(xs), offsets=offsets, present=present, mask=mask, steps=steps, **packed)


HOLDS = {"embed": ("embed_bias",), "f2f": f2f.HOLDS, **dict.fromkeys(("f2l", "l2l", "readout"), tower.HOLDS)}
BODIES = {"digest": Body(digest), "infer": Body(infer, HOLDS), "pack": Body(pack)}
