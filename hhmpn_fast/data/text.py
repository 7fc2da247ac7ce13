"""TSV text with word vectors: words, neighbouring segments of the same video, and timing become modalities."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hhmpn_fast.data.splits import Modality, Split
from hhmpn_fast.data.words import WordVectors, load_vectors, tokenise
from hhmpn_fast.errors import InputError

CONTEXTS = ("none", "segments", "words")
TIMING_COLUMNS = (
    "log duration",
    "log words",
    "log words a second",
    "log start",
    "log segments of the video",
    "place in the video",
    "has previous",
    "has next",
    "gap to previous",
    "gap to next",
)


@dataclass(frozen=True)
class Columns:
    """The names of the TSV's columns; `video`, `start` and `end` are needed only for context and timing."""

    text: str = "text"
    id: str = "id"
    video: str = "video_id"
    start: str = "start"
    end: str = "end"


@dataclass(frozen=True)
class Context:
    """What a sample sees of its neighbours: up to `window` segments before and after it, in start order.

    `segments` gives one node a neighbour: the mean (and, with `spread`, the largest and smallest) of its word vectors,
    then its side (-1 or +1) and its distance over the window. `words` gives every word of the neighbours as a node,
    with the same two numbers behind its vector.
    """

    form: str = "none"
    window: int = 2
    spread: bool = False

    def __post_init__(self) -> None:
        if self.form not in CONTEXTS:
            raise InputError(f"context: found '{self.form}'; expected one of {', '.join(CONTEXTS)}.")
        if self.window < 1:
            raise InputError(f"window: found {self.window}; expected at least one segment on each side.")

    def size(self, width: int) -> int:
        """Width of a context node for word vectors of this width."""
        return width * (3 if self.spread and self.form == "segments" else 1) + 2


def read_tsv(
    source: str | Path,
    *,
    vectors: str | Path | WordVectors,
    labels: Sequence[str],
    threshold: float = 0.0,
    columns: Columns | None = None,
    context: Context | None = None,
    timing: bool = False,
    unknown: str = "drop",
    splits: Sequence[str] = ("train", "valid", "test"),
) -> tuple[list[Split], list[Modality], tuple[str, ...], list[str]]:
    """Reads text segments.

    Args:
        source: a directory that holds train.tsv, valid.tsv and test.tsv (those there are), or one TSV file ("train").
            Tab-separated with a header line, no quoting.
        vectors: word vectors, or their file (`load_vectors`).
        labels: the label columns; present where the value lies above `threshold`. None given: samples without labels.
        threshold: see `labels`.
        columns: the names of the other columns.
        context: what a sample sees of the neighbouring segments; neighbours are those in the same file.
        timing: add one node of TIMING_COLUMNS.
        unknown: what becomes of words without a vector ("drop", "zero", "mean").
        splits: the files to look for in a directory.

    Returns:
        (splits, modalities, label names, notes).
    """
    source = Path(source)
    columns, context = columns or Columns(), context or Context()
    table = vectors if isinstance(vectors, WordVectors) else load_vectors(vectors, unknown)
    files = {s: source / f"{s}.tsv" for s in splits if (source / f"{s}.tsv").is_file()} if source.is_dir() else {}
    if source.is_dir() and not files:
        raise InputError(f"'{source}': found none of {', '.join(f'{s}.tsv' for s in splits)}; expected at least one.")
    found = [
        _split(name, path, table, tuple(labels), threshold, columns, context, timing)
        for name, path in (files or {"train": source}).items()
    ]
    modalities = [Modality("words", table.size)]
    if context.form != "none":
        size = context.size(table.size)
        modalities.append(Modality("context", size))
    if timing:
        modalities.append(Modality("timing", len(TIMING_COLUMNS), fixed_nodes=1))
    return found, modalities, tuple(labels), [table.note()]


