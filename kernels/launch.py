"""How kernels are launched, and how a launch is handed to somebody else; importable where there is no triton.

`run` is the only door: it hands a `Launch`, its arguments by name, to Triton, or inside `using` to the given launcher.
So the compiled forms that are held to a budget, and those that the tests execute, are the ones the ops launch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from hhmpn_fast.kernels.launch_table import Entry, entry
from hhmpn_fast.kernels.runtime import architecture, kind


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    function: Triton's.  entry: of the launch table, with the kernel's name.  form: the constants.
    arguments: all others by name, records as records.
    """

    function: Any
    grid: tuple[int, ...]
    entry: Entry
    form: NamedTuple
    arguments: dict[str, Any]


@dataclass(frozen=True)
class _Other:
    launcher: Callable[[Launch], None]
    architecture: str
    entry: Entry | None


_other: ContextVar[_Other | None] = ContextVar("hhmpn_fast_launcher", default=None)


@contextlib.contextmanager
def using(launcher: Callable[[Launch], None], architecture: str = "sm80", entry: Entry | None = None) -> Iterator[None]:
    """Hands the block's launches to `launcher`, their tiles from the table's row of a part, or `entry` for all."""
    token = _other.set(_Other(launcher, architecture, entry))
    try:
        yield
    finally:
        _other.reset(token)


def chosen(kernel: str, rows: Tensor, weights: Tensor | None = None) -> Entry:
    """The launch table's entry of a kernel for rows of this width, dtype and device, beside these weights."""
    other = _other.get()
    if other is not None and other.entry is not None:
        return replace(other.entry, kernel=kernel)
    part = architecture(rows) if other is None else other.architecture
    mixed = weights is not None and weights.dtype != rows.dtype
    return entry(kernel, "mixed" if mixed else kind(rows.dtype), rows.shape[-1], part)


def run(function: Any, grid: tuple[int, ...], entry: Entry, form: NamedTuple, **arguments: Any) -> None:
    """Launches a kernel."""
    other = _other.get()
    if other is not None:
        other.launcher(Launch(function, grid, entry, form, arguments))
    else:
        function[grid](**arguments, form=form, **entry.options)


def blocks(size: int, block: int) -> int:
    """How many blocks hold `size` elements."""
    return (size + block - 1) // block
