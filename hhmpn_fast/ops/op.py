"""Op: one schema an op, from which every backend's registration, shapes for tracing and gradient follow.

    hhmpn_fast::<op>_<backend>(inputs, bool keep) -> (outputs, kept)
    hhmpn_fast::<op>_backward_<backend>(d_outputs, inputs, saved, bool[] needs) -> Tensor[]

`kept` is what one backend's forward pass keeps for its backward pass, empty where `keep` is false; `saved` is the
outputs named by `saves`, then `kept`. `needs` says for every tensor among the inputs, lists item by item, whether its
gradient is asked for; the gradients come back in that order. An op whose forward pass has its gradients (`scaled`)
keeps them as d_<input>, and its backward op is every such op's: it multiplies them by the gradient of the first output.

Autocast casts an op's `rows`. Its `weights` stay float32, as their gradients do, and are rounded to the rows' dtype
where they are read: in the kernel, or in the op where a kernel cannot. Every other input stays what it is.

C++ bodies register themselves (csrc/cpu/adapter/op.h), Python bodies through hhmpn_fast/ops/bodies.py.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.errors import InputError

NAMESPACE = "hhmpn_fast"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
Shapes = Callable[[SimpleNamespace], Mapping[str, Any]]


def tensors(values: Sequence[Any]) -> list[Tensor]:
    """All tensors among the values, lists item by item."""
    out: list[Tensor] = []
    for value in values:
        out += [value] if isinstance(value, Tensor) else tensors(value) if isinstance(value, list | tuple) else []
    return out


def names(fields: Sequence[str]) -> list[str]:
    """The names in ["Tensor q", "Tensor? mask"]."""
    return [field.split()[-1] for field in fields]


class Op:
    """An op of every backend, called as `op(backend, name=value, ...)`.

    Args:
        schema: "name(inputs) -> outputs" with every input and output named, say
            "attention(Tensor q, Tensor x, int groups, Tensor? mask) -> Tensor context, Tensor lse".
        rows: what autocast casts, all of one dtype; features, which have no gradient, too.
        weights: what it leaves in float32 beside shorter rows.
        scaled: whether the forward pass has the gradients.
        inference: whether there are none.
    """

    def __init__(
        self,
        schema: str,
        *,
        rows: Sequence[str] = (),
        weights: Sequence[str] = (),
        scaled: bool = False,
        inference: bool = False,
    ) -> None:
        head, outputs = schema.split(" -> ")
        self.name, self.schema = head[:-1].split("(", 1)
        self.inputs, self.outputs = names(self.schema.split(", ")), outputs.split(", ")
        self.rows, self.weights, self.scaled, self.inference = tuple(rows), tuple(weights), scaled, inference
        self.record = namedtuple(self.name, self.inputs)
        # By backend. Names, not overloads: PyTorch 2.13 aborts at exit where a name loses its third overload.
        self.registered: dict[str, Callable] = {}
        self.registered_backward: dict[str, Callable] = {}

    def __call__(self, backend: str, **inputs: Any) -> Any:
        """The outputs, one tensor or a tuple of them, of this backend's body; gradients flow through them."""
        out = self.registered[backend](**inputs, keep=torch.is_grad_enabled())
        if isinstance(out, Tensor):
            return out
        found = out[: len(self.outputs)]
        return found if len(found) > 1 else next(iter(found))

    def on(self, backend: str) -> Callable[..., Any]:
        """This backend's op as a function over its inputs' names."""
        return partial(self, backend)

    def over(self, body: Callable[[Any], Any]) -> Callable[..., Any]:
        """body(i), which reads the inputs as attributes, as a function over their names."""

        def run(**inputs: Any) -> Any:
            return body(self.record(**inputs))

        return run

    def read(self, values: Sequence[Any]) -> SimpleNamespace:
        """The inputs by name."""
        return SimpleNamespace(**dict(zip(self.inputs, values)))

    def cast(self, values: Sequence[Any], dtype: torch.dtype) -> list[Any]:
        """The inputs as autocast to `dtype` hands them on; float64 stays what it is, as everywhere under autocast."""

        def to(value: Any, stays: bool) -> Any:
            if isinstance(value, list | tuple):
                return [to(item, stays) for item in value]
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == torch.float64:
                return value
            return value if stays and value.dtype == torch.float32 else value.to(dtype)

        known = {**dict.fromkeys(self.rows, False), **dict.fromkeys(self.weights, True)}
        return [to(v, known[name]) if name in known else v for name, v in zip(self.inputs, values)]

    def mixes(self, i: SimpleNamespace) -> bool:
        """Whether float32 weights stand beside shorter rows.

        Raises:
            InputError: rows of several dtypes, or weights that are neither of theirs nor float32 beside shorter ones.
        """
        own, mixed = getattr(i, self.rows[0]).dtype, False
        for name in (*self.rows, *self.weights):
            for t in tensors([getattr(i, name)]):
                if t.dtype == own:
                    continue
                rounded = name in self.weights and own.itemsize < torch.float32.itemsize
                if not rounded or t.dtype != torch.float32:
                    expected = f"{own} or torch.float32" if rounded else f"{own}"
                    raise InputError(f"{self.name}: {name} is {t.dtype}, {self.rows[0]} is {own}; expected {expected}.")
                mixed = True
        return mixed

    def define(
        self,
        backend: str,
        shapes: Shapes,
        *,
        keeps: Sequence[str] = (),
        saves: Sequence[str] = (),
        like: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Registers the schemas and the shapes of one backend.

        shapes: from the inputs, by name, what outputs and kept tensors look like, empty, by name.
        keeps: what the forward pass keeps, ("Tensor g", "Tensor h").  saves: outputs that the backward pass reads.
        like: an empty tensor in the layout that an input's gradient has; contiguous where it is not given.
        """
        first, *others = [*self.outputs, *keeps]
        returns = f"({', '.join((first, *others))})" if others else first.split()[0]
        schema = f"{self.name}_{backend}({self.schema}, bool keep) -> {returns}"
        self.registered[backend] = self._register(schema, self._fake(shapes, keeps))
        if self.inference:
            return
        incoming = [f"Tensor? d_{name}" for name in names(self.outputs)]
        fields = [*incoming, self.schema, *(f"Tensor {name}" for name in saves), *keeps]
        schema = f"{self.name}_backward_{backend}({', '.join(fields)}, bool[] needs) -> Tensor[]"
        self.registered_backward[backend] = self._register(
            schema, self._fake_backward(like or (lambda t: t.new_empty(t.shape)))
        )

    def _register(self, schema: str, fake: Callable) -> Callable:
        name = schema.split("(")[0]
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
        return getattr(torch.ops.hhmpn_fast, name).default

    def _fake(self, shapes: Shapes, keeps: Sequence[str]) -> Callable:
        def fake(*values: Any) -> Any:
            made, keep = shapes(self.read(values[:-1])), values[-1]
            out = [made[name] for name in names(self.outputs)]
            for field in keeps:
                kind, name = field.split()
                out.append(made[name] if keep else out[0].new_empty(0) if kind == "Tensor" else [])
            return tuple(out) if len(out) > 1 else out[0]

        return fake

    def _fake_backward(self, like: Callable[[Tensor], Tensor]) -> Callable:
        def fake(*values: Any) -> list[Tensor]:
            inputs = values[len(self.outputs) :][: len(self.inputs)]
            return [like(t) for t, needed in zip(tensors(inputs), values[-1]) if needed]

        return fake
