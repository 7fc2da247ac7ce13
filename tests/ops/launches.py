"""What a call asks of its device, counted without one: tensors lie on `meta`, whose values nobody can ask for.

An op of PyTorch's dispatcher that touches a meta tensor is a launch, unless it is a view or an allocation. A question
to the device (`.item()`, `nonzero`) raises there by itself; copies between host and device are kept apart. `foreach`
ops fall apart on meta tensors: what a GPU runs as one launch is counted as one by `once`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE = set(
    """_reshape_alias _unsafe_view alias as_strided detach diagonal empty empty_like empty_strided expand lift_fresh
    new_empty new_empty_strided permute select slice split split_with_sizes squeeze t transpose unbind unfold unsqueeze
    view""".split()
)


class Launches(TorchDispatchMode):
    """Counts by op; `host_copies` are copies of more than a number between the host and the device."""

    def __init__(self) -> None:
        super().__init__()
        self.by_op: Counter[str] = Counter()
        self.host_copies: list[str] = []
        self._quiet = False

    @property
    def total(self) -> int:
        """Launches in all."""
        return sum(self.by_op.values())

    @contextlib.contextmanager
    def once(self, name: str) -> Iterator[None]:
        """What runs in the block counts as one launch."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False
        self.by_op[name] += 1

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        name = op.overloadpacket._qualified_op_name.split("::")[1]
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        places = {t.device.type for t in tensors if t.dim()}
        if "meta" in places and name not in FREE and not self._quiet:
            self.by_op[name] += 1
            if name in ("_to_copy", "copy_") and "cpu" in places:
                self.host_copies.append(str(op))
        return out
