"""What a field of a configuration may say about itself, and what of a configuration differs from the equations.

A reading is declared with its choices, its place in the paper and the parts of the model that it touches:

    f2f_softmax: str = reading("modality", choices=("modality", "sample"), touches=("f2f",), spot="...", why="...")

Whoever runs parts of the model lists the readings it holds, `name` or `name=value`; what differs from the equations as
printed, touches one of those parts and is not listed is refused by name. A field that says nothing of what it touches
touches everything: a reading, or a choice of one, that nobody has been told of is refused everywhere and never ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

PARTS = ("embed", "f2f", "f2l", "l2l", "readout", "loss")


class Declared(NamedTuple):
    """What a field says of itself.

    choices: all it may be, or () for what its class checks.  touches: of PARTS; None is all of them.  own: whether a
    configuration's value is the equations' own; None compares with the default.  said: the refusal's word for another
    value; "" is `name=value`.  spot, options, why: the columns of docs/readings.md; no spot, no line there.
    """

    choices: tuple[Any, ...] = ()
    touches: tuple[str, ...] | None = None
    own: Callable[[Any], bool] | None = None
    said: str = ""
    spot: str = ""
    options: str = ""
    why: str = ""


class Deviation(NamedTuple):
    """One field whose value is not the equations' own."""

    name: str
    value: Any
    touches: tuple[str, ...] | None
    said: str


def reading(default: Any, **declared: Any) -> Any:
    """A field that reads one spot of the paper; the default is the equations as printed. See `Declared`."""
    return dataclasses.field(default=default, metadata={"declared": Declared(**declared)})


def size(default: Any = dataclasses.MISSING, **declared: Any) -> Any:
    """A field that every path takes as it is, whatever its value: it touches nothing but what is declared."""
    return dataclasses.field(default=default, metadata={"declared": Declared(**{"touches": (), **declared})})


def choices(cls: type) -> dict[str, tuple[Any, ...]]:
    """The fields of a configuration that are one of a few values."""
    declared = {f.name: f.metadata.get("declared", Declared()).choices for f in dataclasses.fields(cls)}
    return {name: allowed for name, allowed in declared.items() if allowed}


def deviations(config: Any) -> tuple[Deviation, ...]:
    """Every field of a configuration whose value is not the equations' own; of a tuple, each of its entries."""
    out: list[Deviation] = []
    for field in dataclasses.fields(config):
        declared, value = field.metadata.get("declared", Declared()), getattr(config, field.name)
        if declared.own is not None:
            own = declared.own(config)
        elif field.default is not dataclasses.MISSING:
            own = value == field.default
        else:
            own = False
        if not own and declared.touches != ():
            found = value if isinstance(value, tuple) else (value,)
            said = dict.fromkeys(declared.said or f"{field.name}={part}" for part in found)
            out += [Deviation(field.name, value, declared.touches, text) for text in said]
    return tuple(out)


def touching(found: Iterable[Deviation], parts: Iterable[str]) -> tuple[Deviation, ...]:
    """Those that touch one of the parts."""
    parts = set(parts)
    return tuple(d for d in found if d.touches is None or parts & set(d.touches))


def held(said: str, holds: tuple[str, ...]) -> bool:
    """Whether a list of what somebody holds has a deviation, or every value of its field."""
    return said in holds or said.partition("=")[0] in holds


def table(cls: type) -> str:
    """The lines of docs/readings.md: a field, or the fields that share a spot."""
    lines: dict[str, list[tuple[str, Declared]]] = {}
    for field in dataclasses.fields(cls):
        declared = field.metadata.get("declared", Declared())
        if declared.spot:
            lines.setdefault(declared.spot, []).append((field.name, declared))
    head = "| In the paper | Field | Default, then the alternatives | Why this default |\n|---|---|---|---|\n"
    return head + "".join(
        f"| {spot} | {', '.join(f'`{name}`' for name, _ in rows)} | {_joined(d.options for _, d in rows)} "
        f"| {_joined(d.why for _, d in rows)} |\n"
        for spot, rows in lines.items()
    )


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(text for text in texts if text)
