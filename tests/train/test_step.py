"""A step asks the device nothing, keeps its memory, and changes no weight once something is not finite."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from hhmpn_fast import HHMPN, HHMPNConfig, Ragged, TrainingConfig
from hhmpn_fast.train.step import Step, average_decay, learning_rate
from tests.train.no_host import HostAskedError, NoHost

CONFIG = HHMPNConfig({"a": 4, "b": 3}, ("x", "y", "z"), dim=16, steps=2, dropout=0.1)
TRAINING = TrainingConfig(lr=3e-3, average=0.9, warmup_steps=3, lr_decay="cosine", weight_decay=0.01)
STEPS = 6


def batch(k: int, device: str = "cpu") -> tuple[Ragged, torch.Tensor]:
    """Batch k, other lengths each time."""
    generator = torch.Generator().manual_seed(k)
    lengths = torch.randint(1, 6, (2, 5), generator=generator)
    values = [torch.randn(int(n.sum()), e, generator=generator) for n, e in zip(lengths, (4, 3))]
    features = Ragged(("a", "b"), tuple(values), lengths).to(device)
    features.offsets, features.present  # noqa: B018 -- what a feed leaves on the device
    return features, torch.rand(5, 3, generator=generator).round().to(device)


def step(device: str = "cpu", **changes: object) -> Step:
    torch.manual_seed(0)
    model = HHMPN(CONFIG).to(device).train()
    return Step(model, dataclasses.replace(TRAINING, **changes), STEPS, torch.ones(3, device=device))


def state(run: Step) -> dict[str, torch.Tensor]:
    """All tensors that a step may change but the counter and the log, and so what a captured one would have to find."""
    held = {f"model.{k}": v for k, v in run.model.state_dict().items()}
    held |= {} if run.average is None else {f"average.{k}": v for k, v in run.average.state_dict().items()}
    for i, parameter in enumerate(run.model.parameters()):
        held |= {f"{i}.{k}": v for k, v in run.optimizer.state[parameter].items()}
    return held


@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_asks_the_device_nothing(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the ops of the model, whose kernels for the processor read numbers there; dropout's stream counts up."""
    run = step(bf16=bf16)

    def joint_loss(features: Ragged, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, None]:
        model = run.model
        drawn = model._next_dropout().rng.sum() + features.offsets[-1] + features.present.sum()
        return sum(p.square().sum() for p in model.parameters()) + (weights * targets).mean() + 0 * drawn, None

    monkeypatch.setattr(run.model, "joint_loss", joint_loss)
    for k in range(2):  # the first makes the optimizer's state
        features, targets = batch(k)
        with NoHost() as mode:
            run(features, targets)
        assert "_fused_adamw_" in mode.ran and "index_copy_" in mode.ran
    assert run.model.rng.tolist() == [0, 2]


@pytest.mark.parametrize("asks", ["item", "bool", "tensor", "nonzero", "moves"])
def test_the_mode_sees_what_asks(asks: str) -> None:
    x = torch.ones(3)
    wrong = {
        "item": lambda: x.sum().item(),
        "bool": lambda: bool(x.sum() > 0),
        "tensor": lambda: torch.tensor([1.0, 2.0]),
        "nonzero": lambda: x.nonzero(),
        "moves": lambda: x.to("meta"),
    }
    with NoHost(), pytest.raises(HostAskedError):
        wrong[asks]()


def test_nothing_is_moved_from_step_to_step() -> None:
    """What a captured step reads and writes stands where it stood, after a restart too."""
    run = step()
    run(*batch(0))
    held = [*state(run).values(), run.model.rng, run.optimizer.param_groups[0]["lr"]]
    before = [t.data_ptr() for t in held]
    run.start(3)
    run(*batch(1))
    after = [*state(run).values(), run.model.rng, run.optimizer.param_groups[0]["lr"]]
    assert [t.data_ptr() for t in after] == before


def test_rate_and_log_follow_the_counter() -> None:
    run = step()
    for k in (0, 1, 2, 3):
        loss = run(*batch(k))
        assert float(run.optimizer.param_groups[0]["lr"]) == learning_rate(run.training, k, STEPS)
        assert run.seen(k, k + 1)[0].loss == float(loss)
    assert run.model.rng.tolist() == [0, 4]
    assert len(run.seen(1, 4)) == 3 and all(s.finite and s.norm > 0 for s in run.seen(0, 4))


def test_the_average_is_what_numbers_of_the_host_give() -> None:
    run = step()
    held = [p.detach().clone() for p in run.model.parameters()]
    for k in range(4):
        run(*batch(k))
        torch._foreach_lerp_(held, [p.detach() for p in run.model.parameters()], 1 - average_decay(TRAINING, k))
    assert all(torch.equal(a, b) for a, b in zip(held, run.average.parameters()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_ends_the_run(bad: float) -> None:
    run = step()
    run(*batch(0))
    run(*batch(1))
    before = {k: v.clone() for k, v in state(run).items()}
    features, targets = batch(2)
    features.values[0][1, 2] = bad
    run(features, targets)
    run(*batch(3))  # finite again, and too late
    assert {k for k, v in state(run).items() if not torch.equal(v, before[k])} == set()
    assert [s.finite for s in run.seen(0, 4)] == [True, True, False, True]


def test_an_infinite_gradient_under_a_finite_loss_stops_it_too() -> None:
    run = step()
    run(*batch(0))
    before = {k: v.clone() for k, v in state(run).items()}
    run.model.readout.wo.register_hook(lambda grad: grad * math.inf)
    loss = run(*batch(1))
    assert math.isfinite(float(loss)) and not run.seen(1, 2)[0].finite
    assert all(torch.equal(v, before[k]) for k, v in state(run).items())


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [False, True])
def test_on_a_device_no_step_waits(bf16: bool) -> None:
    run = step("cuda", bf16=bf16)
    batches = [batch(k, "cuda") for k in range(4)]
    run(*batches[0])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for features, targets in batches[1:]:
            run(features, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = step(bf16=bf16)
    for k in range(4):
        expected(*batch(k))
    found = [s.loss for s in run.seen(0, 4)]
    assert found == pytest.approx([s.loss for s in expected.seen(0, 4)], abs=2e-2 if bf16 else 1e-4)
