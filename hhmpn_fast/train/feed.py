"""Batches on their way to the device: gathered there where the data set fits, else copied beside the steps.

processor   batches of the host as they are
kept        a data set of at most SHARE of the GPU's free memory lies there, batches are gathered there
copied      the host gathers into pinned memory, a stream of its own copies while the steps before still run
moved       other accelerators: a plain copy of each batch
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hhmpn_fast.data.pool import Pool
from hhmpn_fast.data.resident import Resident
from hhmpn_fast.data.store import Batch, Dataset

SHARE = 0.25  # of the GPU's free memory: the rest is the model's and the steps'
AHEAD = 4  # batches that may wait on the GPU: more would only take memory


class Lane:
    """Copies to a GPU beside what runs there: a stream of its own, and events where the two meet."""

    pinned = True

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._started: deque[torch.cuda.Event] = deque()

    def place(self, batch: Batch) -> Batch:
        """The batch on the GPU, for the current stream, which waits for the copy; the host waits for none of it.

        The host waits where it is `AHEAD` batches before the GPU, which then has work enough.
        """
        current = torch.cuda.current_stream(self._device)
        self._started.append(current.record_event())
        if len(self._started) > AHEAD:
            self._started.popleft().synchronize()
        with torch.cuda.stream(self._stream):
            there = batch.to(self._device, non_blocking=True)
            features = there.features
            copied = [*features.values, features.offsets, features.present]
            copied += [] if there.labels is None else [there.labels]
        current.wait_stream(self._stream)
        for tensor in copied:
            tensor.record_stream(current)  # its memory is not given to the next copy before the step is done
        return there


class Feed:
    """Batches of a data set on a device, in the order that is asked for.

    Args:
        data: where they come from.
        device: where they go.
        keep: whether the data set may lie on the device as a whole, for passes over it that repeat.
        lane: how batches are copied to a GPU; `Lane(device)` there, None elsewhere.
    """

    def __init__(
        self, data: Dataset | Pool, device: torch.device | str, *, keep: bool = False, lane: Lane | None = None
    ) -> None:
        self._data, self._device, self._lane = data, torch.device(device), lane
        self._resident: Resident | None = None
        self.bound = room(self._device) if keep else 0
        if isinstance(data, Dataset) and 0 < Resident.bytes(data) <= self.bound:
            self._resident = Resident(data, self._device)
        elif self._device.type == "cuda" and lane is None:
            self._lane = Lane(self._device)

    def __call__(self, order: Iterable[Tensor]) -> Iterator[Batch]:
        """One batch for every tensor of indices."""
        for indices in order:
            if self._resident is not None:
                yield self._resident.batch(indices)
            elif self._lane is not None:
                yield self._lane.place(self._data.batch(indices, pin=self._lane.pinned))
            elif self._device.type == "cpu":
                yield self._data.batch(indices)
            else:
                yield self._data.batch(indices).to(self._device)

    def describe(self) -> str:
        """How batches reach the device, in words; nothing on the processor, where they are."""
        name = f"split '{self._data.split}'"
        if self._resident is not None:
            held = Resident.bytes(self._data) / 2**30
            return f"{name} lies on {self._device} ({held:.2f} GiB of at most {self.bound / 2**30:.2f})"
        if self._lane is not None:
            return f"{name} stays on the host, batches are copied to {self._device} while it computes"
        return "" if self._device.type == "cpu" else f"{name} stays on the host, batches are copied to {self._device}"


def room(device: torch.device) -> int:
    """How many bytes a data set kept on a device may take: a share of what is free on a GPU, elsewhere none."""
    return int(SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0
