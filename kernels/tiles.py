"""What every kernel shares: which tile a program owns, loads of rows, dropout masks, products.

Segment i of `offsets` owns the tile numbers  offsets[i] // B + i ... offsets[i+1] // B + i,  B rows a tile. These are
at least ceil(rows_i / B) and they grow with i. Rows behind the last offset are one segment more, which reads nothing:
with it there are  rows // B + segments + 1  tiles, a grid from shapes alone, with nothing computed on the host. A
program finds its segment by counting first tiles; surplus programs return.
"""

# Triton gives annotations of kernel arguments a meaning of its own.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from hhmpn_fast.kernels.records import Keys, Rows, Segment, Tile

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def wide(number):
    """An int64 scalar, whatever the argument came as: an integer, a constant, a loop's counter."""
    return tl.full((), 0, tl.int64) + number


@triton.jit
def find_tile(offsets, segments, rows, tile, B: tl.constexpr):
    """The segment that a tile lies in; number `segments` has the rows behind the last offset."""
    count = 0
    for base in range(0, segments + 1, 256):
        i = base + tl.arange(0, 256)
        first = tl.load(offsets + i, mask=i <= segments, other=0) // B + i
        count += tl.sum(((first <= tile) & (i <= segments)).to(tl.int32), 0)
    segment = count - 1
    begin = tl.load(offsets + segment)
    end = tl.load(offsets + segment + 1, mask=segment < segments, other=rows)
    start = begin + (tile - begin // B - segment) * B
    return Segment(segment, begin, start, end)


@triton.jit
def keys_of(offsets, number, segment, segments):
    """The keys of segment `number`, none for rows behind the last of the query segments."""
    begin = tl.load(offsets + number)
    return Keys(begin, tl.where(segment.number < segments, tl.load(offsets + number + 1) - begin, 0))


@triton.jit
def tile_of(start, end, B: tl.constexpr):
    """B rows from `start` on, those before `end` live."""
    rows = start + tl.arange(0, B)
    return Tile(rows, rows < end)


@triton.jit
def key_tile(keys, first, B: tl.constexpr):
    """B keys of a segment from its key `first` on."""
    place = first + tl.arange(0, B)
    return Tile(keys.begin + place, place < keys.count)


@triton.jit
def shifted(rows, elements):
    """The same rows, `elements` further on."""
    return Rows(rows.ptr + elements, rows.stride)


@triton.jit
def load_rows(x, tile, columns, dim, EVEN: tl.constexpr):
    """Rows of a matrix, zeros where a row is not live or a column is not there: [rows, columns]."""
    at = x.ptr + tile.rows.to(tl.int64)[:, None] * x.stride + columns[None, :]
    if EVEN:
        return tl.load(at, mask=tile.live[:, None], other=0.0)
    return tl.load(at, mask=tile.live[:, None] & (columns < dim)[None, :], other=0.0)


@triton.jit
def store_rows(x, tile, columns, dim, value, EVEN: tl.constexpr):
    """Writes [rows, columns] where live, in the matrix' dtype."""
    at = x.ptr + tile.rows.to(tl.int64)[:, None] * x.stride + columns[None, :]
    value = value.to(x.ptr.dtype.element_ty)
    if EVEN:
        tl.store(at, value, mask=tile.live[:, None])
    else:
        tl.store(at, value, mask=tile.live[:, None] & (columns < dim)[None, :])


@triton.jit
def load_block(pointer, tile, columns, dim):
    """Some columns of rows of `dim` elements, zeros outside: [rows, columns]."""
    return load_rows(Rows(pointer, dim), tile, columns, dim, False)


@triton.jit
def load_weights(pointer, tile, columns, dim, like):
    """Some columns of a weight's rows, rounded to the elements of the rows `like` that they meet."""
    return load_block(pointer, tile, columns, dim).to(like.dtype.element_ty)


@triton.jit
def load_bias(pointer, units, live, like):
    """Some of a bias, rounded as weights are, in fp32."""
    return tl.load(pointer + units, mask=live, other=0.0).to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def keep_tile(drop, group, rows, first, R: tl.constexpr, C: tl.constexpr):
    """Dropout mask [R, C] of int8: rows are packed rows, columns first ... first + C - 1, first a multiple of 4.

    One Philox-4x32-10 call gives the words of four columns: counter (column >> 2, row, site + group, step).
    """
    seed = tl.load(drop.rng)
    step = tl.load(drop.rng + 1).to(tl.uint32)
    quad = (first // 4 + tl.arange(0, C // 4)).to(tl.uint32)
    c0 = tl.broadcast_to(quad[None, :], (R, C // 4))
    c1 = tl.broadcast_to(rows.to(tl.uint32)[:, None], (R, C // 4))
    zero = c0 * 0
    site = wide(drop.site + group).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, zero + site, zero + step)
    least = wide(drop.threshold).to(tl.uint32)
    k0, k1 = (w0 >= least).to(tl.int8), (w1 >= least).to(tl.int8)
    k2, k3 = (w2 >= least).to(tl.int8), (w3 >= least).to(tl.int8)
    # join makes its operands the last axis: (high bit, low bit) of the column's place in its quad.
    quads = tl.join(tl.join(k0, k2), tl.join(k1, k3))
    return tl.reshape(quads, (R, C))


@triton.jit
def dropped(value, drop, rows, first, R: tl.constexpr, C: tl.constexpr):
    """A tile [R, C] in fp32 under an update's dropout, what is kept scaled."""
    keep = keep_tile(drop, 0, rows, first, R, C)
    return tl.where(keep != 0, value.to(tl.float32) * drop.scale, 0.0)


@triton.jit
def scores_of(
    left_tile,
    right_tile,
    left,
    right,
    rows,
    keys,
    dim,
    D: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """left right^T [rows, keys] fp32: of tiles of whole rows where BK is D, else from memory, BK features at a time.

    The steps are for widths whose whole rows would not fit in registers as operands; the rows come from L1 or L2 again.
    """
    if BK == D:
        return tl.dot(left_tile, tl.trans(right_tile), input_precision=PRECISION)
    scores = tl.zeros([rows.rows.shape[0], keys.rows.shape[0]], tl.float32)
    for k in range(0, D, BK):
        c = k + tl.arange(0, BK)
        a = load_rows(left, rows, c, dim, False)
        b = load_rows(right, keys, c, dim, False)
        scores = tl.dot(a, tl.trans(b), scores, input_precision=PRECISION)
    return scores
