"""PTX types as numpy types, and the one exception of this package."""

from __future__ import annotations

import numpy as np

U8, U16, U32, U64, I16, I32, I64, F16, F32, F64 = (
    np.uint8,
    np.uint16,
    np.uint32,
    np.uint64,
    np.int16,
    np.int32,
    np.int64,
    np.float16,
    np.float32,
    np.float64,
)
T = dict(
    b8=U8,
    u8=U8,
    s8=np.int8,
    b16=U16,
    u16=U16,
    s16=I16,
    b32=U32,
    u32=U32,
    s32=I32,
    b64=U64,
    u64=U64,
    s64=I64,
    f16=F16,
    f32=F32,
    f64=F64,
    pred=np.bool_,
    bf16=U16,
    f16x2=U32,
    bf16x2=U32,
    tf32=F32,
)
SHIFT = 40  # buffer i lives at (i + 1) << 40


class PtxError(AssertionError):
    """The program did what hardware would not allow, or something this machine does not model."""


def bf16(x):
    """f32 to bf16 bits, round to nearest even."""
    u = np.ascontiguousarray(x, F32).view(U32)
    r = ((u.astype(U64) + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(U16)
    return np.where(np.isnan(x), U16(0x7FFF), r)


def vec(a):
    """The registers of a vector operand."""
    return [x.strip() for x in a.strip()[1:-1].split(",")] if a.strip().startswith("{") else [a.strip()]


def ty(i, k=-1):
    """The instruction's type suffix: the last one, or the k-th."""
    if k == -1:
        return next((p for p in reversed(i.parts[1:]) if p in T), None)
    return [p for p in i.parts[1:] if p in T][k]
