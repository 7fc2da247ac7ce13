"""What an op's public function stands on: one function an op, whichever backend's body runs it.

    ops.attention(...)              the body that `backends.choose` picks for the call
    Ops(cuda.ops).attention(...)    the body listed there, whatever is chosen

A public function checks, turns `Dropout` into p, rng and site, and hands the op's inputs by name to `body(...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hhmpn_fast.backends import Body, Call, choose, first


class Public:
    """Base of the public functions; `bodies` are those of one backend by op, None leaves the choice to each call."""

    def __init__(self, bodies: Mapping[str, Body] | None = None) -> None:
        self._bodies = bodies

    def body(self, op: str, call: Call, otherwise: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """What runs the call, a function over its inputs' names; `otherwise` stands in where no backend can."""
        if self._bodies is not None:
            return self._bodies[op].run
        return choose(op, call) if otherwise is None else first(op, call) or otherwise
