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

from bench.gpu_compile import KINDS, LIMITS, Facts

ARCHITECTURES = ("sm80", "sm90", "sm100", "gfx942")
KERNELS = (
    "attention_fwd",
    "attention_dq",
    "attention_dx",
    "attention_fwd_short",
    "attention_dq_short",
    "attention_dx_short",
    "update_labels_fwd",
    "update_features_fwd",
    "rows_product",
    "weight_product",
    "readout_fwd",
    "readout_bwd",
    "joint_bce_fwd",
)
_ATTENTION = {"no dropout": {"DROPOUT": False}, "exclude_self": {"SELF": True}}
_UPDATE = {"inference": {"DROPOUT": False, "SAVE": False}}
FORMS: dict[str, dict[str, dict[str, bool]]] = {  # kernel -> form -> flags: what the ops launch beside the main form
    "attention_fwd": _ATTENTION,
    "attention_dq": _ATTENTION,
    "attention_dx": _ATTENTION,
    "attention_fwd_short": _ATTENTION | {"mask": {"MASK": True}},
    "attention_dq_short": _ATTENTION | {"mask": {"MASK": True}},
    "attention_dx_short": _ATTENTION | {"mask": {"MASK": True}},
    "update_labels_fwd": _UPDATE,
    "update_features_fwd": _UPDATE,
    "rows_product": {
        "dropout, gate": {"TWO": False, "GATE": True},
        "residual": {"TWO": False, "DROPOUT": False, "RESIDUAL": True},
        "one product": {"TWO": False, "DROPOUT": False},
        "two products": {"DROPOUT": False},
    },
    "weight_product": {"no dropout": {"DROPOUT": False}, "sum of sources": {"SUM": True, "DROPOUT": False}},
}
BLOCKS = {  # (kernel, kind): blocks a multiprocessor; 1 where not named
    ("attention_fwd_short", "half"): 3,
    ("attention_dq", "half"): 2,
    ("attention_dq_short", "half"): 2,
    ("attention_dx_short", "half"): 2,
    ("readout_fwd", "half"): 4,
    ("readout_bwd", "half"): 4,
}


def named(kernel: str, form: str) -> tuple[tuple[str, bool], ...]:
    """The flags of a form, "" for the main one."""
    return tuple(FORMS[kernel][form].items()) if form else ()


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
