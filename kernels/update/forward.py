"""update, forward: the tail of MP and the whole of UPD as one residual block; rows stay on the chip between products.

    labels     g = u + s W^v^T                      out = g + D(relu(g W^r^T + b1) W^b^T + b2)
    features   r = v + (sum_m s^m) W^v^T            out = r + D(relu(sum_m s^m C_m^T + b1) W^b^T + b2)

    name   shape                             name       shape       meaning
    u      (rows_u, d), rows_u divides R     w.value    (d, d)      W^v, (out, in) as all weights
    v      (N, d)                            w.hidden   (d, d)      W^r; C (M, d, d) for features
    s      (R, d) labels, (M, N, d) features w.output   (d, d)      W^b; w.b1, w.b2 (d,)
    g, h   (R, d), kept for backward         out        (R, d)      D: dropout at (row, column)

All are of one dtype, or weights are fp32 beside shorter rows, whose dtype they are rounded to as they are loaded.

A program owns BM rows. The hidden layer is made in chunks of BH units, each spent at once on the output product, so
that the only full-width rows held are the accumulator's (and g's).
"""

# Triton gives annotations of kernel arguments a meaning of its own.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from hhmpn_fast.kernels.records import Rows, Tile
from hhmpn_fast.kernels.tiles import dropped, load_bias, load_block, load_weights, store_rows, tile_of, wide


@triton.jit
def hidden_chunk(acc, products, w, h, r, units, dim, like, form: tl.constexpr):
    """acc + relu(products + b1) W^b^T of some hidden units, `products` [BM, BH]; keeps them in h."""
    D: tl.constexpr = form.D
    PRECISION: tl.constexpr = form.PRECISION
    hidden = products + load_bias(w.b1, units.rows, units.live, like)[None, :]
    # Not maximum(): a NaN must stay one.
    hidden = tl.where(hidden < 0.0, 0.0, hidden).to(like.dtype.element_ty)
    if form.SAVE:
        store_rows(Rows(h, dim), r, units.rows, dim, hidden, False)
    w_tile = load_weights(w.output, tile_of(0, dim, D), units.rows, dim, like)  # [D, BH]
    return tl.dot(hidden, tl.trans(w_tile), acc, input_precision=PRECISION)


@triton.jit
def output_rows(acc, w, drop, r, c, dim, like, form: tl.constexpr):
    """D(acc + b2)."""
    D: tl.constexpr = form.D
    BM: tl.constexpr = form.BM
    acc += load_bias(w.b2, c, c < dim, like)[None, :]
    if form.DROPOUT:
        acc = dropped(acc, drop, r.rows, 0, BM, D)
    return acc


@triton.jit(do_not_specialize=["rows", "rows_u"])
def update_labels_forward(u, s, w, drop, kept, out, rows, rows_u, dim, form: tl.constexpr):
    """Grid: (cdiv(R, BM),)."""
    D: tl.constexpr = form.D
    EVEN: tl.constexpr = form.EVEN
    BM: tl.constexpr = form.BM
    BH: tl.constexpr = form.BH
    BK: tl.constexpr = form.BK
    PRECISION: tl.constexpr = form.PRECISION
    r = tile_of(tl.program_id(0) * BM, rows, BM)
    c = tl.arange(0, D)
    state = tl.zeros([BM, D], tl.float32)
    for k in range(0, dim, BK):
        ck = k + tl.arange(0, BK)
        s_tile = load_block(s, r, ck, dim)  # [BM, BK]
        w_tile = load_weights(w.value, tile_of(0, dim, D), ck, dim, out)  # [D, BK]
        state = tl.dot(s_tile, tl.trans(w_tile), state, input_precision=PRECISION)
    state += load_block(u, Tile(r.rows % rows_u, r.live), c, dim).to(tl.float32)
    narrow = state.to(out.dtype.element_ty)
    if form.SAVE:
        store_rows(Rows(kept.g, dim), r, c, dim, narrow, EVEN)
    acc = tl.zeros([BM, D], tl.float32)
    for n in range(0, dim, BH):
        units = tile_of(n, dim, BH)
        w_tile = load_weights(w.hidden, units, c, dim, out)  # [BH, D]
        products = tl.dot(narrow, tl.trans(w_tile), input_precision=PRECISION)  # [BM, BH]
        acc = hidden_chunk(acc, products, w, kept.h, r, units, dim, out, form)
    acc = output_rows(acc, w, drop, r, c, dim, out, form)
    store_rows(Rows(out, dim), r, c, dim, acc + state, EVEN)


@triton.jit(do_not_specialize=["rows", "sources"])
def update_features_forward(v, s, w, drop, kept, out, rows, sources, dim, form: tl.constexpr):
    """Grid: (cdiv(N, BM),)."""
    D: tl.constexpr = form.D
    EVEN: tl.constexpr = form.EVEN
    BM: tl.constexpr = form.BM
    BH: tl.constexpr = form.BH
    BK: tl.constexpr = form.BK
    PRECISION: tl.constexpr = form.PRECISION
    r = tile_of(tl.program_id(0) * BM, rows, BM)
    c = tl.arange(0, D)
    step = wide(rows) * dim
    chunks = tl.cdiv(dim, BK)
    acc = tl.zeros([BM, D], tl.float32)
    for n in range(0, dim, BH):
        units = tile_of(n, dim, BH)
        products = tl.zeros([BM, BH], tl.float32)
        # One loop over (m, k), so that the next loads are under way whatever M.
        for t in range(0, sources * chunks):
            m, k = t // chunks, t % chunks * BK
            ck = k + tl.arange(0, BK)
            s_tile = load_block(s + m * step, r, ck, dim)  # [BM, BK]
            w_tile = load_weights(w.hidden + m * dim * dim, units, ck, dim, out)  # [BH, BK]
            products = tl.dot(s_tile, tl.trans(w_tile), products, input_precision=PRECISION)
        acc = hidden_chunk(acc, products, w, kept.h, r, units, dim, out, form)
    acc = output_rows(acc, w, drop, r, c, dim, out, form)
    acc += load_block(v, r, c, dim).to(tl.float32)
    for k in range(0, dim, BK):
        ck = k + tl.arange(0, BK)
        total = tl.zeros([BM, BK], tl.float32)
        for m in range(0, sources):
            total += load_block(s + m * step, r, ck, dim).to(tl.float32)
        w_tile = load_weights(w.value, tile_of(0, dim, D), ck, dim, out)  # [D, BK]
        acc = tl.dot(total.to(out.dtype.element_ty), tl.trans(w_tile), acc, input_precision=PRECISION)
    store_rows(Rows(out, dim), r, c, dim, acc, EVEN)
