"""What a generated set is drawn from: modalities, labels with planted roles, presets with the paper's sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hhmpn_fast.errors import InputError

ROLES = ("conflict", "tagged", "bound", "many", "few", "exact", "odd")


@dataclass(frozen=True)
class Source:
    """A modality: node width, and the mean, sigma of the log, maximum and minimum of its log-normal lengths."""

    name: str
    size: int
    mean: float
    sigma: float
    longest: int
    shortest: int = 1


@dataclass(frozen=True)
class Label:
    """A label: the share of samples that should have it, and how it is planted (one of ROLES)."""

    name: str
    prevalence: float
    role: str


@dataclass(frozen=True)
class Plan:
    """Everything a set is drawn from, besides the seed.

    Attributes:
        sources: the modalities.
        labels: the labels.
        samples: sizes of train, valid and test.
        aligned: all modalities of a sample have the first one's length.
        pairs: pairs of a keyed node and its mate that a bound label has, whose values add up to the bit's sign.
        margin: the least absolute sum; `scatter`: the sd by which single values stray from the sum's equal shares.
        gap: how much more confident the right modality of a conflict label is; `spread`: the range of the shift, drawn
            anew for every sample, that all modalities' confidences share.
        hint: the chance that the value beside a tagged label's key shows the bit, as its mate's value always does; 0.5
            tells nothing.
        weights: how strongly key, value, confidence and tag enter a node.
        noise: sd of the noise on every feature.
        flips: the chances that a set bit's label is absent, and that a clear bit's is present.
        missing: the chance that a modality is missing from a sample (at least one stays).
    """

    sources: tuple[Source, ...]
    labels: tuple[Label, ...]
    samples: tuple[int, int, int]
    aligned: bool = False
    pairs: int = 2
    margin: float = 0.5
    scatter: float = 0.8
    gap: float = 1.5
    spread: float = 12.0
    hint: float = 0.5
    weights: tuple[float, float, float, float] = (4.0, 4.0, 1.0, 8.0)
    noise: float = 0.1
    flips: tuple[float, float] = (0.05, 0.02)
    missing: float = 0.0

    def __post_init__(self) -> None:
        for label in self.labels:
            if label.role not in ROLES:
                raise InputError(f"label '{label.name}': role '{label.role}'; expected one of {', '.join(ROLES)}.")
            if not 0 < label.prevalence < 1:
                raise InputError(f"label '{label.name}': prevalence {label.prevalence}; expected between 0 and 1.")
        roles = {x.role for x in self.labels}
        if len(self.sources) < 2 or not roles & set(ROLES[:3]) or (roles & set(ROLES[3:]) and "bound" not in roles):
            found = f"{len(self.sources)} modalities and the roles {', '.join(sorted(roles)) or 'of no label'}"
            raise InputError(
                f"plan: found {found}; expected two modalities, a conflict, tagged or bound label, and a bound one "
                "where labels count."
            )
        if self.pairs < 1 or self.margin <= 0 or self.scatter <= 0:
            found = f"pairs {self.pairs}, margin {self.margin}, scatter {self.scatter}"
            raise InputError(f"plan: found {found}; expected at least one pair and positive margin and scatter.")
        if not 0.5 <= self.hint < 1:
            raise InputError(f"plan: found hint {self.hint}; expected a chance from 0.5 to less than 1.")
        if min(self.samples) < 1 or len(self.samples) != 3:
            raise InputError(f"samples: found {self.samples}; expected three sizes of at least 1.")
        for source in self.sources:
            if source.size < self.width or not 1 <= source.shortest <= source.mean <= source.longest:
                raise InputError(
                    f"modality '{source.name}': size {source.size} and mean length {source.mean}; expected a size of "
                    f"at least {self.width} and a mean within {max(source.shortest, 1)}..{source.longest}."
                )

    @property
    def keys(self) -> int:
        """Dimensions of a key: one a label, at least 8."""
        return max(8, len(self.labels))

    @property
    def width(self) -> int:
        """Hidden dimensions of a node: key, value, confidence, tag."""
        return self.keys + 2 + self.tags

    @property
    def tags(self) -> int:
        """Different tags in a sample: one a pair of nodes, and 4 of no use."""
        count = [x.role for x in self.labels].count
        return len(self.voters(0)) * count("conflict") + count("tagged") + self.pairs * count("bound") + 4

    def voters(self, hub: int) -> list[int]:
        """The modalities a conflict label has nodes in: where there are three or more, all but the hub."""
        return [m for m in range(len(self.sources)) if m != hub or len(self.sources) == 2]


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
