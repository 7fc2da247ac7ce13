"""What autocast makes of a tensor: the dtype that an op computes in, asked before one is chosen."""

from __future__ import annotations

import torch
from torch import Tensor


def device_dtype(device: str) -> torch.dtype | None:
    """The dtype that autocast asks for on a kind of device; None where it is off, or where there is none."""
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which an op reads a tensor that autocast casts; float64 and whole numbers stay what they are."""
    if tensor.dtype == torch.float64 or not tensor.is_floating_point():
        return tensor.dtype
    return device_dtype(tensor.device.type) or tensor.dtype
