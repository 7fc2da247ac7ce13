"""The generator: sizes and shares as planned, evidence where it says, and an optimum that an oracle reaches."""

import argparse
import importlib
import time
from dataclasses import replace

import numpy as np
import pytest

from hhmpn_fast import InputError
from hhmpn_fast.data import Dataset, read_metadata
from hhmpn_fast.data.planted import OPTIMUM, PRESETS, Label, Plan, Source, draw, generate, preset
from hhmpn_fast.data.planted.draw import sum_belief
from hhmpn_fast.data.planted.world import World, count_distribution

command = importlib.import_module("hhmpn_fast.data.convert")
SEED = time.time_ns() % 2**31


def small(**changes):
    return preset("demo", samples=changes.pop("samples", (300, 50, 80)), **changes)


def demo(name):
    """The preset, or one whose hub is often too short for the nodes that tags point at: hints are all there is."""
    hub = Source("audio", 48, 11, 0.2, 28, 5)
    sources = [hub if s.name == "audio" and name != "demo" else s for s in PRESETS["demo"].sources]
    return replace(PRESETS["demo"], sources=tuple(sources))


def nodes_of(split, name, i):
    ends = np.cumsum(split.lengths[name])
    return split.values[name][ends[i] - split.lengths[name][i] : ends[i]]


def scales(plan):
    key, value, confidence, tag = plan.weights
    return np.array([key] * plan.keys + [value, confidence] + [tag] * plan.tags)


def pairs_of(hidden, label, m, world):
    """Every node of modality m with the label's key, and the node of the other modality that shares its tag."""
    plan, other = world.plan, hidden[world.mates(m)]
    tag = slice(plan.keys + 2, None)
    for node in hidden[m][hidden[m][:, label] > 0.8]:
        match = other[:, tag] @ node[tag]
        if len(match) and match.max() > 0.7:
            yield node, other[match.argmax()]


def voices(hidden, label, world):
    """(value, confidence) of a conflict label in every modality: of its keyed node, and of the node with its tag."""
    value = world.plan.keys
    found = [p for m in world.voters for p in pairs_of(hidden, label, m, world)]
    return np.array([(node[value], mate[value + 1]) for node, mate in found]).reshape(-1, 2)


def most_confident(hidden, label, world, prior):
    """Belief in a conflict label's bit: the value beside the largest confidence."""
    found = voices(hidden, label, world)
    return found[found[:, 1].argmax(), 0] > 0 if len(found) else prior


def oracle(world, split):
    """Decisions from the nodes alone: invert the feature map, find keys, match tags, compare confidences, count."""
    plan, half = world.plan, 0.5
    names = [s.name for s in plan.sources]
    inverse = [np.linalg.pinv(g) for g in world.maps]
    scale = scales(plan)
    out = np.zeros((len(split), len(plan.labels)), dtype=bool)
    for i in range(len(split)):
        hidden = [nodes_of(split, n, i) @ inverse[m].T / scale for m, n in enumerate(names)]
        keyed = lambda m, label: hidden[m][hidden[m][:, label] > 0.8]  # noqa: B023, E731
        value, belief = plan.keys, world.priors.copy()
        for label in world.conflict:
            belief[label] = most_confident(hidden, label, world, belief[label])
        for label, m in world.keyed.items():
            values = np.array([mate[value] for _, mate in pairs_of(hidden, label, m, world)])
            total, pairs = values.sum(keepdims=True), plan.pairs if label in world.bound else 1
            if label in world.tagged and len(shown := keyed(m, label)):
                odds = plan.hint / (1 - plan.hint) if shown[0, value] > 0 else (1 - plan.hint) / plan.hint
                odds *= belief[label] / (1 - belief[label])
                belief[label] = odds / (1 + odds)
            belief[label] = sum_belief(plan, belief[label], total, np.array([len(values)]), pairs)[0]
        for label, m in world.own.items():
            found = keyed(m, label)
            if len(found):
                belief[label] = found[0, value] > 0
        counts = count_distribution(belief[None, world.bound])[0]
        for label, (k, _) in world.rules.items():
            role = plan.labels[label].role
            told = {"many": counts[k:], "few": counts[: k + 1], "exact": counts[k : k + 1], "odd": counts[1::2]}[role]
            belief[label] = told.sum() * belief[label]
        lost, found = plan.flips
        out[i] = found + (1 - lost - found) * belief > half
    return out


@pytest.mark.parametrize("name", ["demo", "demo, cut short", "nemu"])
def test_an_oracle_on_the_nodes_agrees_with_the_optimum(name):
    world = World(preset(name, sizes={"vision": 64}) if name == "nemu" else demo(name), SEED)
    split = draw(world, "test", 150, SEED)
    agree = (oracle(world, split) == (split.extra[OPTIMUM] > 0.5)).mean(0)
    assert agree.mean() > 0.97 and agree.min() > 0.9


