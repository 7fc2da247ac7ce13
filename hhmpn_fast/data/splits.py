"""What a converter hands to the writer: one split in memory, its checks, and a validation split cut from training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hhmpn_fast.errors import InputError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Modality:
    """One modality of a data set.

    Attributes:
        name: its name.
        size: e, the width of its nodes.
        fixed_nodes: S when every sample holds exactly S nodes with a meaning of their own (statistics are then kept
            for each position), else None.
        indicators: columns that mark things (one-hot node tags); standardisation leaves them alone.
        node_names: names of the S nodes, or empty.
    """

    name: str
    size: int
    fixed_nodes: int | None = None
    indicators: tuple[int, ...] = ()
    node_names: tuple[str, ...] = ()


@dataclass
class Split:
    """n samples in memory.

    Attributes:
        name: "train", "valid", "test" or a name of the user's own.
        values: for every modality its nodes, sample after sample, (N_m, e_m).
        lengths: for every modality int64 (n,), its nodes in each sample; 0 is normal.
        labels: uint8 (n, L) of 0 and 1, or None for samples without labels.
        ids: n distinct names.
        extra: further arrays with one row a sample, stored beside the labels (a planted optimum, for one).
    """

    name: str
    values: dict[str, np.ndarray]
    lengths: dict[str, np.ndarray]
    labels: np.ndarray | None
    ids: Sequence[str]
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, rows: np.ndarray, name: str) -> Split:
        """The samples `rows`, in that order, as a split of its own."""
        values, lengths = {}, {}
        for m, value in self.values.items():
            values[m] = value[gather_rows(self.lengths[m], rows)]
            lengths[m] = self.lengths[m][rows]
        labels = None if self.labels is None else self.labels[rows]
        ids = [self.ids[i] for i in rows]
        return Split(name, values, lengths, labels, ids, {k: v[rows] for k, v in self.extra.items()})


@dataclass
class Contents:
    """What a reader found: the splits, the modalities that each of them holds, the L label names, and notes."""

    splits: list[Split]
    modalities: list[Modality]
    labels: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


def gather_rows(lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Positions, in packed values with these lengths, of all nodes of the samples `rows`."""
    starts = np.cumsum(lengths) - lengths
    chosen = lengths[rows]
    shift = starts[rows] - (np.cumsum(chosen) - chosen)
    return np.repeat(shift, chosen) + np.arange(int(chosen.sum()))


def check_split(split: Split, modalities: Sequence[Modality], label_names: Sequence[str]) -> None:
    """Refuses a split that the store must not hold; the sentence names the modality, the sample and the column.

    Raises:
        InputError: values and lengths that do not fit, a width other than the modality's, NaN or inf, a sample without
            any node, labels other than 0 and 1, ids that repeat.
    """
    n, where = len(split), f"split '{split.name}'"
    if not n:
        raise InputError(f"{where}: found no sample; expected at least one.")
    if len(set(split.ids)) != n:
        seen: set[str] = set()
        twice = next(i for i in split.ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise InputError(f"{where}: id '{twice}' stands more than once; expected every sample to have its own id.")
    total = np.zeros(n, dtype=np.int64)
    for modality in modalities:
        name = modality.name
        if name not in split.values:
            raise InputError(f"modality '{name}': missing from {where}; expected it in every split.")
        value, lengths = split.values[name], np.asarray(split.lengths[name])
        if value.ndim != 2 or value.shape[1] != modality.size:
            raise InputError(
                f"modality '{name}': values of {where} have shape {value.shape}; expected (nodes, {modality.size})."
            )
        if lengths.shape != (n,) or (lengths < 0).any() or int(lengths.sum()) != value.shape[0]:
            raise InputError(
                f"modality '{name}': {where} has {lengths.shape} lengths that sum to {int(lengths.sum())} over "
                f"{value.shape[0]} nodes; expected {n} lengths >= 0 that sum to the nodes."
            )
        if modality.fixed_nodes is not None and (lengths != modality.fixed_nodes).any():
            at = int((lengths != modality.fixed_nodes).argmax())
            raise InputError(
                f"modality '{name}': sample '{split.ids[at]}' of {where} has {int(lengths[at])} nodes; expected "
                f"{modality.fixed_nodes} in every sample."
            )
        _check_finite(split, name)
        total += lengths
    if (total == 0).any():
        at = int((total == 0).argmax())
        raise InputError(
            f"sample '{split.ids[at]}' of {where}: every modality is empty (as in {int((total == 0).sum())} samples); "
            "expected at least one node in one modality: remove such samples, or convert with drop_empty."
        )
    _check_labels(split, label_names)


def _check_finite(split: Split, name: str) -> None:
    value = split.values[name]
    finite = np.isfinite(value)
    if finite.all():
        return
    row, column = (int(i) for i in np.argwhere(~finite)[0])
    ends = np.cumsum(split.lengths[name])
    samples = np.unique(np.searchsorted(ends, np.flatnonzero(~finite.all(1)), side="right"))
    columns = np.flatnonzero(~finite.all(0))
    listed = ",".join(map(str, columns[:8])) + ("..." if len(columns) > 8 else "")
    raise InputError(
        f"modality '{name}': found {value[row, column]} in column {column} of sample '{split.ids[samples[0]]}' of "
        f"split '{split.name}' ({len(samples)} samples have NaN or inf, in columns {listed}); expected finite numbers: "
        f"drop the columns (drop_columns '{name}:{listed}') or repair them in the source."
    )


def _check_labels(split: Split, label_names: Sequence[str]) -> None:
    if split.labels is None:
        return
    labels = np.asarray(split.labels)
    if labels.shape != (len(split), len(label_names)):
        raise InputError(
            f"labels of split '{split.name}': shape {labels.shape}; expected ({len(split)}, {len(label_names)})."
        )
    if not np.isin(labels, (0, 1)).all():
        odd = labels[~np.isin(labels, (0, 1))][0]
        raise InputError(
            f"labels of split '{split.name}': found {odd}; expected 0 or 1 (a threshold turns ratings into labels)."
        )


def drop_empty_samples(split: Split) -> tuple[Split, int]:
    """The split without samples whose every modality is empty, and how many there were."""
    total = np.sum([split.lengths[m] for m in split.lengths], axis=0)
    keep = np.flatnonzero(total > 0)
    return (split, 0) if len(keep) == len(split) else (split.subset(keep, split.name), len(split) - len(keep))


def carve_validation(train: Split, fraction: float, seed: int, name: str = "valid") -> tuple[Split, Split]:
    """Cuts a validation split from training by iterative stratification over the labels.

    Args:
        train: the samples to cut.
        fraction: the share that goes to validation, in (0, 1).
        seed: the same seed gives the same cut.
        name: the new split's name.

    Returns:
        (training, validation), both in the order of the file.
    """
    if not 0.0 < fraction < 1.0:
        raise InputError(f"validation share: found {fraction}; expected a number between 0 and 1.")
    if train.labels is None:
        raise InputError("validation share: the samples have no labels; expected labels to stratify by.")
    try:
        from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit
    except ImportError:
        raise InputError(
            "carving a validation split: the package iterative-stratification is not installed; "
            "expected it (pip install 'hhmpn-fast[train]')."
        ) from None
    cut = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=fraction, random_state=seed)
    rows, held = next(cut.split(np.zeros((len(train), 1)), train.labels))
    if not len(rows) or not len(held):
        raise InputError(
            f"validation share {fraction}: leaves one part of {len(train)} samples empty; expected both filled."
        )
    return train.subset(np.sort(rows), train.name), train.subset(np.sort(held), name)
