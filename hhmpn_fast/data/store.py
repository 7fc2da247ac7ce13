"""One split of a data set: views of its samples and modalities, and batches gathered without a loop over samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.data.shards import Statistics, check_shard, read_metadata, read_shard, read_statistics
from hhmpn_fast.data.writer import shard_name
from hhmpn_fast.errors import InputError
from hhmpn_fast.ragged import Ragged


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples of a data set.

    Attributes:
        features: the packed nodes, float32.
        labels: float32 (B, L), or None for a data set without labels.
        ids: B names.
    """

    features: Ragged
    labels: Tensor | None
    ids: tuple[str, ...]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch with its nodes and labels on a device; `non_blocking` as in `Tensor.to`."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=non_blocking)
        return Batch(self.features.to(device, non_blocking=non_blocking), labels, self.ids)


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set on disk. Open it with `Dataset.open`.

    Attributes:
        path: its directory.
        split: the split's name.
        names: the M modality names.
        sizes: the M node widths e_m.
        label_names: the L labels; empty for a data set without labels.
        metadata: all of metadata.json.
        statistics: for every modality its training mean and sd, each (S, e), S the fixed number of nodes or 1.
        standardised: the modalities served as (x - mean) / sd.
        index: int64 (n,), the rows of the file that this view serves.
    """

    path: Path
    split: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    label_names: tuple[str, ...]
    metadata: dict[str, Any]
    statistics: Statistics
    standardised: tuple[str, ...]
    index: Tensor
    _values: tuple[Tensor, ...]
    _offsets: tuple[Tensor, ...]
    _side: dict[str, Tensor]

    @classmethod
    def open(
        cls,
        path: str | Path,
        split: str,
        *,
        standardise: bool | Iterable[str] = False,
        statistics: Statistics | None = None,
    ) -> Dataset:
        """Opens one split; nothing but its tables is read before a batch is asked for.

        Args:
            path: the data set's directory.
            split: one of its splits.
            standardise: the modalities to serve as (x - mean) / sd; True for all.
            statistics: mean and sd to use instead of the data set's own (new samples take those of the training set).

        Raises:
            InputError: no data set there, a format or split it does not know, a missing, truncated or altered shard,
                an unknown modality, or no statistics to standardise by.
        """
        path = Path(path)
        metadata = read_metadata(path)
        if split not in metadata["splits"]:
            raise InputError(f"data set '{path}': no split '{split}'; expected one of {', '.join(metadata['splits'])}.")
        modalities = metadata["modalities"]
        values, offsets = [], []
        for m in modalities:
            shard = read_shard(path, shard_name(split, m["name"]), metadata)
            check_shard(path, shard, m, metadata["splits"][split])
            values.append(shard["values"])
            offsets.append(shard["offsets"])
        side = read_shard(path, shard_name(split), metadata)
        if statistics is None:
            statistics = read_statistics(path, metadata)
        data = cls(
            path=path,
            split=split,
            names=tuple(m["name"] for m in modalities),
            sizes=tuple(m["size"] for m in modalities),
            label_names=tuple(metadata["labels"]),
            metadata=metadata,
            statistics=statistics,
            standardised=(),
            index=torch.arange(metadata["splits"][split]["samples"]),
            _values=tuple(values),
            _offsets=tuple(offsets),
            _side=side,
        )
        chosen = data.names if standardise is True else () if standardise is False else tuple(standardise)
        return data.standardise(chosen)

    def __len__(self) -> int:
        return self.index.numel()

    @cached_property
    def lengths(self) -> Tensor:
        """int64 (M, n): how many nodes each modality has in each sample."""
        return torch.stack([table.diff()[self.index] for table in self._offsets])

    @cached_property
    def labels(self) -> Tensor | None:
        """uint8 (n, L), or None for a data set without labels."""
        return self._side["labels"][self.index] if "labels" in self._side else None

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The n names."""
        letters, ends = self._side["ids.values"].numpy().tobytes(), self._side["ids.offsets"].tolist()
        return tuple(letters[ends[i] : ends[i + 1]].decode() for i in self.index.tolist())

    def extra(self, name: str) -> Tensor:
        """A further tensor with one row a sample, as the converter stored it."""
        key = f"extra.{name}"
        if key not in self._side:
            held = [k.removeprefix("extra.") for k in self._side if k.startswith("extra.")]
            listed = ", ".join(held) or "none"
            raise InputError(f"extra '{name}': not in split '{self.split}'; expected one of {listed}.")
        return self._side[key][self.index]

    def batch(self, indices: Tensor | Sequence[int], *, pin: bool = False) -> Batch:
        """Gathers the samples `indices` of this view, in that order: one indexed copy a modality.

        pin: into pinned memory, from which a copy to a GPU need not be waited for.
        """
        chosen = self.checked(indices)
        rows, lengths = self.index[chosen], self.lengths[:, chosen]
        values = []
        for m, name in enumerate(self.names):
            out = torch.empty(int(lengths[m].sum()), self.sizes[m], pin_memory=pin)
            gather(self._values[m], self._offsets[m], rows, out)
            values.append(standardised(out, *self.statistics[name]) if name in self.standardised else out)
        labels = None if self.labels is None else self.labels[chosen].float()
        labels = labels.pin_memory() if pin and labels is not None else labels
        return Batch(Ragged(self.names, tuple(values), lengths), labels, self.named(chosen))

    def checked(self, indices: Tensor | Sequence[int]) -> Tensor:
        """`indices` as an int64 tensor (B,); raises InputError for one that is no sample of this view."""
        chosen, n = torch.as_tensor(indices, dtype=torch.int64), len(self)
        if chosen.dim() != 1 or (chosen.numel() and (int(chosen.min()) < 0 or int(chosen.max()) >= n)):
            raise InputError(
                f"indices: found {_range_of(chosen)} of shape {tuple(chosen.shape)}; expected (B,) within 0..{n - 1}."
            )
        return chosen

    def named(self, chosen: Tensor) -> tuple[str, ...]:
        """The names of samples (B,)."""
        return tuple(self.ids[i] for i in chosen.tolist())

    def standardise(self, names: Iterable[str]) -> Dataset:
        """A view that serves the modalities `names` as (x - mean) / sd with the training split's statistics."""
        names = tuple(names)
        for name in names:
            at = self._position(name)
            if name not in self.statistics:
                raise InputError(
                    f"modality '{name}': no training mean and sd; expected a set with a 'train' split, or statistics."
                )
            mean, _ = self.statistics[name]
            shape = tuple(mean.shape)
            fixed = self.metadata["modalities"][self._stored(name)]["fixed_nodes"]
            if shape[1:] != (self.sizes[at],) or shape[0] not in (1, fixed):
                raise InputError(
                    f"modality '{name}': statistics of shape {shape}; expected ({fixed or 1}, {self.sizes[at]})."
                )
        return self._with(standardised=names)

    def select(self, names: Sequence[str], empty: str = "refuse") -> Dataset:
        """A view of the modalities `names`, in that order.

        Args:
            names: some of the data set's modalities.
            empty: what to do with a sample that has no node in any of them: "refuse" or "drop".
        """
        if not names or len(set(names)) != len(names):
            raise InputError(f"modalities: found {list(names)}; expected at least one, each once.")
        if empty not in ("refuse", "drop"):
            raise InputError(f"empty: found '{empty}'; expected 'refuse' or 'drop'.")
        at = [self._position(n) for n in names]
        bare = self.lengths[at].sum(0) == 0
        if empty == "refuse" and bool(bare.any()):
            raise InputError(
                f"modalities {', '.join(names)}: {int(bare.sum())} of {len(self)} samples of split '{self.split}' have "
                f"no node in them, first '{self.ids[int(bare.nonzero()[0])]}'; expected at least one, or empty='drop'."
            )
        return self._with(
            names=tuple(names),
            sizes=tuple(self.sizes[i] for i in at),
            standardised=tuple(n for n in self.standardised if n in names),
            index=self.index[~bare],
            _values=tuple(self._values[i] for i in at),
            _offsets=tuple(self._offsets[i] for i in at),
        )

    def subset(self, indices: Tensor | Sequence[int]) -> Dataset:
        """A view of the samples `indices` of this view (folds, learning curves)."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        if chosen.dim() != 1 or (chosen.numel() and (int(chosen.min()) < 0 or int(chosen.max()) >= len(self))):
            raise InputError(f"indices: found {_range_of(chosen)}; expected (k,) within 0..{len(self) - 1}.")
        return self._with(index=self.index[chosen])

    def _position(self, name: str) -> int:
        if name not in self.names:
            raise InputError(f"modality '{name}': not in '{self.path}'; expected one of {', '.join(self.names)}.")
        return self.names.index(name)

    def _stored(self, name: str) -> int:
        return [m["name"] for m in self.metadata["modalities"]].index(name)

    def _with(self, **changes: Any) -> Dataset:
        fields = {f: getattr(self, f) for f in self.__dataclass_fields__}
        return Dataset(**{**fields, **changes})


def gather(values: Tensor, offsets: Tensor, rows: Tensor, out: Tensor) -> None:
    """The nodes of samples `rows` (B,) of packed values (N, e) with offsets (n+1,), in that order, into out (S, e).

    All of them on one device; nothing is read on the host.
    """
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    first = starts - lengths.cumsum(0) + lengths
    position = torch.arange(out.shape[0], device=out.device)
    place = torch.repeat_interleave(first, lengths, output_size=out.shape[0]) + position
    if values.dtype == out.dtype:
        torch.index_select(values, 0, place, out=out)
    else:
        out.copy_(values.index_select(0, place))


def standardised(values: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """(x - mean) / sd in place; mean and sd (1, e), or (S, e) for samples of S nodes each."""
    values.view(values.shape[0] // mean.shape[0], *mean.shape).sub_(mean).div_(sd)
    return values


def _range_of(chosen: Tensor) -> str:
    return f"{int(chosen.min())}..{int(chosen.max())}" if chosen.numel() else "nothing"
