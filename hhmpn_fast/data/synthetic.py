"""Generated sets with planted structure: every module of the model has labels that cannot be told without it.

A node is x = G_m (key, value, confidence, tag) + noise, G_m a random map to e_m dimensions. Labels hang on hidden bits:

    conflict (modality-to-label)   One node a modality has the label's key, a value and a confidence. The most confident
                                   modality is right, the others guess; only differences of confidence tell them apart.
    bound (feature-to-feature)     Nodes with the label's key hold tags; the nodes of another modality with the same
                                   tags hold the values. Tags are new in every sample, more of them than dimensions.
    many, few, one                 At least k, at most k, or exactly one of the bits above are set; where that would
    (label-to-label)               be too frequent alone, a bit of the label's own, in one node, must be set as well.

All of them need feature-to-label attention: the other nodes are distractors with random values, confidences and tags,
and a uniform mean drowns the few with a label's key. Labels are the bits, flipped with a small chance, so the chance of
every label given all nodes is known; that chance thresholded at 0.5 is the planted optimum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hhmpn_fast.data.plans import ROLES, TAG, Label, Plan
from hhmpn_fast.data.splits import Modality, Split
from hhmpn_fast.data.writer import write

CHUNK = 1024
OPTIMUM = "optimal_probability"


@dataclass(frozen=True)
class Slot:
    """A node that carries evidence: the label it serves, whether it shows that label's key, the pair it is half of."""

    label: int
    keyed: bool
    pair: int = -1


class World:
    """What is fixed by a plan and a seed: feature maps, who carries what, and the rules of the derived labels."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan = plan
        rng = np.random.default_rng([seed, 0])
        self.maps = [_orthonormal(rng, s.size, plan.width) * np.sqrt(s.size / plan.width) for s in plan.sources]
        self.base = [i for i, x in enumerate(plan.labels) if x.role in ROLES[:2]]
        modalities, own = len(plan.sources), 0
        # All pairs tie the two longest modalities: the values there, taken together, say little about one label.
        longest = sorted(range(modalities), key=lambda m: -plan.sources[m].mean)[:2]
        self.slots: list[list[Slot]] = [[] for _ in range(modalities)]
        self.bound: dict[int, tuple[int, int]] = {}
        for i in self.base:
            if plan.labels[i].role == "conflict":
                for slots in self.slots:
                    slots.append(Slot(i, True))
            else:
                self.bound[i] = (min(longest), max(longest))
        self.rules = {i: self._rule(x) for i, x in enumerate(plan.labels) if x.role in ROLES[2:]}
        self.own: dict[int, int] = {}
        for i, (_, thinning) in self.rules.items():
            if thinning < 1:
                self.own[i] = own % modalities
                self.slots[self.own[i]].append(Slot(i, True))
                own += 1
        for p in range(plan.pairs):
            for i, (key_side, value_side) in self.bound.items():
                self.slots[key_side].append(Slot(i, True, p))
                self.slots[value_side].append(Slot(i, False, p))

    def _rule(self, label: Label) -> tuple[int, float]:
        """(k, thinning) of a derived label: the count that is just frequent enough, and the chance of its own bit."""
        shares = np.array([self.plan.labels[i].prevalence for i in self.base])
        counts = count_distribution(shares[None])[0]
        tail, first = (np.cumsum(counts[::-1])[::-1], 1) if label.role == "many" else (np.cumsum(counts), 0)
        k = first + int(np.abs(np.log(tail[first:-1] / label.prevalence)).argmin())
        if label.role == "one":
            tail, k = counts, 1
        # A count only slightly too frequent is taken as it is: thinning it would need evidence for next to nothing.
        return k, (label.prevalence / tail[k] if tail[k] > 1.3 * label.prevalence else 1.0)

    @cached_property
    def priors(self) -> np.ndarray:
        """(L,) the chance of every base bit, and of a derived label's own bit."""
        return np.array([self.rules[i][1] if i in self.rules else x.prevalence for i, x in enumerate(self.plan.labels)])


def generate(plan: Plan, out: str | Path, *, seed: int = 0, dtype: str = "float32", overwrite: bool = False) -> Path:
    """Draws and writes a set; the planted optimum's scores stand in its metadata, its probabilities in its shards.

    metadata["optimum"][split] holds the headline metrics that thresholding the optimal probabilities at 0.5 reaches on
    the split's labels, and `expected_hamming_loss`, its mean over all draws of the labels.

    Raises:
        InputError: whatever `write` refuses; a label that no training sample drew, for one.
    """
    world, optimum = World(plan, seed), {}

    def splits() -> Iterator[Split]:
        for name, samples in zip(("train", "valid", "test"), plan.samples):
            split = draw(world, name, samples, seed)
            optimum[name] = optimum_scores(split)
            yield split

    modalities = [Modality(s.name, s.size) for s in plan.sources]
    provenance = {"kind": "synthetic", "seed": seed, "plan": asdict(plan)}
    names, about = [x.name for x in plan.labels], {"optimum": optimum}
    return write(out, splits(), modalities, names, dtype=dtype, provenance=provenance, about=about, overwrite=overwrite)