@pytest.mark.parametrize("name", ["demo", "demo, cut short", "nemu"])
def test_the_optimum_is_calibrated_and_shares_are_as_planned(name):
    # Short modalities: some evidence does not fit in, and the optimum must know it.
    plan = preset(name, sizes={"vision": 64}, lengths={"audio": 9}) if name == "nemu" else demo(name)
    split = draw(World(plan, SEED), "train", 6000, SEED)
    chance, labels = split.extra[OPTIMUM].astype(np.float64), split.labels.astype(np.float64)
    for low, high in [(0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1)]:
        at = (chance > low) & (chance <= high)
        error = np.sqrt((chance[at] * (1 - chance[at])).sum())
        assert abs((labels[at] - chance[at]).sum()) < 5 * error + 1e-9
    lost, found = plan.flips
    for i, label in enumerate(plan.labels):
        tolerance = 0.35 if label.role in ("many", "few", "exact", "odd") else 0.1
        expected = found + (1 - lost - found) * label.prevalence
        assert abs(labels[:, i].mean() / expected - 1) < tolerance + 4 / np.sqrt(6000 * expected)


def test_only_the_confidence_under_the_same_tag_tells_conflicting_modalities_apart():
    plan = small()
    world = World(plan, SEED)
    split = draw(world, "test", 1500, SEED)
    label = world.conflict[0]
    truth = split.extra[OPTIMUM][:, label] > 0.5
    inverse = [np.linalg.pinv(g) for g in world.maps]
    scale = scales(plan)
    votes, weighed, chosen = [], [], []
    for i in range(len(split)):
        hidden = [nodes_of(split, s.name, i) @ inverse[m].T / scale for m, s in enumerate(plan.sources)]
        value, confidence = voices(hidden, label, world).T
        assert len(value) == 3
        votes.append((value.sum() > 0) == truth[i])
        weighed.append(((value * (confidence + plan.spread / 2 + plan.gap / 2)).sum() > 0) == truth[i])
        chosen.append(most_confident(hidden, label, world, None) == truth[i])
    assert np.mean(chosen) > 0.97 and np.mean(votes) < 0.85 and np.mean(weighed) < 0.85


def test_single_values_of_a_bound_label_say_little_and_their_sum_everything():
    plan = small()
    world = World(plan, SEED)
    split = draw(world, "test", 1500, SEED)
    label = world.bound[0]
    truth = split.extra[OPTIMUM][:, label] > 0.5
    inverse = [np.linalg.pinv(g) for g in world.maps]
    singles, sums = [], []
    for i in range(len(split)):
        hidden = [nodes_of(split, s.name, i) @ inverse[m].T / scales(plan) for m, s in enumerate(plan.sources)]
        values = np.array([mate[plan.keys] for _, mate in pairs_of(hidden, label, world.keyed[label], world)])
        singles += list((values > 0) == truth[i])
        sums.append((values.sum() > 0) == truth[i])
    assert np.mean(sums) > 0.99 and 0.6 < np.mean(singles) < 0.9


def test_the_hint_beside_a_tagged_label_s_key_is_right_as_often_as_planned():
    plan = small(samples=(1, 1, 1))
    assert plan.hint == 0.7
    for changed in (plan, replace(plan, hint=0.5)):
        world = World(changed, SEED)
        split = draw(world, "test", 1500, SEED)
        inverse = [np.linalg.pinv(g) for g in world.maps]
        names, right = [s.name for s in plan.sources], []
        for label in world.tagged[:2]:
            truth = split.extra[OPTIMUM][:, label] > 0.5
            for i in range(len(split)):
                hidden = [nodes_of(split, n, i) @ inverse[m].T / scales(plan) for m, n in enumerate(names)]
                ((node, mate),) = pairs_of(hidden, label, world.keyed[label], world)
                assert (mate[plan.keys] > 0) == truth[i]
                right.append((node[plan.keys] > 0) == truth[i])
        assert abs(np.mean(right) - changed.hint) < 5 * 0.5 / np.sqrt(len(right))


def test_an_odd_number_of_bits_is_counted():
    label = Label("odd", 0.5, "odd")
    plan = Plan(PRESETS["demo"].sources, (*(Label(str(i), 0.5, "bound") for i in range(3)), label), (1, 1, 1))
    split = draw(World(plan, SEED), "test", 200, SEED)
    chance = split.extra[OPTIMUM] > 0.5
    assert (chance[:, 3] == chance[:, :3].sum(1) % 2).all()
    thinned = World(replace(plan, labels=(*plan.labels[:3], replace(label, prevalence=0.2))), SEED)
    assert thinned.rules == {3: (1, pytest.approx(0.4))} and 3 in thinned.own


