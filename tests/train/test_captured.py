"""--graph: a run whose steps go through buffers, captured or not, is the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hhmpn_fast import InputError
from hhmpn_fast.train import captured
from tests.model.graphs import Reruns
from tests.train import test_trainer
from tests.train.test_trainer import final_state, trainer

data = test_trainer.data  # the fixture


def test_a_run_over_buffers_is_the_run(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured by a stand-in, not captured and without buffers: weights and losses to the bit on the processor."""
    plain, found = trainer(data, average=0.9), []
    plain.fit()
    monkeypatch.setattr(captured, "why_not_captured", lambda *_: None)
    monkeypatch.setattr(captured, "CudaGraphs", lambda device: Reruns())
    for mode in ("on", "off"):
        run = trainer(data, average=0.9)
        run.use_graph(mode)
        run.fit()
        found.append(run.describe())
        states = final_state(run), final_state(plain)
        assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
        assert run.progress.history == plain.progress.history
    assert "buckets hold" in found[0] and " 0 steps replayed, 24 over buffers" in found[1] and found[0] != found[1]


def test_a_graph_where_none_can_be_made_is_refused(data: Path) -> None:
    with pytest.raises(InputError, match="--graph on: the model lies on cpu; a graph needs a CUDA device"):
        trainer(data).use_graph("on")