def optimum_scores(split: Split) -> dict[str, float]:
    """The headline metrics of the planted optimum on one split, and its expected Hamming loss."""
    from hhmpn_fast import metrics

    chance = split.extra[OPTIMUM]
    found = metrics.scores(np.asarray(split.labels), metrics.decisions(chance, 0.5))
    return found | {"expected_hamming_loss": float(np.minimum(chance, 1 - chance).mean(dtype=np.float64))}


def count_distribution(chances: np.ndarray) -> np.ndarray:
    """(n, k) independent chances to (n, k+1): the distribution of how many occur."""
    out = np.zeros((len(chances), chances.shape[1] + 1))
    out[:, 0] = 1.0
    for column in chances.T:
        out[:, 1:] = out[:, 1:] * (1 - column[:, None]) + out[:, :-1] * column[:, None]
        out[:, 0] *= 1 - column
    return out


def draw(world: World, name: str, samples: int, seed: int) -> Split:
    """One split, with `extra[OPTIMUM]` (n, L): the chance of every label given all nodes."""
    plan, rng = world.plan, np.random.default_rng([seed, 1, *name.encode()])
    bits = rng.random((samples, len(plan.labels))) < world.priors
    lengths = _lengths(plan, samples, rng)
    slots = [_SlotValues(rng, world, m, lengths[m], samples) for m in range(len(plan.sources))]
    belief = np.tile(world.priors, (samples, 1))
    for i in world.base:
        if i in world.bound:
            belief[:, i] = _plant_bound(world, slots, i, bits[:, i], rng)
        else:
            belief[:, i] = _plant_conflict(world, slots, i, bits[:, i], rng)
    for i, m in world.own.items():
        k = slots[m].place(i)
        slots[m].value[:, k] = np.where(bits[:, i], 1.0, -1.0)
        belief[:, i] = np.where(slots[m].seen[:, k], bits[:, i], world.priors[i])
    chance = np.stack([_chance(world, belief, i) for i in range(len(plan.labels))], axis=1)
    truth = np.stack([_chance(world, bits.astype(float), i) for i in range(len(plan.labels))], axis=1)
    lost, found = plan.flips
    labels = rng.random(truth.shape) < found + (1 - lost - found) * truth
    values, counts = {}, {}
    for m, source in enumerate(plan.sources):
        values[source.name] = np.concatenate(list(_nodes(world, m, slots[m], lengths[m], rng)))
        counts[source.name] = lengths[m]
    extra = {OPTIMUM: (found + (1 - lost - found) * chance).astype(np.float32)}
    return Split(name, values, counts, labels.astype(np.uint8), [f"{name}-{i}" for i in range(samples)], extra)


class _SlotValues:
    """What the evidence nodes of one modality hold, for all samples: value, confidence (n, K) and tag (n, K, TAG)."""

    def __init__(self, rng: np.random.Generator, world: World, m: int, lengths: np.ndarray, samples: int) -> None:
        self.slots, plan = world.slots[m], world.plan
        count = len(self.slots)
        self.value = rng.choice([-1.0, 1.0], (samples, count))
        self.confidence = _confidence(rng, plan, (samples, count))
        self.tag = _unit(rng, (samples, count, TAG))
        self.seen = np.arange(count) < lengths[:, None]

    def place(self, label: int, pair: int = -1) -> int:
        return next(k for k, s in enumerate(self.slots) if s.label == label and s.pair == pair)


