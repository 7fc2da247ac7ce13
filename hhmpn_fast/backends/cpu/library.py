"""The compiled extension behind the `cpu` backend: loads it, or keeps the one sentence that says why it cannot be."""

from __future__ import annotations

import importlib
import os
from functools import cache

import torch

ISAS = ("avx512_bf16", "avx512", "avx2", "portable")


@cache
def load_error() -> str | None:
    """None once `torch.ops.hhmpn_fast` is there, else the reason."""
    try:
        importlib.import_module("hhmpn_fast._C")
    except ImportError as error:
        if "No module named 'hhmpn_fast._C'" in str(error):
            return "the C++ extension is not built: run `pip install -e .` where torch and a C++ compiler are"
        return f"the C++ extension does not load, it was built for another torch or machine: {error}"
    try:
        torch.ops.hhmpn_fast.cpu_isa()
    except (RuntimeError, ValueError) as error:
        return str(error).split("\n")[0].rstrip(".")
    return None


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the kernels sum in: float32 for bfloat16 rows, else the rows' own."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def isa() -> str:
    """The instruction set the kernels run on: HHMPN_CPU_ISA's, else this CPU's best; else why not."""
    return load_error() or torch.ops.hhmpn_fast.cpu_isa()


def describe() -> dict[str, str]:
    """What `info` prints about the backend."""
    return {
        "isa": isa(),
        "HHMPN_CPU_ISA": os.environ.get("HHMPN_CPU_ISA", "unset"),
        "threads": str(torch.get_num_threads()),
    }
