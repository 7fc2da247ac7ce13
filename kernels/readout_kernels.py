"""readout: modality softmax, fused states and logits, their gradient, and the joint loss with its own.

    e^m = u^m . wl     alpha = softmax over the present m     fused = sum_m alpha^m u^m     logit = fused . wo_l
    df = dfused + dlogit wo_l     dalpha^m = df . u^m     de^m = alpha^m (dalpha^m - sum_n alpha^n dalpha^n)
    du^m = alpha^m df + de^m wl     dwl = sum de^m u^m     dwo_l = sum_b dlogit fused

    name     shape         name     shape              name     shape
    u        (M, B, L, d)  present  (M, B) bool        alpha    (M, B, L)
    fused    (B, L, d)     logits   (B, L)             wl, wo   (d,), (L, d)

A program owns BB samples of one label, so that the gradients of wl and wo_l leave it as one row each.
"""

# Triton gives annotations of kernel arguments a meaning of its own.
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from hhmpn_fast.kernels.tiles import load_block


@triton.jit
def _states(u, m, b, live, label, batch, labels, dim, c):
    """u^m of some samples and one label: [BB, D] fp32."""
    rows = (m * batch + b).to(tl.int64) * labels + label
    return load_block(u, rows, live, dim, c, dim).to(tl.float32)


@triton.jit
def _softmax(scores):
    """Softmax over the last axis; a row of -inf gives zeros."""
    top = tl.max(scores, 1)
    top = tl.where(top == float("-inf"), 0.0, top)
    shares = tl.exp(scores - top[:, None])
    total = tl.sum(shares, 1)
    return shares / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit(do_not_specialize=["modalities", "batch", "labels"])
