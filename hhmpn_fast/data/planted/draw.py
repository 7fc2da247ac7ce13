"""Draws one split of a planted set, with the chance of every label given all nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hhmpn_fast.data.planted.plan import Plan
from hhmpn_fast.data.planted.world import World, count_distribution
from hhmpn_fast.data.splits import Split

CHUNK = 1024
OPTIMUM = "optimal_probability"


def draw(world: World, name: str, samples: int, seed: int) -> Split:
    """One split, with `extra[OPTIMUM]` (n, L): the chance of every label given all nodes."""
    plan, rng = world.plan, np.random.default_rng([seed, 1, *name.encode()])
    bits = rng.random((samples, len(plan.labels))) < world.priors
    lengths = _lengths(plan, samples, rng)
    frames = np.linalg.qr(rng.normal(size=(samples, plan.tags, plan.tags)))[0]
    slots = [_SlotValues(rng, world, m, lengths[m], samples) for m in range(len(plan.sources))]
    belief = np.tile(world.priors, (samples, 1))
    for i in world.conflict:
        belief[:, i] = _plant_conflict(world, slots, i, bits[:, i], rng)
    for i in world.keyed:
        belief[:, i] = _plant_bound(world, slots, i, bits[:, i], rng)
    for i, m in world.own.items():
        k = slots[m].places(i, "key")[0]
        slots[m].value[:, k] = np.where(bits[:, i], 1.0, -1.0)
        belief[:, i] = np.where(slots[m].seen[:, k], bits[:, i], world.priors[i])
    chance = np.stack([_chance(world, belief, i) for i in range(len(plan.labels))], axis=1)
    truth = np.stack([_chance(world, bits.astype(float), i) for i in range(len(plan.labels))], axis=1)
    lost, found = plan.flips
    labels = rng.random(truth.shape) < found + (1 - lost - found) * truth
    values, counts = {}, {}
    for m, source in enumerate(plan.sources):
        values[source.name] = np.concatenate(list(_nodes(world, m, slots[m], lengths[m], frames, rng)))
        counts[source.name] = lengths[m]
    extra = {OPTIMUM: (found + (1 - lost - found) * chance).astype(np.float32)}
    return Split(name, values, counts, labels.astype(np.uint8), [f"{name}-{i}" for i in range(samples)], extra)


class _Pair(NamedTuple):
    """A keyed node, by modality and place, and the mate it points at."""

    modality: int
    place: int
    mate: int
    mate_place: int


class _SlotValues:
    """What the evidence nodes of one modality hold, for all samples: value and confidence (n, K), and whether seen."""

    def __init__(self, rng: np.random.Generator, world: World, m: int, lengths: np.ndarray, samples: int) -> None:
        self.slots, count = world.slots[m], len(world.slots[m])
        self.value = rng.choice([-1.0, 1.0], (samples, count))
        self.confidence = np.zeros((samples, count))
        self.seen = np.arange(count) < lengths[:, None]

    def places(self, label: int, shows: str) -> list[int]:
        return [k for k, s in enumerate(self.slots) if (s.label, s.shows) == (label, shows)]


def _plant_conflict(
    world: World, slots: Sequence[_SlotValues], label: int, bit: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Fills the label's nodes in every modality; returns the belief in its bit given the nodes that fit in."""
    plan = world.plan
    pairs = [_pairs(world, slots, label, m)[0] for m in world.voters]
    complete = _complete(slots, pairs)
    right = np.where(complete, rng.random(complete.shape), -1.0).argmax(1)
    shared = plan.spread * (rng.random(len(bit)) - 0.5)
    told = complete.any(1)
    for voter, pair in enumerate(pairs):
        holds = told & (right == voter)
        shown = np.where(holds, bit, rng.random(len(bit)) < 0.5)
        slots[pair.modality].value[:, pair.place] = np.where(shown, 1.0, -1.0)
        slots[pair.mate].confidence[:, pair.mate_place] = shared + np.where(holds, plan.gap / 2, -plan.gap / 2)
    return np.where(told, bit, world.priors[label])


def _pairs(world: World, slots: Sequence[_SlotValues], label: int, m: int) -> list[_Pair]:
    """Every node of modality m with the label's key, and its mate."""
    other = world.mates(m)
    tags = {s.tag: k for k, s in enumerate(slots[other].slots) if (s.label, s.shows) == (label, "mate")}
    return [_Pair(m, k, other, tags[slots[m].slots[k].tag]) for k in slots[m].places(label, "key")]


def _complete(slots: Sequence[_SlotValues], pairs: Sequence[_Pair]) -> np.ndarray:
    """bool (n, pairs): whether both nodes fit into the sample."""
    both = [slots[p.modality].seen[:, p.place] & slots[p.mate].seen[:, p.mate_place] for p in pairs]
    return np.stack(both, axis=1)


