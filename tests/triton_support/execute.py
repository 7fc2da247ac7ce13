"""Compiled kernels run by the PTX interpreter, and what their results are held to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ptx import Machine
from torch import Tensor

from bench.gpu_compile import FUNCTIONS, KINDS, build, constants
from hhmpn_fast.kernels.configs import Launch

DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp16": torch.float16, "ieee": torch.float32}
TOLERANCE = {"bf16": 3e-2, "tf32": 5e-3, "fp16": 4e-3, "ieee": 1e-5}
NUMBERS = {"i32": np.int32, "i64": np.int64, "fp32": np.float32}


def bits(value: Tensor) -> np.ndarray:
    """The tensor's own memory as numpy sees it."""
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()


def execute(
    kernel: str, dtype: str, entry: Launch, grid: tuple[int, ...], mode: str, flags: dict, **given: Any
) -> None:
    """Compiles for sm_80 and runs; tensors are written in place; a race on shared memory fails."""
    dim = given["dim"]
    done = build(kernel, dtype, dim, "sm80", entry, tuple(flags.items()))
    function = FUNCTIONS[kernel]
    fixed = constants(kernel, KINDS[dtype], dim, entry, **flags)
    arguments = []
    for name in function.arg_names:
        if name in fixed:
            continue
        value = given[name]
        if isinstance(value, Tensor):
            arguments.append(bits(value))
        elif value is None:
            arguments.append(None)
        else:
            number = {"scale": "fp32", "intermediate": "fp32", "threshold": "i64"}.get(name, "i32")
            arguments.append(NUMBERS[number](value))
    machine = Machine(done.asm["ptx"])
    name = next(iter(machine.mod.kernels))
    extra = len(machine.mod.kernels[name].params) - len(arguments)
    arguments += [None] * extra  # Triton's own scratch pointers
    machine.run(name, grid, (32 * done.metadata.num_warps,), arguments, smem=done.metadata.shared, mode=mode)
    assert not machine.races, list(machine.races.values())[:2]


def close(name: str, found: Tensor, exact: Tensor, dtype: str) -> None:
    exact = exact.detach()
    error = float((found.double() - exact).abs().max()) / max(float(exact.abs().max()), 1e-3)
    assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"
