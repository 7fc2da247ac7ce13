"""What a backend says of itself: its ops, and for each what it holds beyond the equations as printed."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hhmpn_fast.autocast import compute_dtype
from hhmpn_fast.readings import held


class Call(NamedTuple):
    """What a backend needs to know to say whether it can run an op.

    options: what the call asks for beyond the equations as printed, in words ("norm", "exclude_self", "heads=4").
    parts: the same of a phase, each beside the part that it touches.
    """

    device: str
    dtype: torch.dtype
    dim: int
    options: tuple[str, ...] = ()
    parts: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, tensor: Tensor, *options: str) -> Call:
        """The call whose node tensor is `tensor`, in the dtype that autocast makes of it, and the non-empty options."""
        return cls(tensor.device.type, compute_dtype(tensor), tensor.shape[-1], tuple(o for o in options if o))


class Body(NamedTuple):
    """What runs one op in a backend.

    run: a function over the names of the op's inputs; a phase's takes what the model hands it.
    holds: the options that it takes, `name` or `name=value`; any other is refused. Of a phase of several parts: by
    part, since what one part holds another may not.
    anything: PyTorch's own ops carry it, so that any dtype, size and option runs.
    """

    run: Callable[..., Any]
    holds: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ()
    anything: bool = False

    def part(self, name: str) -> tuple[str, ...]:
        """What it holds in one part of a phase."""
        return self.holds.get(name, ()) if isinstance(self.holds, Mapping) else self.holds


@dataclass(frozen=True)
class Backend:
    """A backend's record, which lives beside its code as `BACKEND`.

    device: where its tensors lie.  ops: by name, as `bodies` finds them.  unavailable: for tensors on a device, what
    keeps all of it from running (installation, driver, the device itself) in one sentence, or None.  dtypes, dims: what
    its kernels take; None is any.  inexact: what makes them wrong on a device in a dtype, or None.  describe: what
    `info` prints beside it.  lacks: what it says of an op it has not.
    """

    name: str
    device: str
    ops: Mapping[str, Body]
    unavailable: Callable[[str], str | None]
    dtypes: tuple[torch.dtype, ...] | None = None
    dims: Container[int] | None = None
    inexact: Callable[[str, torch.dtype], str | None] = lambda device, dtype: None
    describe: Callable[[], Mapping[str, str]] = dict
    lacks: str = ""

    def why_not(self, op: str, call: Call) -> str | None:
        """None when it can run the op as called, else the reason."""
        if op not in self.ops:
            return self.lacks or f"it has no op '{op}'"
        reason = self.unavailable(call.device)
        if reason is not None or self.ops[op].anything:
            return reason
        if self.dtypes is not None and call.dtype not in self.dtypes:
            return f"the dtype is {call.dtype}, the kernels hold {_listed(str(d)[6:] for d in self.dtypes)}"
        if self.dims is not None and call.dim not in self.dims:
            return f"d = {call.dim}, the kernels hold {_sizes(self.dims)}"
        reason = self.inexact(call.device, call.dtype)
        if reason is not None:
            return reason
        body = self.ops[op]
        asked = [*((option, body.part("")) for option in call.options), *((d, body.part(p)) for p, d in call.parts)]
        missing = dict.fromkeys(said for said, holds in asked if not held(said, holds))
        return f"the kernels do not hold the option {', '.join(missing)}" if missing else None


def gpus() -> list[str]:
    """Every GPU that torch sees, in words: `cuda:0, NVIDIA H200, compute capability 9.0, 139.8 GiB`."""
    found = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        seen = torch.cuda.get_device_properties(i)
        capability, memory = f"{seen.major}.{seen.minor}", f"{seen.total_memory / 2**30:.1f} GiB"
        found.append(f"cuda:{i}, {seen.name}, compute capability {capability}, {memory}")
    return found


def bodies(package: str) -> dict[str, Body]:
    """The ops of a backend's package: what its modules list as BODIES. A new module needs no other line."""
    found: dict[str, Body] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        found.update(getattr(importlib.import_module(f"{package}.{module.name}"), "BODIES", {}))
    return dict(sorted(found.items()))


def _listed(words: Any) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _sizes(dims: Container[int]) -> str:
    return f"{dims.start} to {dims.stop - 1}" if isinstance(dims, range) else _listed(map(str, dims))
