"""One packed batch: for every modality a values tensor and its offsets, no padding anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hhmpn_fast.errors import InputError
from hhmpn_fast.lengths import note


def placed(table: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on a device; to a GPU from pinned memory, so that the host does not wait."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table.to(device)


@dataclass(frozen=True)
class Ragged:
    """B samples, each with one ragged sequence of nodes in every modality.

    Attributes:
        names: the M modality names, in the order of `values`.
        values: M tensors, `values[m]` of shape (N_m, e_m): all nodes of modality m, sample after sample.
        lengths: int64 tensor (M, B) on the host: how many nodes modality m has in sample b; 0 is normal.

    Build one with `Ragged.from_samples` or `Ragged.from_offsets`; both check everything a kernel relies on.
    """

    names: tuple[str, ...]
    values: tuple[Tensor, ...]
    lengths: Tensor

    def __post_init__(self) -> None:
        lengths = self.lengths
        if len(self.names) != len(self.values) or lengths.shape[:1] != (len(self.values),) or lengths.dim() != 2:
            raise InputError(
                f"Ragged: found {len(self.names)} names, {len(self.values)} value tensors and lengths of shape "
                f"{tuple(lengths.shape)}; expected one name, one tensor and one row of lengths a modality."
            )
        if not self.values:
            raise InputError("Ragged: found no modality; expected at least one.")
        if lengths.device.type != "cpu" or lengths.dtype != torch.int64:
            raise InputError(f"Ragged: lengths are {lengths.dtype} on {lengths.device}; expected int64 on the host.")
        for name, value, row in zip(self.names, self.values, lengths):
            if value.dim() != 2:
                raise InputError(f"modality '{name}': values have shape {tuple(value.shape)}; expected (nodes, size).")
            if row.numel() and int(row.min()) < 0:
                raise InputError(f"modality '{name}': found a length of {int(row.min())}; expected lengths >= 0.")
            if int(row.sum()) != value.shape[0]:
                raise InputError(
                    f"modality '{name}': lengths sum to {int(row.sum())} but values hold {value.shape[0]} nodes; "
                    "expected them to be equal."
                )
        if int(lengths.sum()) >= 2**31:
            raise InputError(f"Ragged: found {int(lengths.sum())} nodes; expected fewer than 2**31 in one batch.")
        empty = (lengths.sum(0) == 0).nonzero().flatten().tolist()
        if empty:
            raise InputError(f"sample {empty[0]}: every modality is empty; expected at least one node in one modality.")

    @classmethod
    def from_samples(cls, names: Sequence[str], samples: Sequence[Sequence[Tensor]]) -> Ragged:
        """Packs `samples[b][m]`, each (S^m, e_m), into one batch."""
        for b, sample in enumerate(samples):
            if len(sample) != len(names):
                raise InputError(f"sample {b}: found {len(sample)} modalities; expected {len(names)}.")
        if not samples:
            raise InputError("Ragged.from_samples: found no sample; an empty batch needs Ragged.from_offsets.")
        lengths = torch.tensor([[s[m].shape[0] for s in samples] for m in range(len(names))], dtype=torch.int64)
        return cls(tuple(names), tuple(torch.cat([s[m] for s in samples]) for m in range(len(names))), lengths)

    @classmethod
    def from_offsets(cls, values: Mapping[str, Tensor], offsets: Mapping[str, Tensor]) -> Ragged:
        """Takes packed values (N_m, e_m) and offsets (B+1,) a modality; refuses offsets that do not fit."""
        rows = []
        for name, value in values.items():
            if name not in offsets:
                raise InputError(f"modality '{name}': found no offsets; expected a (B+1,) tensor.")
            table = torch.as_tensor(offsets[name]).to("cpu", torch.int64)
            if table.dim() != 1 or table.numel() < 1 or int(table[0]) != 0 or int(table[-1]) != value.shape[0]:
                found = table.flatten()
                ends = f"{int(found[0])}..{int(found[-1])}" if found.numel() else "nothing"
                raise InputError(f"modality '{name}': offsets run {ends}; expected (B+1,) from 0 to {value.shape[0]}.")
            if bool((table.diff() < 0).any()):
                at = int((table.diff() < 0).nonzero()[0])
                raise InputError(f"modality '{name}': offsets fall after entry {at}; expected them never to fall.")
            rows.append(table.diff())
        if len({row.numel() for row in rows}) > 1:
            counts = {name: row.numel() for name, row in zip(values, rows)}
            raise InputError(f"Ragged: the modalities hold {counts} samples; expected one count for all.")
        return cls(tuple(values), tuple(values.values()), torch.stack(rows))

    @property
    def batch_size(self) -> int:
        """B, the number of samples."""
        return self.lengths.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the values lie."""
        return self.values[0].device

    @cached_property
    def offsets(self) -> Tensor:
        """int32 (M*B+1,) on the values' device: segment m*B+b of the modality-major node tensor (N, d)."""
        table = torch.zeros(self.lengths.numel() + 1, dtype=torch.int32)
        torch.cumsum(self.lengths.flatten(), 0, out=table[1:])
        return note(placed(table, self.device), self.lengths.flatten())

    @cached_property
    def present(self) -> Tensor:
        """bool (M, B) on the values' device: whether modality m has any node in sample b."""
        return placed(self.lengths > 0, self.device)

    def to(self, *args: torch.device | torch.dtype | str, non_blocking: bool = False) -> Ragged:
        """The same batch with its values moved or cast; lengths stay on the host."""
        return Ragged(self.names, tuple(v.to(*args, non_blocking=non_blocking) for v in self.values), self.lengths)

    def inputs(self) -> list[Tensor]:
        """The features (N_m, e_m), as `Buffered` gives them too."""
        return list(self.values)

    def dense(self, x: Tensor) -> Tensor:
        """Rows (N, d), modality after modality: they stand where the offsets say."""
        return x

    def places(self) -> tuple[Tensor, Tensor]:
        """Of every row of the node tensor: its place in its segment, and its modality; on the values' device."""
        place = torch.cat([torch.arange(int(n)) for n in self.lengths.flatten()])
        modality = torch.repeat_interleave(torch.arange(len(self.names)), self.lengths.sum(1))
        return place.to(self.device), modality.to(self.device)

    def constant(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives; buffers keep it (`Buffered`)."""
        return make()

    @property
    def longest(self) -> int:
        """The longest segment's length, at least 1."""
        return max(int(self.lengths.max()), 1) if self.lengths.numel() else 1

    def select(self, names: Sequence[str]) -> Ragged:
        """The batch with a subset of its modalities, in the given order."""
        unknown = [n for n in names if n not in self.names]
        if unknown:
            raise InputError(f"modality '{unknown[0]}': not in this batch; expected one of {', '.join(self.names)}.")
        at = [self.names.index(n) for n in names]
        return Ragged(tuple(names), tuple(self.values[i] for i in at), self.lengths[at])
