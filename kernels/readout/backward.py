"""readout, backward: gradients of the states and of both weights; the weights' as one row a program, added up after.

    d_f = d_fused + d_logit wo_l     d_alpha^m += d_f . u^m     d_e^m = alpha^m (d_alpha^m - sum_n alpha^n d_alpha^n)
    d_u^m = alpha^m d_f + d_e^m wl     d_wl = sum d_e^m u^m     d_wo_l = sum_b d_logit fused

Shapes as in the forward kernel; gradients have those of what they are gradients of.
"""

# Triton gives annotations of kernel arguments a meaning of its own.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from hhmpn_fast.kernels.readout.forward import label_row, present_samples, softmax, state_rows
from hhmpn_fast.kernels.records import Rows
from hhmpn_fast.kernels.tiles import load_block, store_rows, tile_of


@triton.jit(do_not_specialize=["modalities", "batch", "labels"])
def readout_backward(
    u,
    present,
    w,
    fused,
    d_out,
    d_u,
    partial,
    modalities,
    batch,
    labels,
    dim,
    form: tl.constexpr,
):
    """Grid: (cdiv(B, BB), L); partial.wl, partial.wo (cdiv(B, BB), L, d) fp32."""
    D: tl.constexpr = form.D
    MP: tl.constexpr = form.MP
    BB: tl.constexpr = form.BB
    label = tl.program_id(1)
    b = tile_of(tl.program_id(0) * BB, batch, BB)
    c = tl.arange(0, D)
    row = state_rows(0, b, label, batch, labels)
    weight = label_row(w.wl, 0, c, dim, u)
    d_logit = tl.load(d_out.logits + row.rows, mask=b.live, other=0.0).to(tl.float32)
    d_f = load_block(d_out.fused, row, c, dim).to(tl.float32)
    d_f += d_logit[:, None] * label_row(w.wo, label, c, dim, u)[None, :]
    slot = tl.arange(0, MP)[None, :]
    scores = tl.full([BB, MP], float("-inf"), tl.float32)
    downs = tl.zeros([BB, MP], tl.float32)
    for m in range(0, modalities):
        here = present_samples(present, m, b, batch)
        at = state_rows(m, here, label, batch, labels)
        state = load_block(u, at, c, dim).to(tl.float32)
        down = tl.sum(d_f * state, 1) + tl.load(d_out.alpha + at.rows, mask=here.live, other=0.0).to(tl.float32)
        scores = tl.where((slot == m) & here.live[:, None], tl.sum(state * weight[None, :], 1)[:, None], scores)
        downs = tl.where((slot == m) & here.live[:, None], down[:, None], downs)
    # The shares again, in fp32: d_e is a difference, in which the rounding of kept ones would show.
    shares = softmax(scores)
    pulls = shares * (downs - tl.sum(shares * downs, 1)[:, None])
    f = load_block(fused, row, c, dim).to(tl.float32)
    d_wl = tl.zeros([D], tl.float32)
    for m in range(0, modalities):
        here = present_samples(present, m, b, batch)
        at = state_rows(m, here, label, batch, labels)
        state = load_block(u, at, c, dim).to(tl.float32)
        share = tl.sum(tl.where(slot == m, shares, 0.0), 1)
        d_e = tl.sum(tl.where(slot == m, pulls, 0.0), 1)
        d_wl += tl.sum(d_e[:, None] * state, 0)
        grad = tl.where(here.live[:, None], share[:, None] * d_f + d_e[:, None] * weight[None, :], 0.0)
        store_rows(Rows(d_u, dim), state_rows(m, b, label, batch, labels), c, dim, grad, False)
    place = (tl.program_id(0).to(tl.int64) * labels + label) * dim
    tl.store(partial.wl + place + c, d_wl, mask=c < dim)
    tl.store(partial.wo + place + c, tl.sum(d_logit[:, None] * f, 0), mask=c < dim)
