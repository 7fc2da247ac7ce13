"""The budget every compiled kernel is held to.

For every kernel, kind of product and architecture:
    no local memory       neither stack nor spilled registers
    shared memory         within the part's limit a block (163 KiB sm_80, 227 KiB sm_90 and sm_100, 64 KiB gfx942)
    tensor memory         at most 512 columns (sm_100)
    tensor cores          their instructions are there, where the kernel has products and they are not plain fp32
    128-bit accesses      global loads; stores too on NVIDIA
    blocks                at least BLOCKS of them fit a multiprocessor, one at d = 512
"""

from __future__ import annotations

from bench.gpu.compile import LIMITS, Facts
from bench.gpu.launches import KINDS

ARCHITECTURES = ("sm80", "sm90", "sm100", "gfx942")
BLOCKS = {  # (kernel, kind): blocks a multiprocessor; 1 where not named
    ("attention_forward_short", "half"): 3,
    ("attention_d_q", "half"): 2,
    ("attention_d_q_short", "half"): 2,
    ("attention_d_x_short", "half"): 2,
    ("readout_forward", "half"): 4,
    ("readout_backward", "half"): 4,
}


def broken(kernel: str, dtype: str, architecture: str, found: Facts, dim: int = 256) -> list[str]:
    """What of the budget a kernel breaks, a sentence each."""
    out = []
    products = not kernel.startswith(("readout", "joint"))
    if found.local:
        out.append(f"local memory: {found.local}")
    if found.shared > LIMITS[architecture]:
        out.append(f"{found.shared} bytes of shared memory, {LIMITS[architecture]} are there")
    if found.tensor > 512:
        out.append(f"{found.tensor} columns of tensor memory, 512 are there")
    if products and dtype != "ieee" and not found.tensor_instructions:
        out.append("no tensor-core instruction")
    if products and not found.wide_loads:
        out.append("no 128-bit load")
    if products and architecture != "gfx942" and not found.wide_stores:
        out.append("no 128-bit store")
    least = BLOCKS.get((kernel, KINDS[dtype]), 1) if dim <= 256 else 1
    if found.blocks < least:
        out.append(f"{found.blocks} blocks a multiprocessor, the budget is {least}")
    return out
