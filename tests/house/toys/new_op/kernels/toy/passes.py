"""toy, both passes: y_r = x_r * w, d_x_r = d_y_r * w, d_w = sum_r d_y_r * x_r.

x, y (rows, d), w (d,); their gradients likewise. A program a row forward; one backward, which sums d_w row after row.
"""

# Triton gives annotations of kernel arguments a meaning of its own.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def toy_forward(x, w, y, dim, form: tl.constexpr):
    """Grid: (rows,)."""
    D: tl.constexpr = form.D
    c = tl.arange(0, D)
    at = tl.program_id(0).to(tl.int64) * dim + c
    v = tl.load(x + at, mask=c < dim, other=0.0).to(tl.float32)
    v *= tl.load(w + c, mask=c < dim, other=0.0).to(tl.float32)
    tl.store(y + at, v.to(y.dtype.element_ty), mask=c < dim)


@triton.jit(do_not_specialize=["rows"])
def toy_backward(x, w, d_y, d_x, d_w, rows, dim, form: tl.constexpr):
    """Grid: (1,)."""
    D: tl.constexpr = form.D
    c = tl.arange(0, D)
    scale = tl.load(w + c, mask=c < dim, other=0.0).to(tl.float32)
    total = tl.zeros([D], tl.float32)
    for r in range(0, rows):
        at = r * dim + c
        d = tl.load(d_y + at, mask=c < dim, other=0.0).to(tl.float32)
        total += d * tl.load(x + at, mask=c < dim, other=0.0).to(tl.float32)
        tl.store(d_x + at, (d * scale).to(d_x.dtype.element_ty), mask=c < dim)
    tl.store(d_w + c, total.to(d_w.dtype.element_ty), mask=c < dim)
