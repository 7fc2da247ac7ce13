"""Dataclasses of options: values are checked; a refusal names the field, what was found, what was expected."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from hhmpn_fast.errors import InputError


def check_choices(config: Any, choices: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuses a field that is none of its choices."""
    for name, allowed in choices.items():
        found = getattr(config, name)
        if found not in allowed:
            raise InputError(f"{name}: found {found!r}; expected one of {', '.join(map(repr, allowed))}.")


def check_range(config: Any, name: str, low: float, high: float, text: str) -> None:
    """Refuses a field that is no number from low to high, in words."""
    found = getattr(config, name)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not low <= found <= high:
        raise InputError(f"{name}: found {found!r}; expected {text}.")


def check_counts(config: Any, names: Sequence[str]) -> None:
    """Refuses a field that is no integer of at least 1."""
    for name in names:
        found = getattr(config, name)
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            raise InputError(f"{name}: found {found!r}; expected an integer of at least 1.")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values, for JSON."""
    out = dataclasses.asdict(config)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}


def from_dict(cls: type, values: Mapping[str, Any]) -> Any:
    """Builds a config dataclass from plain values; refuses unknown and missing fields by name."""
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(f"option '{unknown[0]}': unknown; expected one of {', '.join(sorted(known))}.")
    required = {
        f.name for f in fields(cls) if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(values))
    if missing:
        raise InputError(f"option '{missing[0]}': missing; expected a value.")
    return cls(**values)


def replace(config: Any, **changes: Any) -> Any:
    """`dataclasses.replace` that names an unknown field."""
    unknown = sorted(set(changes) - {f.name for f in fields(config)})
    if unknown:
        expected = ", ".join(f.name for f in fields(config))
        raise InputError(f"option '{unknown[0]}': unknown; expected one of {expected}.")
    return dataclasses.replace(config, **changes)
