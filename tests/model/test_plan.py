"""One plan a call: readings fail closed, whole phases where a backend holds all that differs, single ops elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch

from hhmpn_fast import InputError, Ragged, backends, composed
from hhmpn_fast.backends import PHASES, Body, Call, use_backend
from hhmpn_fast.config import ABLATIONS, HHMPNConfig
from hhmpn_fast.model import HHMPN
from hhmpn_fast.readings import Declared, choices, held
from tests.model.cases import random_batch, random_model

RECORDS = [found for name in backends.NAMES if not isinstance(found := backends.record(name), str)]
CPU = backends.why_not("cpu", "tower", Call("cpu", torch.float32, 8))
needs_cpu = pytest.mark.skipif(CPU is not None, reason=str(CPU))


@dataclasses.dataclass(frozen=True)
class Twisted(HHMPNConfig):
    """A configuration with a reading that no backend, nor the composition, nor the reference has been told of."""

    twist: str = "straight"


def twisted(twist: str) -> tuple[HHMPN, Ragged]:
    model, generator = random_model(3, torch.float32, modalities={"a": 3, "b": 2}, labels=("x", "y"), dim=16)
    config = Twisted(**{f.name: getattr(model.config, f.name) for f in dataclasses.fields(HHMPNConfig)}, twist=twist)
    twin = HHMPN(config)
    twin.load_state_dict(model.state_dict())
    return twin.eval(), random_batch(generator, {"a": 3, "b": 2}, 3, 9, torch.float32)


@pytest.mark.parametrize("backend", ["auto", "torch", "cpu", "reference"])
def test_a_reading_that_nobody_knows_is_refused_by_name(backend: str) -> None:
    if backend == "cpu" and CPU is not None:
        pytest.skip(CPU)
    model, batch = twisted("bent")
    targets = torch.zeros(3, 2)
    with use_backend(backend):
        for call in (model, lambda b: model.joint_loss(b, targets), lambda b: model.freeze()(b)):
            with pytest.raises(InputError, match="twist: found 'bent'"):
                call(batch)
        straight, _ = twisted("straight")
        assert torch.isfinite(straight(batch)).all()


def test_every_fused_path_refuses_it() -> None:
    model, _ = twisted("bent")
    seen = 0
    for phase, (parts, _) in PHASES.items():
        said = [d.said for d in model.config.differs(parts)]
        assert "twist=bent" in said
        for found in RECORDS:
            if phase in found.ops:
                assert not any(held("twist=bent", h) for h in parts_of(found.ops[phase])), (found.name, phase)
                call = Call(found.device, torch.float32, 64, tuple(said))
                if found.unavailable(found.device) is None:
                    assert "twist=bent" in found.why_not(phase, call)
                seen += 1
    assert seen >= 6


def test_what_the_composition_says_it_knows_runs_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = twisted("bent")
    straight, _ = twisted("straight")
    monkeypatch.setattr(composed, "HOLDS", {part: (*holds, "twist=bent") for part, holds in composed.HOLDS.items()})
    with use_backend("torch"):
        assert torch.equal(model(batch), straight(batch))
    if CPU is None:
        with use_backend("cpu"):
            plan = model.plan()
            assert torch.isfinite(model(batch)).all()
        assert {step.run for step in plan.values()} == {None}
        assert "twist=bent" in plan["tower"].why


def parts_of(body: Body) -> list[tuple[str, ...]]:
    """What a body holds, a list a part."""
    return list(body.holds.values()) if isinstance(body.holds, Mapping) else [body.holds]


@needs_cpu
@pytest.mark.parametrize("without", [(), ("f2f",), ("l2l",), ("f2f", "l2l")], ids=str)
@pytest.mark.parametrize("name", [*choices(HHMPNConfig), "exclude_self", "heads", "feedback", "output_bias"])
def test_what_runs_a_model_whole_runs_each_of_its_phases_whole(name: str, without: tuple[str, ...]) -> None:
    """One part may hold a reading that another does not: L2L's mask leaves out a label itself, F2F's op no node."""
    found = choices(HHMPNConfig).get(name, (True, False) if name != "heads" else (2,))
    for value in found:
        config = HHMPNConfig({"a": 3, "b": 2}, ("x", "y"), dim=8, without=without, **{name: value})
        whole = {phase: step.run is not None for phase, step in backends.plan(config, "cpu", torch.float32).items()}
        phases = ("tower",) if "f2f" in without else ("f2f", "tower")
        for model in ("joint_loss", "infer"):
            assert not whole[model] or all(whole[phase] for phase in phases), (name, value, model)


def test_a_new_choice_of_a_known_reading_is_refused() -> None:
    for name in choices(HHMPNConfig):
        for found in RECORDS:
            phases = {op: parts_of(body) for op, body in found.ops.items() if op in PHASES}
            held_by = [op for op, parts in phases.items() if any(held(f"{name}=new", holds) for holds in parts)]
            assert not held_by, (found.name, name)
        assert not any(held(f"{name}=new", holds) for holds in composed.HOLDS.values()), name


def test_a_bare_field_touches_everything() -> None:
    assert Declared().touches is None
    model, _ = twisted("bent")
    for part in ("embed", "f2f", "f2l", "l2l", "readout", "loss"):
        assert [d.said for d in model.config.differs((part,))] == ["twist=bent"]


def test_what_is_held_is_a_reading() -> None:
    names = {f.name: f.metadata["declared"] for f in dataclasses.fields(HHMPNConfig)}
    said = {d.said for d in names.values() if d.said} | {f"without={name}" for name in ABLATIONS}
    phases = [h for found in RECORDS for name, op in found.ops.items() if name in PHASES for h in parts_of(op)]
    for holds in (*phases, *composed.HOLDS.values()):
        for text in holds:
            name, _, value = text.partition("=")
            assert text in said or (name in names and (value in names[name].choices if value else True)), text


@needs_cpu
def test_a_plan_runs_whole_what_the_kernels_hold_and_says_why_not() -> None:
    config = HHMPNConfig({"a": 3, "b": 2}, ("x", "y"), dim=8)
    with use_backend("cpu"):
        own = backends.plan(config, "cpu", torch.float32)
        assert [own[p].backend for p in ("f2f", "tower", "joint_loss", "infer")] == ["cpu"] * 4
        assert backends.plan(config, "cpu", torch.float32) is own
        some = backends.plan(config.with_(f2f_softmax="sample", sharing="tied"), "cpu", torch.float32)
        assert some["tower"].run is own["tower"].run and some["f2f"].run is None
        assert some["f2f"].why == "cpu: the kernels do not hold the option f2f_softmax=sample"
        half = backends.plan(config, "cpu", torch.float16)
        assert "the dtype is torch.float16, the kernels hold float32, bfloat16 and float64" in half["tower"].why
    with use_backend("torch"):
        assert {step.run for step in backends.plan(config, "cpu", torch.float32).values()} == {None}
    with use_backend("reference"):
        assert backends.plan(config, "cpu", torch.float32)["model"].backend == "reference"


@needs_cpu
def test_one_modality_is_a_size_that_some_ops_do_not_take() -> None:
    config = HHMPNConfig({"a": 3}, ("x", "y"), dim=8)
    with use_backend("cpu"):
        plan = backends.plan(config, "cpu", torch.float32)
        assert plan["joint_loss"].why == "cpu: the kernels do not hold the option one modality"
        assert plan["f2f"].run is not None and plan["tower"].run is not None
        plan = backends.plan(config.with_(without=("f2f",)), "cpu", torch.float32)
        assert plan["joint_loss"].run is not None


def test_explain_prints_the_plan() -> None:
    config = HHMPNConfig({"a": 3, "b": 2}, ("x", "y"), dim=8, norm="post")
    lines = backends.explain(Call("cpu", torch.float32, 8), config=config).splitlines()
    for phase in PHASES:
        assert any(line.startswith(f"  {phase:16} by ") for line in lines)
    assert any("norm=post" in line for line in lines) or CPU is not None
