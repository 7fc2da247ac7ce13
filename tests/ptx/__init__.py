"""Runs PTX, nvcc's or Triton's, on the CPU with numpy: one array element a thread.

    machine = ptx.Machine(ptx_text)
    machine.run("kernel", grid=(4,), block=(128,), args=[x, y, np.int32(n)], smem=bytes)     arrays are written in place
    machine.races                                                                           shared-memory races

The sm_80 instruction set: mma.sync of bf16, f16 and tf32, ldmatrix, cp.async, shuffles, votes, barriers, atomics.
Shared memory starts as NaN, cp.async data arrive at the wait only, every global address is checked against the buffers.
Mode "lockstep" runs the grid together; "warps" runs each warp alone from barrier to barrier, in random order, and shows
missing barriers. No timing, no local memory, no wgmma or TMA; an instruction that is not modelled raises `PtxError`.
"""

from tests.ptx.machine import Sim as Machine
from tests.ptx.types import PtxError, bf16

__all__ = ["Machine", "PtxError", "bf16"]