def readout_fwd(
    u,
    present,
    wl,
    wo,
    fused,
    logits,
    alpha,
    modalities,
    batch,
    labels,
    dim,
    D: tl.constexpr,
    MP: tl.constexpr,
    BB: tl.constexpr,
):
    """Grid: (cdiv(B, BB), L)."""
    label = tl.program_id(1)
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    live = b < batch
    c = tl.arange(0, D)
    slot = tl.arange(0, MP)[None, :]
    weight = tl.load(wl + c, mask=c < dim, other=0.0).to(tl.float32)
    scores = tl.full([BB, MP], float("-inf"), tl.float32)
    for m in range(0, modalities):
        here = live & (tl.load(present + m * batch + b, mask=live, other=0) != 0)
        e = tl.sum(_states(u, m, b, here, label, batch, labels, dim, c) * weight[None, :], 1)
        scores = tl.where((slot == m) & here[:, None], e[:, None], scores)
    shares = _softmax(scores)
    acc = tl.zeros([BB, D], tl.float32)
    for m in range(0, modalities):
        here = live & (tl.load(present + m * batch + b, mask=live, other=0) != 0)
        share = tl.sum(tl.where(slot == m, shares, 0.0), 1)
        acc += share[:, None] * _states(u, m, b, here, label, batch, labels, dim, c)
        at = alpha + (m * batch + b).to(tl.int64) * labels + label
        tl.store(at, share.to(alpha.dtype.element_ty), mask=live)
    row = b.to(tl.int64) * labels + label
    inside = live[:, None] & (c < dim)[None, :]
    tl.store(fused + row[:, None] * dim + c[None, :], acc.to(fused.dtype.element_ty), mask=inside)
    out = tl.load(wo + label * dim + c, mask=c < dim, other=0.0).to(tl.float32)
    tl.store(logits + row, tl.sum(acc * out[None, :], 1).to(logits.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["modalities", "batch", "labels"])
def readout_bwd(
    u,
    present,
    wl,
    wo,
    fused,
    dfused,
    dlogits,
    dalpha,
    du,
    partial_wl,
    partial_wo,
    modalities,
    batch,
    labels,
    dim,
    D: tl.constexpr,
    MP: tl.constexpr,
    BB: tl.constexpr,
):
    """Grid: (cdiv(B, BB), L); partial_wl, partial_wo (cdiv(B, BB), L, d) fp32."""
    label = tl.program_id(1)
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    live = b < batch
    c = tl.arange(0, D)
    there = c < dim
    inside = live[:, None] & there[None, :]
    row = b.to(tl.int64) * labels + label
    out = tl.load(wo + label * dim + c, mask=there, other=0.0).to(tl.float32)
    weight = tl.load(wl + c, mask=there, other=0.0).to(tl.float32)
    dlogit = tl.load(dlogits + row, mask=live, other=0.0).to(tl.float32)
    df = load_block(dfused, row, live, dim, c, dim).to(tl.float32) + dlogit[:, None] * out[None, :]
    slot = tl.arange(0, MP)[None, :]
    scores = tl.full([BB, MP], float("-inf"), tl.float32)
    downs = tl.zeros([BB, MP], tl.float32)
    for m in range(0, modalities):
        here = live & (tl.load(present + m * batch + b, mask=live, other=0) != 0)
        state = _states(u, m, b, here, label, batch, labels, dim, c)
        at = (m * batch + b).to(tl.int64) * labels + label
        down = tl.sum(df * state, 1) + tl.load(dalpha + at, mask=here, other=0.0).to(tl.float32)
        scores = tl.where((slot == m) & here[:, None], tl.sum(state * weight[None, :], 1)[:, None], scores)
        downs = tl.where((slot == m) & here[:, None], down[:, None], downs)
    # The shares again, in fp32: de is a difference, in which the rounding of saved ones would show.
    shares = _softmax(scores)
    pulls = shares * (downs - tl.sum(shares * downs, 1)[:, None])
    f = load_block(fused, row, live, dim, c, dim).to(tl.float32)
    dwl = tl.zeros([D], tl.float32)
    for m in range(0, modalities):
        here = live & (tl.load(present + m * batch + b, mask=live, other=0) != 0)
        state = _states(u, m, b, here, label, batch, labels, dim, c)
        at = (m * batch + b).to(tl.int64) * labels + label
        share = tl.sum(tl.where(slot == m, shares, 0.0), 1)
        de = tl.sum(tl.where(slot == m, pulls, 0.0), 1)
        dwl += tl.sum(de[:, None] * state, 0)
        grad = tl.where(here[:, None], share[:, None] * df + de[:, None] * weight[None, :], 0.0)
        tl.store(du + at[:, None] * dim + c[None, :], grad.to(du.dtype.element_ty), mask=inside)
    place = (tl.program_id(0).to(tl.int64) * labels + label) * dim
    tl.store(partial_wl + place + c, dwl, mask=there)
    tl.store(partial_wo + place + c, tl.sum(dlogit[:, None] * f, 0), mask=there)


@triton.jit(do_not_specialize=["steps", "count"])
def joint_bce_fwd(
    logits,
    targets,
    label_weights,
    out,
    dlogits,
    steps,
    count,
    labels,
    intermediate,
    WEIGHTED: tl.constexpr,
    B: tl.constexpr,
):
    """loss = sum_t c_t mean(BCE(logits_t, targets)), c_T = 1, else lambda; also d loss / d logits. One program.

    logits (T, B, L), targets (B, L), label_weights (L,), count = B * L, out (1,) fp32, dlogits (T, B, L) fp32.
    """
    loss = 0.0
    for first in range(0, count, B):
        i = first + tl.arange(0, B)
        live = i < count
        y = tl.load(targets + i, mask=live, other=0.0).to(tl.float32)
        w = tl.full([B], 1.0, tl.float32)
        if WEIGHTED:
            w = tl.load(label_weights + i % labels, mask=live, other=1.0).to(tl.float32)
        for t in range(0, steps):
            c = tl.where(t == steps - 1, 1.0, intermediate) / count
            at = tl.to_tensor(t).to(tl.int64) * count + i
            x = tl.load(logits + at, mask=live, other=0.0).to(tl.float32)
            # softplus(-x) without overflow; BCE = (1 - y) x + (1 + (w - 1) y) softplus(-x)
            soft = tl.maximum(-x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))
            # maximum() drops a NaN: x * 0 brings it back.
            scale = 1.0 + (w - 1.0) * y
            value = (1.0 - y) * x + scale * soft + x * 0.0
            loss += tl.sum(tl.where(live, value, 0.0), 0) * c
            sigmoid = 1.0 / (1.0 + tl.exp(-x))
            tl.store(dlogits + at, ((1.0 - y) - scale * (1.0 - sigmoid)) * c, mask=live)
    tl.store(out, loss)