def read_rows(path: Path, needed: Sequence[str]) -> dict[str, list[str]]:
    """The columns of a TSV file with a header; refuses a missing column, a row of the wrong width, bad UTF-8."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}': cannot be read ({error}); expected tab-separated UTF-8 text.") from None
    if len(rows) < 2:
        raise InputError(f"'{path}': found {len(rows)} lines; expected a header and at least one row.")
    header = rows[0]
    missing = [c for c in needed if c not in header]
    if missing:
        raise InputError(f"'{path}': column '{missing[0]}' is missing; found {', '.join(header)}.")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise InputError(f"'{path}' line {number}: found {len(row)} fields; expected {len(header)}: cut short?")
    return {c: [row[header.index(c)] for row in rows[1:]] for c in needed}


def _split(
    name: str,
    path: Path,
    table: WordVectors,
    labels: Sequence[str],
    threshold: float,
    columns: Columns,
    context: Context,
    timing: bool,
) -> Split:
    placed = context.form != "none" or timing
    needed = [columns.id, columns.text, *labels, *((columns.video, columns.start, columns.end) if placed else ())]
    cells = read_rows(path, needed)
    rows = [table.rows(tokenise(t)) for t in cells[columns.text]]
    lengths = np.array([len(r) for r in rows], dtype=np.int64)
    values = {"words": table.vectors[np.array([i for r in rows for i in r], dtype=np.int64)]}
    counts = {"words": lengths}
    if placed:
        start, end = _numbers(path, cells, columns.start), _numbers(path, cells, columns.end)
        order = neighbours(cells[columns.video], start)
        if context.form != "none":
            values["context"], counts["context"] = context_nodes(context, order, rows, table)
        if timing:
            values["timing"] = timing_nodes(order, start, end, lengths)
            counts["timing"] = np.ones(len(rows), dtype=np.int64)
    found = None
    if labels:
        found = np.stack([_numbers(path, cells, c) > threshold for c in labels], axis=1).astype(np.uint8)
    return Split(name, values, counts, found, cells[columns.id])


def _numbers(path: Path, cells: dict[str, list[str]], column: str) -> np.ndarray:
    try:
        found = np.array([float(c) for c in cells[column]])
    except ValueError as error:
        raise InputError(f"'{path}' column '{column}': {error}; expected numbers.") from None
    if not np.isfinite(found).all():
        line = int((~np.isfinite(found)).argmax()) + 2
        raise InputError(f"'{path}' line {line}: column '{column}' is {found[line - 2]}; expected a finite number.")
    return found


def neighbours(videos: Sequence[str], start: np.ndarray) -> list[np.ndarray]:
    """For each video, in order of first sight, its rows in start order."""
    rows: dict[str, list[int]] = {}
    for i, video in enumerate(videos):
        rows.setdefault(video, []).append(i)
    return [np.array(r)[np.argsort(start[r], kind="stable")] for r in rows.values()]


def context_nodes(
    context: Context, order: Sequence[np.ndarray], rows: Sequence[Sequence[int]], table: WordVectors
) -> tuple[np.ndarray, np.ndarray]:
    """Values (N, e') and lengths (n,) of the context modality; a neighbour without words gives no node."""
    if context.form == "words":
        blocks = [table.vectors[list(r)] for r in rows]
    else:
        blocks = [_pooled(table.vectors[list(r)], context.spread) for r in rows]
    nodes: list[list[np.ndarray]] = [[] for _ in rows]
    for video in order:
        for place, row in enumerate(video):
            for other in range(max(0, place - context.window), min(len(video), place + context.window + 1)):
                block, step = blocks[video[other]], other - place
                if step and len(block):
                    mark = np.array([np.sign(step), abs(step) / context.window], dtype=np.float32)
                    nodes[row].append(np.concatenate([block, np.broadcast_to(mark, (len(block), 2))], axis=1))
    lengths = np.array([sum(len(b) for b in blocks) for blocks in nodes], dtype=np.int64)
    flat = [b for blocks in nodes for b in blocks]
    empty = np.zeros((0, context.size(table.size)), dtype=np.float32)
    return (np.concatenate(flat) if flat else empty), lengths


def _pooled(vectors: np.ndarray, spread: bool) -> np.ndarray:
    if not len(vectors):
        return vectors
    pooled = [vectors.mean(0), *((vectors.max(0), vectors.min(0)) if spread else ())]
    return np.concatenate(pooled)[None].astype(np.float32)


def timing_nodes(order: Sequence[np.ndarray], start: np.ndarray, end: np.ndarray, words: np.ndarray) -> np.ndarray:
    """One node a sample, (n, len(TIMING_COLUMNS)): seconds enter as log(1 + x), gaps keep their sign."""
    duration = np.maximum(end - start, 0.05)
    nodes = np.zeros((len(start), len(TIMING_COLUMNS)), dtype=np.float32)
    nodes[:, 0] = np.log1p(duration)
    nodes[:, 1] = np.log1p(words)
    nodes[:, 2] = np.log1p(words / duration)
    nodes[:, 3] = np.log1p(np.maximum(start, 0.0))
    for video in order:
        nodes[video, 4] = np.log1p(len(video))
        nodes[video, 5] = (np.arange(len(video)) + 0.5) / len(video)
        gap = start[video[1:]] - end[video[:-1]]
        scaled = np.sign(gap) * np.log1p(np.abs(gap))
        nodes[video[1:], 6], nodes[video[:-1], 7] = 1.0, 1.0
        nodes[video[1:], 8], nodes[video[:-1], 9] = scaled, scaled
    return nodes
