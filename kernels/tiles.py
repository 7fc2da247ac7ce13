"""What every kernel shares: which tile a program owns, loads of rows, dropout masks, products.

Segment i of `offsets` owns the tile numbers  offsets[i] // B + i ... offsets[i+1] // B + i,  B rows a tile. These are
at least ceil(rows_i / B), they grow with i, and there are  rows // B + segments  of them: a grid from shapes alone,
with nothing computed on the host. A program finds its segment by counting first tiles; surplus programs return.
"""

# Triton gives annotations of kernel arguments a meaning of its own.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def find_tile(offsets, segments, tile, B: tl.constexpr):
    """Segment of a tile, its first row, the tile's first row, the segment's end."""
    count = 0
    for base in range(0, segments, 256):
        i = base + tl.arange(0, 256)
        first = tl.load(offsets + i, mask=i < segments, other=0) // B + i
        count += tl.sum(((first <= tile) & (i < segments)).to(tl.int32), 0)
    segment = count - 1
    begin = tl.load(offsets + segment)
    end = tl.load(offsets + segment + 1)
    start = begin + (tile - begin // B - segment) * B
    return segment, begin, start, end


@triton.jit
def load_rows(pointer, rows, live, stride, columns, dim, EVEN: tl.constexpr):
    """Rows of a matrix, zeros where a row is not live or a column is not there: [rows, columns]."""
    at = pointer + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    if EVEN:
        return tl.load(at, mask=live[:, None], other=0.0)
    return tl.load(at, mask=live[:, None] & (columns < dim)[None, :], other=0.0)


@triton.jit
def store_rows(pointer, rows, live, stride, columns, dim, value, EVEN: tl.constexpr):
    """Writes [rows, columns] where live, in the pointer's dtype."""
    at = pointer + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    value = value.to(pointer.dtype.element_ty)
    if EVEN:
        tl.store(at, value, mask=live[:, None])
    else:
        tl.store(at, value, mask=live[:, None] & (columns < dim)[None, :])


@triton.jit
def keep_tile(rng, site, threshold, rows, first, R: tl.constexpr, C: tl.constexpr):
    """Dropout mask [R, C] of int8: rows are packed rows, columns first ... first + C - 1, first a multiple of 4.

    One Philox-4x32-10 call gives the words of four columns: counter (column >> 2, row, site, step).
    """
    seed = tl.load(rng)
    step = tl.load(rng + 1).to(tl.uint32)
    quad = (first // 4 + tl.arange(0, C // 4)).to(tl.uint32)
    c0 = tl.broadcast_to(quad[None, :], (R, C // 4))
    c1 = tl.broadcast_to(rows.to(tl.uint32)[:, None], (R, C // 4))
    zero = c0 * 0
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, zero + site.to(tl.uint32), zero + step)
    least = threshold.to(tl.uint32)
    k0, k1 = (w0 >= least).to(tl.int8), (w1 >= least).to(tl.int8)
    k2, k3 = (w2 >= least).to(tl.int8), (w3 >= least).to(tl.int8)
    # join makes its operands the last axis: (high bit, low bit) of the column's place in its quad.
    quads = tl.join(tl.join(k0, k2), tl.join(k1, k3))
    return tl.reshape(quads, (R, C))


@triton.jit
def load_block(pointer, rows, live, stride, columns, dim):
    """A block of a matrix whose columns end at `dim`, zeros outside: [rows, columns]."""
    return load_rows(pointer, rows, live, stride, columns, dim, False)


@triton.jit
def chunked_scores(
    left,
    rows_l,
    live_l,
    stride_l,
    right,
    rows_r,
    live_r,
    stride_r,
    dim,
    shape,
    D: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """left right^T from global memory, BK features at a time, added to `shape` [rows_l, rows_r].

    For widths whose whole rows would not fit in registers as operands; the rows come from L1 or L2 again.
    """
    for k in range(0, D, BK):
        c = k + tl.arange(0, BK)
        a = load_block(left, rows_l, live_l, stride_l, c, dim)
        b = load_block(right, rows_r, live_r, stride_r, c, dim)
        shape = tl.dot(a, tl.trans(b), shape, input_precision=PRECISION)
    return shape
