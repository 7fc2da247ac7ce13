"""Tab-separated text with word vectors.

Words, neighbouring segments of the same video, and timing become modalities. SOURCE is a TSV file ("train"), or a
folder of train.tsv, valid.tsv and test.tsv (those there are), with a header line and no quoting.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hhmpn_fast.data.formats.tsv import numbers, read_rows
from hhmpn_fast.data.formats.words import WordVectors, load_vectors, tokenise
from hhmpn_fast.data.parsing import names, pairs
from hhmpn_fast.data.segments import CONTEXTS, TIMING_COLUMNS, Context, context_nodes, neighbours, timing_nodes
from hhmpn_fast.data.splits import SPLITS, Contents, Modality, Split
from hhmpn_fast.errors import InputError

SUFFIXES = (".tsv", ".npz")


@dataclass(frozen=True)
class Columns:
    """The names of the TSV's columns; `video`, `start` and `end` are needed only for context and timing."""

    text: str = "text"
    id: str = "id"
    video: str = "video_id"
    start: str = "start"
    end: str = "end"


@dataclass(frozen=True)
class Options:
    """How text becomes samples.

    Attributes:
        vectors: word vectors, or their file (`load_vectors`).
        labels: the label columns; present where the value lies above `threshold`. None given: samples without labels.
        threshold: see `labels`.
        columns: the names of the other columns.
        context: what a sample sees of the neighbouring segments; neighbours are those in the same file.
        timing: add one node of TIMING_COLUMNS.
        unknown: what becomes of words without a vector ("drop", "zero", "mean").
        splits: the files to look for in a folder.
    """

    vectors: str | Path | WordVectors
    labels: Sequence[str]
    threshold: float = 0.0
    columns: Columns = field(default_factory=Columns)
    context: Context = field(default_factory=Context)
    timing: bool = False
    unknown: str = "drop"
    splits: Sequence[str] = SPLITS

    @property
    def placed(self) -> bool:
        """Whether a segment's video, start and end are needed."""
        return self.context.form != "none" or self.timing


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `convert tsv`."""
    parser.add_argument("--vectors", required=True, metavar="FILE", help=".npz of words and vectors, or GloVe text")
    parser.add_argument(
        "--labels", type=names, default=[], metavar="A,B", help="label columns; none: samples to predict"
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


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `Options`."""
    roles = pairs("--column", args.column)
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


def read(source: Path, options: Options) -> Contents:
    """Reads text segments: modalities words and, as asked for, context and timing."""
    given = options.vectors
    table = given if isinstance(given, WordVectors) else load_vectors(given, options.unknown)
    splits = options.splits
    files = {s: source / f"{s}.tsv" for s in splits if (source / f"{s}.tsv").is_file()} if source.is_dir() else {}
    if source.is_dir() and not files:
        raise InputError(f"'{source}': found none of {', '.join(f'{s}.tsv' for s in splits)}; expected at least one.")
    found = [_split(name, path, table, options) for name, path in (files or {"train": source}).items()]
    modalities = [Modality("words", table.size)]
    if options.context.form != "none":
        modalities.append(Modality("context", options.context.size(table.size)))
    if options.timing:
        modalities.append(Modality("timing", len(TIMING_COLUMNS), fixed_nodes=1))
    return Contents(found, modalities, tuple(options.labels), [table.note()])


def _split(name: str, path: Path, table: WordVectors, options: Options) -> Split:
    columns, labels = options.columns, options.labels
    placing = (columns.video, columns.start, columns.end) if options.placed else ()
    cells = read_rows(path, [columns.id, columns.text, *labels, *placing])
    rows = [table.rows(tokenise(t)) for t in cells[columns.text]]
    lengths = np.array([len(r) for r in rows], dtype=np.int64)
    values = {"words": table.vectors[np.array([i for r in rows for i in r], dtype=np.int64)]}
    counts = {"words": lengths}
    if options.placed:
        start, end = numbers(path, cells, columns.start), numbers(path, cells, columns.end)
        order = neighbours(cells[columns.video], start)
        if options.context.form != "none":
            values["context"], counts["context"] = context_nodes(options.context, order, rows, table)
        if options.timing:
            values["timing"] = timing_nodes(order, start, end, lengths)
            counts["timing"] = np.ones(len(rows), dtype=np.int64)
    found = None
    if labels:
        found = np.stack([numbers(path, cells, c) > options.threshold for c in labels], axis=1).astype(np.uint8)
    return Split(name, values, counts, found, cells[columns.id])
