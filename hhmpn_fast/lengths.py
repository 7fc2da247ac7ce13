"""What the host knows of offsets: the lengths of their segments, so that nobody asks the device for them.

`Ragged` and the model note the offsets they make. Offsets of others are asked once, which waits for the device.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Known:
    """Of one offsets tensor: its lengths, int64 on the host, and what ops made of them."""

    def __init__(self, lengths: Tensor) -> None:
        self.lengths = lengths
        self.made: dict[Any, Any] = {}

    @cached_property
    def equal(self) -> bool:
        """Whether all segments have one length."""
        return bool((self.lengths == self.lengths[:1]).all())

    @property
    def key(self) -> Any:
        """What plans are kept by: number and length of equal segments, else this very table."""
        return (self.lengths.numel(), int(self.lengths[0])) if self.equal and self.lengths.numel() else self


_KNOWN = WeakTensorKeyDictionary()


def note(offsets: Tensor, lengths: Tensor) -> Tensor:
    """The offsets, whose segments have these lengths (int64, on the host)."""
    if not torch.compiler.is_compiling():
        _KNOWN[offsets] = Known(lengths)
    return offsets


def known(offsets: Tensor) -> Known:
    """What is known of offsets (S+1,); for offsets that nobody noted their lengths are copied from the device."""
    if offsets not in _KNOWN:
        _KNOWN[offsets] = Known(offsets.diff().to("cpu", torch.int64))
    return _KNOWN[offsets]


def uniform(segments: int, rows: int, device: torch.device) -> Tensor:
    """Offsets int32 (segments+1,) of segments that all have `rows` rows."""
    offsets = torch.arange(0, segments * rows + 1, rows, dtype=torch.int32, device=device)
    return note(offsets, torch.full((segments,), rows))


def times(offsets: Tensor, factor: int) -> Tensor:
    """Offsets of segments `factor` times as long."""
    return offsets if factor == 1 else note(offsets * factor, known(offsets).lengths * factor)
