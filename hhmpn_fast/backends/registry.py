"""Which backends there are, and which one is chosen."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from typing import Any

from hhmpn_fast.backends.record import Backend, Call
from hhmpn_fast.errors import InputError

# In the order in which `auto` tries them; the module of each holds its BACKEND.
HOMES = {
    "cuda": "hhmpn_fast.ops.cuda",
    "triton": "hhmpn_fast.kernels",
    "cpu": "hhmpn_fast.backends.cpu",
    "torch": "hhmpn_fast.backends.plain",
    "reference": "hhmpn_fast.backends.reference",
}
COMPOSITION = "hhmpn_fast.composed"  # whose HOLDS says which readings the phases have where no backend runs them whole
NAMES = tuple(reversed(HOMES))
AUTO_ORDER = tuple(name for name in HOMES if name != "reference")
_choice: ContextVar[str | None] = ContextVar("hhmpn_fast_backend", default=None)


def current() -> str:
    """The chosen backend's name: `use_backend`'s, else HHMPN_FAST_BACKEND's, else "auto"."""
    return _choice.get() or _checked(os.environ.get("HHMPN_FAST_BACKEND") or "auto")


def candidates() -> tuple[str, ...]:
    """The names that the choice leaves, in the order in which they are tried."""
    name = current()
    return AUTO_ORDER if name == "auto" else (name,)


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


@cache
def record(name: str) -> Backend | str:
    """A backend's record, or one sentence that says why its module cannot be loaded."""
    path = HOMES[name]
    try:
        if importlib.util.find_spec(path) is None:
            return f"this installation has no module {path}"
        return importlib.import_module(path).BACKEND
    except ImportError as error:
        return f"{path} does not import: {error}"


def why_not(name: str, op: str, call: Call) -> str | None:
    """None when the backend can run the op as called, else the reason."""
    found = record(name)
    return found if isinstance(found, str) else found.why_not(op, call)


def first(op: str, call: Call) -> Callable[..., Any] | None:
    """The function that runs `op`: the chosen backend's, or of `auto` the first that can; None where none can."""
    for name in candidates():
        found = record(name)
        if isinstance(found, Backend) and found.why_not(op, call) is None:
            return found.ops[op].run
    return None


def choose(op: str, call: Call) -> Callable[..., Any]:
    """The function that runs `op`; raises InputError with the reason when an explicit backend cannot."""
    run = first(op, call)
    if run is not None:
        return run
    reasons = {name: why_not(name, op, call) for name in candidates()}
    if current() != "auto":
        raise InputError(f"backend '{current()}' cannot run {op}: {reasons[current()]}.")
    lines = "\n".join(f"  {name:7} cannot run: {reason}" for name, reason in reasons.items())
    raise InputError(f"no backend can run {op} on {call.device}, {call.dtype}, d = {call.dim}:\n{lines}")
