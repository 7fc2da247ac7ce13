"""Several splits read as one, and K stratified folds over them (the paper's "10-fold cross validation")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hhmpn_fast.data.shards import Statistics
from hhmpn_fast.data.store import Batch, Dataset
from hhmpn_fast.errors import InputError
from hhmpn_fast.ragged import Ragged


class Pool:
    """A view of chosen samples of several splits of one data set, with a `Dataset`'s reading side.

    Standardised modalities use the statistics of the data set's own training split.
    """

    def __init__(self, parts: Sequence[Dataset], index: Tensor | None = None, split: str = "pool") -> None:
        self.parts, self.split = tuple(parts), split
        self.starts = torch.tensor([0, *np.cumsum([len(p) for p in parts])])
        self.index = torch.arange(int(self.starts[-1])) if index is None else index
        first = parts[0]
        self.path: Path = first.path
        self.names, self.sizes, self.label_names = first.names, first.sizes, first.label_names
        self.metadata: dict[str, Any] = {k: v for k, v in first.metadata.items() if k != "optimum"}
        self.statistics: Statistics = first.statistics
        self.standardised = first.standardised

    def __len__(self) -> int:
        return self.index.numel()

    @cached_property
    def lengths(self) -> Tensor:
        """int64 (M, n)."""
        return torch.cat([p.lengths for p in self.parts], 1)[:, self.index]

    @cached_property
    def labels(self) -> Tensor:
        """uint8 (n, L)."""
        return torch.cat([p.labels for p in self.parts])[self.index]

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The n names."""
        every = [name for p in self.parts for name in p.ids]
        return tuple(every[i] for i in self.index.tolist())

    def subset(self, indices: Tensor, split: str | None = None) -> Pool:
        """The samples `indices` of this view."""
        return Pool(self.parts, self.index[indices], split or self.split)

    def batch(self, indices: Tensor | Sequence[int], *, pin: bool = False) -> Batch:
        """The samples `indices` of this view, in that order; `pin` as in `Dataset.batch`."""
        chosen = self.index[torch.as_tensor(indices, dtype=torch.int64)]
        home = torch.searchsorted(self.starts[1:], chosen, right=True)
        pieces, places = [], []
        for k, part in enumerate(self.parts):
            at = (home == k).nonzero().flatten()
            pieces.append(part.batch(chosen[at] - self.starts[k]))
            places.append(at)
        order = torch.argsort(torch.cat(places))
        values, lengths = [], torch.cat([p.features.lengths for p in pieces], 1)
        for m in range(len(self.names)):
            packed = torch.cat([p.features.values[m] for p in pieces])
            values.append(torch.cat([packed.split(lengths[m].tolist())[i] for i in order.tolist()]))
        ids = [name for p in pieces for name in p.ids]
        labels = torch.cat([p.labels for p in pieces])[order]
        if pin:
            values, labels = [v.pin_memory() for v in values], labels.pin_memory()
        features = Ragged(self.names, tuple(values), lengths[:, order])
        return Batch(features, labels, tuple(ids[i] for i in order.tolist()))


def folds(pool: Pool, count: int, seed: int) -> Iterator[tuple[Pool, Pool, Pool]]:
    """(train, valid, test) of every fold: test is fold k, valid the next one, iteratively stratified by label set."""
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    if not 3 <= count <= len(pool):
        raise InputError(f"folds: found {count}; expected 3 to {len(pool)}, as many as there are samples at most.")
    kfold = MultilabelStratifiedKFold(count, shuffle=True, random_state=seed)
    parts = [torch.from_numpy(test) for _, test in kfold.split(np.zeros((len(pool), 1)), pool.labels.numpy())]
    for k in range(count):
        valid = (k + 1) % count
        train = torch.cat([p for i, p in enumerate(parts) if i not in (k, valid)])
        yield tuple(pool.subset(p, s) for p, s in ((train, "train"), (parts[valid], "valid"), (parts[k], "test")))
