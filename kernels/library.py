"""Registration of the ops: schema, kernel, shapes for tracing, gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch

_library = torch.library.Library("hhmpn_fast_triton", "DEF")


def define(schema: str, kernel: Callable, fake: Callable, gradient: Callable, setup: Callable | None = None) -> None:
    """Defines hhmpn_fast_triton::<schema>; the kernel serves CUDA and ROCm, and the host under the interpreter."""
    name = schema.split("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CUDA", "CPU"):
        _library.impl(name, kernel, device)
    qualified = f"hhmpn_fast_triton::{name}"
    torch.library.register_fake(qualified, fake, lib=_library)
    torch.library.register_autograd(qualified, gradient, setup_context=setup, lib=_library)


def no_second_derivative(ctx: object, *grads: object) -> None:
    """The gradient of a gradient: refused, as a silent None would be a wrong second derivative."""
    raise RuntimeError("hhmpn_fast: the triton kernels have no second derivative; use the torch backend for it.")
