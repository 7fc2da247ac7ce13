"""Fake kernels of the C++ ops: shapes and dtypes for torch.compile, opcheck and FakeTensor; no data is read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hhmpn_fast.ops.cpu_library import accumulate_dtype

_fake = torch.library.register_fake


@_fake("hhmpn_fast::embed")
def _embed(xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    return xs[0].new_empty(sum(x.shape[0] for x in xs), weights[0].shape[0])


@_fake("hhmpn_fast::embed_backward")
def _embed_backward(
    grad: Tensor, xs: Sequence[Tensor], weights: Sequence[Tensor], need_dx: Sequence[int]
) -> list[Tensor]:
    out = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights]
    out += [w.new_empty(grad.shape[1]) for w in weights]
    return out + [grad.new_empty(xs[m].shape) for m in need_dx]


@_fake("hhmpn_fast::absorb")
def _absorb(left: Tensor, right: Tensor, scale: float, half: bool = False) -> Tensor:
    return left.new_empty(*left.shape[:-1], right.shape[-1])


@_fake("hhmpn_fast::absorb_backward")
def _absorb_backward(
    grad: Tensor, left: Tensor, right: Tensor, scale: float, half: bool = False
) -> tuple[Tensor, Tensor]:
    return _like(left), _like(right)


def _like(t: Tensor) -> Tensor:
    """What `like` of csrc/cpu/absorb.cpp gives: t's own order of memory where that is one of two simple ones."""
    if not t.is_contiguous():
        for i, j in ((-1, -2), (0, 1))[: 1 + (t.dim() == 3)]:
            if t.transpose(i, j).is_contiguous():
                return t.new_empty(t.transpose(i, j).shape).transpose(i, j)
    return t.new_empty(t.shape)


@_fake("hhmpn_fast::pack")
def _pack(weights: Tensor, transposed: bool) -> Tensor:
    size = torch.ops.hhmpn_fast.pack_bytes(*weights.shape[-2:], transposed, weights.dtype)
    return weights.new_empty(math.prod(weights.shape[:-2]), size, dtype=torch.uint8)


@_fake("hhmpn_fast::infer")
def _infer(
    xs: Sequence[Tensor],
    offsets: Tensor,
    present: Tensor,
    embed: Sequence[Tensor],
    f2f: Sequence[Tensor],
    f2l: Sequence[Tensor],
    l2l: Sequence[Tensor],
    readout: Sequence[Tensor],
    mask: Tensor | None,
    steps: int,
) -> Tensor:
    return readout[0].new_empty(steps, present.shape[1], readout[0].shape[0])


@_fake("hhmpn_fast::attention")
def _attention(
    q: Tensor,
    x: Tensor,
    q_offsets: Tensor,
    x_offsets: Tensor,
    groups: int,
    mask: Tensor | None,
    dropout: float,
    rng: Tensor | None,
    site: int,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(groups, *q.shape), q.new_empty(groups, q.shape[0], dtype=accumulate_dtype(q.dtype))


@_fake("hhmpn_fast::attention_backward")
def _attention_backward(
    d_context: Tensor, d_lse: Tensor | None, q: Tensor, x: Tensor, *rest: object
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), x.new_empty(x.shape)


@_fake("hhmpn_fast::update")
def _update(state: Tensor, context: Tensor, wv: Tensor, wr: Tensor, *rest: object) -> Tensor:
    return state.new_empty(state.shape if wr.dim() == 3 else context.shape)


@_fake("hhmpn_fast::update_forward")
def _update_forward(
    state: Tensor,
    context: Tensor,
    wv: Tensor,
    wr: Tensor,
    b1: Tensor,
    wb: Tensor,
    b2: Tensor,
    dropout: float,
    rng: Tensor | None,
    site: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    out = _update(state, context, wv, wr)
    rows = math.prod(out.shape[:-1]) if save else 0
    return out, out.new_empty(rows, out.shape[-1]), out.new_empty(rows, b1.shape[0])


@_fake("hhmpn_fast::update_backward")
def _update_backward(d_out: Tensor, *inputs: object) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in inputs[:7]]


@_fake("hhmpn_fast::f2f")
def _f2f(v: Tensor, *rest: object) -> Tensor:
    return v.new_empty(v.shape)


@_fake("hhmpn_fast::f2f_forward")
def _f2f_forward(v: Tensor, offsets: Tensor, a: Tensor, c: Tensor, *rest: object) -> list[Tensor]:
    rows = v.shape[0] if rest[-1] else 0
    saved = [v.new_empty(rows, v.shape[1]) for _ in range(4)]
    return [v.new_empty(v.shape), *saved, v.new_empty(rows, c.shape[0], dtype=accumulate_dtype(v.dtype))]


@_fake("hhmpn_fast::f2f_backward")
def _f2f_backward(dz: Tensor, v: Tensor, offsets: Tensor, *rest: object) -> list[Tensor]:
    return [v.new_empty(v.shape)] + [t.new_empty(t.shape) for t in rest[:6]]
