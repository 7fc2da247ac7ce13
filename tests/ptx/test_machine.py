"""The PTX interpreter itself: values, bounds, races on shared memory, and a tensor-core product."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptx import Machine, PtxError, bf16

HEAD = ".version 8.8\n.target sm_80\n.address_size 64\n"
ADD_ONE = (
    HEAD
    + """
.visible .entry add_one(.param .u64 x, .param .u32 n)
{
  .reg .pred %p<2>; .reg .b32 %r<6>; .reg .b64 %rd<4>; .reg .f32 %f<3>;
  ld.param.u64 %rd1, [x];
  ld.param.u32 %r1, [n];
  mov.u32 %r2, %ctaid.x;
  mov.u32 %r3, %tid.x;
  mad.lo.s32 %r4, %r2, 32, %r3;
  setp.ge.s32 %p1, %r4, %r1;
  @%p1 bra $done;
  mul.wide.s32 %rd2, %r4, 4;
  add.s64 %rd3, %rd1, %rd2;
  ld.global.f32 %f1, [%rd3];
  add.f32 %f2, %f1, 0f3F800000;
  st.global.f32 [%rd3], %f2;
$done:
  ret;
}
"""
)


def test_values_and_predication() -> None:
    x = np.arange(40, dtype=np.float32)
    Machine(ADD_ONE).run("add_one", (2,), (32,), [x, np.int32(37)])
    assert np.array_equal(x, np.arange(40) + (np.arange(40) < 37))


def test_a_read_past_the_end_is_reported() -> None:
    with pytest.raises(PtxError, match="OUT OF BOUNDS global read of 4 bytes: buffer 0, offset 160 of 160"):
        Machine(ADD_ONE).run("add_one", (2,), (32,), [np.zeros(40, np.float32), np.int32(41)])


REVERSE = (
    HEAD
    + """
.shared .align 4 .b8 tile[256];
.visible .entry reverse(.param .u64 x)
{
  .reg .b32 %r<8>; .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [x];
  mov.u32 %r1, %tid.x;
  shl.b32 %r2, %r1, 2;
  mov.u32 %r3, tile;
  add.s32 %r4, %r3, %r2;
  st.shared.b32 [%r4], %r1;
  BARRIER
  sub.s32 %r5, 252, %r2;
  add.s32 %r6, %r3, %r5;
  ld.shared.b32 %r7, [%r6];
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd3, %rd1, %rd2;
  st.global.b32 [%rd3], %r7;
  ret;
}
"""
)


@pytest.mark.parametrize("mode", ["lockstep", "warps"])
def test_a_missing_barrier_is_a_race(mode: str) -> None:
    x = np.zeros(64, np.int32)
    machine = Machine(REVERSE.replace("BARRIER", "bar.sync 0;")).run("reverse", (1,), (64,), [x], mode=mode)
    assert np.array_equal(x, np.arange(64)[::-1]) and not machine.races
    machine = Machine(REVERSE.replace("BARRIER", "")).run("reverse", (1,), (64,), [x], mode=mode)
    assert "read after write" in " ".join(machine.races.values()) or "write after read" in " ".join(
        machine.races.values()
    )


MMA = (
    HEAD
    + """
.visible .entry product(.param .u64 a, .param .u64 b, .param .u64 c)
{
  .reg .b32 %r<12>; .reg .b64 %rd<8>; .reg .f32 %f<8>;
  ld.param.u64 %rd1, [a];
  ld.param.u64 %rd2, [b];
  ld.param.u64 %rd3, [c];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd4, %r1, 16;
  add.s64 %rd5, %rd1, %rd4;
  ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd5];
  mul.wide.u32 %rd6, %r1, 8;
  add.s64 %rd6, %rd2, %rd6;
  ld.global.v2.b32 {%r6, %r7}, [%rd6];
  mov.f32 %f4, 0f00000000;
  mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r2, %r3, %r4, %r5}, {%r6, %r7},
    {%f4, %f4, %f4, %f4};
  add.s64 %rd7, %rd3, %rd4;
  st.global.v4.f32 [%rd7], {%f0, %f1, %f2, %f3};
  ret;
}
"""
)


def test_a_tensor_core_product_in_the_layout_of_the_isa() -> None:
    # Row g of A, columns 2t and 2t+1, then rows + 8, then columns + 8: the ISA's table for m16n8k16.
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((16, 16)).astype(np.float32), rng.standard_normal((16, 8)).astype(np.float32)
    a, b = ((bf16(m).astype(np.uint32) << 16).view(np.float32) for m in (a, b))
    lane = np.arange(32)
    g, t = lane // 4, lane % 4 * 2
    bits = {"a": bf16(a).astype(np.uint32), "b": bf16(b).astype(np.uint32)}
    pair = lambda m, r0, c0, r1, c1: bits[m][r0, c0] | bits[m][r1, c1] << 16  # noqa: E731
    fa = np.stack(
        [pair("a", g + 8 * (r & 1), t + 8 * (r >> 1), g + 8 * (r & 1), t + 1 + 8 * (r >> 1)) for r in range(4)]
    )
    fb = np.stack([pair("b", t + 8 * r, g, t + 1 + 8 * r, g) for r in range(2)])
    c = np.zeros((32, 4), np.float32)
    args = [np.ascontiguousarray(fa.T.astype(np.uint32)), np.ascontiguousarray(fb.T.astype(np.uint32)), c]
    Machine(MMA).run("product", (1,), (32,), args)
    found = np.zeros((16, 8), np.float32)
    for r in range(4):
        found[g + 8 * (r >> 1), t + (r & 1)] = c[:, r]
    np.testing.assert_allclose(found, a @ b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [("add.s32", sum(range(-32, 0))), ("min.s32", -32), ("max.s32", -1), ("and.b32", -32), ("or.b32", -1)],
)
def test_a_warp_is_reduced_to_one_number(operation: str, expected: int) -> None:
    code = (
        HEAD
        + f"""
.visible .entry reduce(.param .u64 x)
{{
  .reg .b32 %r<6>; .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [x];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd3, %rd1, %rd2;
  ld.global.b32 %r2, [%rd3];
  mov.b32 %r3, -1;
  redux.sync.{operation} %r4, %r2, %r3;
  st.global.b32 [%rd3], %r4;
  ret;
}}
"""
    )
    x = np.concatenate([np.arange(-32, 0), np.full(32, 7)]).astype(np.int32)
    Machine(code).run("reduce", (1,), (64,), [x])
    other = 7 * 32 if operation == "add.s32" else 7
    assert (x[:32] == expected).all() and (x[32:] == other).all()


def test_what_is_not_modelled_is_refused() -> None:
    with pytest.raises(PtxError, match="not modelled: wgmma"):
        Machine(ADD_ONE.replace("ret;", "wgmma.fence.sync.aligned;\n  ret;")).run(
            "add_one", (1,), (32,), [np.zeros(32, np.float32), np.int32(1)]
        )
