"""Global and shared memory: bounds, alignment, and happens-before races on shared words."""

from __future__ import annotations

import numpy as np

from tests.ptx.types import I32, I64, SHIFT, U32, PtxError


def _clash(t, ep, wp, we, other, other_ep, other_we):
    """Whether another thread touched the word in this block epoch, unless a warp barrier lies between the two."""
    return (other_ep == ep) & (other != t) & ~((other >> 5 == wp) & (other_we != we))


class Memory:
    """Loads and stores of a simulator, each address checked."""

    def gcheck(self, a, n, m, g, what):
        b = a >> SHIFT
        o = a & ((1 << SHIFT) - 1)
        am = a if m is None else a[m]
        if not am.size:
            return b, o
        bm, om = am >> SHIFT, am & ((1 << SHIFT) - 1)
        lens = np.array([0] + [len(x) for x in self.bufs], I64)
        bad = (bm < 1) | (bm > len(self.bufs))
        bad |= om + n > lens[np.where(bad, 0, bm)]
        if bad.any():
            j = int(np.flatnonzero(bad)[0])
            l = j if m is None else int(np.flatnonzero(m)[j])
            bb = int(bm[j])
            raise PtxError(
                f"OUT OF BOUNDS global {what} of {n} bytes: buffer {bb - 1}, offset {int(om[j])} of "
                f"{int(lens[bb]) if 0 < bb < len(lens) else '?'}; block {int(g.blk[l])} thread {int(g.tid[l])}; "
                f"{int(bad.sum())} lanes"
            )
        if (om % n).any():
            raise PtxError(f"MISALIGNED global {what} of {n} bytes")
        return b, o

    def gload(self, a, d, cnt, m, g):
        sz = np.dtype(d).itemsize
        b, o = self.gcheck(a, sz * cnt, m, g, "read")
        out = [np.zeros(g.n, d) for _ in range(cnt)]
        for bb in np.unique(b if m is None else b[m]):
            s = (b == bb) if m is None else m & (b == bb)
            v = self.bufs[bb - 1]
            v = v[: len(v) // sz * sz].view(d)
            ix = o[s] // sz
            for c in range(cnt):
                out[c][s] = v[ix + c]
        return out

    def gstore(self, a, vals, m, g):
        sz = vals[0].dtype.itemsize
        b, o = self.gcheck(a, sz * len(vals), m, g, "write")
        for bb in np.unique(b if m is None else b[m]):
            s = (b == bb) if m is None else m & (b == bb)
            v = self.bufs[bb - 1]
            v = v[: len(v) // sz * sz].view(vals[0].dtype)
            ix = o[s] // sz
            for c, x in enumerate(vals):
                v[ix + c] = x[s]

    def scheck(self, a, n, m, what):
        am = a if m is None else a[m]
        if am.size and ((am < 0) | (am + n > self.smem_bytes)).any():
            raise PtxError(f"OUT OF BOUNDS shared {what}: offset {int(am.max())} + {n} of {self.smem_bytes}")
        if am.size and (am % n).any():
            raise PtxError(f"MISALIGNED shared {what} of {n} bytes")

    def race(self, a, n, m, g, write, vals=None):
        """happens-before check on 4-byte words: bar.sync orders a block, bar.warp.sync a warp, nothing else does"""
        if n < 4 or not self.check:
            return
        l = np.arange(g.n) if m is None else np.flatnonzero(m)
        for c in range(0, n, 4):
            b, w, t = g.bi[l], ((a[l] & 0xFFFFFFFF) + c) >> 2, g.tid[l].astype(I32)
            wp = t >> 5
            ep, we = self.ep[b], self.wep[b, wp]

            bad = _clash(t, ep, wp, we, self.wt[b, w], self.we[b, w], self.ww[b, w])
            kind = "write after write" if write else "read after write"
            other = self.wt[b, w]
            if write and vals is not None:
                nv = vals[c // 4].view(U32)[l]
                bad &= self.sm.view(U32)[b, w] != nv  # the same value again is harmless
            if write and not bad.any():
                bad = _clash(t, ep, wp, we, self.rt[b, w], self.re[b, w], self.rw[b, w]) | (
                    (self.re[b, w] == ep) & ((self.rm[b, w] & ~(U32(1) << wp.astype(U32))) != 0)
                )
                kind, other = "write after read", self.rt[b, w]
            if bad.any():
                j = int(np.flatnonzero(bad)[0])
                i = self.k.code[self.cur]
                self.races.setdefault(
                    (i.line, kind),
                    f"RACE ({kind}) shared+{int(w[j]) * 4}: block {int(g.blk[l[j]])} thread {int(t[j])} against thread "
                    f"{int(other[j])}; PTX line {i.line}: {i.text[:90]}" + (f"  (.loc {i.loc})" if i.loc else ""),
                )
            if write:
                self.wt[b, w], self.we[b, w], self.ww[b, w] = t, ep, we
                dup = self.wt[b, w] != t
                if dup.any() and vals is not None:
                    first = np.zeros(self.sm.shape[1] // 4 * self.nb, U32)
                    key = b * (self.sm.shape[1] // 4) + w
                    first[key] = nv
                    dup &= first[key] != nv
                if dup.any():
                    i = self.k.code[self.cur]
                    self.races.setdefault(
                        (i.line, "same"),
                        f"RACE two lanes of one store write the same word; PTX line {i.line}: {i.text[:90]}",
                    )
            else:
                new = self.re[b, w] != ep
                self.rm[b[new], w[new]] = 0
                np.bitwise_or.at(self.rm, (b, w), U32(1) << wp.astype(U32))
                self.rt[b, w], self.re[b, w], self.rw[b, w] = t, ep, we

    def ldrace(self, a, g, W, n):
        if not self.check:
            return
        full = np.zeros((g.n // 32, 32), I64)
        full[W, : 8 * n] = a
        mk = np.zeros((g.n // 32, 32), bool)
        mk[W, : 8 * n] = True
        self.race(full.ravel(), 16, mk.ravel(), g, False)

    def sload(self, a, d, cnt, m, g):
        sz = np.dtype(d).itemsize
        a = a & 0xFFFFFFFF
        self.scheck(a, sz * cnt, m, "read")
        self.race(a, sz * cnt, m, g, False)
        v = self.sm.view(d)
        ix = a // sz
        if m is None:
            return [v[g.bi, ix + c] for c in range(cnt)]
        out = [np.zeros(g.n, d) for _ in range(cnt)]
        for c in range(cnt):
            out[c][m] = v[g.bi[m], ix[m] + c]
        return out

    def sstore(self, a, vals, m, g):
        sz = vals[0].dtype.itemsize
        a = a & 0xFFFFFFFF
        self.scheck(a, sz * len(vals), m, "write")
        words = None
        if sz * len(vals) % 4 == 0:
            words = list(np.ascontiguousarray(np.stack(vals, 1)).view(U32).T)
        self.race(a, sz * len(vals), m, g, True, words)
        v = self.sm.view(vals[0].dtype)
        ix = a // sz
        mm = slice(None) if m is None else m
        for c, x in enumerate(vals):
            v[g.bi[mm], ix[mm] + c] = x[mm]
