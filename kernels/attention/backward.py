"""attention, backward: gradients of the queries and of the nodes, by two kernels that own their rows; no atomics.

    p_rj   = exp(q_r . x_j - lse_r)                          recomputed
    d_s_rj = p_rj (d_context_r . x_j - delta_r + d_lse_r)    delta_r = sum_j p_rj d_context_r . x_j / sum_j p_rj
    d_q_r  = sum_g sum_j d_s_rj x_j                          attention_d_q: a program owns BM query rows
    d_x_j  = sum_r d_s_rj q_r + p_rj d_context_r             attention_d_x: a program owns BN nodes of one segment

With dropout the mask and its scale act on d_context . x, in delta too, and on the second p. delta is not taken from the
context: where one key has all the weight d_s is d_lse, and only equal products on both sides of the difference cancel.

Shapes as in the forward kernel, and

    d_context  (G, R, d)      delta, lse, d_lse  (G, R) fp32      d_q (R, d)      d_x (N, d)
"""

# Triton gives annotations of kernel arguments a meaning of its own.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from hhmpn_fast.kernels.records import Operands, Pair, Rows
from hhmpn_fast.kernels.tiles import (
    LOG2E,
    find_tile,
    keep_tile,
    key_tile,
    keys_of,
    load_rows,
    scores_of,
    store_rows,
    tile_of,
    wide,
)


@triton.jit
def may_read(allowed, mask, row, key, itself, MASK: tl.constexpr, SELF: tl.constexpr):
    """`allowed`, but for what the mask forbids and, with SELF, a node's reading of itself; places in their segments."""
    if MASK:
        at = mask.ptr + row * mask.stride + key
        allowed = allowed & (tl.load(at, mask=allowed, other=0) != 0)
    if SELF:
        allowed = allowed & ((not itself) | (row != key))
    return allowed


@triton.jit
def row_end(lse, at, live):
    """Log-sum-exp of rows; +inf for those without a key: then p = exp2(-inf) = 0."""
    end = tl.load(lse + at, mask=live, other=0.0)
    return tl.where(end == float("-inf"), float("inf"), end)


@triton.jit
def weights_and_pulls(operands, tiles, r, keys, first, end, pair, mask, drop, dim, form: tl.constexpr):
    """p and D(d_context . x) of a tile: [BM, BN] each."""
    D: tl.constexpr = form.D
    BM: tl.constexpr = form.BM
    BN: tl.constexpr = form.BN
    BK: tl.constexpr = form.BK
    MASK: tl.constexpr = form.MASK
    SELF: tl.constexpr = form.SELF
    PRECISION: tl.constexpr = form.PRECISION
    j = key_tile(keys, first, BN)
    scores = scores_of(tiles.q, tiles.x, operands.q, operands.x, r, j, dim, D, BK, PRECISION)
    up = scores_of(tiles.d_context, tiles.x, operands.d_context, operands.x, r, j, dim, D, BK, PRECISION)
    allowed = r.live[:, None] & j.live[None, :]
    row, key = (r.rows - pair.begin)[:, None], (first + tl.arange(0, BN))[None, :]
    allowed = may_read(allowed, mask, row, key, pair.itself, MASK, SELF)
    p = tl.where(allowed, tl.exp2((scores - end[:, None]) * LOG2E), 0.0)
    if form.DROPOUT:
        keep = keep_tile(drop, pair.group, r.rows, first, BM, BN)
        up = tl.where(keep != 0, up * drop.scale, 0.0)
    return p, up