def _plant_conflict(
    world: World, slots: Sequence[_SlotValues], label: int, bit: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Fills the label's node in every modality; returns the belief in its bit given the nodes that fit in."""
    plan, rows = world.plan, np.arange(len(bit))
    at = [s.place(label) for s in slots]
    seen = np.stack([s.seen[:, k] for s, k in zip(slots, at)], axis=1)
    right = np.where(seen, rng.random(seen.shape), -1.0).argmax(1)
    wrong = rng.random(seen.shape) < plan.deceit
    wrong[rows, right] = False
    shared = plan.spread * rng.normal(size=len(bit))
    for m, (s, k) in enumerate(zip(slots, at)):
        s.value[:, k] = np.where(bit ^ wrong[:, m], 1.0, -1.0)
        s.confidence[:, k] = shared + np.where(right == m, plan.gap / 2, -plan.gap / 2)
    return np.where(seen.any(1), bit, world.priors[label])


def _plant_bound(
    world: World, slots: Sequence[_SlotValues], label: int, bit: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Ties the label's keyed nodes to the nodes that hold its values; returns the belief in its bit."""
    plan = world.plan
    keyed, valued = (slots[m] for m in world.bound[label])
    prior, weight = world.priors[label], np.log(plan.agreement / (1 - plan.agreement))
    score = np.full(len(bit), np.log(prior / (1 - prior)))
    for p in range(plan.pairs):
        a, b = keyed.place(label, p), valued.place(label, p)
        says = bit ^ (rng.random(len(bit)) > plan.agreement)
        valued.value[:, b] = np.where(says, 1.0, -1.0)
        valued.tag[:, b] = keyed.tag[:, a]
        score += np.where(keyed.seen[:, a] & valued.seen[:, b], np.where(says, weight, -weight), 0.0)
    return 1 / (1 + np.exp(-score))


def _chance(world: World, belief: np.ndarray, label: int) -> np.ndarray:
    """(n,) the chance of a label's bit from the beliefs (n, L) in base bits and own bits."""
    if label not in world.rules:
        return belief[:, label]
    counts = count_distribution(belief[:, world.base])
    k = world.rules[label][0]
    counted = {"many": slice(k, None), "few": slice(0, k + 1), "one": slice(1, 2)}[world.plan.labels[label].role]
    return counts[:, counted].sum(1) * belief[:, label]


def _nodes(
    world: World, m: int, slots: _SlotValues, lengths: np.ndarray, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """The nodes of one modality, a chunk of samples at a time: evidence first, distractors behind, then shuffled."""
    plan, count = world.plan, len(slots.slots)
    names = np.array([s.label if s.keyed else -1 for s in slots.slots])
    for first in range(0, len(lengths), CHUNK):
        chunk = lengths[first : first + CHUNK]
        total, sample = int(chunk.sum()), np.repeat(np.arange(len(chunk)), chunk)
        place = np.arange(total) - np.repeat(np.cumsum(chunk) - chunk, chunk)
        hidden = np.empty((total, plan.width))
        hidden[:, : plan.keys] = _distractor_keys(rng, plan, total)
        hidden[:, plan.keys] = rng.choice([-1.0, 1.0], total)
        hidden[:, plan.keys + 1] = _confidence(rng, plan, (total,))
        hidden[:, plan.keys + 2 :] = _unit(rng, (total, TAG))
        rows = np.flatnonzero(place < count)
        at, k = first + sample[rows], place[rows]
        keyed = names[k] >= 0
        hidden[rows[keyed], : plan.keys] = np.eye(plan.keys)[names[k[keyed]]]
        hidden[rows, plan.keys] = slots.value[at, k]
        hidden[rows, plan.keys + 1] = slots.confidence[at, k]
        hidden[rows, plan.keys + 2 :] = slots.tag[at, k]
        hidden = hidden[np.lexsort((rng.random(total), sample))]
        hidden *= _scales(plan)
        noise = rng.standard_normal((total, plan.sources[m].size), dtype=np.float32)
        yield (hidden @ world.maps[m].T).astype(np.float32) + np.float32(plan.noise) * noise


def _scales(plan: Plan) -> np.ndarray:
    key, value, confidence, tag = plan.weights
    return np.concatenate([np.full(plan.keys, key), [value, confidence], np.full(TAG, tag)])


def _confidence(rng: np.random.Generator, plan: Plan, shape: tuple[int, ...]) -> np.ndarray:
    return plan.spread * rng.normal(size=shape) + plan.gap / 2 * rng.choice([-1.0, 1.0], shape)


def _distractor_keys(rng: np.random.Generator, plan: Plan, count: int) -> np.ndarray:
    """Unit keys that no label's key is closer to than 0.6."""
    keys = _unit(rng, (count, plan.keys))
    while len(near := np.flatnonzero(keys[:, : len(plan.labels)].max(1) > 0.6)):
        keys[near] = _unit(rng, (len(near), plan.keys))
    return keys


def _unit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(rows, columns)))[0]


def _lengths(plan: Plan, samples: int, rng: np.random.Generator) -> np.ndarray:
    """(M, n) log-normal lengths with each source's mean, clipped to 1..longest, some set to 0."""
    out = np.empty((len(plan.sources), samples), dtype=np.int64)
    for m, s in enumerate(plan.sources):
        drawn = rng.lognormal(np.log(s.mean) - s.sigma**2 / 2, s.sigma, samples)
        out[m] = out[0] if plan.aligned and m else np.clip(np.rint(drawn), 1, s.longest)
    gone = rng.random(out.shape) < plan.missing
    gone[rng.integers(0, len(out), samples), np.arange(samples)] = False
    return np.where(gone, 0, out)
