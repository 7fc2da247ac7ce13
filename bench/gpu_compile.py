"""Triton's kernels compiled ahead of time, with no GPU: machine code, and what it says about itself.

`compiled` builds one kernel of the launch table for one architecture; `facts` reads registers, local memory, shared
memory, tensor-core instructions and access widths out of the machine code, with the disassembler triton ships.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hhmpn_fast.kernels import attention_bwd, attention_fwd, readout_kernels, update_bwd, update_fwd
from hhmpn_fast.kernels.configs import Launch, launch
from hhmpn_fast.kernels.runtime import row_constants, step

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
FUNCTIONS = {
    "attention_fwd": attention_fwd.attention_fwd,
    "attention_dq": attention_bwd.attention_dq,
    "attention_dx": attention_bwd.attention_dx,
    "attention_fwd_short": attention_fwd.attention_fwd,
    "attention_dq_short": attention_bwd.attention_dq,
    "attention_dx_short": attention_bwd.attention_dx,
    "update_labels_fwd": update_fwd.update_labels_fwd,
    "update_features_fwd": update_fwd.update_features_fwd,
    "rows_product": update_bwd.rows_product,
    "weight_product": update_bwd.weight_product,
    "readout_fwd": readout_kernels.readout_fwd,
    "readout_bwd": readout_kernels.readout_bwd,
    "joint_bce_fwd": readout_kernels.joint_bce_fwd,
}
KINDS = {"bf16": "half", "fp16": "half", "tf32": "tf32", "ieee": "ieee"}
_TYPES = {
    "*fp32": "lse dlse delta partial partial_bias partial_wl partial_wo".split(),
    "*i32": ["q_offsets", "x_offsets"],
    "*i64": ["rng"],
    "*i1": ["mask", "present"],
    "fp32": ["scale", "intermediate"],
    "i64": ["threshold"],
    "i32": "stride_q stride_x stride_mask rows rows_u dim queries samples groups keys_total site sources span "
    "modalities batch labels steps count".split(),
}
_OWN = {"joint_bce_fwd": {"out": "*fp32", "dlogits": "*fp32"}}  # where a name means another type
_ALIGNED = ("dim", "stride_q", "stride_x")  # as the JIT finds them for d a multiple of 16


def table_name(kernel: str) -> str:
    """The launch table's name of a kernel."""
    return "readout" if kernel.startswith("readout") else kernel


def constants(kernel: str, kind: str, dim: int, entry: Launch, **flags: Any) -> dict[str, Any]:
    """The constants a kernel is compiled with: the table's tiles, dropout on, no mask."""
    wide = row_constants(dim)
    common = {"DROPOUT": True, "PRECISION": "ieee" if kind == "ieee" else "tf32"}
    if kernel.startswith("attention"):
        out = {**wide, **common, "BM": entry.m, "BN": entry.n, "BK": step(entry.k, dim), "MASK": False, "SELF": False}
    elif kernel == "joint_bce_fwd":
        out = {"WEIGHTED": True, "B": entry.m}
    elif kernel.startswith("readout"):
        out = {"D": wide["D"], "BB": entry.m, "MP": 4}
    else:
        n, k = step(entry.n, dim), step(entry.k, dim)
        out = {**common, "BM": entry.m, "BK": k}
        if kernel.startswith("update"):
            out |= {**wide, "BH": n, "SAVE": True}
        elif kernel == "rows_product":
            out |= {"BN": n, "TWO": True, "GATE": False, "RESIDUAL": False}
        else:
            out |= {"BN": n, "SUM": False}
    return out | flags


def signature(function: Any, dtype: str, fixed: dict[str, Any]) -> dict[str, str]:
    """Triton's type of every argument."""
    element = {"bf16": "*bf16", "fp16": "*fp16"}.get(dtype, "*fp32")
    named = {name: kind for kind, names in _TYPES.items() for name in names} | _OWN.get(function.__name__, {})
    return {a: "constexpr" if a in fixed else named.get(a, element) for a in function.arg_names}


@cache
def compiled(kernel: str, dtype: str, dim: int, architecture: str, flags: tuple[tuple[str, Any], ...] = ()) -> Any:
    """One kernel for one architecture, as `triton.compile` gives it."""
    return build(kernel, dtype, dim, architecture, launch(table_name(kernel), KINDS[dtype], dim, architecture), flags)