def _plant_bound(
    world: World, slots: Sequence[_SlotValues], label: int, bit: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Fills the nodes that the label's keyed nodes point at; returns the belief in its bit."""
    plan, pairs = world.plan, _pairs(world, slots, label, world.keyed[label])
    total = np.where(bit, 1.0, -1.0) * (plan.margin + np.abs(rng.normal(size=len(bit))))
    stray = plan.scatter * rng.normal(size=(len(bit), len(pairs)))
    values = total[:, None] / len(pairs) + stray - stray.mean(1, keepdims=True)
    first = pairs[0]  # all pairs of a label lie in the same two modalities
    slots[first.mate].value[:, [p.mate_place for p in pairs]] = values
    seen = _complete(slots, pairs)
    prior = np.full(len(bit), world.priors[label])
    if label in world.tagged:
        prior = _plant_hint(plan, slots[first.modality], first.place, bit, prior, rng)
    return sum_belief(plan, prior, (values * seen).sum(1), seen.sum(1), len(pairs))


def _plant_hint(
    plan: Plan, slots: _SlotValues, place: int, bit: np.ndarray, prior: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Fills the keyed node's own value, the bit with chance `hint`; returns the belief in the bit given it."""
    shown = bit == (rng.random(len(bit)) < plan.hint)
    slots.value[:, place] = np.where(shown, 1.0, -1.0)
    likely = np.where(shown, plan.hint, 1 - plan.hint)  # this hint, were the bit set
    return np.where(slots.seen[:, place], prior * likely / (prior * likely + (1 - prior) * (1 - likely)), prior)


def sum_belief(plan: Plan, prior: float | np.ndarray, total: np.ndarray, seen: np.ndarray, pairs: int) -> np.ndarray:
    """(n,) the chance of a bound label's bit, from its chance `prior` and the sum of the `seen` values of its pairs.

    All of them tell the sign. Of fewer, the sum is normal around its share of +-(margin + |normal|): integrated.
    """
    share = seen / pairs
    variance = np.maximum(plan.scatter**2 * seen * (1 - share), 1e-12)
    size = np.linspace(0.0, 5.0, 101)
    weight, mean = np.exp(-(size**2) / 2), share[:, None] * (plan.margin + size)
    away = 2 * variance[:, None]
    if_set, if_not = ((weight * np.exp(-((total[:, None] - s * mean) ** 2) / away)).sum(1) for s in (1, -1))
    some = prior * if_set / np.maximum(prior * if_set + (1 - prior) * if_not, 1e-300)
    return np.where(seen == pairs, total > 0, np.where(seen == 0, prior, some))


def _chance(world: World, belief: np.ndarray, label: int) -> np.ndarray:
    """(n,) the chance of a label's bit from the beliefs (n, L) in base bits and own bits."""
    if label not in world.rules:
        return belief[:, label]
    counts = count_distribution(belief[:, world.bound])
    k = world.rules[label].count
    counted = {"many": slice(k, None), "few": slice(k + 1), "exact": slice(k, k + 1), "odd": slice(1, None, 2)}
    return counts[:, counted[world.plan.labels[label].role]].sum(1) * belief[:, label]


def _nodes(
    world: World, m: int, slots: _SlotValues, lengths: np.ndarray, frames: np.ndarray, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """The nodes of one modality, a chunk of samples at a time: evidence first, distractors behind, then shuffled."""
    plan, count = world.plan, len(slots.slots)
    names = np.array([s.label if s.shows == "key" else -1 for s in slots.slots], dtype=int)
    tags = np.array([s.tag for s in slots.slots], dtype=int)
    for first in range(0, len(lengths), CHUNK):
        chunk = lengths[first : first + CHUNK]
        total, sample = int(chunk.sum()), np.repeat(np.arange(len(chunk)), chunk)
        place = np.arange(total) - np.repeat(np.cumsum(chunk) - chunk, chunk)
        hidden = np.empty((total, plan.width))
        hidden[:, : plan.keys] = _distractor_keys(rng, plan, total)
        hidden[:, plan.keys] = rng.choice([-1.0, 1.0], total)
        hidden[:, plan.keys + 1] = 0.0
        hidden[:, plan.keys + 2 :] = frames[first + sample, rng.integers(plan.tags - 4, plan.tags, total)]
        rows = np.flatnonzero(place < count)
        at, k = first + sample[rows], place[rows]
        keyed = names[k] >= 0
        hidden[rows[keyed], : plan.keys] = np.eye(plan.keys)[names[k[keyed]]]
        hidden[rows, plan.keys] = slots.value[at, k]
        hidden[rows, plan.keys + 1] = slots.confidence[at, k]
        hidden[rows, plan.keys + 2 :] = frames[at, tags[k]]
        hidden = hidden[np.lexsort((rng.random(total), sample))]
        hidden *= _scales(plan)
        noise = rng.standard_normal((total, plan.sources[m].size), dtype=np.float32)
        yield (hidden @ world.maps[m].T).astype(np.float32) + np.float32(plan.noise) * noise


def _scales(plan: Plan) -> np.ndarray:
    key, value, confidence, tag = plan.weights
    return np.concatenate([np.full(plan.keys, key), [value, confidence], np.full(plan.tags, tag)])


def _distractor_keys(rng: np.random.Generator, plan: Plan, count: int) -> np.ndarray:
    """Unit keys that no label's key is closer to than 0.6."""
    keys = _unit(rng, (count, plan.keys))
    while len(near := np.flatnonzero(keys[:, : len(plan.labels)].max(1) > 0.6)):
        keys[near] = _unit(rng, (len(near), plan.keys))
    return keys


def _unit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _lengths(plan: Plan, samples: int, rng: np.random.Generator) -> np.ndarray:
    """(M, n) log-normal lengths with each source's mean, clipped to 1..longest, some set to 0."""
    out = np.empty((len(plan.sources), samples), dtype=np.int64)
    for m, s in enumerate(plan.sources):
        drawn = rng.lognormal(np.log(s.mean) - s.sigma**2 / 2, s.sigma, samples)
        out[m] = out[0] if plan.aligned and m else np.clip(np.rint(drawn), s.shortest, s.longest)
    gone = rng.random(out.shape) < plan.missing
    gone[rng.integers(0, len(out), samples), np.arange(samples)] = False
    return np.where(gone, 0, out)
