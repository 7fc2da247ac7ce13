"""Barriers within a warp, shuffles, votes, ldmatrix and mma.sync."""

from __future__ import annotations

import numpy as np

from tests.ptx.types import F16, F32, I64, U16, U32, U64, PtxError, vec

_l = np.arange(32)
_g, _t = _l >> 2, (_l & 3) * 2


def warps(g, m, what):
    if m is not None:
        w = m.reshape(-1, 32)
        if not (w.all(1) | ~w.any(1)).all():
            raise PtxError(f"{what} with only part of a warp")
        return np.flatnonzero(w[:, 0])
    return np.arange(g.n // 32)


def _pair(half, u):
    """Both halves of a 32-bit register as f32."""
    return half(u & U32(0xFFFF)), half(u >> U32(16))


def _tf32(u):
    """What the tensor core reads of an f32 operand: its upper 19 bits."""
    return (u & U32(0xFFFFE000)).view(F32)


_half_of = {
    "bf16": lambda u: (u.astype(U32) << U32(16)).view(F32),
    "f16": lambda u: u.astype(U16).view(F16).astype(F32),
}
_folds = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


class WarpInstructions:
    """Instructions that lanes of a warp do together."""

    def op_bar(i, g, m, s):
        W = warps(g, m, "bar.warp.sync") * 32
        s.wep[g.bi[W], g.tid[W] >> 5] += 1

    def op_membar(i, g, m, s):
        pass

    op_fence = op_griddepcontrol = op_nanosleep = op_prefetch = op_discard = op_membar

    def op_shfl(i, g, m, s):
        d = i.args[0].split("|")
        md = i.parts[2]
        a = np.broadcast_to(np.asarray(g.get(i.args[1], "b32")), g.n)
        b = np.broadcast_to(np.asarray(g.get(i.args[2], "u32")).astype(I64), g.n)
        c = np.broadcast_to(np.asarray(g.get(i.args[3], "u32")).astype(I64), g.n)
        ln = np.arange(g.n) & 31
        seg = (c >> 8) & 31
        mx = (ln & seg) | (c & 31 & ~seg)
        mn = ln & seg
        j, ok = {
            "bfly": lambda: (ln ^ b, (ln ^ b) <= mx),
            "down": lambda: (ln + b, ln + b <= mx),
            "up": lambda: (ln - b, ln - b >= mx),
            "idx": lambda: ((b & ~seg & 31) | mn, ((b & ~seg & 31) | mn) <= mx),
        }[md]()
        j = np.where(ok, j, ln)
        src = (np.arange(g.n) & ~31) + j
        v = a[src]
        if m is not None and not m[src[m]].all():
            raise PtxError("shfl.sync reads a lane that is not there")
        g.set(d[0], v, m)
        if len(d) > 1:
            g.set(d[1], ok, m)

    def op_vote(i, g, m, s):
        a = i.args[1]
        p = g.get(a.lstrip("!"), "pred")
        p = np.broadcast_to(~p if a[0] == "!" else p, g.n) & (True if m is None else m)
        w = p.reshape(-1, 32)
        act = (np.ones(g.n, bool) if m is None else m).reshape(-1, 32)
        v = {
            "ballot": lambda: (w * (U64(1) << np.arange(32, dtype=U64))).sum(1).astype(U32),
            "any": lambda: w.any(1),
            "all": lambda: (w | ~act).all(1),
        }[i.parts[2]]()
        g.set(i.args[0], np.repeat(v, 32), m)

    def op_redux(i, g, m, s):
        W = warps(g, m, "redux.sync")
        if not (np.broadcast_to(np.asarray(g.get(i.args[2], "u32")), g.n) == 0xFFFFFFFF).all():
            raise PtxError("redux.sync over only part of a warp")
        fold = _folds.get(i.parts[2])
        if fold is None:
            raise PtxError(f"instruction not modelled: {i.text}")
        a = np.broadcast_to(np.asarray(g.get(i.args[1], i.parts[3])), g.n).reshape(-1, 32)
        v = np.zeros(g.n // 32, a.dtype)
        v[W] = fold.reduce(a[W], axis=1, dtype=a.dtype)
        g.set(i.args[0], np.repeat(v, 32), m)

    def op_ldmatrix(i, g, m, s):
        W = warps(g, m, "ldmatrix")
        ds = vec(i.args[0])
        n = len(ds)
        a = (g.addr(i.args[1]) & 0xFFFFFFFF).reshape(-1, 32)[W][:, : 8 * n]
        s.scheck(a.ravel(), 16, None, "ldmatrix")
        s.ldrace(a, g, W, n)
        b = g.bi.reshape(-1, 32)[W][:, :1]
        M = s.sm.view(U16)[b[..., None], (a // 2)[..., None] + np.arange(8)].reshape(len(W), n, 8, 8).astype(U32)
        for j, d in enumerate(ds):
            v = (
                (M[:, j, _t, _g] | M[:, j, _t + 1, _g] << U32(16))
                if "trans" in i.parts
                else (M[:, j, _g, _t] | M[:, j, _g, _t + 1] << U32(16))
            )
            g.r[d].view(U32).reshape(-1, 32)[W] = v

    def op_mma(i, g, m, s):
        W = warps(g, m, "mma.sync")
        shape = i.parts[3]
        td = i.parts[7]
        D, A, B, C = (vec(x) for x in i.args[:4])

        def of(x, t):
            return np.broadcast_to(g.get(x, t), g.n).reshape(-1, 32)[W]

        if shape == "m16n8k16" and td in ("bf16", "f16"):
            half = _half_of[td]
            a, b = np.empty((len(W), 16, 16), F32), np.empty((len(W), 16, 8), F32)
            for r in range(4):
                x = _pair(half, of(A[r], "b32"))
                a[:, _g + 8 * (r & 1), _t + 8 * (r >> 1)], a[:, _g + 8 * (r & 1), _t + 1 + 8 * (r >> 1)] = x
            for r in range(2):
                x = _pair(half, of(B[r], "b32"))
                b[:, _t + 8 * r, _g], b[:, _t + 1 + 8 * r, _g] = x
        elif shape == "m16n8k8" and td == "tf32":
            a, b = np.empty((len(W), 16, 8), F32), np.empty((len(W), 8, 8), F32)
            q, t = _l >> 2, _l & 3
            for r in range(4):
                a[:, q + 8 * (r & 1), t + 4 * (r >> 1)] = _tf32(of(A[r], "b32"))
            for r in range(2):
                b[:, t + 4 * r, q] = _tf32(of(B[r], "b32"))
        else:
            raise PtxError("mma shape not modelled")
        c = np.empty((len(W), 16, 8), F32)
        for r in range(4):
            c[:, _g + 8 * (r >> 1), _t + (r & 1)] = of(C[r], "f32")
        d = a @ b + c
        for r in range(4):
            g.r[D[r]].view(F32).reshape(-1, 32)[W] = d[:, _g + 8 * (r >> 1), _t + (r & 1)]
