"""update, backward: every row gradient is one form of `rows_product`, every weight gradient one of `weight_product`.

    rows_product     out[z] = residual + [gate > 0] (D(a) W + b W'_z)        tiles BM x BN
    weight_product   d_W[z] = sum_r D(y)_r^T x^z_r,   d_b = sum_r D(y)_r       a tile and a split of the rows

    labels     d_h = [h > 0] D(d_out) W^b     d_g = d_out + d_h W^r     d_s = d_g W^v
               d_W^b = D(d_out)^T h           d_W^r = d_h^T g           d_W^v = d_g^T s
    features   d_h = [h > 0] D(d_out) W^b     d_s^m = d_out W^v + d_h C_m
               d_W^b = D(d_out)^T h           d_C_m = d_h^T s^m         d_W^v = d_out^T sum_m s^m

The splits' partial sums are added up in one order, so the bits do not depend on the schedule.
"""

# Triton gives annotations of kernel arguments a meaning of its own.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from hhmpn_fast.kernels.records import Rows
from hhmpn_fast.kernels.tiles import dropped, load_block, load_weights, store_rows, tile_of, wide


@triton.jit(do_not_specialize=["rows"])
def rows_product(a, w, b, w_z, gate, residual, drop, out, rows, dim, form: tl.constexpr):
    """Grid: (cdiv(rows, BM), cdiv(d, BN), Z).

    a, b, gate, residual (rows, d); w (d, d), w_z (Z, d, d), both (in, out) here; out (Z, rows, d).
    """
    BM: tl.constexpr = form.BM
    BN: tl.constexpr = form.BN
    BK: tl.constexpr = form.BK
    PRECISION: tl.constexpr = form.PRECISION
    z = tl.program_id(2)
    r = tile_of(tl.program_id(0) * BM, rows, BM)
    cn = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros([BM, BN], tl.float32)
    for k in range(0, dim, BK):
        a_tile = load_block(a, r, k + tl.arange(0, BK), dim)  # [BM, BK]
        if form.DROPOUT:
            a_tile = dropped(a_tile, drop, r.rows, k, BM, BK).to(a_tile.dtype)
        w_tile = load_weights(w, tile_of(k, dim, BK), cn, dim, a)  # [BK, BN]
        acc = tl.dot(a_tile, w_tile, acc, input_precision=PRECISION)
    if form.TWO:
        for k in range(0, dim, BK):
            b_tile = load_block(b, r, k + tl.arange(0, BK), dim)  # [BM, BK]
            w_tile = load_weights(w_z + z * dim * dim, tile_of(k, dim, BK), cn, dim, a)  # [BK, BN]
            acc = tl.dot(b_tile, w_tile, acc, input_precision=PRECISION)
    if form.GATE:
        acc = tl.where(load_block(gate, r, cn, dim) > 0.0, acc, 0.0)
    if form.RESIDUAL:
        acc += load_block(residual, r, cn, dim).to(tl.float32)
    store_rows(Rows(out + z.to(tl.int64) * rows * dim, dim), r, cn, dim, acc, False)


@triton.jit(do_not_specialize=["rows", "sources", "span"])
def weight_product(y, x, drop, partial, partial_bias, rows, sources, dim, span, form: tl.constexpr):
    """Grid: (cdiv(d, BN) * cdiv(d, BK), Z, splits), `span` rows a split, BM rows a step.

    y (rows, d), x (Z, rows, d), or with SUM the sum of its `sources` matrices; partial (splits, Z, d, d) fp32,
    partial_bias (splits, d) fp32.
    """
    BM: tl.constexpr = form.BM
    BN: tl.constexpr = form.BN
    BK: tl.constexpr = form.BK
    PRECISION: tl.constexpr = form.PRECISION
    across = tl.cdiv(dim, BK)
    tile_n, tile_k = tl.program_id(0) // across, tl.program_id(0) % across
    z, split = tl.program_id(1), tl.program_id(2)
    cn = tile_n * BN + tl.arange(0, BN)
    ck = tile_k * BK + tl.arange(0, BK)
    step = wide(rows) * dim
    acc = tl.zeros([BN, BK], tl.float32)
    bias = tl.zeros([BN], tl.float32)
    end = tl.minimum(rows, (split + 1) * span)
    for first in range(split * span, end, BM):
        r = tile_of(first, end, BM)
        y_tile = load_block(y, r, cn, dim)  # [BM, BN]
        if form.DROPOUT:
            y_tile = dropped(y_tile, drop, r.rows, tile_n * BN, BM, BN).to(y_tile.dtype)
        if form.SUM:
            total = tl.zeros([BM, BK], tl.float32)
            for m in range(0, sources):
                total += load_block(x + m * step, r, ck, dim).to(tl.float32)
            x_tile = total.to(y_tile.dtype)
        else:
            x_tile = load_block(x + z * step, r, ck, dim)  # [BM, BK]
        acc = tl.dot(tl.trans(y_tile), x_tile, acc, input_precision=PRECISION)
        bias += tl.sum(y_tile.to(tl.float32), 0)
    base = partial + (split.to(tl.int64) * tl.num_programs(1) + z) * dim * dim
    store_rows(Rows(base, dim), tile_of(tile_n * BN, dim, BN), ck, dim, acc, False)
    if (tile_k == 0) & (z == 0):
        tl.store(partial_bias + split.to(tl.int64) * dim + cn, bias, mask=cn < dim)
