"""update, backward: every row gradient is one form of `rows_product`, every weight gradient one of `weight_product`.

    rows_product     out[z] = residual + [gate > 0] (D(a) W + b W'_z)        tiles BM x BN
    weight_product   dW[z] = sum_r D(y)_r^T x^z_r,   db = sum_r D(y)_r       a tile and a split of the rows

    labels     dh = [h > 0] D(du') Wb      dg = du' + dh Wr       ds = dg Wv
               dWb = D(du')^T h            dWr = dh^T g           dWv = dg^T s
    features   dh = [h > 0] D(dz) Wb       ds^m = dz Wv + dh C_m
               dWb = D(dz)^T h             dC_m = dh^T s^m        dWv = dz^T sum_m s^m

The splits' partial sums are added up in one order, so the bits do not depend on the schedule.
"""

# Triton gives annotations of kernel arguments a meaning of its own.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from hhmpn_fast.kernels.tiles import keep_tile, load_block


@triton.jit(do_not_specialize=["rows", "threshold", "site"])
def rows_product(
    a,
    w,
    b,
    wz,
    gate,
    residual,
    rng,
    out,
    rows,
    dim,
    threshold,
    scale,
    site,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    TWO: tl.constexpr,
    GATE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: (cdiv(rows, BM), cdiv(d, BN), Z).

    a, b, gate, residual (rows, d); w (d, d), wz (Z, d, d), both (in, out) here; out (Z, rows, d).
    """
    z = tl.program_id(2)
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    live = r < rows
    cn = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros([BM, BN], tl.float32)
    for k in range(0, dim, BK):
        ck = k + tl.arange(0, BK)
        a_tile = load_block(a, r, live, dim, ck, dim)  # [BM, BK]
        if DROPOUT:
            keep = keep_tile(rng, site, threshold, r, k, BM, BK)
            a_tile = tl.where(keep != 0, a_tile.to(tl.float32) * scale, 0.0).to(a_tile.dtype)
        w_tile = load_block(w, ck, ck < dim, dim, cn, dim)  # [BK, BN]
        acc = tl.dot(a_tile, w_tile, acc, input_precision=PRECISION)
    if TWO:
        for k in range(0, dim, BK):
            ck = k + tl.arange(0, BK)
            b_tile = load_block(b, r, live, dim, ck, dim)  # [BM, BK]
            w_tile = load_block(wz + z * dim * dim, ck, ck < dim, dim, cn, dim)  # [BK, BN]
            acc = tl.dot(b_tile, w_tile, acc, input_precision=PRECISION)
    if GATE:
        acc = tl.where(load_block(gate, r, live, dim, cn, dim) > 0.0, acc, 0.0)
    if RESIDUAL:
        acc += load_block(residual, r, live, dim, cn, dim).to(tl.float32)
    base = out + z.to(tl.int64) * rows * dim
    at = base + r.to(tl.int64)[:, None] * dim + cn[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=live[:, None] & (cn < dim)[None, :])


@triton.jit(do_not_specialize=["rows", "sources", "span", "threshold", "site"])
def weight_product(
    y,
    x,
    rng,
    partial,
    partial_bias,
    rows,
    sources,
    dim,
    span,
    threshold,
    scale,
    site,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SUM: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: (cdiv(d, BN) * cdiv(d, BK), Z, splits), `span` rows a split, BM rows a step.

    y (rows, d), x (Z, rows, d), or with SUM the sum of its `sources` matrices; partial (splits, Z, d, d) fp32,
    partial_bias (splits, d) fp32.
    """
    across = tl.cdiv(dim, BK)
    tile_n, tile_k = tl.program_id(0) // across, tl.program_id(0) % across
    z, split = tl.program_id(1), tl.program_id(2)
    cn = tile_n * BN + tl.arange(0, BN)
    ck = tile_k * BK + tl.arange(0, BK)
    step = tl.to_tensor(rows).to(tl.int64) * dim
    acc = tl.zeros([BN, BK], tl.float32)
    bias = tl.zeros([BN], tl.float32)
    end = tl.minimum(rows, (split + 1) * span)
    for first in range(split * span, end, BM):
        r = first + tl.arange(0, BM)
        live = r < end
        y_tile = load_block(y, r, live, dim, cn, dim)  # [BM, BN]
        if DROPOUT:
            keep = keep_tile(rng, site, threshold, r, tile_n * BN, BM, BN)
            y_tile = tl.where(keep != 0, y_tile.to(tl.float32) * scale, 0.0).to(y_tile.dtype)
        if SUM:
            total = tl.zeros([BM, BK], tl.float32)
            for m in range(0, sources):
                total += load_block(x + m * step, r, live, dim, ck, dim).to(tl.float32)
            x_tile = total.to(y_tile.dtype)
        else:
            x_tile = load_block(x + z * step, r, live, dim, ck, dim)  # [BM, BK]
        acc = tl.dot(tl.trans(y_tile), x_tile, acc, input_precision=PRECISION)
        bias += tl.sum(y_tile.to(tl.float32), 0)
    base = partial + (split.to(tl.int64) * tl.num_programs(1) + z) * dim * dim
    inside = (cn < dim)[:, None] & (ck < dim)[None, :]
    tl.store(base + cn[:, None] * dim + ck[None, :], acc, mask=inside)
    if (tile_k == 0) & (z == 0):
        tl.store(partial_bias + split.to(tl.int64) * dim + cn, bias, mask=cn < dim)
