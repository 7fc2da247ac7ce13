"""The plain ops in their form of few launches: the same numbers as sample by sample, and how many they take."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from bench.core.workloads import WORKLOADS
from hhmpn_fast import HHMPN, Ragged, lengths, ops, preset
from hhmpn_fast.backends import use_backend
from hhmpn_fast.ops import padded
from tests.ops.launches import Launches

MODULES = [importlib.import_module(f"hhmpn_fast.ops.{name}") for name in ("attention", "dropout", "update")]
DROPOUT = ops.Dropout(0.4, torch.tensor([3, 1]), ops.site("f2f_attention", 0))


@pytest.fixture(autouse=True)
def plain() -> Iterator[None]:
    """These tests are about the torch backend."""
    with use_backend("torch"):
        yield


def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch, yes: bool = True) -> None:
    """Tensors of the processor take the other form."""
    for module in MODULES:
        monkeypatch.setattr(module, "saves_launches", lambda device: yes)


def offsets_of(segments: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(segments).cumsum(0).tolist()], dtype=torch.int32)


@pytest.mark.parametrize("small", [4, padded.SMALL], ids=["many slices", "one"])
@pytest.mark.parametrize("seed", range(12))
def test_attention_is_that_of_one_sample_after_another(monkeypatch: pytest.MonkeyPatch, seed: int, small: int) -> None:
    monkeypatch.setattr(padded, "SMALL", small)
    draw = torch.Generator().manual_seed(seed)
    groups, samples, exclude_self = 1 + seed % 3, 1 + seed % 5, seed % 4 == 0

    def some(choices: list[int], count: int) -> list[int]:
        return [choices[i] for i in torch.randint(len(choices), (count,), generator=draw).tolist()]

    keys = some([0, 1, 2, 7, 12], groups * samples)
    queries = keys if exclude_self else [*some([0, 1, 2, 5, 9], samples * (1 + seed % 3) - 1), 3]
    q, x = (torch.randn(sum(n), 4, dtype=torch.float64, generator=draw).requires_grad_() for n in (queries, [*keys, 1]))
    weights = torch.randn(groups, sum(queries), 5, dtype=torch.float64, generator=draw)
    found = []
    for yes in (False, True):
        as_on_an_accelerator(monkeypatch, yes)
        tables, dropout = (offsets_of(queries), offsets_of(keys)), DROPOUT if seed % 2 else None
        context, lse = ops.attention(q, x, *tables, groups, exclude_self=exclude_self, dropout=dropout)
        both = torch.cat([context, lse.nan_to_num(neginf=0.0)[..., None]], -1)
        # A segment of nothing but itself reads nothing: then no path leads to the inputs.
        gradients = torch.autograd.grad((both * weights).sum(), (q, x)) if both.requires_grad else ()
        found.append([context, lse, *gradients])
    for expected, other in zip(*found, strict=True):
        torch.testing.assert_close(other, expected, rtol=1e-12, atol=1e-12)


READINGS = [
    {},
    {"heads": 2},
    {"exclude_self": True},
    {"f2f_softmax": "sample"},
    {"f2f_layers": 2, "sharing": "tied"},
    {"norm": "post", "dropout_place": "lamp"},
    {"feedback": False, "sharing": "per_step_and_modality"},
    {"without": ("l2l",)},
    {"without": ("f2f", "f2l")},
]


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_a_model_computes_the_same_with_the_same_masks(
    monkeypatch: pytest.MonkeyPatch, reading: dict[str, object]
) -> None:
    config = preset("paper", {"a": 5, "b": 3}, ("x", "y", "z"), **{"dim": 8, "dropout": 0.3, **reading})
    torch.manual_seed(0)
    model = HHMPN(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    counts = torch.tensor([[3, 0, 1, 7], [2, 5, 0, 1]])
    values = tuple(torch.randn(int(n.sum()), e, dtype=torch.float64) for n, e in zip(counts, (5, 3)))
    found = []
    for yes in (False, True):
        as_on_an_accelerator(monkeypatch, yes)
        model.seed_dropout(7, 1)
        model.zero_grad()
        logits = model(Ragged(("a", "b"), values, counts))
        logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad for p in model.parameters())])
    for expected, other in zip(*found, strict=True):
        assert (other - expected).abs().max() <= 1e-11 * expected.abs().max().clamp(min=1.0)


def test_dropout_of_a_whole_call_is_drawn_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_an_accelerator(monkeypatch)
    module, calls = MODULES[1], []
    drawn = module._words
    monkeypatch.setattr(module, "_words", lambda *words: calls.append(words) or drawn(*words))
    workload = WORKLOADS["mosei-unaligned"]
    model = workload.model(dim=16, dropout=0.1)
    model(workload.batch(4))
    assert len(calls) == 1


def test_lengths_that_nobody_noted_are_asked_for_once() -> None:
    table = offsets_of([2, 0, 3])
    assert lengths.known(table).lengths.tolist() == [2, 0, 3]
    assert lengths.known(table) is lengths.known(table)


@pytest.mark.parametrize(("name", "most"), [("mosei-aligned", 800), ("mosei-unaligned", 1000), ("nemu", 900)])
def test_launches_of_a_training_step(name: str, most: int) -> None:
    """An H200 counted 40,198 for the form of the processor: mosei-aligned, B = 64. Nothing is asked of the device."""
    workload = WORKLOADS[name]
    model, targets = workload.model(dropout=0.1).to("meta"), workload.targets(64).to("meta")
    batch = workload.batch(64).to("meta")
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    assert batch.offsets.shape[0] == batch.present.numel() + 1  # both are the batch's copy, not the step's
    with Launches() as launches:
        loss, _ = model.joint_loss(batch, targets)
        loss.backward()
        for part in ("norm", "factor", "scale"):  # what foreach makes of clipping
            with launches.once(f"clip {part}"):
                if part == "norm":
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with launches.once("AdamW"):
            optimizer.step()
    assert launches.total <= most, (launches.total, launches.by_op.most_common(12))
    assert not launches.host_copies
