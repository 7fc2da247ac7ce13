"""joint_bce: the joint loss and its gradient in one launch of one program.

loss = sum_t c_t mean(BCE(logits_t, targets))     c_T = 1, else lambda
BCE  = (1 - y) x + (1 + (w_l - 1) y) softplus(-x)

name      shape        dtype     name           shape        dtype
logits    (T, B, L)    any       label_weights  (L,)         any, None for ones
targets   (B, L)       any       loss           (1,)         fp32
d_logits  (T, B, L)    fp32      count          B * L
"""

# Triton gives annotations of kernel arguments a meaning of its own.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from hhmpn_fast.kernels.tiles import tile_of, wide


@triton.jit(do_not_specialize=["steps", "count"])
def joint_bce_forward(
    logits,
    targets,
    label_weights,
    loss,
    d_logits,
    steps,
    count,
    labels,
    intermediate,
    form: tl.constexpr,
):
    """Grid: (1,)."""
    B: tl.constexpr = form.B
    total = 0.0
    for first in range(0, count, B):
        i = tile_of(first, count, B)
        y = tl.load(targets + i.rows, mask=i.live, other=0.0).to(tl.float32)
        w = tl.full([B], 1.0, tl.float32)
        if form.WEIGHTED:
            w = tl.load(label_weights + i.rows % labels, mask=i.live, other=1.0).to(tl.float32)
        for t in range(0, steps):
            c = tl.where(t == steps - 1, 1.0, intermediate) / count
            at = wide(t) * count + i.rows
            x = tl.load(logits + at, mask=i.live, other=0.0).to(tl.float32)
            # softplus(-x) without overflow.
            soft = tl.maximum(-x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))
            # maximum() drops a NaN: x * 0 brings it back.
            scale = 1.0 + (w - 1.0) * y
            value = (1.0 - y) * x + scale * soft + x * 0.0
            total += tl.sum(tl.where(i.live, value, 0.0), 0) * c
            sigmoid = 1.0 / (1.0 + tl.exp(-x))
            tl.store(d_logits + at, ((1.0 - y) - scale * (1.0 - sigmoid)) * c, mask=i.live)
    tl.store(loss, total)
