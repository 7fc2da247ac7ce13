"""attention, forward: context and log-sum-exp of ragged softmax messages whose keys and values are one tensor.

    s[g, r] = sum_j a_rj x_j     a_rj = softmax_j(q_r . x_j)     j over key segment  g * S + (i mod S)  of r's segment i

    name       shape      dtype         meaning
    q          (R, d)     fp32/bf16/16  queries, the scale inside       q.offsets  (Q+1,) int32
    x          (N, d)     as q          nodes: keys and values          x.offsets  (K+1,) int32, K = G * S
    mask       (L, L)     bool          optional: row may read key      drop       on the weights a, at (row, key)
    context    (G, R, d)  as q          s                               lse        (G, R) fp32

A program owns BM query rows of one segment and one group. A tile of nodes is loaded once and serves both products.
"""

# Triton gives annotations of kernel arguments a meaning of its own.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from hhmpn_fast.kernels.records import Rows
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


@triton.jit(do_not_specialize=["rows", "queries", "samples"])
def attention_forward(q, x, mask, drop, context, lse, dim, rows, queries, samples, form: tl.constexpr):
    """Grid: (R // BM + Q + 1, G)."""
    D: tl.constexpr = form.D
    EVEN: tl.constexpr = form.EVEN
    BM: tl.constexpr = form.BM
    BN: tl.constexpr = form.BN
    BK: tl.constexpr = form.BK
    PRECISION: tl.constexpr = form.PRECISION
    g = tl.program_id(1)
    segment = find_tile(q.offsets, queries, rows, tl.program_id(0), BM)
    if segment.start < segment.end:
        key = g * samples + segment.number % samples
        keys = keys_of(x.offsets, key, segment, queries)
        r = tile_of(segment.start, segment.end, BM)
        place = (r.rows - segment.begin)[:, None]
        c = tl.arange(0, D)
        q_tile = 0
        if BK == D:
            q_tile = load_rows(q, r, c, dim, EVEN)  # [BM, D]
        top = tl.full([BM], float("-inf"), tl.float32)
        total = tl.zeros([BM], tl.float32)
        acc = tl.zeros([BM, D], tl.float32)
        for n in range(0, keys.count, BN):
            j = key_tile(keys, n, BN)
            x_tile = load_rows(x, j, c, dim, EVEN)  # [BN, D]
            scores = scores_of(q_tile, x_tile, q, x, r, j, dim, D, BK, PRECISION)  # [BM, BN]
            scores = tl.where(j.live[None, :], scores, float("-inf"))
            if form.MASK:
                at = mask.ptr + place * mask.stride + (n + tl.arange(0, BN))[None, :]
                reads = tl.load(at, mask=r.live[:, None] & j.live[None, :], other=0)
                scores = tl.where(reads != 0, scores, float("-inf"))
            if form.SELF:
                own = (segment.number == key) & (place == (n + tl.arange(0, BN))[None, :])
                scores = tl.where(own, float("-inf"), scores)
            higher = tl.maximum(top, tl.max(scores, 1))
            # A row that has met no key keeps a finite pivot: exp2(-inf - 0) is 0, exp2(-inf + inf) would be NaN.
            pivot = tl.where(higher == float("-inf"), 0.0, higher)
            a = tl.exp2((scores - pivot[:, None]) * LOG2E)
            fade = tl.exp2((top - pivot) * LOG2E)
            total = total * fade + tl.sum(a, 1)
            if form.DROPOUT:
                keep = keep_tile(drop, g, r.rows, n, BM, BN)
                a = tl.where(keep != 0, a, 0.0)
            acc = acc * fade[:, None]
            acc = tl.dot(a.to(x_tile.dtype), x_tile, acc, input_precision=PRECISION)
            top = higher
        # total is NaN when a score was: only an exact 0 means that there was no key.
        inverse = tl.where(total == 0.0, 0.0, drop.scale / total)
        base = wide(g) * rows
        store_rows(Rows(context + base * dim, dim), r, c, dim, acc * inverse[:, None], EVEN)
        log = tl.log(tl.where(total == 0.0, 1.0, total))
        tl.store(lse + base + r.rows, tl.where(total == 0.0, float("-inf"), top + log), mask=r.live)
