"""A kernel's arguments by name: the fields that csrc/cuda/*/params.h lists, and values packed in the library's order.

kind                value
In, Out             a contiguous tensor; its dtype is the field's, or the call's
InOrNull, OutOrNull such a tensor or None
InList, OutList     a list of such tensors
Size, SizeList      an int, a list of ints
Real                a float
Dtype               the call's dtype, float32, bfloat16 or float16
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
TYPES = {"float32": torch.float32, "int32": torch.int32, "int64": torch.int64, "bool": torch.bool}


@dataclass(frozen=True)
class Field:
    """One argument: `type` of a tensor's elements ("call": the call's dtype), `room` of a list, `shape` in sizes."""

    kind: str
    type: str
    name: str
    room: int
    shape: tuple[str, ...]

    @classmethod
    def of(cls, line: str) -> Field:
        """The field of one of the library's lines, "In call q 1 rows d"."""
        kind, type_, name, room, *shape = line.split()
        return cls(kind, type_, name, int(room), tuple(shape))

    @property
    def written(self) -> bool:
        """Whether the kernel writes it."""
        return self.kind.startswith("Out")


@dataclass
class Wire:
    """What crosses to the library: tensors (None: absent) with their fields, ints (a list: its length first), reals."""

    tensors: list[tuple[Field, Tensor | None]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    reals: list[float] = field(default_factory=list)


class Signature:
    """A kernel's fields, which pack values given by name.

    Raises:
        TypeError: a field without a value, a value without a field, or a value of another kind than its field's.
    """

    def __init__(self, kernel: str, lines: str) -> None:
        self.kernel = kernel
        self.fields = {f.name: f for f in map(Field.of, lines.splitlines())}

    def pack(self, values: Mapping[str, Any]) -> Wire:
        """The values in the order of the library's fields."""
        if values.keys() != self.fields.keys():
            self._refuse_names(values)
        wire = Wire()
        for f in self.fields.values():
            value = values[f.name]
            if f.kind.endswith("List"):
                self._add_list(wire, f, value, values["dtype"])
            elif f.kind == "Size":
                wire.sizes.append(self._checked(f, value, isinstance(value, int), "an int"))
            elif f.kind == "Real":
                wire.reals.append(self._checked(f, value, isinstance(value, float), "a float"))
            elif f.kind == "Dtype":
                self._checked(f, value, value in DTYPES, "torch.float32, torch.bfloat16 or torch.float16")
                wire.sizes.append(DTYPES[value])
            else:
                wire.tensors.append((f, self._tensor(f, value, values["dtype"])))
        return wire

    def _add_list(self, wire: Wire, f: Field, value: Any, dtype: torch.dtype) -> None:
        fits = isinstance(value, list) and len(value) <= f.room
        wire.sizes.append(len(self._checked(f, value, fits, f"a list of at most {f.room}")))
        for item in value:
            if f.kind == "SizeList":
                wire.sizes.append(self._checked(f, item, isinstance(item, int), "ints"))
            else:
                wire.tensors.append((f, self._tensor(f, item, dtype)))

    def _tensor(self, f: Field, value: Any, dtype: torch.dtype) -> Tensor | None:
        if value is None and f.kind.endswith("OrNull"):
            return None
        expected = TYPES.get(f.type, dtype)
        self._checked(f, value, isinstance(value, Tensor) and value.dtype == expected, f"a tensor of {expected}")
        if not value.is_contiguous():
            raise TypeError(f"{self.kernel}: {f.name} has strides {value.stride()}; expected a contiguous tensor.")
        return value

    def _checked(self, f: Field, value: Any, fits: bool, expected: str) -> Any:
        if fits:
            return value
        if isinstance(value, Tensor):
            found = f"a tensor of {value.dtype}"
        else:
            found = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
        raise TypeError(f"{self.kernel}: {f.name} is {found}; expected {expected}.")

    def _refuse_names(self, values: Mapping[str, Any]) -> None:
        unknown = [name for name in values if name not in self.fields]
        if unknown:
            raise TypeError(f"{self.kernel}: found a value for '{unknown[0]}'; expected {', '.join(self.fields)}.")
        absent = next(name for name in self.fields if name not in values)
        raise TypeError(f"{self.kernel}: found no value for '{absent}'; expected one for each of its fields.")

    def check_shapes(self, values: Mapping[str, Any]) -> None:
        """Compares every tensor's number of elements with its field's shape text, where the sizes tell it.

        A name that is no size of the kernel stands for any number, the same throughout the call.
        """
        sizes = {name: v for name, v in values.items() if self.fields[name].kind in ("Size", "SizeList")}
        for f in self.fields.values():
            value = values[f.name]
            for j, t in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(t, Tensor):
                    self._check_shape(f, t, {n: v[j] if isinstance(v, list) else v for n, v in sizes.items()}, sizes)

    def _check_shape(self, f: Field, t: Tensor, sizes: dict[str, int], learnt: dict[str, Any]) -> None:
        expected, unknown = 1, []
        for token in f.shape:
            try:
                expected *= _value(token, sizes)
            except KeyError:
                unknown.append(token)
        if len(unknown) == 1 and expected and t.numel() % expected == 0:
            learnt[unknown[0]] = t.numel() // expected
        elif unknown or t.numel() != expected:
            raise TypeError(f"{self.kernel}: {f.name} is {tuple(t.shape)}; expected {' '.join(f.shape)} = {expected}.")


def _value(token: str, sizes: Mapping[str, int]) -> int:
    """A sum of products of names and numbers, "modalities*batch+1"."""
    total = 0
    for term in token.split("+"):
        product = 1
        for factor in term.split("*"):
            product *= int(factor) if factor.isdigit() else sizes[factor]
        total += product
    return total
