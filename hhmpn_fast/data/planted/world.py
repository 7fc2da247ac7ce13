"""What a plan and a seed fix for all splits: feature maps, which node carries what, the rules of the derived labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from hhmpn_fast.data.planted.plan import COUNTED, ROLES, Label, Plan


@dataclass(frozen=True)
class Slot:
    """A node that carries evidence: its label, whether it shows the "key" or is the "mate" of one that does, a tag."""

    label: int
    shows: str
    tag: int


class Rule(NamedTuple):
    """What makes a derived label: how many bound bits are set, and the chance of the bit of its own."""

    count: int
    thinning: float


class World:
    """What is fixed by a plan and a seed: feature maps, who carries what, and the rules of the derived labels."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan = plan
        rng = np.random.default_rng([seed, 0])
        self.maps = [_orthonormal(rng, s.size, plan.width) * np.sqrt(s.size / plan.width) for s in plan.sources]
        of = {role: [i for i, x in enumerate(plan.labels) if x.role == role] for role in ROLES}
        self.conflict, self.tagged, self.bound = of["conflict"], of["tagged"], of["bound"]
        self.rules = {i: self._rule(x) for i, x in enumerate(plan.labels) if x.role in COUNTED}
        self.own: dict[int, int] = {}
        # Whatever a tag points at lies in the longest modality: one way of matching serves all labels.
        self.hub, self.home, *_ = sorted(range(len(plan.sources)), key=lambda m: -plan.sources[m].mean)
        self.voters = plan.voters(self.hub)
        self.slots: list[list[Slot]] = [[] for _ in plan.sources]
        tags = iter(range(plan.tags))
        for i in self.conflict:
            for m in self.voters:
                self._pair(i, m, next(tags))
        for i, rule in self.rules.items():
            if rule.thinning < 1:
                self.own[i] = len(self.own) % len(plan.sources)
                self.slots[self.own[i]].append(Slot(i, "key", plan.tags - 1))
        away = [m for m in self.voters if m not in (self.hub, self.home)] or [self.home]
        self.keyed = {i: away[j % len(away)] for j, i in enumerate(self.tagged)} | dict.fromkeys(self.bound, self.home)
        for i in self.tagged:
            self._pair(i, self.keyed[i], next(tags))
        for _ in range(plan.pairs):
            for i in self.bound:
                self._pair(i, self.home, next(tags))

    def mates(self, m: int) -> int:
        """The modality that holds what the tags of modality m point at."""
        return self.hub if m != self.hub else self.home

    def _pair(self, label: int, m: int, tag: int) -> None:
        """A node with the label's key in modality m, and the node it points at."""
        self.slots[m].append(Slot(label, "key", tag))
        self.slots[self.mates(m)].append(Slot(label, "mate", tag))

    def _rule(self, label: Label) -> Rule:
        """The rule of a derived label: the rarest count that is frequent enough."""
        shares = np.array([self.plan.labels[i].prevalence for i in self.bound])
        counts = count_distribution(shares[None])[0]
        odd = np.where(np.arange(len(counts)) == 1, counts[1::2].sum(), 0.0)
        of_role = {"many": np.cumsum(counts[::-1])[::-1], "few": np.cumsum(counts), "exact": counts, "odd": odd}
        chances = of_role[label.role]
        able = [k for k in range(len(counts)) if chances[k] > label.prevalence / 1.1 and (k or label.role == "few")]
        k = min(able, key=lambda k: chances[k]) if able else int(chances[1:].argmax()) + 1
        # A count only slightly too frequent is taken as it is: thinning it would need evidence for next to nothing.
        return Rule(k, label.prevalence / chances[k] if chances[k] > 1.3 * label.prevalence else 1.0)

    @cached_property
    def priors(self) -> np.ndarray:
        """(L,) the chance of every base bit, and of a derived label's own bit."""
        return np.array(
            [self.rules[i].thinning if i in self.rules else x.prevalence for i, x in enumerate(self.plan.labels)]
        )


def count_distribution(chances: np.ndarray) -> np.ndarray:
    """(n, k) independent chances to (n, k+1): the distribution of how many occur."""
    out = np.zeros((len(chances), chances.shape[1] + 1))
    out[:, 0] = 1.0
    for column in chances.T:
        out[:, 1:] = out[:, 1:] * (1 - column[:, None]) + out[:, :-1] * column[:, None]
        out[:, 0] *= 1 - column
    return out


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(rows, columns)))[0]