@triton.jit(do_not_specialize=["rows", "queries", "samples"])
def attention_d_q(q, x, mask, drop, d_out, d_q, sizes, rows, queries, samples, form: tl.constexpr):
    """Grid: (R // BM + Q + 1,). Also writes delta - d_lse, which attention_d_x reads."""
    D: tl.constexpr = form.D
    EVEN: tl.constexpr = form.EVEN
    BM: tl.constexpr = form.BM
    BN: tl.constexpr = form.BN
    BK: tl.constexpr = form.BK
    PRECISION: tl.constexpr = form.PRECISION
    dim = sizes.dim
    segment = find_tile(q.offsets, queries, rows, tl.program_id(0), BM)
    if segment.start < segment.end:
        r = tile_of(segment.start, segment.end, BM)
        c = tl.arange(0, D)
        q_tile = 0
        if BK == D:
            q_tile = load_rows(q, r, c, dim, EVEN)  # [BM, D]
        acc = tl.zeros([BM, D], tl.float32)
        for g in range(0, sizes.groups):
            base = wide(g) * rows
            d_context = Rows(d_out.context + base * dim, dim)
            operands = Operands(q, d_context, x)
            dc_tile = q_tile
            if BK == D:
                dc_tile = load_rows(d_context, r, c, dim, EVEN)  # [BM, D]
            pull = tl.load(d_out.lse + base + r.rows, mask=r.live, other=0.0)
            end = row_end(d_out.end, base + r.rows, r.live)
            key = g * samples + segment.number % samples
            keys = keys_of(x.offsets, key, segment, queries)
            pair = Pair(segment.begin, segment.number == key, g)
            mass = tl.zeros([BM], tl.float32)
            moment = tl.zeros([BM], tl.float32)
            # Keys of several tiles are read twice, once for delta; a single tile has all that delta needs.
            for n in range(0, tl.where(keys.count > BN, keys.count, 0), BN):
                x_tile = q_tile
                if BK == D:
                    x_tile = load_rows(x, key_tile(keys, n, BN), c, dim, EVEN)  # [BN, D]
                tiles = Operands(q_tile, dc_tile, x_tile)
                p, up = weights_and_pulls(operands, tiles, r, keys, n, end, pair, mask, drop, dim, form)
                mass += tl.sum(p, 1)
                moment += tl.sum(p * up, 1)
            for n in range(0, keys.count, BN):
                x_tile = load_rows(x, key_tile(keys, n, BN), c, dim, EVEN)  # [BN, D]
                tiles = Operands(q_tile, dc_tile, x_tile)
                p, up = weights_and_pulls(operands, tiles, r, keys, n, end, pair, mask, drop, dim, form)
                if keys.count <= BN:
                    mass = tl.sum(p, 1)
                    moment = tl.sum(p * up, 1)
                inverse = 1.0 / tl.where(mass == 0.0, 1.0, mass)
                down = moment / tl.where(mass == 0.0, 1.0, mass)
                d_s = p * ((up - down[:, None] + pull[:, None]) * inverse[:, None])
                acc = tl.dot(d_s.to(x_tile.dtype), x_tile, acc, input_precision=PRECISION)
            down = moment / tl.where(mass == 0.0, 1.0, mass)
            tl.store(d_out.delta + base + r.rows, down - pull, mask=r.live)
        store_rows(Rows(d_q, dim), r, c, dim, acc, EVEN)


@triton.jit(do_not_specialize=["rows", "nodes", "queries", "samples"])
def attention_d_x(q, x, mask, drop, d_out, d_x, sizes, rows, nodes, queries, samples, form: tl.constexpr):
    """Grid: (N // BN + K + 1,). Scores are taken transposed, [BN, BM], so that both products read them as they lie."""
    D: tl.constexpr = form.D
    EVEN: tl.constexpr = form.EVEN
    BM: tl.constexpr = form.BM
    BN: tl.constexpr = form.BN
    BK: tl.constexpr = form.BK
    MASK: tl.constexpr = form.MASK
    SELF: tl.constexpr = form.SELF
    PRECISION: tl.constexpr = form.PRECISION
    dim = sizes.dim
    segments = samples * sizes.groups
    keys = find_tile(x.offsets, segments, nodes, tl.program_id(0), BN)
    if keys.start < keys.end:
        g = keys.number // samples
        base = wide(g) * rows
        d_context = Rows(d_out.context + base * dim, dim)
        j = tile_of(keys.start, keys.end, BN)
        place = (j.rows - keys.begin)[:, None]
        c = tl.arange(0, D)
        x_tile = 0
        if BK == D:
            x_tile = load_rows(x, j, c, dim, EVEN)  # [BN, D]
        acc = tl.zeros([BN, D], tl.float32)
        # Nobody reads the nodes behind the last segment.
        reader = tl.where(keys.number < segments, keys.number % samples, queries)
        for segment in range(reader, queries, samples):
            q_begin = tl.load(q.offsets + segment)
            q_end = tl.load(q.offsets + segment + 1)
            for m in range(q_begin, q_end, BM):
                r = tile_of(m, q_end, BM)
                q_tile = load_rows(q, r, c, dim, EVEN)  # [BM, D]
                dc_tile = load_rows(d_context, r, c, dim, EVEN)  # [BM, D]
                scores = scores_of(x_tile, q_tile, x, q, j, r, dim, D, BK, PRECISION)  # [BN, BM]
                up = scores_of(x_tile, dc_tile, x, d_context, j, r, dim, D, BK, PRECISION)
                end = row_end(d_out.end, base + r.rows, r.live)
                allowed = j.live[:, None] & r.live[None, :]
                row = (r.rows - q_begin)[None, :]
                allowed = may_read(allowed, mask, row, place, segment == keys.number, MASK, SELF)
                p = tl.where(allowed, tl.exp2((scores - end[None, :]) * LOG2E), 0.0)
                a = p
                if form.DROPOUT:
                    keep = tl.trans(keep_tile(drop, g, r.rows, keys.start - keys.begin, BM, BN))
                    up = tl.where(keep != 0, up * drop.scale, 0.0)
                    a = tl.where(keep != 0, p * drop.scale, 0.0)
                acc = tl.dot(a.to(dc_tile.dtype), dc_tile, acc, input_precision=PRECISION)
                d_s = p * (up - tl.load(d_out.delta + base + r.rows, mask=r.live, other=0.0)[None, :])
                acc = tl.dot(d_s.to(q_tile.dtype), q_tile, acc, input_precision=PRECISION)
        store_rows(Rows(d_x, dim), j, c, dim, acc, EVEN)
