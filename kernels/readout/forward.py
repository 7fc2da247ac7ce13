"""readout, forward: modality softmax, fused states and logits.

    e^m = u^m . wl     alpha = softmax over the present m     fused = sum_m alpha^m u^m     logit = fused . wo_l

    name     shape         name     shape              name     shape
    u        (M, B, L, d)  present  (M, B) bool        alpha    (M, B, L)
    fused    (B, L, d)     logits   (B, L)             wl, wo   (d,), (L, d)

A program owns BB samples of one label; backward, the gradients of wl and wo_l leave it as one row each.
"""

# Triton gives annotations of kernel arguments a meaning of its own.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from hhmpn_fast.kernels.records import Rows, Tile
from hhmpn_fast.kernels.tiles import load_bias, load_block, store_rows, tile_of


@triton.jit
def present_samples(present, m, b, batch):
    """The samples of a tile that have modality m."""
    return Tile(b.rows, b.live & (tl.load(present + m * batch + b.rows, mask=b.live, other=0) != 0))


@triton.jit
def state_rows(m, b, label, batch, labels):
    """Rows of u (or places of alpha) of modality m, some samples and one label."""
    return Tile((m * batch + b.rows).to(tl.int64) * labels + label, b.live)


@triton.jit
def label_row(w, label, c, dim, like):
    """Row `label` of a matrix of weights, rounded to the elements of the states `like`, in fp32: [D]."""
    return load_bias(w + label * dim, c, c < dim, like)


@triton.jit
def softmax(scores):
    """Softmax over the last axis; a row of -inf gives zeros."""
    top = tl.max(scores, 1)
    top = tl.where(top == float("-inf"), 0.0, top)
    shares = tl.exp(scores - top[:, None])
    total = tl.sum(shares, 1)
    return shares / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit(do_not_specialize=["modalities", "batch", "labels"])
def readout_forward(u, present, w, out, modalities, batch, labels, dim, form: tl.constexpr):
    """Grid: (cdiv(B, BB), L)."""
    D: tl.constexpr = form.D
    MP: tl.constexpr = form.MP
    BB: tl.constexpr = form.BB
    label = tl.program_id(1)
    b = tile_of(tl.program_id(0) * BB, batch, BB)
    c = tl.arange(0, D)
    slot = tl.arange(0, MP)[None, :]
    weight = label_row(w.wl, 0, c, dim, u)
    scores = tl.full([BB, MP], float("-inf"), tl.float32)
    for m in range(0, modalities):
        here = present_samples(present, m, b, batch)
        state = load_block(u, state_rows(m, here, label, batch, labels), c, dim).to(tl.float32)
        e = tl.sum(state * weight[None, :], 1)
        scores = tl.where((slot == m) & here.live[:, None], e[:, None], scores)
    shares = softmax(scores)
    acc = tl.zeros([BB, D], tl.float32)
    for m in range(0, modalities):
        here = present_samples(present, m, b, batch)
        share = tl.sum(tl.where(slot == m, shares, 0.0), 1)
        at = state_rows(m, here, label, batch, labels)
        acc += share[:, None] * load_block(u, at, c, dim).to(tl.float32)
        tl.store(out.alpha + at.rows, share.to(out.alpha.dtype.element_ty), mask=b.live)
    row = state_rows(0, b, label, batch, labels)
    store_rows(Rows(out.fused, dim), row, c, dim, acc, False)
    logit = tl.sum(acc * label_row(w.wo, label, c, dim, u)[None, :], 1)
    tl.store(out.logits + row.rows, logit.to(out.logits.dtype.element_ty), mask=b.live)
