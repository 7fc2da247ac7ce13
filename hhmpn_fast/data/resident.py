"""A split kept on a device: its batches are gathered there, and equal those of the host to the bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hhmpn_fast.data.store import Batch, Dataset, gather, standardised
from hhmpn_fast.ragged import Ragged, placed


class Resident:
    """Copies of a data set's nodes, offsets, labels and statistics on a device.

    Args:
        data: the view whose samples are asked for; all rows of its file are copied, in the dtype they are stored in.
        device: where to.
    """

    def __init__(self, data: Dataset, device: torch.device | str) -> None:
        self._data, self._device = data, torch.device(device)
        self._values, self._offsets, labels = _parts(data)
        self._values = [v.to(self._device) for v in self._values]
        self._offsets = [v.to(self._device) for v in self._offsets]
        self._labels = None if labels is None else labels.to(self._device)
        self._statistics = {
            n: [table.to(self._device) for table in data.statistics[n]] for n in data.names if n in data.standardised
        }

    @staticmethod
    def bytes(data: Dataset) -> int:
        """What the copies of a data set take."""
        values, offsets, labels = _parts(data)
        return sum(t.nbytes for t in (*values, *offsets, *(() if labels is None else (labels,))))

    def batch(self, indices: Tensor | Sequence[int]) -> Batch:
        """The samples `indices` of the view, in that order, on the device; the host does not wait for it."""
        data = self._data
        chosen = data.checked(indices)
        lengths, rows = data.lengths[:, chosen], placed(data.index[chosen], self._device)
        values = []
        for m, (name, table) in enumerate(zip(data.names, self._values)):
            out = torch.empty(int(lengths[m].sum()), data.sizes[m], device=self._device)
            gather(table, self._offsets[m], rows, out)
            values.append(standardised(out, *self._statistics[name]) if name in self._statistics else out)
        labels = None if self._labels is None else self._labels.index_select(0, rows).float()
        return Batch(Ragged(data.names, tuple(values), lengths), labels, data.named(chosen))


def _parts(data: Dataset) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor | None]:
    """Values and offsets a modality, and labels, as the file holds them."""
    return data._values, data._offsets, data._side.get("labels")
