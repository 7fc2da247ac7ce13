"""How the CUDA library is found and its kernels are started by name; importable where there is no library or driver.

`libhhmpn_cuda.so` (csrc/cuda, built by nvcc) holds the kernels and tells their fields, `_cuda.so`
(csrc/cuda/base/binding.cpp, stable ABI, no CUDA header) hands tensors' addresses and PyTorch's current stream to it.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from hhmpn_fast.backends.cuda.fields import Signature, Wire
from hhmpn_fast.ops.dropout import threshold

PACKAGE = Path(__file__).parent.parent.parent
BINDING, LIBRARY = PACKAGE / "_cuda.so", PACKAGE / "libhhmpn_cuda.so"
MANIFEST = PACKAGE / "cuda_manifest.json"
DIMS = (64, 128, 256)


class Library(Protocol):
    """Where kernels run: the installed library, or what `using` puts in its place."""

    def fields(self, kernel: str) -> str:
        """The kernel's fields, a line each."""

    def start(self, kernel: str, wire: Wire) -> None:
        """Starts the kernel."""


_replaced: list[Library] = []


@contextlib.contextmanager
def using(library: Library) -> Iterator[None]:
    """Runs the block's kernels through `library`: the tests' host harness, on CPU tensors."""
    _replaced.append(library)
    try:
        yield
    finally:
        _replaced.pop()


def launch(kernel: str, **values: Any) -> None:
    """Starts a kernel on the current stream; `values` are its fields by name (csrc/cuda/*/params.h).

    Raises:
        TypeError: a field without a value, a value without a field, or a value of another kind than its field's.
    """
    library = _library()
    signature = _signature(library, kernel)
    wire = signature.pack(values)
    if _replaced:
        signature.check_shapes(values)
    library.start(kernel, wire)


def room(kernel: str, name: str) -> int:
    """How many items a list of the kernel holds."""
    return _signature(_library(), kernel).fields[name].room


def dropout_fields(p: float, rng: Tensor | None, device: torch.device) -> dict[str, Any]:
    """The fields of a `Dropout` record; no rng: no dropout."""
    if rng is None or p == 0.0:
        return {"dropout_rng": None, "dropout_threshold": 0, "dropout_scale": 1.0}
    return {"dropout_rng": rng.to(device), "dropout_threshold": threshold(p), "dropout_scale": 1.0 / (1.0 - p)}


class _Installed:
    """The package's own library behind its binding."""

    def __init__(self) -> None:
        torch.ops.load_library(str(BINDING))
        torch.ops.hhmpn_cuda.open(str(LIBRARY))

    def fields(self, kernel: str) -> str:
        return torch.ops.hhmpn_cuda.fields(kernel)

    def start(self, kernel: str, wire: Wire) -> None:
        absent = next(t for _, t in wire.tensors if t is not None).new_empty(0)
        tensors = [absent if t is None else t for _, t in wire.tensors]
        torch.ops.hhmpn_cuda.launch(kernel, tensors, wire.sizes, wire.reals)


_installed = functools.cache(_Installed)


def _library() -> Library:
    return _replaced[-1] if _replaced else _installed()


@functools.cache
def _signature(library: Library, kernel: str) -> Signature:
    return Signature(kernel, library.fields(kernel))


def manifest() -> dict[str, object]:
    """What the build decided and why; {} when the package was not built."""
    return json.loads(MANIFEST.read_text(encoding="utf-8")) if MANIFEST.exists() else {}


def replaced() -> bool:
    """Whether kernels run through a library of the caller's (`using`)."""
    return bool(_replaced)


def missing() -> str | None:
    """Why no CUDA kernel can run on this machine whatever is asked of it, in one sentence; None when they can."""
    return None if _replaced else _missing()


@functools.cache
def _missing() -> str | None:
    if not (BINDING.exists() and LIBRARY.exists()):
        said = manifest().get("reason")
        return f"this installation has no CUDA library ({said or 'it was not built'})"
    if torch.version.cuda is None:
        return "the CUDA library is built, but this torch is a build without CUDA"
    if not torch.cuda.is_available():
        return "the CUDA library is built, but no GPU or no driver is found"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"the GPU is sm_{major}{minor}; the CUDA kernels need sm_80 or newer"
    try:
        _installed()
    except (OSError, RuntimeError) as error:
        return f"the CUDA library does not load: {error}"
    return None


def describe() -> dict[str, str]:
    """What `info` prints about the backend."""
    built = manifest()
    architectures = built.get("architectures", ())
    return {"nvcc": str(built.get("nvcc", "unknown")), "for": " ".join(map(str, architectures)) or "unknown"}
