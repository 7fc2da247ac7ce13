"""attention, backward: gradients of the queries and of the nodes, by two kernels that own their rows; no atomics.

    p_rj  = exp(q_r . x_j - lse_r)                          recomputed
    ds_rj = p_rj (dcontext_r . x_j - delta_r + dlse_r)      delta_r = sum_j p_rj dcontext_r . x_j / sum_j p_rj
    dq_r  = sum_g sum_j ds_rj x_j                           attention_dq: a program owns BM query rows
    dx_j  = sum_r ds_rj q_r + p_rj dcontext_r               attention_dx: a program owns BN nodes of one segment

With dropout the mask and its scale act on dcontext . x, in delta too, and on the second p. delta is not taken from the
context: where one key has all the weight ds is dlse, and only equal products on both sides of the difference cancel.

Shapes as in the forward kernel, and

    dcontext  (G, R, d)      delta, lse, dlse  (G, R) fp32      dq (R, d)      dx (N, d)
"""

# Triton gives annotations of kernel arguments a meaning of its own.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from hhmpn_fast.kernels.tiles import LOG2E, chunked_scores, find_tile, keep_tile, load_rows, store_rows


@triton.jit
def weights_and_pulls(
    q,
    dcontext,
    x,
    q_tile,
    dc_tile,
    x_tile,
    r,
    live,
    first,
    keys,
    x_begin,
    q_begin,
    end,
    mask,
    rng,
    itself,
    stride_q,
    stride_x,
    stride_mask,
    dim,
    threshold,
    scale,
    site,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    MASK: tl.constexpr,
    SELF: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """p and D(dcontext . x) of a tile: [BM, BN] each."""
    j = first + tl.arange(0, BN)
    if BK == D:
        scores = tl.dot(q_tile, tl.trans(x_tile), input_precision=PRECISION)
        up = tl.dot(dc_tile, tl.trans(x_tile), input_precision=PRECISION)
    else:
        none = tl.zeros([BM, BN], tl.float32)
        scores = chunked_scores(q, r, live, stride_q, x, x_begin + j, j < keys, stride_x, dim, none, D, BK, PRECISION)
        up = chunked_scores(dcontext, r, live, dim, x, x_begin + j, j < keys, stride_x, dim, none, D, BK, PRECISION)
    allowed = live[:, None] & (j < keys)[None, :]
    if MASK:
        at = mask + (r - q_begin)[:, None] * stride_mask + j[None, :]
        allowed = allowed & (tl.load(at, mask=allowed, other=0) != 0)
    if SELF:
        allowed = allowed & ((not itself) | ((r - q_begin)[:, None] != j[None, :]))
    p = tl.where(allowed, tl.exp2((scores - end[:, None]) * LOG2E), 0.0)
    if DROPOUT:
        keep = keep_tile(rng, site, threshold, r, first, BM, BN)
        up = tl.where(keep != 0, up * scale, 0.0)
    return p, up


@triton.jit(do_not_specialize=["rows", "queries", "samples", "groups", "threshold", "site"])
def attention_dq(
    q,
    x,
    q_offsets,
    x_offsets,
    mask,
    rng,
    lse,
    dcontext,
    dlse,
    delta,
    dq,
    stride_q,
    stride_x,
    stride_mask,
    rows,
    dim,
    queries,
    samples,
    groups,
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
    """Grid: (R // BM + Q,). Also writes delta - dlse, which attention_dx reads."""
    segment, q_begin, start, q_end = find_tile(q_offsets, queries, tl.program_id(0), BM)
    if start < q_end:
        r = start + tl.arange(0, BM)
        live = r < q_end
        c = tl.arange(0, D)
        if BK == D:
            q_tile = load_rows(q, r, live, stride_q, c, dim, EVEN)  # [BM, D]
        else:
            q_tile = 0
        acc = tl.zeros([BM, D], tl.float32)
        for g in range(0, groups):
            base = tl.to_tensor(g).to(tl.int64) * rows
            dc_tile = q_tile
            if BK == D:
                dc_tile = load_rows(dcontext + base * dim, r, live, dim, c, dim, EVEN)  # [BM, D]
            pull = tl.load(dlse + base + r, mask=live, other=0.0)
            end = tl.load(lse + base + r, mask=live, other=0.0)
            end = tl.where(end == float("-inf"), float("inf"), end)  # no key: p = exp2(-inf) = 0
            key = g * samples + segment % samples
            x_begin = tl.load(x_offsets + key)
            keys = tl.load(x_offsets + key + 1) - x_begin
            mass = tl.zeros([BM], tl.float32)
            moment = tl.zeros([BM], tl.float32)
            # Keys of several tiles are read twice, once for delta; a single tile has all that delta needs.
            for n in range(0, tl.where(keys > BN, keys, 0), BN):
                j = n + tl.arange(0, BN)
                x_tile = q_tile
                if BK == D:
                    x_tile = load_rows(x, x_begin + j, j < keys, stride_x, c, dim, EVEN)  # [BN, D]
                p, up = weights_and_pulls(
                    q, dcontext + base * dim, x, q_tile, dc_tile, x_tile, r, live, n, keys, x_begin, q_begin, end,
                    mask, rng, segment == key, stride_q, stride_x, stride_mask, dim, threshold, scale, site + g,
                    D, BM, BN, BK, MASK, SELF, DROPOUT, PRECISION,
                )  # fmt: skip
                mass += tl.sum(p, 1)
                moment += tl.sum(p * up, 1)
            for n in range(0, keys, BN):
                j = n + tl.arange(0, BN)
                x_tile = load_rows(x, x_begin + j, j < keys, stride_x, c, dim, EVEN)  # [BN, D]
                p, up = weights_and_pulls(
                    q, dcontext + base * dim, x, q_tile, dc_tile, x_tile, r, live, n, keys, x_begin, q_begin, end,
                    mask, rng, segment == key, stride_q, stride_x, stride_mask, dim, threshold, scale, site + g,
                    D, BM, BN, BK, MASK, SELF, DROPOUT, PRECISION,
                )  # fmt: skip
                if keys <= BN:
                    mass = tl.sum(p, 1)
                    moment = tl.sum(p * up, 1)
                inverse = 1.0 / tl.where(mass == 0.0, 1.0, mass)
                down = moment / tl.where(mass == 0.0, 1.0, mass)
                ds = p * ((up - down[:, None] + pull[:, None]) * inverse[:, None])
                acc = tl.dot(ds.to(x_tile.dtype), x_tile, acc, input_precision=PRECISION)
            down = moment / tl.where(mass == 0.0, 1.0, mass)
            tl.store(delta + base + r, down - pull, mask=live)
        store_rows(dq, r, live, dim, c, dim, acc, EVEN)


@triton.jit(do_not_specialize=["rows", "queries", "keys_total", "samples", "threshold", "site"])
def attention_dx(
    q,
    x,
    q_offsets,
    x_offsets,
    mask,
    rng,
    lse,
    dcontext,
    delta,
    dx,
    stride_q,
    stride_x,
    stride_mask,
    rows,
    dim,
    queries,
    keys_total,
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
    """Grid: (N // BN + K,). Scores are taken transposed, [BN, BM], so that both products read them as they lie."""
    key, x_begin, start, x_end = find_tile(x_offsets, keys_total, tl.program_id(0), BN)
    if start < x_end:
        g = key // samples
        base = tl.to_tensor(g).to(tl.int64) * rows
        j = start + tl.arange(0, BN)
        live = j < x_end
        c = tl.arange(0, D)
        if BK == D:
            x_tile = load_rows(x, j, live, stride_x, c, dim, EVEN)  # [BN, D]
        acc = tl.zeros([BN, D], tl.float32)
        for segment in range(key % samples, queries, samples):
            q_begin = tl.load(q_offsets + segment)
            q_end = tl.load(q_offsets + segment + 1)
            for m in range(q_begin, q_end, BM):
                r = m + tl.arange(0, BM)
                here = r < q_end
                q_tile = load_rows(q, r, here, stride_q, c, dim, EVEN)  # [BM, D]
                dc_tile = load_rows(dcontext + base * dim, r, here, dim, c, dim, EVEN)  # [BM, D]
                if BK == D:
                    scores = tl.dot(x_tile, tl.trans(q_tile), input_precision=PRECISION)  # [BN, BM]
                    up = tl.dot(x_tile, tl.trans(dc_tile), input_precision=PRECISION)
                else:
                    none = tl.zeros([BN, BM], tl.float32)
                    scores = chunked_scores(x, j, live, stride_x, q, r, here, stride_q, dim, none, D, BK, PRECISION)
                    up = chunked_scores(
                        x, j, live, stride_x, dcontext + base * dim, r, here, dim, dim, none, D, BK, PRECISION
                    )
                end = tl.load(lse + base + r, mask=here, other=0.0)
                end = tl.where(end == float("-inf"), float("inf"), end)
                allowed = live[:, None] & here[None, :]
                if MASK:
                    at = mask + (r - q_begin)[None, :] * stride_mask + (j - x_begin)[:, None]
                    allowed = allowed & (tl.load(at, mask=allowed, other=0) != 0)
                if SELF:
                    allowed = allowed & ((segment != key) | ((r - q_begin)[None, :] != (j - x_begin)[:, None]))
                p = tl.where(allowed, tl.exp2((scores - end[None, :]) * LOG2E), 0.0)
                a = p
                if DROPOUT:
                    keep = tl.trans(keep_tile(rng, site + g, threshold, r, start - x_begin, BM, BN))
                    up = tl.where(keep != 0, up * scale, 0.0)
                    a = tl.where(keep != 0, p * scale, 0.0)
                acc = tl.dot(a.to(dc_tile.dtype), dc_tile, acc, input_precision=PRECISION)
                ds = p * (up - tl.load(delta + base + r, mask=here, other=0.0)[None, :])
                acc = tl.dot(ds.to(q_tile.dtype), q_tile, acc, input_precision=PRECISION)
        store_rows(dx, j, live, dim, c, dim, acc, EVEN)
