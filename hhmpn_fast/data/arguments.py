"""The command line of `convert`: its arguments, and the run that prints what was made."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hhmpn_fast.data.convert import convert
from hhmpn_fast.data.store import Dataset, read_metadata
from hhmpn_fast.data.text import CONTEXTS, Columns, Context
from hhmpn_fast.errors import InputError


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` the sub-commands mulan, npz, tsv and synthetic."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    mulan = kinds.add_parser("mulan", help="Mulan's ARFF tables and XML list of labels")
    _add_common(mulan, "directory of NAME-train.arff, NAME-test.arff and one XML file")
    mulan.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="NAME=COLUMNS[:NODES[:blocks|strided[:tag]]]",
        help="a modality: columns as 0-63,70 or /regex/ or all, cut into NODES vectors; tag adds one-hot node numbers",
    )
    mulan.add_argument("--file", action="append", default=[], metavar="SPLIT=FILE", help="the ARFF file of a split")
    mulan.add_argument("--xml", metavar="FILE", help="the XML file, where there are several")
    mulan.add_argument("--unlabelled", action="store_true", help="leave the labels out (samples to predict)")
    _add_npz(kinds.add_parser("npz", help="arrays in .npz files: padded, flat or packed"))
    _add_tsv(kinds.add_parser("tsv", help="tab-separated text with word vectors"))
    _add_synthetic(kinds.add_parser("synthetic", help="a generated set with planted structure and a known optimum"))


def _add_common(parser: argparse.ArgumentParser, source: str) -> None:
    parser.add_argument("source", help=source)
    parser.add_argument("out", help="the data set to make, a directory")
    parser.add_argument(
        "--valid-fraction", type=float, default=0.1, metavar="X", help="cut from train if none is there"
    )
    parser.add_argument("--drop-labels", type=_names, default=[], metavar="A,B", help="labels to leave out")
    parser.add_argument("--drop-empty", action="store_true", help="leave out samples without any node")
    _add_writing(parser)


def _add_writing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="how values are stored")
    parser.add_argument("--overwrite", action="store_true", help="replace the data set at OUT")


def _add_npz(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, "an .npz file, or a directory of train.npz, valid.npz, test.npz")
    parser.add_argument(
        "--modality",
        action="append",
        default=[],
        metavar="NAME=KEY[@OFFSETS]",
        help="where its nodes lie; {split} in a key stands for train, valid, test",
    )
    parser.add_argument("--labels", metavar="KEY", help="key of the labels; without it the samples have none")
    parser.add_argument("--label-names", metavar="KEY|A,B", help="key of the names, or the names")
    parser.add_argument("--threshold", type=float, metavar="X", help="a label is present above X")
    parser.add_argument("--ids", metavar="KEY")
    parser.add_argument("--folds", metavar="KEY", help="array that names every sample's split")
    parser.add_argument("--fold", action="append", default=[], metavar="VALUE=SPLIT", help="rename a value of --folds")
    parser.add_argument("--trim", default="both", metavar="both|left|right|none", help="where zero rows are padding")
    parser.add_argument(
        "--drop-columns", action="append", default=[], metavar="NAME:0-1,7", help="columns to leave out"
    )


def _add_tsv(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, "a TSV file, or a directory of train.tsv, valid.tsv, test.tsv")
    parser.add_argument("--vectors", required=True, metavar="FILE", help=".npz of words and vectors, or GloVe text")
    parser.add_argument(
        "--labels", type=_names, default=[], metavar="A,B", help="label columns; none: samples to predict"
    )
    parser.add_argument("--threshold", type=float, default=0.0, metavar="X", help="a label is present above X")
    parser.add_argument(
        "--column", action="append", default=[], metavar="ROLE=NAME", help="text, id, video, start, end"
    )
    parser.add_argument("--context", choices=CONTEXTS, default="none", help="neighbouring segments as a modality")
    parser.add_argument("--window", type=int, default=2, metavar="K", help="neighbours on each side")
    parser.add_argument("--spread", action="store_true", help="neighbours as mean, max and min instead of the mean")
    parser.add_argument("--timing", action="store_true", help="start, length, pace and gaps as a modality")
    parser.add_argument("--unknown", choices=("drop", "zero", "mean"), default="drop", help="words without a vector")


def _add_synthetic(parser: argparse.ArgumentParser) -> None:
    from hhmpn_fast.data.plans import PRESETS

    parser.add_argument("preset", choices=tuple(PRESETS))
    parser.add_argument("out", help="the data set to make, a directory")
    parser.add_argument("--samples", metavar="TRAIN,VALID,TEST", help="split sizes instead of the preset's")
    parser.add_argument("--size", action="append", default=[], metavar="MODALITY=E", help="width of its nodes")
    parser.add_argument("--length", action="append", default=[], metavar="MODALITY=MEAN", help="mean number of nodes")
    _add_writing(parser)


def run_convert(args: argparse.Namespace) -> int:
    """Runs `convert` as parsed, prints a summary and returns exit code 0; bad input raises `InputError`."""
    if args.kind == "synthetic":
        out = _run_synthetic(args)
    else:
        options = {"mulan": _mulan_options, "npz": _npz_options, "tsv": _tsv_options}[args.kind](args)
        out = convert(
            args.kind,
            args.source,
            args.out,
            valid_fraction=args.valid_fraction,
            seed=args.seed,
            drop_labels=args.drop_labels,
            drop_empty=args.drop_empty,
            dtype=args.dtype,
            overwrite=args.overwrite,
            **options,
        )
    print(summary(out))
    return 0


def summary(path: str | Path) -> str:
    """What a data set holds, in a few lines: splits, modalities with their lengths, label prevalences, notes."""
    metadata = read_metadata(path)
    lines = [f"data set {path}  ({metadata['fingerprint'][:12]})"]
    for name, held in metadata["splits"].items():
        data = Dataset.open(path, name)
        lengths = [
            f"{m} {row.float().mean():.1f} x {e}"
            + (f" ({int((row == 0).sum())} empty)" if bool((row == 0).any()) else "")
            for m, e, row in zip(data.names, data.sizes, data.lengths)
        ]
        lines.append(f"  {name:8s} {held['samples']:7d} samples   mean nodes: {', '.join(lengths)}")
        if "positives" in held:
            shares = [f"{k} {100 * v / held['samples']:.1f}" for k, v in held["positives"].items()]
            lines.append(f"           labels present in %: {', '.join(shares)}")
    return "\n".join([*lines, *(f"  note: {n}" for n in metadata.get("notes", []))])


def _mulan_options(args: argparse.Namespace) -> dict[str, Any]:
    files = _pairs("--file", args.file)
    return {"groups": args.group, "files": files or None, "xml": args.xml, "unlabelled": args.unlabelled}


def _npz_options(args: argparse.Namespace) -> dict[str, Any]:
    drop = _pairs("--drop-columns", args.drop_columns, ":")
    names = args.label_names.split(",") if args.label_names and "," in args.label_names else args.label_names
    return {
        "modalities": args.modality,
        "labels": args.labels,
        "label_names": names,
        "threshold": args.threshold,
        "ids": args.ids,
        "folds": args.folds,
        "fold_names": _pairs("--fold", args.fold),
        "trim": _pairs("--trim", args.trim.split(",")) if "=" in args.trim else args.trim,
        "drop_columns": drop,
    }


def _tsv_options(args: argparse.Namespace) -> dict[str, Any]:
    roles = _pairs("--column", args.column)
    unknown = [r for r in roles if r not in Columns.__dataclass_fields__]
    if unknown:
        raise InputError(f"--column {unknown[0]}: expected a role of {', '.join(Columns.__dataclass_fields__)}.")
    return {
        "vectors": args.vectors,
        "labels": args.labels,
        "threshold": args.threshold,
        "columns": Columns(**roles),
        "context": Context(args.context, args.window, args.spread),
        "timing": args.timing,
        "unknown": args.unknown,
    }


def _run_synthetic(args: argparse.Namespace) -> Path:
    from hhmpn_fast.data.plans import preset
    from hhmpn_fast.data.synthetic import generate

    sizes = {k: _whole("--size", v) for k, v in _pairs("--size", args.size).items()}
    lengths = {k: _real("--length", v) for k, v in _pairs("--length", args.length).items()}
    samples = [_whole("--samples", s) for s in args.samples.split(",")] if args.samples else None
    plan = preset(args.preset, samples=samples, sizes=sizes, lengths=lengths)
    return generate(plan, args.out, seed=args.seed, dtype=args.dtype, overwrite=args.overwrite)


def _names(text: str) -> list[str]:
    return [t.strip() for t in text.split(",") if t.strip()]


def _pairs(option: str, items: Sequence[str], mark: str = "=") -> dict[str, str]:
    found = {}
    for item in items:
        key, between, value = item.partition(mark)
        if not key or not between or key in found:
            raise InputError(f"option {option}: found '{item}'; expected A{mark}B, each A once.")
        found[key] = value
    return found


def _whole(option: str, text: str) -> int:
    if not text.strip().isdigit():
        raise InputError(f"option {option}: found '{text}'; expected a whole number.")
    return int(text)


def _real(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"option {option}: found '{text}'; expected a number.") from None
