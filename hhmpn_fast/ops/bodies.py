"""Backends whose bodies are Python: two functions over names become a registered op with its gradient.

forward(i, keep) -> {name: tensor}       `i` has the inputs as attributes; outputs and, where asked, kept tensors
backward(d, i, saved) -> {name: tensor}  d.<output> (None where there is none), the inputs, what was saved; gradients
                                         by input, a list of them for a list, of weights in any dtype

Gradients leave in their inputs' dtypes. Under autocast rows arrive cast and weights in float32 (`Op.cast`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.ops.op import LIBRARY, NAMESPACE, Op, Shapes, names, tensors

AUTOCAST = {
    device: torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))
    for device in ("cpu", "cuda")
}


def implement(
    op: Op,
    backend: str,
    forward: Callable[[SimpleNamespace, bool], dict[str, Tensor]],
    backward: Callable[[SimpleNamespace, SimpleNamespace, SimpleNamespace], dict[str, Any]] | None,
    shapes: Shapes,
    *,
    keeps: Sequence[str] = (),
    saves: Sequence[str] = (),
    rounds: bool = False,
) -> None:
    """Registers a backend of an op; `backward` is None for a scaled op, the rest as `Op.define` takes it.

    rounds: the kernels round float32 weights as they read them; others are handed copies in the rows' dtype.
    """
    op.define(backend, shapes, keeps=keeps, saves=saves)
    name, outputs, saved = f"{op.name}_{backend}", names(op.outputs), [*saves, *names(keeps)]

    def inputs_of(values: Sequence[Any]) -> SimpleNamespace:
        i = op.read(values)
        mixed = op.mixes(i) if op.rows else False
        return _rounded(op, i) if mixed and not rounds else i

    def run(*values: Any) -> Any:
        made, keep = forward(inputs_of(values[:-1]), values[-1]), values[-1]
        out = [made[n] for n in outputs]
        out += [made[n] if keep else out[0].new_empty(0) for n in names(keeps)]
        return tuple(out) if len(out) > 1 else out[0]

    def run_backward(*values: Any) -> list[Tensor]:
        d, rest = values[: len(outputs)], values[len(outputs) : -1]
        inputs, kept = rest[: len(op.inputs)], rest[len(op.inputs) :]
        incoming, read = (SimpleNamespace(**dict(zip(k, v))) for k, v in ((outputs, d), (saved, kept)))
        found = backward(incoming, inputs_of(inputs), read) if backward else _scale(d[0], read)
        return _asked(op, inputs, values[-1], found)

    def setup(ctx: Any, inputs: tuple, output: Any) -> None:
        results = dict(zip([*outputs, *names(keeps)], output if isinstance(output, tuple) else (output,)))
        ctx.backend, ctx.inputs = backend, [_Slot.of(v) for v in inputs[:-1]]
        ctx.save_for_backward(*tensors(inputs[:-1]), *(results[n] for n in saved))
        # Where nothing is kept no gradient is asked for, and none could be given.
        ctx.mark_non_differentiable(*(results[n] for n in (names(keeps) if inputs[-1] or not keeps else results)))
        ctx.set_materialize_grads(False)

    def gradient(ctx: Any, *grads: Tensor | None) -> tuple:
        left = list(ctx.saved_tensors)
        inputs = [slot.take(left) for slot in ctx.inputs]
        needs = [t.requires_grad for t in tensors(inputs)]
        d = grads[: len(outputs)]
        if all(g is None for g in (d[:1] if op.scaled else d)):
            found = [None] * sum(needs)
        else:
            found = op.registered_backward[backend](*d, *inputs, *left, needs)
        asked, found = iter(needs), iter(found)

        def place(value: Any) -> Any:
            if isinstance(value, Tensor):
                return next(found) if next(asked) else None
            return [place(t) for t in value] if isinstance(value, list | tuple) else None

        return (*(place(value) for value in inputs), None)

    refuse = partial(_no_second_derivative, backend)
    for device in AUTOCAST:
        LIBRARY.impl(name, run, device.upper())
        LIBRARY.impl(f"{op.name}_backward_{backend}", run_backward, device.upper())
        if op.rows:
            LIBRARY.impl(name, partial(_cast_and_run, op, backend, device), f"Autocast{device.upper()}")
    torch.library.register_autograd(f"{NAMESPACE}::{name}", gradient, setup_context=setup, lib=LIBRARY)
    torch.library.register_autograd(f"{NAMESPACE}::{op.name}_backward_{backend}", refuse, lib=LIBRARY)


def _cast_and_run(op: Op, backend: str, device: str, *values: Any) -> Any:
    """The op on what autocast makes of its inputs."""
    *inputs, keep = values
    with torch._C._ExcludeDispatchKeyGuard(AUTOCAST[device]):
        return op.registered[backend](*op.cast(inputs, torch.get_autocast_dtype(device)), keep)


def _all_in(found: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """The tensors in these dtypes, all copies of one dtype by one launch."""
    out = [t if t.dtype == dtype else torch.empty_like(t, dtype=dtype) for t, dtype in zip(found, dtypes)]
    for dtype in dict.fromkeys(dtypes):
        pairs = [(o, t) for o, t in zip(out, found) if o is not t and o.dtype == dtype]
        if pairs:
            torch._foreach_copy_(*map(list, zip(*pairs)))
    return out


def _rounded(op: Op, i: SimpleNamespace) -> SimpleNamespace:
    """The inputs with weights in the rows' dtype."""
    found = {name: t for name in op.weights if (t := getattr(i, name)) is not None}
    low = _all_in(list(found.values()), [getattr(i, op.rows[0]).dtype] * len(found))
    return SimpleNamespace(**{**vars(i), **dict(zip(found, low))})


class _Slot(SimpleNamespace):
    """Where an input lies among the saved tensors: `count` of them for a list, one for a tensor, else its value."""

    @classmethod
    def of(cls, value: Any) -> _Slot:
        if isinstance(value, Tensor):
            return cls(kind="tensor")
        return cls(kind="list", count=len(tensors(value))) if tensors([value]) else cls(kind="value", value=value)

    def take(self, left: list[Tensor]) -> Any:
        if self.kind == "value":
            return self.value
        return left.pop(0) if self.kind == "tensor" else [left.pop(0) for _ in range(self.count)]


def _asked(op: Op, inputs: Sequence[Any], needs: Sequence[bool], found: dict[str, Any]) -> list[Tensor]:
    """The gradients that are asked for, in the inputs' order; one that no body gives is refused by name."""
    flags, out = iter(needs), []
    for name, value in zip(op.inputs, inputs):
        given = found.get(name)
        for i, _ in enumerate(tensors([value])):
            if not next(flags):
                continue
            if given is None:
                raise RuntimeError(f"{op.name}: {name} requires a gradient; expected one that needs none.")
            out.append(given if isinstance(value, Tensor) else given[i])
    return _all_in(out, [t.dtype for t, asked in zip(tensors(inputs), needs) if asked])


def _scale(upstream: Tensor, kept: SimpleNamespace) -> dict[str, Tensor]:
    return {name.removeprefix("d_"): (g * upstream).to(g.dtype) for name, g in vars(kept).items()}


def _no_second_derivative(backend: str, *_: Any) -> None:
    """A silent None would be a wrong second derivative."""
    raise RuntimeError(f"hhmpn_fast: the {backend} kernels have no second derivative; use the torch backend for it.")