def test_lengths_follow_the_plan():
    sources = (Source("a", 32, 19.1, 0.7, 128), Source("b", 32, 109, 0.7, 500))
    labels = PRESETS["mosei"].labels
    for aligned in (False, True):
        plan = Plan(sources, labels, (1, 1, 1), aligned=aligned)
        split = draw(World(plan, SEED), "train", 4000, SEED)
        a, b = split.lengths["a"], split.lengths["b"]
        assert abs(a.mean() / 19.1 - 1) < 0.06 and a.min() >= 1 and a.max() <= 128
        assert (a == b).all() if aligned else abs(np.log(b).std() - 0.7) < 0.06
        assert len(split.values["b"]) == b.sum()
    split = draw(World(Plan(sources, labels, (1, 1, 1), missing=0.4), SEED), "train", 2000, SEED)
    gone = np.stack([split.lengths["a"] == 0, split.lengths["b"] == 0])
    assert 0.15 < gone.mean() < 0.25 and not gone.all(0).any()


def test_a_seed_is_a_set(tmp_path):
    one = read_metadata(generate(small(), tmp_path / "a", seed=4))
    same = read_metadata(generate(small(), tmp_path / "b", seed=4))
    other = read_metadata(generate(small(), tmp_path / "c", seed=5))
    assert one["fingerprint"] == same["fingerprint"] != other["fingerprint"]


def test_the_optimum_stands_in_the_metadata(tmp_path):
    from hhmpn_fast import metrics

    out = generate(small(samples=(400, 50, 300)), tmp_path / "o", seed=SEED, dtype="float16")
    test = Dataset.open(out, "test")
    chance = test.extra(OPTIMUM).numpy()
    held = test.metadata["optimum"]["test"]
    scores = metrics.scores(test.labels.numpy(), (chance > 0.5).astype(np.uint8))
    assert {k: held[k] for k in scores} == pytest.approx(scores)
    assert abs(held["hamming_loss"] - held["expected_hamming_loss"]) < 0.05
    assert held["micro_f1"] > 0.8 and test.metadata["provenance"]["plan"]["labels"][0]["name"] == "happy"


def test_presets_have_the_papers_sizes():
    assert [(s.name, s.size) for s in PRESETS["mosei"].sources] == [("text", 300), ("vision", 35), ("audio", 74)]
    assert PRESETS["mosei"].samples == PRESETS["mosei-aligned"].samples == (16326, 1871, 4659)
    sizes = [("lyrics", 300), ("comments", 300), ("audio", 74), ("vision", 2048)]
    assert [(s.name, s.size) for s in PRESETS["nemu"].sources] == sizes
    assert PRESETS["nemu"].samples == (15125, 1891, 1891) and len(PRESETS["nemu"].labels) == 12
    shrunk = preset("nemu", samples=(5, 6, 7), sizes={"vision": 48}, lengths={"lyrics": 4})
    assert shrunk.samples == (5, 6, 7) and shrunk.sources[3].size == 48 and shrunk.sources[0].mean == 4


def test_command_line(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = ["synthetic", "mosei", str(tmp_path / "o"), "--samples", "200,20,30", "--size", "text=40", "--length"]
    command.run(parser.parse_args([*words, "audio=20", "--length", "vision=20"]))
    data = Dataset.open(tmp_path / "o", "test")
    assert len(data) == 30 and data.sizes == (40, 35, 74) and "happy" in capsys.readouterr().out
    for more, sentence in [
        (["--size", "smell=4"], "no modality 'smell'; expected one of text"),
        (["--size", "text=x"], "option --size: found 'x'; expected a whole number"),
        (["--samples", "5,6"], "expected three sizes"),
        (["--size", "text=4"], "modality 'text': size 4 .* at least 24"),
    ]:
        with pytest.raises(InputError, match=sentence):
            command.run(parser.parse_args(["synthetic", "mosei", str(tmp_path / "p"), *more]))
    assert not (tmp_path / "p").exists()


def test_bad_plans_are_refused():
    sources = PRESETS["demo"].sources
    for labels, sentence in [
        ((Label("a", 0.5, "telepathy"),), "label 'a': role 'telepathy'; expected one of conflict"),
        ((Label("a", 1.5, "bound"),), "label 'a': prevalence 1.5"),
        (
            (Label("a", 0.5, "many"),),
            "found 4 modalities and the roles many; expected two modalities, a conflict",
        ),
        ((Label("a", 0.5, "conflict"), Label("b", 0.5, "few")), "a bound one where labels count"),
        ((), "the roles of no label"),
    ]:
        with pytest.raises(InputError, match=sentence):
            Plan(sources, labels, (1, 1, 1))
    with pytest.raises(InputError, match="scatter 0"):
        Plan(sources, PRESETS["demo"].labels, (1, 1, 1), scatter=0)
    with pytest.raises(InputError, match="found hint 1.0; expected a chance from 0.5"):
        Plan(sources, PRESETS["demo"].labels, (1, 1, 1), hint=1.0)
    with pytest.raises(InputError, match="preset 'imdb': expected one of mosei"):
        preset("imdb")
