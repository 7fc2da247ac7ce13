"""Every reading is a named field; unknown and impossible values are refused in words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hhmpn_fast import InputError
from hhmpn_fast.config import PRESETS, HHMPNConfig, TrainingConfig, preset
from hhmpn_fast.readings import PARTS, choices, table

SIZES, LABELS = {"text": 300, "audio": 74}, ("happy", "sad")


def test_defaults_are_the_paper() -> None:
    config = preset("paper", SIZES, LABELS)
    assert config == HHMPNConfig(SIZES, LABELS)
    assert (config.dim, config.steps, config.heads, config.dropout, config.intermediate_weight) == (256, 3, 1, 0.2, 0.2)
    assert (config.sharing, config.norm, config.f2f_residual, config.without) == ("per_step", "none", "sum", ())


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip(name: str) -> None:
    config = preset(name, SIZES, LABELS, without=("l2l",))
    assert HHMPNConfig.from_dict(config.to_dict()) == config
    training = TrainingConfig(epochs=3, betas=(0.8, 0.9))
    assert TrainingConfig.from_dict(training.to_dict()) == training


@pytest.mark.parametrize("name", choices(HHMPNConfig))
def test_choices_are_checked(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: found 'nonsense'; expected one of '"):
        HHMPNConfig(SIZES, LABELS, **{name: "nonsense"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 10, "heads": 4}, "heads: found 4; expected a divisor of dim = 10"),
        ({"steps": 0}, "steps: found 0; expected an integer of at least 1"),
        ({"dim": 2.5}, "dim: found 2.5; expected an integer"),
        ({"dropout": 1.0}, "dropout: found 1.0; expected 0 <= rate < 1"),
        ({"without": ("f2x",)}, "without: found 'f2x'; expected any of f2f, f2l, l2l, m2l"),
        ({"without": "f2f"}, "without: found the text 'f2f'; expected a list"),
        ({"positions": ("video",)}, "positions: found 'video'; expected any of text, audio"),
        ({"labels": ()}, "labels: found \\[\\]; expected at least one name"),
        ({"labels": ("a", "a")}, "expected at least one name, each once"),
        ({"modalities": {}}, "modalities: found none"),
        ({"modalities": {"text": 0}}, "modality 'text': feature size is 0"),
        ({"dimension": 3}, "option 'dimension': unknown; expected one of"),
    ],
)
def test_impossible_values_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        HHMPNConfig.from_dict({"modalities": SIZES, "labels": LABELS, **changes})


def test_training_values_are_checked() -> None:
    with pytest.raises(InputError, match="lr: found -1.0; expected a number of at least 0"):
        TrainingConfig(lr=-1.0)
    with pytest.raises(InputError, match="select_by: found 'loss'"):
        TrainingConfig(select_by="loss")
    with pytest.raises(InputError, match="option 'epoch': unknown"):
        TrainingConfig.from_dict({"epoch": 1})
    with pytest.raises(InputError, match="option 'labels': missing"):
        HHMPNConfig.from_dict({"modalities": SIZES})


def test_every_field_says_what_it_touches() -> None:
    for field in dataclasses.fields(HHMPNConfig):
        touches = field.metadata["declared"].touches
        assert touches is not None and set(touches) <= set(PARTS), field.name


def test_the_default_is_the_first_choice() -> None:
    config = preset("paper", SIZES, LABELS)
    assert not config.deviations
    assert all(getattr(config, name) == allowed[0] for name, allowed in choices(HHMPNConfig).items())


def test_deviations_are_named_with_their_values() -> None:
    config = HHMPNConfig(SIZES, LABELS, heads=2, norm="post", without=("f2f", "m2l"), positions=("text",), dim=8)
    said = {d.said for d in config.deviations}
    assert said == {"heads=2", "norm=post", "without=f2f", "without=m2l", "positions=text"}
    # What stands in a part that the model has not is no deviation of anything.
    assert config.differs(("f2f",)) == ()
    assert {d.said for d in config.differs(("readout",))} == {"without=f2f", "without=m2l"}
    assert HHMPNConfig(SIZES, LABELS, dim=8, update_hidden=8).deviations == ()


def test_the_table_of_readings_is_current() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "readings.md"
    assert table(HHMPNConfig) in page.read_text(encoding="utf-8"), "paste what `make readings` prints"
