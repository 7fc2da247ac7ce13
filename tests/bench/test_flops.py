"""Useful FLOP against hand-computed cases, and the workloads they are counted on."""

from __future__ import annotations

import pytest
import torch

from bench.core.flops import attention_flop, f2f_flop, update_features_flop, update_labels_flop, useful
from bench.core.workloads import NAMES, WORKLOADS, named
from hhmpn_fast import InputError, Ragged
from hhmpn_fast.config import HHMPNConfig


def batch(*lengths: list[int], sizes: tuple[int, ...]) -> Ragged:
    values = tuple(torch.zeros(sum(row), e) for row, e in zip(lengths, sizes))
    return Ragged(tuple(f"m{i}" for i in range(len(sizes))), values, torch.tensor(lengths))


def test_one_node_by_hand() -> None:
    # d = 2, one modality with e = 3 and one node, one label, one step.
    # embed: 2 * 2 * 3.  F2F: contexts 2*4*1*4 + 4*2 = 40, projected 8*4 + 6*2 = 44.  labels: 2*4*1*1*(7 + 1) = 64.
    config = HHMPNConfig({"m0": 3}, ("a",), dim=2, steps=1)
    found = useful(config, batch([1], sizes=(3,)))
    assert (found.embed, found.f2f, found.labels) == (12, 40, 64)
    assert found.forward == 116
    assert found.step == 3 * 104 + 2 * 12


def test_two_samples_by_hand() -> None:
    # d = 4, M = 3, lengths (2, 1, 0) and (0, 5, 0), L = 2, T = 3.
    # Sample 0: T = 3, M_b = 2: contexts 2*16*3*5 + 16*9 = 624; projected 8*16*3 + 24*9 = 600.
    # Sample 1: T = 5, M_b = 1: contexts 2*16*5*4 + 16*25 = 1040; projected 8*16*5 + 24*25 = 1240.
    # labels: 2*16*2*3 * ((7*2 + 1) + (7*1 + 1)) = 192 * 23.  embed: 2*4*(2*3 + 6*5 + 0*7).
    config = HHMPNConfig({"m0": 3, "m1": 5, "m2": 7}, ("a", "b"), dim=4, steps=3)
    found = useful(config, batch([2, 0], [1, 5], [0, 0], sizes=(3, 5, 7)))
    assert (found.embed, found.f2f, found.labels) == (288, 600 + 1040, 192 * 23)
    assert found.of("infer") == found.forward
    assert found.of("train") == found.step == 3 * (1640 + 4416) + 2 * 288


def test_the_two_forms_cost_the_same_where_the_design_says() -> None:
    # 2 d^2 T (M + 3) + 4 d T^2 = 8 d^2 T + 6 d T^2 at T = (M - 1) d.
    d, modalities = 8, 4
    at = (modalities - 1) * d
    assert 2 * d * d * at * (modalities + 3) + 4 * d * at**2 == 8 * d * d * at + 6 * d * at**2
    assert f2f_flop(d, at - 1, modalities) == 8 * d * d * (at - 1) + 6 * d * (at - 1) ** 2
    assert f2f_flop(d, at + 1, modalities) == 2 * d * d * (at + 1) * (modalities + 3) + 4 * d * (at + 1) ** 2


def test_single_ops_by_hand() -> None:
    assert attention_flop(2, [3, 1], [5, 7]) == 8 * (15 + 7)
    assert update_labels_flop(2, 5) == 3 * 2 * 4 * 5
    assert update_features_flop(2, 5, 3) == (3 + 1 + 1) * 2 * 4 * 5


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_are_seeded_and_as_described(name: str) -> None:
    workload = named(name)
    assert torch.equal(workload.lengths(64), workload.lengths(64))
    assert not torch.equal(workload.lengths(64), workload.lengths(64, seed=1))
    table = workload.lengths(4000)
    assert (table.sum(0) > 0).all()
    assert abs(float((table == 0).float().mean()) - workload.missing) < 0.02
    for row, m in zip(table, workload.modalities):
        present = row[row > 0]
        assert int(present.max()) <= m.longest
        assert abs(float(present.double().mean()) - m.mean) < 0.08 * m.mean
    if workload.aligned and not workload.missing:
        assert (table == table[0]).all()


def test_the_models_fit_their_batches() -> None:
    for name in NAMES:
        workload = named(name)
        small = workload.batch(2)
        logits = workload.model(dim=8, steps=2)(small)
        assert logits.shape == (2, 2, workload.labels) and workload.targets(2).shape == (2, workload.labels)
    assert named("length-30").lengths(1).tolist() == [[10], [10], [10]]
    assert named("fill-50").lengths(64).unique().numel() > 1


@pytest.mark.parametrize("name", ["mosei", "length-", "length-x", "fill-11"])
def test_an_unknown_workload_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"workload: found '{name}'; expected one of mosei-aligned"):
        named(name)
