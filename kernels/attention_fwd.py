"""attention, forward: context and log-sum-exp of ragged softmax messages whose keys and values are one tensor.

    s[g, r] = sum_j a_rj x_j     a_rj = softmax_j(q_r . x_j)     j over key segment  g * S + (i mod S)  of r's segment i

    name       shape      dtype         meaning
    q          (R, d)     fp32/bf16/16  queries, the scale inside       q_offsets  (Q+1,) int32
    x          (N, d)     as q          nodes: keys and values          x_offsets  (K+1,) int32, K = G * S
    mask       (L, L)     bool          optional: row may read key      rng        (2,) int64: dropout's seed and step
    context    (G, R, d)  as q          s                               lse        (G, R) fp32

A program owns BM query rows of one segment and one group. A tile of nodes is loaded once and serves both products.
"""

# Triton gives annotations of kernel arguments a meaning of its own.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from hhmpn_fast.kernels.tiles import LOG2E, chunked_scores, find_tile, keep_tile, load_rows, store_rows


@triton.jit(do_not_specialize=["rows", "queries", "samples", "threshold", "site"])
def attention_fwd(
    q,
    x,
    q_offsets,
    x_offsets,
    mask,
    rng,
    context,
    lse,
    stride_q,
    stride_x,
    stride_mask,
    rows,
    dim,
    queries,
    samples,
    threshold,
    scale,
    site,
    D: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    MASK: tl.constexpr,
    SELF: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: (R // BM + Q, G)."""
    g = tl.program_id(1)
    segment, q_begin, start, q_end = find_tile(q_offsets, queries, tl.program_id(0), BM)
    if start < q_end:
        key = g * samples + segment % samples
        x_begin = tl.load(x_offsets + key)
        keys = tl.load(x_offsets + key + 1) - x_begin
        r = start + tl.arange(0, BM)
        live = r < q_end
        c = tl.arange(0, D)
        if BK == D:
            q_tile = load_rows(q, r, live, stride_q, c, dim, EVEN)  # [BM, D]
        top = tl.full([BM], float("-inf"), tl.float32)
        total = tl.zeros([BM], tl.float32)
        acc = tl.zeros([BM, D], tl.float32)
        for n in range(0, keys, BN):
            j = n + tl.arange(0, BN)
            x_tile = load_rows(x, x_begin + j, j < keys, stride_x, c, dim, EVEN)  # [BN, D]
            if BK == D:
                scores = tl.dot(q_tile, tl.trans(x_tile), input_precision=PRECISION)  # [BM, BN]
            else:
                scores = chunked_scores(
                    q, r, live, stride_q, x, x_begin + j, j < keys, stride_x, dim,
                    tl.zeros([BM, BN], tl.float32), D, BK, PRECISION,
                )  # fmt: skip
            scores = tl.where((j < keys)[None, :], scores, float("-inf"))
            if MASK:
                at = mask + (r - q_begin)[:, None] * stride_mask + j[None, :]
                reads = tl.load(at, mask=live[:, None] & (j < keys)[None, :], other=0)
                scores = tl.where(reads != 0, scores, float("-inf"))
            if SELF:
                own = (segment == key) & ((r - q_begin)[:, None] == j[None, :])
                scores = tl.where(own, float("-inf"), scores)
            higher = tl.maximum(top, tl.max(scores, 1))
            # A row that has met no key keeps a finite pivot: exp2(-inf - 0) is 0, exp2(-inf + inf) would be NaN.
            pivot = tl.where(higher == float("-inf"), 0.0, higher)
            a = tl.exp2((scores - pivot[:, None]) * LOG2E)
            fade = tl.exp2((top - pivot) * LOG2E)
            total = total * fade + tl.sum(a, 1)
            if DROPOUT:
                keep = keep_tile(rng, site + g, threshold, r, n, BM, BN)
                a = tl.where(keep != 0, a, 0.0)
            acc = acc * fade[:, None]
            acc = tl.dot(a.to(x_tile.dtype), x_tile, acc, input_precision=PRECISION)
            top = higher
        # total is NaN when a score was: only an exact 0 means that there was no key.
        inverse = tl.where(total == 0.0, 0.0, scale / total)
        base = tl.to_tensor(g).to(tl.int64) * rows
        store_rows(context + base * dim, r, live, dim, c, dim, acc * inverse[:, None], EVEN)
        log = tl.log(tl.where(total == 0.0, 1.0, total))
        tl.store(lse + base + r, tl.where(total == 0.0, float("-inf"), top + log), mask=live)
