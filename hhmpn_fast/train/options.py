"""One option a field: the command line of a config dataclass."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from typing import Any


def add_fields(parser: argparse.ArgumentParser, cls: type, skip: Sequence[str] = ()) -> None:
    """An option for every field of a config dataclass; what is not given is not set."""
    group = parser.add_argument_group(f"{cls.__name__} (one option a field; see its documentation)")
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        option, hint = f"--{field.name.replace('_', '-')}", hints[field.name]
        shown = "none" if field.default in (None, ()) else field.default
        common: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": f"default {shown}"}
        if hint is bool:
            group.add_argument(option, action=argparse.BooleanOptionalAction, **common)
        elif typing.get_origin(hint) is tuple:
            kind = float if float in typing.get_args(hint) else str
            group.add_argument(option, nargs="*", type=kind, **common)
        else:
            kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            kind = str if str in kinds else _value if type(None) in kinds else kinds[0]
            group.add_argument(option, type=kind, **common)


def given(args: argparse.Namespace, cls: type) -> dict[str, Any]:
    """The fields of `cls` that the command line set."""
    return {f.name: getattr(args, f.name) for f in dataclasses.fields(cls) if hasattr(args, f.name)}


def _value(text: str) -> Any:
    """A field's value: JSON where it reads as such, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return None if text == "none" else text
