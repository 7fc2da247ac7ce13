"""The planted check itself: its arithmetic on known numbers, and one tiny run from generator to table."""

import pytest

from bench.studies import planted
from hhmpn_fast.data.planted import preset


def run(**micro_f1):
    rows = {planted.CONSTANT: 0.4, planted.BEST: 0.9} | micro_f1
    return {name: dict.fromkeys(planted.SHOWN, value) for name, value in rows.items()}


def test_gaps_and_their_errors():
    runs = [run(full=0.8, f2f=0.7), run(full=0.9, f2f=0.4)]
    mean, error = planted.gaps(runs)["f2f"]
    assert mean == pytest.approx(0.3) and error == pytest.approx(0.2)
    assert not planted.holds(runs)
    assert planted.holds([run(full=0.8, f2f=0.7, m2l=0.71), run(full=0.9, f2f=0.79, m2l=0.8)])
    assert not planted.holds([run(full=0.8, f2f=0.7, m2l=0.81), run(full=0.9, f2f=0.79, m2l=0.9)])
    assert not planted.holds([run(full=0.8, f2f=0.1)])


def test_a_tiny_run_from_generator_to_table(capsys):
    plan = preset("demo", samples=(96, 16, 32))
    model = {"dim": 8, "steps": 2, "dropout": 0.0}
    training = {"epochs": 1, "batch_size": 32, "lr": 1e-3}
    scores = planted.one_seed(plan, 0, model, training, ("full", "f2l"))
    assert set(scores) == {"full", "f2l", planted.CONSTANT, planted.BEST}
    assert scores[planted.BEST]["micro_f1"] > scores[planted.CONSTANT]["micro_f1"]
    table = planted.render([scores])
    assert "w/o F2L" in table and "planted optimum" in table and "w/o M2L" not in table
    assert "seed 0  full" in capsys.readouterr().err
