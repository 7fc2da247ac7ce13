"""Triton's kernels compiled ahead of time, with no GPU: machine code, and what it says about itself.

`compiled` builds a form of a kernel, as its op launches it, for one architecture; `facts` reads registers, local
memory, shared memory, tensor-core instructions and access widths out of the machine code, with the disassembler
triton ships.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.gpu.launches import recorded
from hhmpn_fast.kernels.launch import Launch

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*u1",
}


@dataclass
class Signature:
    """Triton's types of a launch's arguments, in its kernel's order, as the JIT finds them.

    types: by name, records as records; "constexpr" for what is compiled in.  constants, attrs: by place, as
    `ASTSource` takes them.
    """

    types: dict[str, Any] = field(default_factory=dict)
    constants: dict[tuple[int, ...], Any] = field(default_factory=dict)
    attrs: dict[tuple[int, ...], list] = field(default_factory=dict)

    @classmethod
    def of(cls, launch: Launch) -> Signature:
        """A launch's; every pointer is aligned, as allocations are."""
        out, function = cls(), launch.function
        for place, parameter in enumerate(function.params):
            if parameter.name == "form":
                out.types["form"], out.constants[place,] = "constexpr", launch.form
            else:
                value, free = launch.arguments[parameter.name], parameter.do_not_specialize
                out.types[parameter.name] = out._type(value, (place,), not free)
        return out

    def _type(self, value: Any, path: tuple[int, ...], specialise: bool) -> Any:
        if isinstance(value, tuple):  # whose fields are always specialised
            return type(value)(*(self._type(v, (*path, n), True) for n, v in enumerate(value)))
        if value is None or (specialise and type(value) is int and value == 1):
            self.constants[path] = value
            return "constexpr"
        if isinstance(value, Tensor) or (specialise and type(value) is int and value % 16 == 0):
            self.attrs[path] = [["tt.divisibility", 16]]
        if isinstance(value, Tensor):
            return _POINTERS[value.dtype]
        return "fp32" if isinstance(value, float) else "i32" if -(2**31) <= value < 2**31 else "i64"


@cache
def _launches(dtype: str, dim: int, architecture: str) -> dict[tuple[str, str], Launch]:
    return recorded(dtype, dim, architecture)


@cache
def compiled(kernel: str, dtype: str, dim: int, architecture: str, form: str = "") -> Any:
    """One form of a kernel for one architecture, as `triton.compile` gives it."""
    return build(_launches(dtype, dim, architecture)[kernel, form], architecture)


def build(launch: Launch, architecture: str) -> Any:
    """What a launch would run on an architecture."""
    found = Signature.of(launch)
    source = ASTSource(launch.function, signature=found.types, constexprs=found.constants, attrs=found.attrs)
    return triton.compile(source, target=TARGETS[architecture], options=launch.entry.options)


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
