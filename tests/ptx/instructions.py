"""Arithmetic, conversions, comparisons and moves."""

from __future__ import annotations

import numpy as np

from tests.ptx.types import F16, F32, F64, I32, I64, U8, U16, U32, U64, T, bf16, ty, vec


class Arithmetic:
    """Instructions that touch registers only."""

    @staticmethod
    def bi(f):
        def op(i, g, m, s):
            t = ty(i)
            g.set(i.args[0], np.asarray(f(g.get(i.args[1], t), g.get(i.args[2], t))).astype(T[t]), m)

        return staticmethod(op)

    op_sub, op_xor, op_or, op_and = (
        bi(lambda a, b: a - b),
        bi(lambda a, b: a ^ b),
        bi(lambda a, b: a | b),
        bi(lambda a, b: a & b),
    )
    op_max, op_min = (
        bi(lambda a, b: np.fmax(a, b) if np.asarray(a).dtype.kind == "f" else np.maximum(a, b)),
        bi(lambda a, b: np.fmin(a, b) if np.asarray(a).dtype.kind == "f" else np.minimum(a, b)),
    )
    op_add, op_div, op_rem = (
        bi(lambda a, b: a + b),
        bi(lambda a, b: a / b if np.asarray(a).dtype.kind == "f" else (np.trunc(a.astype(F64) / b))),
        bi(lambda a, b: np.fmod(a, b)),
    )

    def un(f):
        def op(i, g, m, s):
            t = ty(i)
            g.set(i.args[0], np.asarray(f(g.get(i.args[1], t))).astype(T[t]), m)

        return staticmethod(op)

    op_neg, op_abs, op_not, op_ex2, op_lg2, op_rcp, op_sqrt, op_rsqrt, op_tanh = (
        un(lambda a: -a),
        un(np.abs),
        un(lambda a: ~a),
        un(lambda a: np.exp2(a)),
        un(lambda a: np.log2(a)),
        un(lambda a: 1 / a),
        un(np.sqrt),
        un(lambda a: 1 / np.sqrt(a)),
        un(np.tanh),
    )

    def op_mul(i, g, m, s):
        t = ty(i)
        a, b = g.get(i.args[1], t), g.get(i.args[2], t)
        if "wide" in i.parts:
            w = {"s32": I64, "u32": U64, "s16": I32, "u16": U32}[t]
            v = np.asarray(a).astype(w) * np.asarray(b).astype(w)
        elif "hi" in i.parts:
            v = (
                (
                    (
                        np.asarray(a).astype(I64 if t[0] == "s" else U64)
                        * np.asarray(b).astype(I64 if t[0] == "s" else U64)
                    )
                    >> 32
                ).astype(T[t])
                if t[1:] == "32"
                else None
            )
        else:
            v = a * b
        g.set(i.args[0], v, m)

    def op_mad(i, g, m, s):
        t = ty(i)
        a, b = g.get(i.args[1], t), g.get(i.args[2], t)
        if "wide" in i.parts:
            w = {"s32": "s64", "u32": "u64", "s16": "s32", "u16": "u32"}[t]
            g.set(i.args[0], np.asarray(a).astype(T[w]) * np.asarray(b).astype(T[w]) + g.get(i.args[3], w), m)
        else:
            g.set(i.args[0], a * b + g.get(i.args[3], t), m)

    def op_fma(i, g, m, s):
        t = ty(i)
        a, b, c = (g.get(x, t) for x in i.args[1:4])
        if t == "f32":
            v = np.asarray(a, F64) * b + c
            r = v.astype(F32)
            if "rm" in i.parts:
                r = np.where(r.astype(F64) > v, np.nextafter(r, F32(-np.inf)), r)
            g.set(i.args[0], r, m)
        else:
            g.set(i.args[0], a * b + c, m)

    def sh(f):
        def op(i, g, m, s):
            t = ty(i)
            a, n = (
                g.get(i.args[1], t),
                np.minimum(np.asarray(g.get(i.args[2], "u32")), U32(np.dtype(T[t]).itemsize * 8)),
            )
            big = n >= np.dtype(T[t]).itemsize * 8
            n2 = np.where(big, 0, n).astype(T[t])
            v = f(a, n2)
            over = (np.where(np.asarray(a) < 0, -1, 0) if t[0] == "s" else 0) if f.__name__ == "right" else 0
            g.set(i.args[0], np.where(big, over, v).astype(T[t]), m)

        return staticmethod(op)

    def right(a, n):
        return a >> n

    def left(a, n):
        return a << n

    op_shr, op_shl = sh(right), sh(left)

    def op_mov(i, g, m, s):
        t = ty(i)
        d, a = vec(i.args[0]), vec(i.args[1])
        if len(d) == 1 and len(a) == 1:
            g.set(d[0], g.get(a[0], t), m)
            return
        if len(d) == 1:
            w = {
                2: {"b32": ("b16", U32, 16), "b64": ("b32", U64, 32)},
                4: {"b32": ("b8", U32, 8), "b64": ("b16", U64, 16)},
            }[len(a)][t]
            v = w[1](0)
            for j, x in enumerate(a):
                v = v | (np.asarray(g.get(x, w[0])).astype(w[1]) << w[1](j * w[2]))
            g.set(d[0], v, m)
        else:
            x = g.get(a[0], t).copy()
            w = {("b32", 2): (U16, 16), ("b64", 2): (U32, 32), ("b64", 4): (U16, 16), ("b32", 4): (U8, 8)}[t, len(d)]
            for j, y in enumerate(d):
                if y != "_":
                    g.set(y, (x >> x.dtype.type(j * w[1])).astype(w[0]), m)

    def op_cvta(i, g, m, s):
        t = ty(i)
        g.set(i.args[0], g.get(i.args[1], t), m)

    def op_cvt(i, g, m, s):
        ts = [p for p in i.parts[1:] if p in T]
        if ts[0] == "bf16x2" or ts[0] == "f16x2":
            a, b = g.get(i.args[1], "f32"), g.get(i.args[2], "f32")
            f = bf16 if ts[0] == "bf16x2" else (lambda x: np.asarray(x, F32).astype(F16).view(U16))
            g.set(i.args[0], f(b).astype(U32) | (f(a).astype(U32) << U32(16)), m)
            return
        d, t = ts
        if d == "bf16":
            g.set(i.args[0], bf16(g.get(i.args[1], "f32")), m)
            return
        if t == "bf16":
            g.set(i.args[0], (np.asarray(g.get(i.args[1], "b16")).astype(U32) << U32(16)).view(F32), m)
            return
        a = np.asarray(g.get(i.args[1], t))
        if d == "tf32":
            u = a.view(U32)
            g.set(i.args[0], ((u + U32(0x1000)) & U32(0xFFFFE000)).view(F32), m)
            return
        if t[0] == "f" and d[0] in "us":
            a = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[
                next(p for p in i.parts if p in ("rzi", "rni", "rmi", "rpi"))
            ](a)
            f = np.iinfo(T[d])
            v = np.where(np.isnan(a), 0, np.clip(a.astype(F64), f.min, f.max)).astype(T[d])
        elif t[0] == "f" and d[0] == "f":
            for p, f in (("rzi", np.trunc), ("rni", np.rint), ("rmi", np.floor), ("rpi", np.ceil)):
                a = f(a) if p in i.parts else a
            v = a.astype(T[d])
        else:
            v = a.astype(T[d])
        if "sat" in i.parts and d[0] == "f":
            v = np.clip(np.where(np.isnan(v), 0, v), 0, 1).astype(T[d])
        g.set(i.args[0], v, m)

    def op_setp(i, g, m, s):
        t = ty(i)
        a, b = g.get(i.args[1], t), g.get(i.args[2], t)
        c = i.parts[1]
        nan = (np.isnan(a) | np.isnan(b)) if t[0] == "f" else False
        f = {
            "eq": np.equal,
            "ne": np.not_equal,
            "lt": np.less,
            "le": np.less_equal,
            "gt": np.greater,
            "ge": np.greater_equal,
            "lo": np.less,
            "ls": np.less_equal,
            "hi": np.greater,
            "hs": np.greater_equal,
        }
        v = (
            f[c](a, b) & ~np.asarray(nan)
            if c in f
            else (
                f[c[:-1]](a, b) | nan if c.endswith("u") and c[:-1] in f else (~np.asarray(nan) if c == "num" else nan)
            )
        )
        if len(i.args) > 3:
            p = g.get(i.args[3].lstrip("!"), "pred")
            p = ~p if i.args[3][0] == "!" else p
            v = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[i.parts[2]](v, p)
        for j, d in enumerate(i.args[0].split("|")):
            g.set(d, v if j == 0 else ~v, m)

    def op_selp(i, g, m, s):
        t = ty(i)
        g.set(i.args[0], np.where(g.get(i.args[3], "pred"), g.get(i.args[1], t), g.get(i.args[2], t)).astype(T[t]), m)

    def op_bfe(i, g, m, s):
        t = ty(i)
        a, p, n = g.get(i.args[1], t), int(i.args[2]), int(i.args[3])
        u = np.asarray(a).view({4: U32, 8: U64}[a.dtype.itemsize])
        v = (u >> u.dtype.type(p)) & u.dtype.type((1 << n) - 1)
        if t[0] == "s":
            sb = u.dtype.type(1 << (n - 1))
            v = (v ^ sb) - sb
        g.set(i.args[0], v, m)

    def op_bfi(i, g, m, s):
        t = ty(i)
        a, b, p, n = g.get(i.args[1], t), g.get(i.args[2], t), int(i.args[3]), int(i.args[4])
        k = T[t](((1 << n) - 1) << p)
        g.set(i.args[0], (b & ~k) | ((a << T[t](p)) & k), m)

    def op_prmt(i, g, m, s):
        a, b, c = (np.broadcast_to(np.asarray(g.get(x, "b32")), g.n) for x in i.args[1:4])
        by = np.stack([(x >> U32(8 * j)) & U32(255) for x in (a, b) for j in range(4)])
        v = U32(0)
        k = np.arange(g.n)
        for j in range(4):
            v = v | (by[(c >> U32(4 * j)) & U32(7), k] << U32(8 * j))
        g.set(i.args[0], v, m)

    def op_lop3(i, g, m, s):
        a, b, c = (np.asarray(g.get(x, "b32")) for x in i.args[1:4])
        k = int(i.args[4], 0)
        v = U32(0)
        for j in range(8):
            if k >> j & 1:
                v = v | ((a if j & 4 else ~a) & (b if j & 2 else ~b) & (c if j & 1 else ~c))
        g.set(i.args[0], v, m)
