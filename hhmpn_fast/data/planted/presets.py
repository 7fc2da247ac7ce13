"""Plans with the paper's sizes, and one to train within minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hhmpn_fast.data.planted.plan import Label, Plan, Source
from hhmpn_fast.errors import InputError


def _mosei_labels() -> tuple[Label, ...]:
    return (
        Label("happy", 0.535, "conflict"),
        Label("sad", 0.26, "bound"),
        Label("anger", 0.216, "bound"),
        Label("surprise", 0.10, "exact"),
        Label("disgust", 0.18, "bound"),
        Label("fear", 0.08, "conflict"),
    )


def _demo_labels() -> tuple[Label, ...]:
    return (
        Label("happy", 0.45, "bound"),
        Label("sad", 0.45, "bound"),
        Label("anger", 0.45, "bound"),
        Label("fear", 0.45, "bound"),
        Label("calm", 0.45, "tagged"),
        Label("tense", 0.45, "tagged"),
        Label("tired", 0.45, "tagged"),
        Label("alert", 0.45, "tagged"),
        Label("surprise", 0.40, "conflict"),
        Label("disgust", 0.40, "conflict"),
        Label("irony", 0.40, "conflict"),
        Label("pure", 0.30, "exact"),
        Label("mixed", 0.367, "exact"),
        Label("crowded", 0.20, "exact"),
        Label("uneven", 0.50, "odd"),
    )


def _nemu_labels() -> tuple[Label, ...]:
    shares = {
        "healing": (0.44, "conflict"),
        "miss": (0.35, "many"),
        "moving": (0.31, "bound"),
        "sad": (0.30, "conflict"),
        "lonely": (0.28, "few"),
        "quiet": (0.27, "bound"),
        "romantic": (0.26, "conflict"),
        "nostalgic": (0.25, "bound"),
        "fresh": (0.24, "exact"),
        "happy": (0.23, "conflict"),
        "relaxed": (0.22, "bound"),
        "excited": (0.14, "exact"),
    }
    return tuple(Label(name, share, role) for name, (share, role) in shares.items())


_MOSEI = (16326, 1871, 4659)
PRESETS: dict[str, Plan] = {
    "mosei": Plan(
        (Source("text", 300, 19.1, 0.7, 128), Source("vision", 35, 109, 0.7, 500), Source("audio", 74, 182, 0.7, 500)),
        _mosei_labels(),
        _MOSEI,
    ),
    "mosei-aligned": Plan(
        (
            Source("text", 300, 19.1, 0.7, 128),
            Source("vision", 35, 19.1, 0.7, 128),
            Source("audio", 74, 19.1, 0.7, 128),
        ),
        _mosei_labels(),
        _MOSEI,
        aligned=True,
    ),
    "nemu": Plan(
        (
            Source("lyrics", 300, 32, 0.6, 128),
            Source("comments", 300, 14, 0.8, 64),
            Source("audio", 74, 115, 0.35, 320),
            Source("vision", 2048, 3, 0.6, 12),
        ),
        _nemu_labels(),
        (15125, 1891, 1891),
    ),
    "demo": Plan(
        (
            Source("text", 48, 12, 0.1, 16, 11),
            Source("audio", 48, 23, 0.1, 28, 21),
            Source("vision", 48, 6, 0.15, 9, 5),
            Source("motion", 48, 6, 0.15, 9, 5),
        ),
        _demo_labels(),
        (24000, 600, 2000),
        gap=2.0,
        spread=20.0,
        hint=0.7,
    ),
}


def preset(
    name: str,
    *,
    samples: Sequence[int] | None = None,
    sizes: Mapping[str, int] | None = None,
    lengths: Mapping[str, float] | None = None,
) -> Plan:
    """A preset, with other split sizes, node widths or mean lengths where given.

    `mosei` and `mosei-aligned`: 6 labels, text 300, vision 35, audio 74. `nemu`: 12 labels, lyrics 300, comments 300,
    audio 74, vision 2048. Both have the paper's split sizes; MOSEI's label names and shares are the data set's own,
    NEMu's are like the paper's. `demo`: 15 labels on four short modalities, to train within minutes.
    """
    if name not in PRESETS:
        raise InputError(f"preset '{name}': expected one of {', '.join(PRESETS)}.")
    plan = PRESETS[name]
    known = [s.name for s in plan.sources]
    for given in (sizes or {}, lengths or {}):
        unknown = [m for m in given if m not in known]
        if unknown:
            raise InputError(f"preset '{name}': no modality '{unknown[0]}'; expected one of {', '.join(known)}.")
    sources = tuple(
        replace(s, size=(sizes or {}).get(s.name, s.size), mean=(lengths or {}).get(s.name, s.mean))
        for s in plan.sources
    )
    return replace(plan, sources=sources, samples=tuple(samples) if samples else plan.samples)
