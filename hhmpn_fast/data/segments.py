"""What a segment of a video is told about its neighbours and its time: the modalities derived from a text table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hhmpn_fast.data.formats.words import WordVectors
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
