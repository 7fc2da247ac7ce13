"""What PyTorch asks of a registered op, forward and backward: schema, fake kernel, autograd registration, tracing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.ops.op import Op, names, tensors


def detached(value: Any) -> Any:
    """The same values without gradients."""
    return torch.utils._pytree.tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, value)


def check(op: Op, backend: str = "cpu", **inputs: Any) -> None:
    """opcheck of the op, and of its backward op on gradients of all outputs and with some of them missing."""
    overload = op.registered[backend]
    for keep in (True, False):
        torch.library.opcheck(overload, (), {**inputs, "keep": keep})
    if op.inference:
        return
    plain = detached(inputs)
    with torch.no_grad():
        made = overload(**plain, keep=True)
    results = dict(zip([r.name for r in overload._schema.returns], made if isinstance(made, tuple) else ()))
    results = results or {names(op.outputs)[0]: made}
    backward = op.registered_backward[backend]
    fields = [a.name for a in backward._schema.arguments if a.name not in plain]
    saved = {name: results[name] for name in fields if name in results}
    incoming = {name: torch.randn_like(results[name[2:]]) for name in fields if name[2:] in names(op.outputs)}
    needs = [t.requires_grad for t in tensors([inputs[name] for name in op.inputs])]
    assert any(needs)
    for some in (incoming, {**incoming, **dict.fromkeys(list(incoming)[1:])}):  # the first is always there
        torch.library.opcheck(backward, (), {**some, **plain, **saved, "needs": needs})
