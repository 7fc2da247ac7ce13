"""Threads that step together: registers, one array element a thread, and operand access."""

from __future__ import annotations

import re
import struct

import numpy as np

from tests.ptx.types import F32, F64, I64, U8, U16, U32, U64, PtxError, T


class Group:  # lanes that step together, with their registers
    def __init__(self, sim, k, tid, blk):
        self.s, self.k, self.n = sim, k, len(tid)
        self.tid, self.blk = tid, blk
        self.r = {n: np.zeros(self.n, T[t]) for n, t in k.regs.items()}
        self.pc = np.zeros(self.n, I64)
        self.wait = np.zeros(self.n, bool)
        self.done = np.zeros(self.n, bool)
        self.cg = np.zeros(self.n, I64)
        self.pend = []
        bx, by, bz = sim.block
        gx, gy, gz = sim.grid

        def z(a):
            return a.astype(U32)

        self.sp = {
            "%tid.x": z(tid % bx),
            "%tid.y": z(tid // bx % by),
            "%tid.z": z(tid // (bx * by)),
            "%ntid.x": U32(bx),
            "%ntid.y": U32(by),
            "%ntid.z": U32(bz),
            "%ctaid.x": z(blk % gx),
            "%ctaid.y": z(blk // gx % gy),
            "%ctaid.z": z(blk // (gx * gy)),
            "%nctaid.x": U32(gx),
            "%nctaid.y": U32(gy),
            "%nctaid.z": U32(gz),
            "%laneid": z(tid & 31),
            "WARP_SZ": U32(32),
            "%warpid": z(tid >> 5),
        }

    def get(self, a, t):
        d = T[t]
        if a in self.r:
            x = self.r[a]
            if x.dtype == d:
                return x
            if x.dtype.itemsize == np.dtype(d).itemsize:
                return x.view(d)
            w = {1: U8, 2: U16, 4: U32, 8: U64}[np.dtype(d).itemsize]
            return x.astype(w).view(d)  # a wider register: its low part
        if a in self.sp:
            return self.sp[a] if np.dtype(d).itemsize == 4 else np.asarray(self.sp[a]).astype(d)
        if a.startswith(("0f", "0F")):
            return (
                np.frombuffer(struct.pack("<I", int(a[2:], 16)), F32)[0]
                if d in (F32,)
                else np.frombuffer(struct.pack("<I", int(a[2:], 16)), U32)[0].astype(d)
            )
        if a.startswith(("0d", "0D")):
            return np.frombuffer(struct.pack("<Q", int(a[2:], 16)), F64)[0]
        if re.match(r"-?\d", a):
            v = int(a.rstrip("U"), 0)
            return (
                np.bool_(v)
                if d is np.bool_
                else (
                    np.array(v & ((1 << 8 * np.dtype(d).itemsize) - 1), U64)
                    .astype({1: U8, 2: U16, 4: U32, 8: U64}[np.dtype(d).itemsize])
                    .view(d)[()]
                    if np.dtype(d).kind in "iu"
                    else d(v)
                )
            )
        if a in self.s.symaddr:
            return d(self.s.symaddr[a])
        if a in ("true", "false"):
            return np.bool_(a == "true")
        raise PtxError("operand " + a)

    def set(self, a, v, m):
        x = self.r[a]
        v = np.asarray(v)
        if x.dtype != v.dtype:
            if x.dtype == np.bool_:
                v = v.astype(bool)
            elif v.dtype.itemsize == x.dtype.itemsize:
                v = v.view(x.dtype) if v.ndim else v[None].view(x.dtype)[0]
            else:
                v = (
                    v.astype(I64)
                    if v.dtype.kind == "i"
                    else v.view({1: U8, 2: U16, 4: U32, 8: U64}[v.dtype.itemsize])
                    if v.ndim
                    else v
                ).astype(x.dtype)
        if m is None:
            x[...] = v
        elif v.ndim:
            x[m] = v[m]
        else:
            x[m] = v

    def addr(self, a):
        m = re.match(r"\[\s*([\w%$.@]+)\s*(?:\+\s*(-?\d+))?\s*\]$", a)
        b = m[1]
        off = int(m[2] or 0)
        base = (
            self.r[b].astype(I64)
            if b in self.r and self.r[b].dtype != U64
            else self.r[b].view(I64)
            if b in self.r
            else np.full(self.n, self.s.symaddr[b] if b in self.s.symaddr else int(b, 0), I64)
        )
        return base + off
