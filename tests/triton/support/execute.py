"""Compiled kernels run by the PTX interpreter, and what their results are held to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gpu.compile import Signature, build
from bench.gpu.launches import precision
from hhmpn_fast.kernels.launch import Launch, using
from hhmpn_fast.kernels.launch_table import Entry
from tests.ptx import Machine

DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp16": torch.float16, "ieee": torch.float32}
TOLERANCE = {"bf16": 3e-2, "tf32": 5e-3, "fp16": 4e-3, "ieee": 1e-5}
NUMBERS = {"i32": np.int32, "i64": np.int64, "fp32": np.float32}


def bits(value: Tensor) -> np.ndarray:
    """The tensor's own memory as numpy sees it."""
    value = value.detach()
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()


def passed(kind: Any, value: Any) -> Iterator[Any]:
    """What a kernel's parameters hold of an argument: records field by field, nothing of what is compiled in."""
    if isinstance(kind, tuple):
        for field, of in zip(kind, value):
            yield from passed(field, of)
    elif kind != "constexpr":
        yield bits(value) if isinstance(value, Tensor) else NUMBERS[kind](value)


@contextlib.contextmanager
def executed(dtype: str, mode: str, entry: Entry | None = None) -> Iterator[list[str]]:
    """Runs the block's launches as compiled for sm_80, on CPU tensors; yields the kernels' names as they run.

    What no kernel wrote stays NaN; a race on shared memory fails.
    """
    ran: list[str] = []

    def run(launch: Launch) -> None:
        done, kinds = build(launch, "sm80"), Signature.of(launch).types
        values = {**launch.arguments, "form": launch.form}
        arguments = [a for name, kind in kinds.items() for a in passed(kind, values[name])]
        machine = Machine(done.asm["ptx"])
        name = next(iter(machine.mod.kernels))
        extra = len(machine.mod.kernels[name].params) - len(arguments)
        arguments += [None] * extra  # Triton's own scratch pointers
        threads = (32 * done.metadata.num_warps,)
        machine.run(name, launch.grid, threads, arguments, smem=done.metadata.shared, mode=mode)
        assert not machine.races, list(machine.races.values())[:2]
        ran.append(launch.entry.kernel)

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # new memory is NaN
    try:
        with precision(dtype), using(run, entry=entry):
            yield ran
    finally:
        torch.use_deterministic_algorithms(before)


def close(name: str, found: Tensor, exact: Tensor, dtype: str) -> None:
    """|found - exact| against the largest exact value, within the dtype's tolerance."""
    found, exact = found.detach(), exact.detach()
    error = float((found.double() - exact).abs().max()) / max(float(exact.abs().max()), 1e-3)
    assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"