def build(
    kernel: str,
    dtype: str,
    dim: int,
    architecture: str,
    entry: Launch,
    flags: tuple[tuple[str, Any], ...] = (),
    function: Any = None,
) -> Any:
    """One kernel (or a changed copy of it) with any launch configuration."""
    function = function or FUNCTIONS[kernel]
    fixed = constants(kernel, KINDS[dtype], dim, entry, **dict(flags))
    types = signature(function, dtype, fixed)
    aligned = [i for i, a in enumerate(function.arg_names) if types[a][0] == "*" or (a in _ALIGNED and dim % 16 == 0)]
    source = ASTSource(
        function,
        signature=types,
        constexprs={(function.arg_names.index(name),): value for name, value in fixed.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    return triton.compile(source, target=TARGETS[architecture], options=entry.options)


@dataclass(frozen=True)
class Facts:
    """What a kernel takes of a multiprocessor, and how it reaches memory and the tensor cores."""

    registers: int
    local: int  # bytes of stack and spilled registers; instructions that reach local memory
    shared: int
    tensor: int  # columns of tensor memory (sm_100)
    warps: int
    tensor_instructions: int
    wide_loads: int
    wide_stores: int
    blocks: int


_PARTS = {  # registers, shared bytes, threads, bytes of shared memory a block costs besides its own; of one unit
    "sm80": (65536, 164 * 1024, 2048, 1024),
    "sm90": (65536, 228 * 1024, 2048, 1024),
    "sm100": (65536, 228 * 1024, 2048, 1024),
}
LIMITS = {"sm80": 163 * 1024, "sm90": 227 * 1024, "sm100": 227 * 1024, "gfx942": 64 * 1024}


def facts(kernel: Any, architecture: str) -> Facts:
    """The facts of a compiled kernel."""
    meta = kernel.metadata
    if architecture == "gfx942":
        return _amd(kernel.asm["amdgcn"], meta)
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([tools / "cuobjdump", flag, file.name], check=True, capture_output=True, text=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    held = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", code)
    ops = Counter(found)

    def count(pattern: str) -> int:
        return sum(n for op, n in ops.items() if re.match(pattern, op))

    threads, tensor = 32 * meta.num_warps, getattr(meta, "tmem_size", 0) or 0
    registers, shared, most, extra = _PARTS[architecture]
    each = -(-held["REG"] * 32 // 256) * 256 * meta.num_warps
    blocks = min(registers // each, shared // (meta.shared + extra), most // threads, 512 // tensor if tensor else 32)
    return Facts(
        registers=held["REG"],
        local=held["STACK"] + held["LOCAL"] + count("LDL|STL"),
        shared=meta.shared,
        tensor=tensor,
        warps=meta.num_warps,
        tensor_instructions=count("HMMA|HGMMA|UTC.*MMA"),
        wide_loads=count(r"LDG\..*128|LDGSTS.*128|UTMALDG|UBLKCP"),
        wide_stores=count(r"STG\..*128|UTMASTG"),
        blocks=blocks,
    )


def _amd(text: str, meta: Any) -> Facts:
    def value(key: str) -> int:
        match = re.search(rf"\.{key}:\s*(\d+)", text)
        return int(match[1]) if match else 0

    def count(pattern: str) -> int:
        return len(re.findall(pattern, text))

    # 512 registers a lane, vector and accumulation together, for the waves of one SIMD; four SIMDs a unit.
    vector = value("vgpr_count")
    waves = min(512 // max(-(-vector // 8) * 8, 1), 8) * 4
    blocks = min(waves // meta.num_warps, 65536 // max(meta.shared, 1), 16)
    return Facts(
        registers=vector,
        local=value("private_segment_fixed_size") + value("vgpr_spill_count"),
        shared=meta.shared,
        tensor=0,
        warps=meta.num_warps,
        tensor_instructions=count(r"\bv_mfma"),
        wide_loads=count(r"(?:global|buffer)_load_dwordx4"),
        wide_stores=count(r"(?:global|buffer)_store_dwordx4"),
        blocks=blocks,
    )
