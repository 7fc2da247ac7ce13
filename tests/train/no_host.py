"""A mode in which PyTorch may not ask the device anything, nor take tensors from the host."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What waits for a GPU, and what `torch.tensor` makes on the host before it is copied.
WAITS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "lift_fresh", "_pin_memory")


class HostAskedError(AssertionError):
    """An op that reads the device's numbers or moves tensors between devices."""


class NoHost(TorchDispatchMode):
    """Raises at the first op that would make the host wait for a GPU. Attributes: ran, the ops that did not."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        if name in WAITS:
            raise HostAskedError(f"{func.name()} was called")
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        # 0-dimensional tensors of the host are read as numbers, without a copy, unless they are copied.
        places = {t.device for t in tensors if t.dim() or name in ("copy_", "_to_copy")}
        places |= {torch.device(d) for d in [(kwargs or {}).get("device")] if d is not None and name == "_to_copy"}
        if len(places) > 1:
            raise HostAskedError(f"{func.name()} saw tensors on {', '.join(map(str, places))}")
        self.ran.append(name)
        return func(*args, **(kwargs or {}))
