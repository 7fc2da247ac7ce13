"""update, forward: the tail of MP and the whole of UPD as one residual block; rows stay on the chip between products.

    labels     g = u + s Wv^T                       u' = g + D(relu(g Wr^T + b1) Wb^T + b2)
    features   r = v + (sum_m s^m) Wv^T             z  = r + D(relu(sum_m s^m C_m^T + b1) Wb^T + b2)

    name   shape                             name     shape       meaning
    u      (rows_u, d), rows_u divides R     wv       (d, d)      value projection, (out, in) as all weights
    v      (N, d)                            wr, wb   (d, d)      hidden and output layer; b1, b2 (d,)
    s      (R, d) labels, (M, N, d) features c        (M, d, d)   C_m
    g, h   (R, d), saved for backward        D        dropout at (row, column)

A program owns BM rows. The hidden layer is made in chunks of BH units, each spent at once on the output product, so
that the only full-width rows held are the accumulator's (and g's).
"""

# Triton gives annotations of kernel arguments a meaning of its own.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from hhmpn_fast.kernels.tiles import keep_tile, load_block, store_rows


@triton.jit(do_not_specialize=["rows", "rows_u", "threshold", "site"])
def update_labels_fwd(
    u,
    s,
    wv,
    wr,
    b1,
    wb,
    b2,
    rng,
    g,
    h,
    out,
    rows,
    rows_u,
    dim,
    threshold,
    scale,
    site,
    D: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
    SAVE: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: (cdiv(R, BM),)."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    live = r < rows
    c = tl.arange(0, D)
    there = c < dim
    state = tl.zeros([BM, D], tl.float32)
    for k in range(0, dim, BK):
        ck = k + tl.arange(0, BK)
        s_tile = load_block(s, r, live, dim, ck, dim)  # [BM, BK]
        w_tile = load_block(wv, c, there, dim, ck, dim)  # [D, BK]
        state = tl.dot(s_tile, tl.trans(w_tile), state, input_precision=PRECISION)
    state += load_block(u, r % rows_u, live, dim, c, dim).to(tl.float32)
    narrow = state.to(out.dtype.element_ty)
    if SAVE:
        store_rows(g, r, live, dim, c, dim, narrow, EVEN)
    acc = tl.zeros([BM, D], tl.float32)
    for n in range(0, dim, BH):
        cn = n + tl.arange(0, BH)
        w_tile = load_block(wr, cn, cn < dim, dim, c, dim)  # [BH, D]
        hidden = tl.dot(narrow, tl.trans(w_tile), input_precision=PRECISION)  # [BM, BH]
        hidden += tl.load(b1 + cn, mask=cn < dim, other=0.0).to(tl.float32)[None, :]
        # Not maximum(): a NaN must stay one.
        hidden = tl.where(hidden < 0.0, 0.0, hidden).to(out.dtype.element_ty)
        if SAVE:
            store_rows(h, r, live, dim, cn, dim, hidden, False)
        w_tile = load_block(wb, c, there, dim, cn, dim)  # [D, BH]
        acc = tl.dot(hidden, tl.trans(w_tile), acc, input_precision=PRECISION)
    acc += tl.load(b2 + c, mask=there, other=0.0).to(tl.float32)[None, :]
    if DROPOUT:
        keep = keep_tile(rng, site, threshold, r, 0, BM, D)
        acc = tl.where(keep != 0, acc * scale, 0.0)
    store_rows(out, r, live, dim, c, dim, acc + state, EVEN)


@triton.jit(do_not_specialize=["rows", "sources", "threshold", "site"])
def update_features_fwd(
    v,
    s,
    wv,
    wc,
    b1,
    wb,
    b2,
    rng,
    h,
    out,
    rows,
    sources,
    dim,
    threshold,
    scale,
    site,
    D: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
    SAVE: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: (cdiv(N, BM),)."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    live = r < rows
    c = tl.arange(0, D)
    there = c < dim
    step = tl.to_tensor(rows).to(tl.int64) * dim
    chunks = tl.cdiv(dim, BK)
    acc = tl.zeros([BM, D], tl.float32)
    for n in range(0, dim, BH):
        cn = n + tl.arange(0, BH)
        hidden = tl.zeros([BM, BH], tl.float32)
        # One loop over (m, k), so that the next loads are under way whatever M.
        for t in range(0, sources * chunks):
            m, k = t // chunks, t % chunks * BK
            ck = k + tl.arange(0, BK)
            s_tile = load_block(s + m * step, r, live, dim, ck, dim)  # [BM, BK]
            w_tile = load_block(wc + m * dim * dim, cn, cn < dim, dim, ck, dim)  # [BH, BK]
            hidden = tl.dot(s_tile, tl.trans(w_tile), hidden, input_precision=PRECISION)
        hidden += tl.load(b1 + cn, mask=cn < dim, other=0.0).to(tl.float32)[None, :]
        hidden = tl.where(hidden < 0.0, 0.0, hidden).to(out.dtype.element_ty)
        if SAVE:
            store_rows(h, r, live, dim, cn, dim, hidden, False)
        w_tile = load_block(wb, c, there, dim, cn, dim)  # [D, BH]
        acc = tl.dot(hidden, tl.trans(w_tile), acc, input_precision=PRECISION)
    acc += tl.load(b2 + c, mask=there, other=0.0).to(tl.float32)[None, :]
    if DROPOUT:
        keep = keep_tile(rng, site, threshold, r, 0, BM, D)
        acc = tl.where(keep != 0, acc * scale, 0.0)
    acc += load_block(v, r, live, dim, c, dim).to(tl.float32)
    for k in range(0, dim, BK):
        ck = k + tl.arange(0, BK)
        total = tl.zeros([BM, BK], tl.float32)
        for m in range(0, sources):
            total += load_block(s + m * step, r, live, dim, ck, dim).to(tl.float32)
        w_tile = load_block(wv, c, there, dim, ck, dim)  # [D, BK]
        acc = tl.dot(total.to(out.dtype.element_ty), tl.trans(w_tile), acc, input_precision=PRECISION)
    store_rows(out, r, live, dim, c, dim, acc, EVEN)
