"""Counts what a call would launch on a GPU, where there is none: PyTorch's ops by a dispatch mode, ours at their doors.

Everything runs on CPU tensors but our kernels, whose launches are noted and not run: values mean nothing, counts do. An
op that looks at a tensor or allocates one launches nothing, one that PyTorch composes counts as what it is composed of.
Whatever would copy to or from the host, or wait for it, raises `HostError`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._C import DispatchKey
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hhmpn_fast.backends import use_backend
from hhmpn_fast.backends.cuda import launch as cuda
from hhmpn_fast.backends.cuda.fields import Wire
from hhmpn_fast.kernels import launch as triton
from tests.cuda.cases import library

FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_"),
    *("_unsafe_view", "_reshape_alias", "is_same_size"),
}
# One launch on a GPU, several ops in PyTorch's own composition.
WHOLE = {"copy_", "_foreach_copy_", "_foreach_norm", "_foreach_mul_", "_foreach_add_"}
COMPOSITE = (
    DispatchKey.CompositeImplicitAutograd,
    DispatchKey.CompositeExplicitAutograd,
    DispatchKey.CompositeExplicitAutogradNonFunctional,
)
# By dispatch; and what never reaches a dispatch mode, since on the CPU it is a look at memory.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "lift_fresh", "repeat_interleave"}
LOOKS = {"tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__array__", "tensor", "as_tensor"}
# Kernels of one start of csrc/cuda: a second one adds up the parts, or goes over the keys.
KERNELS = {"attention_backward": 2, "weight_gradients": 2}


class HostError(AssertionError):
    """A copy to or from the host, or a wait for it."""


class NoHost(TorchFunctionMode):
    """Refuses what looks at a tensor's values from Python, or makes one of Python's."""

    def __torch_function__(self, func: Any, types: Sequence[type], args: tuple = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in LOOKS:
            raise HostError(f"{func.__name__} waits for the host")
        return func(*args, **(kwargs or {}))


class Launches(TorchDispatchMode):
    """Counts ops by name; our Python bodies run with the mode on."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: tuple = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")
        run = _composed(func, *name)
        if run is not None:
            with self:
                return run(*args, **(kwargs or {}))
        if name[1] in WAITS or (name[1] == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])):
            raise HostError(f"{name[1]} waits for the host")
        if name[0] != "profiler" and not func.is_view and name[1] not in FREE:
            self.counts[name[1]] += 1
        return func(*args, **(kwargs or {}))


def _composed(func: Any, namespace: str, name: str) -> Callable[..., Any] | None:
    """What an op is composed of: our body in Python, or PyTorch's composition; None for an op with a kernel."""

    def has(key: DispatchKey) -> bool:
        return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key.name)

    if namespace == "hhmpn_fast":
        return lambda *args, **kwargs: func._op_dk(DispatchKey.CPU, *args, **kwargs)
    for key in () if name in WHOLE or has(DispatchKey.CPU) else COMPOSITE:
        # A composition that only makes a view is one; `to` and `contiguous` say so too, and may copy.
        looks = func.is_view and key != DispatchKey.CompositeImplicitAutograd
        if not looks and has(key):
            return lambda *args, key=key, **kwargs: func._op_dk(key, *args, **kwargs)
    return None


class _Noted:
    """The CUDA library's fields, and launches that are noted."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts, self.fields = counts, library().fields

    def start(self, kernel: str, wire: Wire) -> None:
        self.counts[kernel] += KERNELS.get(kernel, 1)


@contextlib.contextmanager
def counting(backend: str) -> Iterator[Mapping[str, int]]:
    """Launches by name of the block on a backend, "cuda" or "triton".

    Raises:
        HostError: in the block, where it copies to or from the host or waits for it.
    """
    mode = Launches()

    def note(launch: triton.Launch) -> None:
        mode.counts[launch.entry.kernel] += 1

    ours = cuda.using(_Noted(mode.counts)) if backend == "cuda" else triton.using(note, "sm90")
    with use_backend(backend), ours, NoHost(), mode:
        yield mode.counts
