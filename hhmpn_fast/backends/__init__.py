"""Who can run an op, and why not: the one place that picks between plain PyTorch and the kernels.

    reference   the equations, one sample at a time (whole models only)
    torch       packed, plain PyTorch, any device
    cpu         csrc/cpu, fused C++
    triton      kernels/
    cuda        csrc/cuda

`HHMPN_FAST_BACKEND` and `use_backend` choose. An explicit choice never falls back; `auto` takes the first of
cuda, triton, cpu, torch that can run. `explain` lists every candidate with its reason.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from hhmpn_fast.errors import InputError

OPS = ("embed", "absorb", "attention", "update_labels", "update_features", "readout", "f2f", "tower", "joint_loss")
NAMES = ("reference", "torch", "cpu", "triton", "cuda")
AUTO_ORDER = ("cuda", "triton", "cpu", "torch")
_MODULES = {
    "torch": "hhmpn_fast.ops.plain",
    "cpu": "hhmpn_fast.backends.cpu",
    "triton": "hhmpn_fast.kernels",
    "cuda": "hhmpn_fast.backends.cuda",
}
_choice: ContextVar[str | None] = ContextVar("hhmpn_fast_backend", default=None)


@dataclass(frozen=True)
class Call:
    """What a backend needs to know to say whether it can run an op.

    options: the readings a call asks for beyond the equations' own (say "norm", "exclude_self").
    """

    device: str
    dtype: torch.dtype
    dim: int
    options: tuple[str, ...] = ()

    @classmethod
    def of(cls, tensor: Tensor, *options: str) -> Call:
        """The call whose node tensor is `tensor`, with the non-empty options."""
        return cls(tensor.device.type, tensor.dtype, tensor.shape[-1], tuple(o for o in options if o))


def current() -> str:
    """The chosen backend's name: `use_backend`'s, else HHMPN_FAST_BACKEND's, else "auto"."""
    return _choice.get() or _checked(os.environ.get("HHMPN_FAST_BACKEND") or "auto")


def _checked(name: str) -> str:
    if name != "auto" and name not in NAMES:
        raise InputError(f"backend: found '{name}'; expected one of auto, {', '.join(NAMES)}.")
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs the block on one backend ("auto" to pick). A backend that cannot run an op raises, it never falls back."""
    token = _choice.set(_checked(name))
    try:
        yield
    finally:
        _choice.reset(token)


def module(name: str) -> ModuleType | str:
    """A backend's module, or one sentence that says why it cannot be loaded."""
    path = _MODULES[name]
    try:
        if importlib.util.find_spec(path) is None:
            return f"this installation has no module {path}"
        return importlib.import_module(path)
    except ImportError as error:
        return f"{path} does not import: {error}"


def why_not(name: str, op: str, call: Call) -> str | None:
    """None when the backend can run the op as called, else the reason."""
    if name == "reference":
        return "the reference runs whole models, one sample at a time; it has no single ops"
    loaded = module(name)
    if isinstance(loaded, str):
        return loaded
    if not hasattr(loaded, op):
        return f"it has no op '{op}'"
    return loaded.why_not(op, call)


def choose(op: str, call: Call) -> Callable:
    """The function that runs `op`; raises InputError with the reason when an explicit backend cannot."""
    name = current()
    if name != "auto":
        reason = why_not(name, op, call)
        if reason is not None:
            raise InputError(f"backend '{name}' cannot run {op}: {reason}.")
        return getattr(module(name), op)
    for name in AUTO_ORDER:
        if why_not(name, op, call) is None:
            return getattr(module(name), op)
    raise InputError(f"no backend can run {op}:\n{explain(call, (op,))}")


def phase(op: str, call: Call) -> Callable | None:
    """The backend's own version of a whole phase, or None: then the model composes the phase from single ops."""
    name = current()
    if name != "auto":
        return None if why_not(name, op, call) is not None else getattr(module(name), op)
    for name in AUTO_ORDER:
        if name == "torch" or why_not(name, "attention", call) is None:
            return None if why_not(name, op, call) is not None else getattr(module(name), op)
    return None


def explain(call: Call | None = None, ops: tuple[str, ...] = OPS) -> str:
    """A line for every op and candidate: whether it can run, and if not, why."""
    call = call or Call("cpu", torch.float32, 256)
    options = f", {', '.join(call.options)}" if call.options else ""
    lines = [f"backend: {current()}; {call.device}, {call.dtype}, d = {call.dim}{options}"]
    for op in ops:
        for name in AUTO_ORDER:
            reason = why_not(name, op, call)
            lines.append(f"  {op:16} {name:7} {'can run' if reason is None else 'cannot run: ' + reason}")
    return "\n".join(lines)
