"""Counts what a call would launch on a GPU, where there is none: PyTorch's ops by a dispatch mode, ours at their doors.

Ops run on CPU tensors, but for our kernels, whose launches are noted and not run: values mean nothing, counts do. An op
that only looks at a tensor or allocates one launches nothing. `Host` is an op that copies to or from the host, or waits
for it; `counting` refuses it with the line that asked.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode

from hhmpn_fast.backends import use_backend
from hhmpn_fast.backends.cuda import launch as cuda
from hhmpn_fast.backends.cuda.fields import Wire
from hhmpn_fast.kernels import launch as triton
from tests.cuda.cases import library

ALLOCATES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_"}
LOOKS = {"_unsafe_view", "_reshape_alias", "_local_scalar_dense", "is_same_size", "lift_fresh", "sym_size", "sym_numel"}
COMPOSITE = (
    DispatchKey.CompositeImplicitAutograd,
    DispatchKey.CompositeExplicitAutograd,
    DispatchKey.CompositeExplicitAutogradNonFunctional,
)
# One launch on a GPU, several ops in PyTorch's own composition.
WHOLE = {"copy_", "_foreach_norm", "_foreach_mul_", "_foreach_add_"}
HOST = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_assert_async", "unique_consecutive"}
# Kernels of one start of csrc/cuda: a second one adds up the parts, or goes over the keys.
KERNELS = {"attention_backward": 2, "weight_gradients": 2}


def has(func: Any, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


class HostError(AssertionError):
    """A step that waits for the host."""


class Launches(TorchDispatchMode):
    """Counts ops by name; our Python bodies run with the mode on."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: tuple = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")
        if name[0] == "hhmpn_fast":
            with self:
                return func._op_dk(DispatchKey.CPU, *args, **(kwargs or {}))
        if name[1] in HOST:
            raise HostError(f"{name[1]} waits for the host")
        for key in COMPOSITE if name[1] not in WHOLE and not has(func, "CPU") else ():
            looks = func.is_view and key != DispatchKey.CompositeImplicitAutograd
            if not looks and has(func, key.name):
                with self:
                    return func._op_dk(key, *args, **(kwargs or {}))
        if name[0] == "profiler" or func.is_view or name[1] in ALLOCATES or name[1] in LOOKS:
            return func(*args, **(kwargs or {}))
        self.counts[name[1]] += 1
        return func(*args, **(kwargs or {}))


class _Noted:
    """The CUDA library's fields, and launches that are noted."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts, self.fields = counts, library().fields

    def start(self, kernel: str, wire: Wire) -> None:
        self.counts[kernel] += KERNELS.get(kernel, 1)


@contextlib.contextmanager
def counting(backend: str) -> Iterator[Mapping[str, int]]:
    """Launches by name of the block on a backend, "cuda" or "triton"."""
    mode = Launches()

    def note(launch: triton.Launch) -> None:
        mode.counts[launch.entry.kernel] += 1

    ours = cuda.using(_Noted(mode.counts)) if backend == "cuda" else triton.using(note, "sm90")
    with use_backend(backend), ours, mode:
        yield mode.counts
