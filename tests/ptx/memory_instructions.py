"""Loads, stores, atomics and cp.async."""

from __future__ import annotations

import numpy as np

from tests.ptx.types import I32, I64, U32, PtxError, T, ty, vec


def _combine(f, old, v, swap):
    """What an atomic leaves in memory."""
    simple = {"add": np.add, "max": np.maximum, "min": np.minimum, "and": np.bitwise_and, "or": np.bitwise_or}
    if f in simple:
        return simple[f](old, v)
    if f == "cas":
        return np.where(old == v, swap, old)
    if f == "exch":
        return v
    raise PtxError(f"atomic not modelled: {f}")


class MemoryInstructions:
    """Instructions that read or write memory."""

    def op_ld(i, g, m, s):
        t = ty(i)
        ds = vec(i.args[0])
        sp = next(
            (p.split("::")[0] for p in i.parts if p.split("::")[0] in ("global", "shared", "param", "local", "const")),
            "generic",
        )
        if sp == "param":
            sz = np.dtype(T[t]).itemsize
            for c, d in enumerate(ds):
                at = (g.addr(i.args[1]) + c * sz)[:, None] + np.arange(sz)
                if m is not None:
                    at = np.where(m[:, None], at, np.arange(sz))
                if (at < 0).any() or (at >= len(s.param)).any():
                    raise PtxError(f"OUT OF BOUNDS param read of {sz} bytes at {at.min()}")
                g.set(d, np.ascontiguousarray(s.param[at]).view(T[t])[:, 0], m)
            return
        a = g.addr(i.args[1])
        v = s.sload(a, T[t], len(ds), m, g) if sp == "shared" else s.gload(a, T[t], len(ds), m, g)
        for d, x in zip(ds, v):
            g.set(d, x.astype({"s8": I32, "u8": U32, "b8": U32}.get(t, x.dtype)) if x.dtype.itemsize == 1 else x, m)

    def op_st(i, g, m, s):
        t = ty(i)
        v = [np.broadcast_to(np.asarray(g.get(x, t)), g.n) for x in vec(i.args[1])]
        a = g.addr(i.args[0])
        (s.sstore if any(p.startswith("shared") for p in i.parts) else s.gstore)(a, v, m, g)

    def atom(i, g, m, s, ret):
        keep, s.check = s.check, False
        try:
            MemoryInstructions.atom_(i, g, m, s, ret)
        finally:
            s.check = keep

    def atom_(i, g, m, s, ret):
        t = ty(i)
        o = 1 if ret else 0
        a = g.addr(i.args[o])
        f = next(p for p in i.parts if p in ("add", "max", "min", "exch", "cas", "and", "or", "inc"))
        vs = [vec(x) for x in i.args[o + 1 :]]
        n = len(vs[0])
        lanes = np.arange(g.n) if m is None else np.flatnonzero(m)
        sh = any(p.startswith("shared") for p in i.parts)
        for l in s.rng.permutation(lanes) if (ret or f not in ("add", "max", "min")) else [None]:
            for c in range(n):
                ac = a + c * np.dtype(T[t]).itemsize
                if l is None:  # no return value: all lanes at once, in random order
                    ls = s.rng.permutation(lanes)
                    uf = {"add": np.add, "max": np.maximum, "min": np.minimum}[f]
                    v = np.broadcast_to(np.asarray(g.get(vs[0][c], t)), g.n)[ls]
                    sz = np.dtype(T[t]).itemsize
                    if sh:
                        s.scheck(ac[ls] & 0xFFFFFFFF, sz, None, "atomic")
                        uf.at(s.sm.view(T[t]), (g.bi[ls], (ac[ls] & 0xFFFFFFFF) // sz), v)
                    else:
                        b, off = s.gcheck(ac, sz, m, g, "atomic")
                        for bb in np.unique(b[ls]):
                            q = b[ls] == bb
                            x = s.bufs[bb - 1]
                            uf.at(x[: len(x) // sz * sz].view(T[t]), off[ls][q] // sz, v[q])
                    continue
                mk = np.zeros(g.n, bool)
                mk[l] = True
                old = (s.sload if sh else s.gload)(ac, T[t], 1, mk, g)[0]
                v = np.broadcast_to(np.asarray(g.get(vs[0][c], t)), g.n)
                swap = g.get(vs[1][c], t) if f == "cas" else v
                new = _combine(f, old, v, swap)
                (s.sstore if sh else s.gstore)(ac, [np.asarray(new).astype(T[t])], mk, g)
                if ret:
                    g.set(vec(i.args[0])[c], old, mk)

    def op_red(i, g, m, s):
        MemoryInstructions.atom(i, g, m, s, False)

    def op_atom(i, g, m, s):
        MemoryInstructions.atom(i, g, m, s, True)

    def op_cp(i, g, m, s):
        if "commit_group" in i.parts:
            g.cg[slice(None) if m is None else m] += 1
            return
        if "wait_group" in i.parts or "wait_all" in i.parts:
            n = int(i.args[0]) if i.args else -1
            for e in g.pend:
                go = e["m"] & (True if m is None else m) & (True if n < 0 else e["g"] < g.cg - n)
                if go.any():
                    for b in range(e["n"] // 4):
                        ld = go & (4 * b < e["z"])
                        v = s.gload(e["a"] + 4 * b, U32, 1, ld, g)[0] if ld.any() else np.zeros(g.n, U32)
                        s.sstore(e["d"] + 4 * b, [np.where(ld, v, U32(0))], go, g)
                    e["m"] &= ~go
            g.pend = [e for e in g.pend if e["m"].any()]
            return
        d, a, n = g.addr(i.args[0]) & 0xFFFFFFFF, g.addr(i.args[1]), int(i.args[2], 0)
        z = np.broadcast_to(np.asarray(g.get(i.args[3], "u32") if len(i.args) > 3 else U32(n)).astype(I64), g.n)
        mk = np.ones(g.n, bool) if m is None else m.copy()
        s.scheck(d, n, m, "cp.async write")
        s.gcheck(a, n, mk & (z > 0), g, "cp.async read")
        for b in range(n // 4):
            s.sstore(d + 4 * b, [np.full(g.n, 0xFFFFFFFF, U32)], m, g)
        g.pend.append(dict(m=mk, g=g.cg.copy(), d=d.copy(), a=a.copy(), n=n, z=z.copy()))
