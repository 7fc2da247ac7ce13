"""The machine: blocks, barriers, and the loop that runs lanes until they meet one."""

from __future__ import annotations

import struct

import numpy as np

from tests.ptx.instructions import Arithmetic
from tests.ptx.lanes import Group
from tests.ptx.memory import Memory
from tests.ptx.memory_instructions import MemoryInstructions
from tests.ptx.parse import Module
from tests.ptx.types import I32, I64, SHIFT, U8, U32, PtxError
from tests.ptx.warp_instructions import WarpInstructions


class Ops(Arithmetic, MemoryInstructions, WarpInstructions):
    """Every instruction modelled, as op_<name>(instruction, lanes, mask, machine)."""


class Sim(Memory):
    def __init__(self, text):
        self.mod = Module(text)

    def run(self, name, grid, block, args, smem=0, mode="lockstep", seed=0, chunk=1 << 15, check=True):
        """Launches a kernel on this machine.

        args: in parameter order, numpy arrays (pointers, written in place), numpy scalars and None (null); or one
        callable(pointer_of) that returns the parameter block's bytes, for parameters that are structs.
        """
        k = self.mod.kernels[name]
        self.check = check
        self.races = {}
        if not hasattr(k, "ready"):
            self.mod.compile(k)
        self.k, self.grid, self.block, self.rng, self.count = (
            k,
            tuple(grid) + (1,) * (3 - len(grid)),
            tuple(block) + (1,) * (3 - len(block)),
            np.random.default_rng(seed),
            0,
        )
        self.bufs, self.symaddr = [], {}

        def ptr(x):
            assert x.flags.c_contiguous
            self.bufs.append(x.reshape(-1).view(U8))
            return len(self.bufs) << SHIFT

        if callable(args):
            blob = args(ptr)
        else:
            blob = bytearray(k.nparam)
            for (off, n), x in zip(k.params.values(), args):
                b = (
                    struct.pack("<Q", 0 if x is None else ptr(x))
                    if x is None or isinstance(x, np.ndarray) and x.ndim
                    else np.asarray(x).tobytes()
                )
                assert len(b) == n, (len(b), n)
                blob[off : off + n] = b
        self.param = np.frombuffer(bytes(blob), U8)
        for n, (off, _) in k.params.items():
            self.symaddr[n] = off
        for n, c in self.mod.consts.items():
            self.symaddr[n] = ptr(c)
        off = 0
        for n, (al, sz) in sorted(k.shared.items(), key=lambda x: x[1][1] == 0):
            off = -(-off // al) * al
            self.symaddr[n] = off
            off += sz
        self.smem_bytes = off + smem
        nt = int(np.prod(self.block))
        nb = int(np.prod(self.grid))
        per = max(1, chunk // nt)
        order = self.rng.permutation(nb)
        for i in k.code:
            if not hasattr(i, "fn"):
                i.fn = getattr(Ops, "op_" + i.parts[0].replace("@", ""), None)
            if i.fn is None and i.parts[0] not in ("bra", "ret", "exit", "barrier"):
                raise PtxError(f"instruction not modelled: {i.text}")
        for b0 in range(0, nb, per):
            self.run_blocks(np.sort(order[b0 : b0 + per]), nt, mode)
        return self

    def run_blocks(self, blocks, nt, mode):
        self.nb = len(blocks)
        self.sm = np.full((self.nb, -(-max(self.smem_bytes, 16) // 16) * 16), 0xFF, U8)
        W = self.sm.shape[1] // 4

        def z(t, v=-1):
            return np.full((self.nb, W), v, t)

        self.wt, self.we, self.ww, self.rt, self.re, self.rw, self.rm = (
            z(I32),
            z(I32),
            z(I32),
            z(I32),
            z(I32),
            z(I32),
            z(U32, 0),
        )
        self.ep = np.zeros(self.nb, I32)
        self.wep = np.zeros((self.nb, 32), I32)
        self.races = getattr(self, "races", {})
        B, t = np.meshgrid(np.arange(self.nb), np.arange(nt), indexing="ij")
        gs = []
        sel = [np.ones(B.size, bool)] if mode == "lockstep" else [(t.ravel() >> 5) == w for w in range(-(-nt // 32))]
        for s in sel:
            g = Group(self, self.k, t.ravel()[s], blocks[B.ravel()[s]])
            g.bi = B.ravel()[s]
            gs.append(g)
        while True:
            for j in self.rng.permutation(len(gs)):
                self.run_group(gs[j])
            if all(g.done.all() for g in gs):
                return
            ok = np.ones(self.nb, bool)
            lo = np.full(self.nb, 1 << 60)
            hi = np.full(self.nb, -1)
            for g in gs:
                np.logical_and.at(ok, g.bi, g.done | g.wait)
                w = g.wait
                np.minimum.at(lo, g.bi[w], g.pc[w])
                np.maximum.at(hi, g.bi[w], g.pc[w])
            if (lo[hi >= 0] != hi[hi >= 0]).any():
                raise PtxError("barrier divergence: threads of one block wait at different bar.sync")
            if not ok.any():
                raise PtxError("deadlock at a barrier")
            self.ep += 1
            red = {}
            for g in gs:  # bar.red: popc / and / or over the block
                for pc in np.unique(g.pc[g.wait & ok[g.bi]]):
                    i = self.k.code[pc]
                    if "red" in i.parts:
                        sel = g.wait & ok[g.bi] & (g.pc == pc)
                        a = i.args[-1]
                        p = g.r[a.lstrip("!")]
                        p = ~p if a[0] == "!" else p
                        c, n = red.setdefault(int(pc), (np.zeros(self.nb, I64), np.zeros(self.nb, I64)))
                        np.add.at(c, g.bi[sel], p[sel])
                        np.add.at(n, g.bi[sel], 1)
            for pc, (c, n) in red.items():
                i = self.k.code[pc]
                for g in gs:
                    sel = g.wait & ok[g.bi] & (g.pc == pc)
                    g.set(
                        i.args[0],
                        (c if "popc" in i.parts else c > 0 if "or" in i.parts else c == n)[g.bi].astype(
                            U32 if "popc" in i.parts else bool
                        ),
                        sel,
                    )
            for g in gs:
                r = g.wait & ok[g.bi]
                g.wait[r] = False
                g.pc[r] += 1

    def run_group(self, g):
        code, end = self.k.code, len(self.k.code)
        while True:
            act = ~(g.done | g.wait)
            if not act.any():
                return
            pc = int(g.pc[act].min())
            m = act & (g.pc == pc)
            full = bool(m.all())
            mm = None if full else m
            nxt = int(g.pc[act & ~m].min()) if not full and (act & ~m).any() else 1 << 60  # reconverge there
            while True:
                if pc >= end:
                    g.done[m] = True
                    break
                i = code[pc]
                self.count += 1
                self.pcnow = pc
                ex = mm
                if i.pred is not None:
                    p = g.r[i.pred]
                    p = ~p if i.neg else p
                    ex = p.copy() if mm is None else p & m
                    if i.parts[0] not in ("bra", "ret", "exit"):
                        if not ex.any():
                            pc += 1
                            g.pc[m] = pc
                        else:
                            if ex.all():
                                ex = None
                            self.do(i, g, ex)
                            pc += 1
                        if pc == nxt:
                            g.pc[m] = pc
                            break
                        continue
                if i.parts[0] == "bra":
                    tgt = self.k.labels[i.args[0]]
                    if i.pred is None:
                        pc = tgt
                    else:
                        n = int(ex.sum())
                        if n == 0:
                            pc += 1
                        elif n == int(m.sum()):
                            pc = tgt
                        else:
                            g.pc[m] = pc + 1
                            g.pc[ex] = tgt
                            break
                    if pc >= nxt or tgt <= pc:
                        g.pc[m] = pc
                        break
                    continue
                if i.parts[0] in ("ret", "exit"):
                    e = m if i.pred is None else ex
                    g.done[e] = True
                    if i.pred is None:
                        break
                    g.pc[m] = pc + 1
                    break
                if i.parts[0] in ("bar", "barrier") and "warp" not in i.parts:
                    if (
                        "arrive" in i.parts
                        or "cluster" in i.parts
                        or (("red" not in i.parts) and i.args[0] != "0")
                        or ("red" in i.parts and i.args[1] != "0")
                        or len(i.args) > (3 if "red" in i.parts else 1)
                    ):
                        raise PtxError("barrier form not modelled: " + i.text)
                    g.pc[m] = pc
                    g.wait[m] = True
                    break
                self.do(i, g, mm)
                pc += 1
                if pc == nxt:
                    g.pc[m] = pc
                    break

    def do(self, i, g, m):
        self.cur = self.pcnow
        try:
            with np.errstate(all="ignore"):
                i.fn(i, g, m, self)
        except PtxError as e:
            raise PtxError(
                f"{e}\n   at PTX line {i.line}: {i.text}" + (f"   (.loc {i.loc})" if i.loc else "")
            ) from None
