"""A model's plan: asked once a call, it says for every phase who runs it whole, or why single ops compose it.

    phase        parts that it runs                     single ops that compose it
    f2f          f2f                                    attention, update_features
    tower        f2l, l2l, readout                      attention, update_labels, readout
    joint_loss   embed, f2f, f2l, l2l, readout, loss    all of them
    infer        embed, f2f, f2l, l2l, readout          all of them
    model        the same, by the reference alone

A backend runs a phase whole only where it holds everything in which the configuration differs from the equations, as
far as it touches the phase's parts. The same is asked of the composition: what it does not hold, nobody runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from hhmpn_fast.backends.record import Call, gpus
from hhmpn_fast.backends.registry import AUTO_ORDER, COMPOSITION, candidates, current, record, why_not
from hhmpn_fast.errors import InputError
from hhmpn_fast.readings import held

if TYPE_CHECKING:
    from hhmpn_fast.config import HHMPNConfig


class Phase(NamedTuple):
    """Parts of the model, and the single ops from which they can be composed."""

    parts: tuple[str, ...]
    ops: tuple[str, ...]


_NETWORK = ("embed", "f2f", "f2l", "l2l", "readout")
_COMPOSING = ("embed", "attention", "update_features", "update_labels", "readout")
PHASES = {
    "f2f": Phase(("f2f",), ("attention", "update_features")),
    "tower": Phase(("f2l", "l2l", "readout"), ("attention", "update_labels", "readout")),
    "joint_loss": Phase((*_NETWORK, "loss"), _COMPOSING),
    "infer": Phase(_NETWORK, _COMPOSING),
    "model": Phase(_NETWORK, _COMPOSING),
}


class Step(NamedTuple):
    """Who runs a phase: `run` of `backend`; run None is the composition of single ops, `why` says why."""

    backend: str
    run: Callable[..., Any] | None
    why: str


Plan = Mapping[str, Step]


class _Same:
    """A configuration as a key: itself, not its equals."""

    def __init__(self, config: HHMPNConfig) -> None:
        self.config = config

    def __hash__(self) -> int:
        return id(self.config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.config is self.config


def plan(config: HHMPNConfig, device: str, dtype: torch.dtype) -> Plan:
    """Who runs each of PHASES for a model of this configuration, under the present choice of a backend.

    Raises:
        InputError: a reading that neither a whole phase nor the composition of single ops knows.
    """
    names = candidates()
    # What keeps a backend from running may change between calls: it is part of the key, never kept.
    state = tuple(found if isinstance(found := record(n), str) else found.unavailable(device) for n in names)
    return _plan(_Same(config), device, dtype, names, state)


@lru_cache(maxsize=64)
def _plan(
    same: _Same, device: str, dtype: torch.dtype, names: tuple[str, ...], state: tuple[str | None, ...]
) -> dict[str, Step]:
    config = same.config
    steps = {phase: _step(phase, _call(config, phase, device, dtype), names) for phase in PHASES}
    if steps["model"].run is None:
        _check_composition(config)
    return steps


def _call(config: HHMPNConfig, phase: str, device: str, dtype: torch.dtype) -> Call:
    parts = PHASES[phase].parts
    return Call(device, dtype, config.dim, parts=tuple((p, d.said) for p in parts for d in config.differs((p,))))


def _step(phase: str, call: Call, names: tuple[str, ...]) -> Step:
    reasons = []
    for name in names:
        reason = why_not(name, phase, call)
        if reason is None:
            return Step(name, record(name).ops[phase].run, "")
        reasons.append(f"{name}: {reason}")
        # A backend that runs the phase op by op goes before the whole phases of those after it.
        if all(why_not(name, op, call._replace(parts=())) is None for op in PHASES[phase].ops):
            break
    return Step("single ops", None, "; ".join(reasons))


def _check_composition(config: HHMPNConfig) -> None:
    for part, holds in importlib.import_module(COMPOSITION).HOLDS.items():
        for found in config.differs((part,)):
            if not held(found.said, holds):
                raise InputError(
                    f"{found.name}: found {found.value!r}, a reading that no backend runs whole and that the "
                    "composition of single ops does not know; expected one that it holds, or the equations' own."
                )


def ops() -> tuple[str, ...]:
    """Every op that some backend has, single ones before the phases."""
    records = [found for name in AUTO_ORDER if not isinstance(found := record(name), str)]
    single = {op for backend in records for op in backend.ops if op not in PHASES}
    return (*sorted(single), *PHASES)


def explain(call: Call | None = None, only: tuple[str, ...] | None = None, config: HHMPNConfig | None = None) -> str:
    """A line for every op and candidate: whether it can run, and if not, why; with a configuration its plan first.

    Without a call it is one in float32 on a GPU, where torch sees one, else on the processor.
    """
    found = gpus()
    call = call or Call("cuda" if found else "cpu", torch.float32, 256 if config is None else config.dim)
    options = f", {', '.join(call.options)}" if call.options else ""
    lines = [f"backend: {current()}; {call.device}, {call.dtype}, d = {call.dim}{options}"]
    lines.append(f"GPU: {'; '.join(found) or 'torch sees none'}")
    if config is not None:
        for phase, step in plan(config, call.device, call.dtype).items():
            lines.append(f"  {phase:16} by {step.backend}{': ' + step.why if step.why else ''}")
    for op in only or ops():
        for name in AUTO_ORDER:
            reason = why_not(name, op, call)
            lines.append(f"  {op:16} {name:7} {'can run' if reason is None else 'cannot run: ' + reason}")
    return "\n".join(lines)
