"""What a launch needs to know: the architecture, the precision of fp32 products, padded widths."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_DIM = 512
# Where triton's interpreter is wrong: tl.dot multiplies bfloat16's bit patterns in 3.5.1, 3.6.0, 3.7.1, 3.8.0, 3.9.0.
INTERPRETED_WRONG = {torch.bfloat16}


def interpreting() -> bool:
    """Whether Triton's interpreter is on: kernels then run on the host, one program after another."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def unavailable(device: str) -> str | None:
    """What keeps all kernels from running on tensors of a device, or None. Imports nothing."""
    if not _has_triton():
        return "triton is not installed"
    if device != "cuda" and not (device == "cpu" and interpreting()):
        hint = "; TRITON_INTERPRET=1 runs the kernels on the host, for tests" if device == "cpu" else ""
        return f"the tensors are on {device}, the kernels run on a GPU{hint}"
    if device == "cuda" and not torch.cuda.is_available():
        return "torch finds no GPU"
    return None


def inexact(device: str, dtype: torch.dtype) -> str | None:
    """What makes results wrong in a dtype where the kernels would run, or None."""
    if dtype in INTERPRETED_WRONG and device == "cpu" and interpreting():
        return f"Triton's interpreter is wrong in {dtype}; expected float32, float16 or a GPU"
    return None


@cache
def _device_architecture(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return "gfx942"
    if properties.major >= 10:
        return "sm100" if properties.major == 10 else "sm80"
    return "sm90" if properties.major == 9 else "sm80"


def architecture(tensor: Tensor) -> str:
    """The row of the launch table: sm80, sm90, sm100 or gfx942. Parts without a row of their own take the nearest."""
    return "sm80" if tensor.device.type != "cuda" else _device_architecture(tensor.device.index or 0)


def kind(dtype: torch.dtype) -> str:
    """How products are taken: "half", or for fp32 PyTorch's own switch, "tf32" or "ieee"."""
    if dtype != torch.float32:
        return "half"
    set_to = torch.backends.cuda.matmul.fp32_precision
    if set_to == "none":
        set_to = torch.backends.fp32_precision
    return "tf32" if set_to == "tf32" else "ieee"


def precision(kind: str) -> str:
    """tl.dot's input_precision; halves take their products exactly under any."""
    return "ieee" if kind == "ieee" else "tf32"


def padded(size: int, least: int = 16) -> int:
    """The power of two a row is padded to in registers; tensor cores want at least 16."""
    return max(least, 1 << (size - 1).bit_length())


def row_constants(dim: int) -> dict:
    """How a kernel holds whole rows: their padded width, and whether that is the width."""
    width = padded(dim)
    return {"D": width, "EVEN": dim == width}


def product_constants(tensor: Tensor, rng: Tensor | None) -> dict:
    """How a kernel takes products, and whether it drops."""
    return {"DROPOUT": rng is not None, "PRECISION": precision(kind(tensor.dtype))}


def step(size: int, dim: int) -> int:
    """A step of `size` through a width of `dim`, never beyond the padded width; 0 is all of it."""
    return min(size or padded(dim), padded(dim))


def aligned(rows: Tensor) -> Tensor:
    """Rows with unit stride inside; a view with any row stride stays as it is."""
    return rows if rows.dim() == 2 and (rows.stride(1) == 1 or rows.shape[1] == 1) else rows.contiguous()
