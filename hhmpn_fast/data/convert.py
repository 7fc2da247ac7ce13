"""The command `convert`, and one call from source files to a data set on disk: read, drop, carve, check, write."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import hhmpn_fast
from hhmpn_fast.data import planted, readers
from hhmpn_fast.data.parsing import names
from hhmpn_fast.data.splits import Split, carve_validation, drop_empty_samples
from hhmpn_fast.data.summary import summary
from hhmpn_fast.data.writer import write
from hhmpn_fast.errors import InputError


@dataclass(frozen=True)
class Conversion:
    """What all kinds share.

    Attributes:
        valid_fraction: the share of "train" that becomes "valid", by iterative stratification, where the source has
            labels but no "valid" of its own; 0 leaves training whole.
        seed: of that cut.
        drop_labels: labels to leave out.
        drop_empty: leave out samples whose every modality is empty instead of refusing them.
        dtype: how values are stored, "float32" or "float16".
        overwrite: replace what stands at `out`.
    """

    valid_fraction: float = 0.1
    seed: int = 0
    drop_labels: Sequence[str] = ()
    drop_empty: bool = False
    dtype: str = "float32"
    overwrite: bool = False


def convert(kind: str, source: str | Path, out: str | Path, **options: Any) -> Path:
    """Converts source files to the project's form and returns the data set's directory.

    Args:
        kind: the reader: "mulan" (ARFF and XML), "npz", "tsv", or another module of `hhmpn_fast.data.readers`.
        source: the file or directory.
        out: the directory to make.
        **options: the fields of `Conversion`, and those of the reader's `Options`.

    Raises:
        InputError: an unknown kind or option, a source that does not read, or whatever `write` refuses.
    """
    if kind not in readers.kinds():
        raise InputError(f"convert: unknown kind '{kind}'; expected one of {', '.join(readers.kinds())}.")
    reader, shared = readers.reader(kind), [f.name for f in dataclasses.fields(Conversion)]
    how = Conversion(**{k: v for k, v in options.items() if k in shared})
    own = {k: v for k, v in options.items() if k not in shared}
    known = {f.name: f for f in dataclasses.fields(reader.Options)}
    unknown = [o for o in own if o not in known]
    if unknown:
        raise InputError(f"convert {kind}: unknown option '{unknown[0]}'; expected some of {', '.join(known)}.")
    missing = [n for n, f in known.items() if n not in own and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise InputError(f"convert {kind}: option '{missing[0]}' is missing; expected a value.")
    if not Path(source).exists():
        raise InputError(f"source '{source}': does not exist; expected a file or a directory.")
    found = reader.read(Path(source), reader.Options(**own))
    notes = list(found.notes)
    splits, labels = _without_labels(found.splits, found.labels, how.drop_labels, notes)
    if how.drop_empty:
        splits = [_without_empty(s, notes) for s in splits]
    if labels:
        splits = _with_validation(splits, how.valid_fraction, how.seed, notes)
    elif [s.name for s in splits] == ["train"]:
        splits[0].name = "predict"
    about = {
        "kind": kind,
        "sources": _digests(Path(source), reader.SUFFIXES),
        "options": {k: _plain(v) for k, v in own.items()},
        "valid_fraction": how.valid_fraction,
        "seed": how.seed,
        "hhmpn_fast": hhmpn_fast.__version__,
    }
    parts = (splits, found.modalities, labels)
    return write(out, *parts, dtype=how.dtype, overwrite=how.overwrite, provenance=about, notes=notes)


def _without_labels(
    splits: list[Split], labels: tuple[str, ...], drop: Sequence[str], notes: list[str]
) -> tuple[list[Split], tuple[str, ...]]:
    unknown = [d for d in drop if d not in labels]
    if unknown:
        raise InputError(f"drop_labels: '{unknown[0]}' is no label; expected some of {', '.join(labels)}.")
    if not drop:
        return splits, labels
    keep = [i for i, name in enumerate(labels) if name not in drop]
    if not keep:
        raise InputError("drop_labels: found every label; expected at least one to stay.")
    for split in splits:
        assert split.labels is not None
        split.labels = np.asarray(split.labels)[:, keep]
    notes.append(f"labels left out: {', '.join(drop)}.")
    return splits, tuple(labels[i] for i in keep)


def _without_empty(split: Split, notes: list[str]) -> Split:
    kept, dropped = drop_empty_samples(split)
    if dropped:
        notes.append(f"split '{split.name}': left out {dropped} samples whose every modality is empty.")
    return kept


def _with_validation(splits: list[Split], fraction: float, seed: int, notes: list[str]) -> list[Split]:
    names = [s.name for s in splits]
    if "train" not in names or "valid" in names or fraction == 0:
        return splits
    at = names.index("train")
    train, valid = carve_validation(splits[at], fraction, seed)
    notes.append(
        f"validation: {len(valid)} of {len(splits[at])} training samples by iterative stratification (seed {seed})."
    )
    return [*splits[:at], train, valid, *splits[at + 1 :]]


def _digests(source: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of the source file, or of the reader's files in a source folder, by bare name."""
    files = [source] if source.is_file() else sorted(f for f in source.iterdir() if f.suffix in suffixes)
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def _plain(value: Any) -> Any:
    """An option as JSON: paths by their bare name, dataclasses by their text."""
    if isinstance(value, Path):
        return value.name
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return Path(value).name if "/" in value and Path(value).exists() else value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return repr(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `convert`: a sub-command for every reader, and `synthetic` for the planted sets."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind in readers.kinds():
        reader = readers.reader(kind)
        text = reader.__doc__ or kind
        own = kinds.add_parser(kind, help=_summed_up(text), description=text)
        own.add_argument("source", help="the file or folder to read")
        own.add_argument("out", help="the data set to make, a directory")
        own.add_argument(
            "--valid-fraction",
            type=float,
            default=Conversion.valid_fraction,
            metavar="X",
            help="cut from train if none is there",
        )
        own.add_argument("--drop-labels", type=names, default=[], metavar="A,B", help="labels to leave out")
        own.add_argument("--drop-empty", action="store_true", help="leave out samples without any node")
        _add_writing(own)
        reader.arguments(own)
        own.set_defaults(make=_convert)
    synthetic = kinds.add_parser("synthetic", help=_summed_up(planted.__doc__))
    planted.add_arguments(synthetic)
    _add_writing(synthetic)
    synthetic.set_defaults(make=planted.run)


def _summed_up(text: str) -> str:
    """The first line of a docstring, as argparse takes a help."""
    return text.partition("\n")[0].rstrip(".").replace("%", "%%")


def _add_writing(parser: argparse.ArgumentParser) -> None:
    """The options of everything that writes a data set."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="how values are stored")
    parser.add_argument("--overwrite", action="store_true", help="replace the data set at OUT")


def _convert(args: argparse.Namespace) -> Path:
    shared = {f.name: getattr(args, f.name) for f in dataclasses.fields(Conversion)}
    return convert(args.kind, args.source, args.out, **shared, **readers.reader(args.kind).options(args))


def run(args: argparse.Namespace) -> None:
    """Runs `convert` as parsed and prints what was made; bad input raises `InputError`."""
    print(summary(args.make(args)))
