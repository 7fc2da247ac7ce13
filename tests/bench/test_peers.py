"""Every peer is the same model: logits and gradients against the reference in float64, empty modalities included."""

from __future__ import annotations

import pytest
import torch

from bench.core.workloads import named
from bench.race import contestants
from bench.race.contestants import CONTESTANTS, PEERS, Task, WrongResult, check
from bench.race.peers.base import Case, Peer
from bench.race.peers.varlen import PackedFlash, PackedVarlen
from hhmpn_fast.backends import use_backend
from tests.model.cases import random_batch

EAGER = [p for p in PEERS if not p.compiles]


def attention_by_segment(q, k, v, q_offsets, k_offsets, longest_q, longest_k):
    """What flash-attention's functions compute, on any device; a query without a key gets what nobody may read."""
    assert q_offsets.dtype == k_offsets.dtype == torch.int32 and q.dim() == 3
    assert (longest_q, longest_k) == (int(q_offsets.diff().max()), int(k_offsets.diff().max()))
    out = []
    for q_b, k_b, v_b in zip(
        *(t[:, 0].split(o.diff().tolist()) for t, o in zip((q, k, v), (q_offsets, *[k_offsets] * 2)))
    ):
        read = torch.softmax(q_b @ k_b.T * q.shape[-1] ** -0.5, -1) @ v_b
        out.append(read if len(k_b) else torch.full_like(q_b, 7.0))
    return torch.cat(out)[:, None]


@pytest.fixture(autouse=True)
def flash_attention_everywhere(monkeypatch):
    for peer in (PackedVarlen, PackedFlash):
        monkeypatch.setattr(peer, "function", classmethod(lambda cls: attention_by_segment))


def outcome(peer: Peer, batch: object, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    logits = peer(peer.prepare(batch))
    peer.model.loss(logits, targets).backward()
    return {"logits": logits.detach()} | {n: p.grad for n, p in peer.model.named_parameters()}


@pytest.mark.parametrize("peer", EAGER, ids=lambda p: p.name)
@pytest.mark.parametrize("workload", ["mosei-aligned", "nemu"])
@pytest.mark.parametrize("seed", range(2))
def test_eager_peers_equal_the_reference(peer: type[Peer], workload: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = named(workload).model(seed, dim=16, steps=2).double()
    batch = random_batch(generator, model.config.modalities, 5, 9)
    targets = torch.rand(5, len(model.config.labels), generator=generator, dtype=torch.float64).round()
    model.zero_grad()
    with use_backend("reference"):
        logits = model(batch)
        model.loss(logits, targets).backward()
    truth = {"logits": logits.detach()} | {n: p.grad for n, p in model.named_parameters()}
    for name, found in outcome(peer(model), batch, targets).items():
        assert torch.isfinite(truth[name]).all()
        assert torch.allclose(found, truth[name], rtol=1e-9, atol=1e-11), name


@pytest.mark.slow
@pytest.mark.parametrize("peer", [p for p in PEERS if p.compiles], ids=lambda p: p.name)
@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.filterwarnings("ignore")
def test_compiled_peers_equal_the_reference(peer: type[Peer], mode: str) -> None:
    workload, case = named("mosei-aligned-missing"), Case(mode)
    batch, targets, model = workload.batch(5), workload.targets(5), workload.model(dim=32, steps=2)
    if peer.why_not(case, batch):
        pytest.skip(peer.why_not(case, batch))
    twin = named("mosei-aligned-missing").model(dim=32, steps=2).double()
    with use_backend("reference"):
        logits = twin(batch.to(torch.float64))
        twin.loss(logits, targets.double()).backward()
    truth = {"logits": logits.detach()} | {n: p.grad for n, p in twin.named_parameters()}
    check(Task(peer(model), batch, targets, case), truth)


def test_the_gate_stops_a_wrong_contestant() -> None:
    workload, case = named("mosei-aligned"), Case("train")
    batch, targets, model = workload.batch(3), workload.targets(3), workload.model(dim=16, steps=2)
    with use_backend("reference"):
        logits = model(batch)
        model.loss(logits, targets).backward()
    truth = {"logits": logits.detach()} | {n: p.grad for n, p in model.named_parameters()}
    check(Task(CONTESTANTS["ours (torch)"](model), batch, targets, case), truth)
    for name in ("logits", "l2l.w1", "embed.1.bias", "readout.wo"):
        wrong = truth | {name: truth[name] * 1.1}
        with pytest.raises(WrongResult, match=name):
            check(Task(CONTESTANTS["ours (torch)"](model), batch, targets, case), wrong)


def test_a_large_batch_is_checked_on_its_first_samples(monkeypatch) -> None:
    monkeypatch.setattr(contestants, "BATCH", 2)
    workload, case = named("length-3"), Case("train")
    batch, targets = workload.batch(5), workload.targets(5)
    tasks, errors, _ = contestants.gather(["ours (torch)"], workload, batch, targets, case)
    assert tasks["ours (torch)"].data.batch_size == 5 and errors["ours (torch)"]["grad"] < 1e-5

    class Shuffled(CONTESTANTS["ours (torch)"]):
        def prepare(self, batch):
            if batch.batch_size == 2:
                return batch
            return type(batch)(batch.names, tuple(v.flip(0) for v in batch.values), batch.lengths)

    monkeypatch.setitem(CONTESTANTS, "ours (torch)", Shuffled)
    with pytest.raises(WrongResult, match="logits of the whole batch"):
        contestants.gather(["ours (torch)"], workload, batch, targets, case)
