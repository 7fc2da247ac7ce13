"""How the CUDA library is found and its kernels are started; importable where there is neither library nor driver.

`libhhmpn_cuda.so` (csrc/cuda, built by nvcc) holds the kernels, `_cuda.so` (csrc/cuda/binding.cpp, stable ABI, no
CUDA header) hands tensors' addresses and PyTorch's current stream to it. A kernel is named by its launcher in
csrc/cuda/api.h.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

PACKAGE = Path(__file__).parent.parent
BINDING, LIBRARY = PACKAGE / "_cuda.so", PACKAGE / "libhhmpn_cuda.so"
MANIFEST = PACKAGE / "cuda_manifest.json"
DIMS = (64, 128, 256)
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
Launcher = Callable[[str, Sequence["Tensor | None"], Sequence["Tensor | None"], Sequence[int], Sequence[float]], None]
_replaced: list[Launcher] = []


@contextlib.contextmanager
def using(launcher: Launcher) -> Iterator[None]:
    """Runs the block's kernels through `launcher`: the tests' host harness, on CPU tensors."""
    _replaced.append(launcher)
    try:
        yield
    finally:
        _replaced.pop()


def launch(
    kernel: str,
    reads: Sequence[Tensor | None],
    writes: Sequence[Tensor | None],
    sizes: Sequence[int],
    reals: Sequence[float] = (),
) -> None:
    """Starts one launcher of api.h on the current stream: its tensors are `reads` then `writes`, all contiguous."""
    if _replaced:
        return _replaced[-1](kernel, reads, writes, sizes, reals)
    absent = next(t for t in writes if t is not None).new_empty(0)
    tensors = [absent if t is None else t for t in (*reads, *writes)]
    _binding().launch(kernel, tensors, list(sizes), [float(x) for x in reals])


@functools.cache
def _binding() -> object:
    torch.ops.load_library(str(BINDING))
    torch.ops.hhmpn_cuda.open(str(LIBRARY))
    return torch.ops.hhmpn_cuda


def manifest() -> dict[str, object]:
    """What the build decided and why; {} when the package was not built."""
    return json.loads(MANIFEST.read_text(encoding="utf-8")) if MANIFEST.exists() else {}


def replaced() -> bool:
    """Whether kernels run through a launcher of the caller's (`using`)."""
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
        _binding()
    except (OSError, RuntimeError) as error:
        return f"the CUDA library does not load: {error}"
    return None


def describe() -> dict[str, str]:
    """What `info` prints about the backend."""
    built = manifest()
    architectures = built.get("architectures", ())
    return {"nvcc": str(built.get("nvcc", "unknown")), "for": " ".join(map(str, architectures)) or "unknown"}
