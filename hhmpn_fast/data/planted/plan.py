"""What a planted set is drawn from: modalities, and labels with their roles."""

from __future__ import annotations

from dataclasses import dataclass

from hhmpn_fast.errors import InputError

SHOWN = ("conflict", "tagged", "bound")  # nodes show the bit
COUNTED = ("many", "few", "exact", "odd")  # the bit is a count of the bound ones
ROLES = SHOWN + COUNTED


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
        if len(self.sources) < 2 or not roles & set(SHOWN) or (roles & set(COUNTED) and "bound" not in roles):
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
