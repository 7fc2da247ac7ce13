"""The trainer: it learns, resumes to the bit from any checkpoint, and refuses what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hhmpn_fast import Dataset, HHMPNConfig, InputError, TrainingConfig, Weights, metrics
from hhmpn_fast.data import convert
from hhmpn_fast.data.pool import Pool, folds
from hhmpn_fast.data.store import Batch
from hhmpn_fast.errors import Diverged
from hhmpn_fast.files import write_text
from hhmpn_fast.label_graph import label_prior
from hhmpn_fast.train.predict import probabilities
from hhmpn_fast.train.trainer import Trainer

CONFIG = HHMPNConfig({"a": 4, "b": 3}, ("x", "y", "z"), dim=16, steps=2, dropout=0.1)
TRAINING = TrainingConfig(epochs=3, batch_size=8, lr=3e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 samples whose labels are signs of feature means: easy, so that learning shows within seconds."""
    generator = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("data")
    for split, n in (("train", 60), ("valid", 20), ("test", 20)):
        a, b = generator.normal(size=(n, 5, 4)), generator.normal(size=(n, 3, 3))
        for i in range(n):
            a[i, generator.integers(1, 6) :] = 0
            b[i, generator.integers(0, 4) :] = 0
        mean = a.sum(1) / (a != 0).any(2).sum(1, keepdims=True)
        labels = np.stack([mean[:, 0] > 0, mean[:, 1] > 0.2, mean[:, 2] > 0.2], 1).astype(np.uint8)
        np.savez(root / f"{split}.npz", a=a, b=b, y=labels)
    options = {"labels": "y", "label_names": ["x", "y", "z"]}
    return convert("npz", root, root / "set", modalities=["a=a", "b=b"], **options)


def trainer(data: Path, directory: Path | None = None, device: str = "cpu", **changes: object) -> Trainer:
    fields = TRAINING.to_dict() | changes
    splits = (Dataset.open(data, s, standardise=True) for s in ("train", "valid"))
    return Trainer(CONFIG, TrainingConfig.from_dict(fields), *splits, directory, device=device)


def final_state(run: Trainer) -> dict[str, torch.Tensor]:
    return {**run.model.state_dict(), **{f"best.{k}": v for k, v in run.best_state.items()}}


def test_it_learns(data: Path) -> None:
    run = trainer(data, epochs=25, lr=1e-2)
    run.fit()
    test = Dataset.open(data, "test", standardise=True)
    targets = test.labels.numpy()
    found = metrics.scores(targets, metrics.decisions(probabilities(run.model, test), 0.5))
    constants = metrics.constant_predictors(run.train.labels.numpy(), len(test)).values()
    assert found["micro_f1"] > 0.1 + max(metrics.scores(targets, c)["micro_f1"] for c in constants)
    assert run.progress.history[-1]["train_loss"] < 0.7 * run.progress.history[0]["train_loss"]


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("stop_at", [1, 7, 9, 20])
def test_a_stopped_run_resumes_to_the_same_bits(data: Path, tmp_path: Path, stop_at: int, average: float) -> None:
    whole = trainer(data, tmp_path / "whole", average=average)
    whole.fit()
    stopped = trainer(data, tmp_path / "stopped", average=average)
    stopped.fit(checkpoint_every=3, stop=lambda: stopped.progress.step == stop_at)
    assert stopped.progress.step == stop_at
    resumed = trainer(data, tmp_path / "stopped", average=average)
    if (tmp_path / "stopped" / "checkpoint.safetensors").exists():
        resumed.resume()
        assert stop_at - 3 < resumed.progress.step <= stop_at
    resumed.fit(checkpoint_every=5)
    for name, value in final_state(whole).items():
        assert torch.equal(value, final_state(resumed)[name]), name
    assert resumed.progress.history == whole.progress.history
    lines = [json.loads(x) for x in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert lines == whole.progress.history


def test_no_partial_file_is_left(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(data, tmp_path)
    run.save_checkpoint()
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def broken(*args: object) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("hhmpn_fast.files.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        run.save_checkpoint()
    monkeypatch.setattr(Path, "write_text", lambda path, *_, **__: broken(None, path))
    with pytest.raises(OSError, match="disk full"):
        write_text(tmp_path / "results.json", "{}")
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "metrics.jsonl"]


def test_a_checkpoint_of_another_run_is_refused(data: Path, tmp_path: Path) -> None:
    trainer(data, tmp_path).save_checkpoint()
    with pytest.raises(InputError, match=r"belongs to another run \(training: lr was 0.003, is 0.1\)"):
        trainer(data, tmp_path, lr=0.1).resume()
    trainer(data, tmp_path, epochs=9).resume()
    (tmp_path / "checkpoint.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(InputError, match="cannot be read"):
        trainer(data, tmp_path).resume()


def test_selection_keeps_the_first_of_equal_epochs(data: Path) -> None:
    run = trainer(data, lr=0.0)
    run.fit()
    assert run.progress.best.epoch == 1
    last = trainer(data, lr=0.0, select_by="last")
    last.fit()
    assert last.progress.best.epoch == 3


def test_patience_ends_a_run(data: Path) -> None:
    run = trainer(data, lr=0.0, epochs=50, patience=2)
    run.fit()
    assert run.progress.epoch == 3


def test_divergence_is_said(data: Path) -> None:
    with pytest.raises(Diverged, match="at step"):
        trainer(data, lr=1e30, clip=0).fit()


def test_the_first_step_that_is_not_finite_is_named_with_its_batch(data: Path, tmp_path: Path) -> None:
    """Found when the losses are read, long after it: the weights are those before it, and no checkpoint has others."""
    before = trainer(data, average=0.9)
    before.fit(stop=lambda: before.progress.step == 10)
    run = trainer(data, tmp_path, average=0.9)
    given, batches = run.train.batch, []

    def spoiled(_: Dataset, indices: torch.Tensor, **options: object) -> Batch:
        batch = given(indices, **options)
        batches.append(batch)
        if len(batches) == 11:
            batch.features.values[0][2, 1] = float("nan")
        return batch

    object.__setattr__(run.train, "batch", spoiled.__get__(run.train))
    with pytest.raises(Diverged) as ended:
        run.fit()
    names = ", ".join(f"'{name}'" for name in batches[10].ids)
    assert str(ended.value) == (
        "training: the loss is nan and the gradient's norm nan at step 10, batch 3 of epoch 2 "
        f"(samples {names}); expected finite values (a smaller --lr may help)."
    )
    for one, other in ((run.model, before.model), (run.average, before.average)):
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    resumed = trainer(data, tmp_path, average=0.9)
    resumed.resume()
    assert resumed.progress.step == 8


@pytest.mark.parametrize("every", [1, 5])
def test_when_losses_are_read_changes_nothing(data: Path, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    plain = trainer(data)
    plain.fit()
    monkeypatch.setattr("hhmpn_fast.train.trainer.READ_EVERY", every)
    often = trainer(data)
    often.fit()
    assert often.progress == plain.progress
    assert all(torch.equal(v, final_state(often)[k]) for k, v in final_state(plain).items())


def write_as_before(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, object]) -> None:
    """A file in the layout of version 0.1.0, written without this project's own writers."""
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, {"json": json.dumps(header)})


def test_a_checkpoint_of_the_first_layout_resumes(data: Path, tmp_path: Path) -> None:
    whole = trainer(data, average=0.9)
    whole.fit()
    half = trainer(data, average=0.9)
    half.fit(stop=lambda: half.progress.step == 11)
    tensors = {f"model.{k}": v for k, v in half.model.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in half.best_state.items()}
    tensors |= {f"average.{k}": v for k, v in half.average.state_dict().items()}
    for i, parameter in enumerate(half.model.parameters()):
        for name in ("step", "exp_avg", "exp_avg_sq"):
            tensors[f"optimizer.{i}.{name}"] = half.optimizer.state[parameter][name]
    at = half.progress
    header = {
        "epoch": 1,
        "batch": 3,
        "step": 11,
        "loss_sum": at.loss_sum,
        "best": {"epoch": 1, "score": at.best.score, "threshold": at.best.threshold},
        "history": at.history,
        "config": half.config.to_dict(),
        "training": half.training.to_dict(),
        "fingerprint": half.train.metadata["fingerprint"],
    }
    write_as_before(tmp_path / "checkpoint.safetensors", tensors, header)
    resumed = trainer(data, tmp_path, average=0.9)
    resumed.resume()
    assert resumed.progress == half.progress
    resumed.fit()
    for name, value in final_state(whole).items():
        assert torch.equal(value, final_state(resumed)[name]), name
    short = {k: v for k, v in tensors.items() if not k.startswith("average.")}
    for held, said, sentence in [
        (tensors, {k: v for k, v in header.items() if k != "step"}, "entry 'step' is missing; expected a checkpoint"),
        (tensors, header | {"step": "x"}, "does not hold what .* epoch, batch and step are"),
        (short, header, "does not hold what .* Missing key"),
    ]:
        write_as_before(tmp_path / "checkpoint.safetensors", held, said)
        with pytest.raises(InputError, match=sentence) as refused:
            trainer(data, tmp_path, average=0.9).resume()
        assert "\n" not in str(refused.value)


def test_a_checkpoint_before_the_first_epoch_has_no_best_one(data: Path, tmp_path: Path) -> None:
    run = trainer(data, tmp_path)
    run.fit(checkpoint_every=2, stop=lambda: run.progress.step == 3)
    with safe_open(tmp_path / "checkpoint.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["json"])["best"] is None
    resumed = trainer(data, tmp_path)
    resumed.resume()
    assert resumed.progress.step == 2 and resumed.progress.best.epoch == -1


def test_weights_of_the_first_layout_load(data: Path, tmp_path: Path) -> None:
    run = trainer(data, epochs=1)
    run.fit()
    tensors = {f"model.{k}": v for k, v in run.best_state.items()}
    for name, (mean, sd) in run.train.statistics.items():
        tensors |= {f"statistics.{name}.mean": mean, f"statistics.{name}.sd": sd}
    header = {
        "format": "hhmpn_fast weights 1",
        "config": CONFIG.to_dict(),
        "training": TRAINING.to_dict(),
        "thresholds": {"fixed": 0.5, "tuned": 0.31},
        "statistics": ["a", "b"],
        "about": {"fingerprint": run.train.metadata["fingerprint"], "epoch": 1},
    }
    write_as_before(tmp_path / "weights.safetensors", tensors, header)
    loaded = Weights.load(tmp_path / "weights.safetensors")
    test = Dataset.open(data, "test", statistics=loaded.statistics).standardise(("a", "b"))
    assert np.array_equal(probabilities(loaded.model, test), probabilities(run.model, test))
    assert loaded.thresholds["tuned"] == 0.31 and loaded.training == TRAINING
    for held, said in [
        (tensors, {k: v for k, v in header.items() if k != "about"}),
        (tensors, header | {"statistics": ["a", "c"]}),
        ({k: v for k, v in tensors.items() if k != "model.readout.wo"}, header),
    ]:
        write_as_before(tmp_path / "weights.safetensors", held, said)
        with pytest.raises(InputError, match=r"^weights '.*weights.safetensors': [^\n]*$"):
            Weights.load(tmp_path / "weights.safetensors")


@pytest.mark.gpu
@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_a_checkpoint_resumes_on_another_device(data: Path, tmp_path: Path, first: str, second: str) -> None:
    fields = {"average": 0.9, "class_weights": "balanced"}
    run = trainer(data, tmp_path, device=first, **fields)
    run.fit(checkpoint_every=3, stop=lambda: run.progress.step == 10)
    resumed = trainer(data, tmp_path, device=second, **fields)
    resumed.resume()
    assert resumed.progress.step == 9 and resumed.label_weights.device.type == second
    resumed.fit()
    held = [*resumed.best_state.values(), *(v for s in resumed.optimizer.state.values() for v in s.values())]
    assert {v.device.type for v in held} == {second}
    resumed.weights().save(tmp_path / "w.safetensors")
    loaded = Weights.load(tmp_path / "w.safetensors")
    assert loaded.model.label_embedding.device.type == "cpu"
    expected = probabilities(resumed.model, resumed.valid)
    np.testing.assert_allclose(probabilities(loaded.model, resumed.valid), expected, atol=1e-4)


def test_weights_round_trip(data: Path, tmp_path: Path) -> None:
    run = trainer(data, epochs=1)
    run.fit()
    weights = run.weights()
    weights.save(tmp_path / "w.safetensors")
    loaded = Weights.load(tmp_path / "w.safetensors")
    assert loaded.model.config == CONFIG and loaded.thresholds == weights.thresholds
    test = Dataset.open(data, "test", statistics=loaded.statistics).standardise(("a", "b"))
    assert np.array_equal(probabilities(loaded.model, test), probabilities(run.model, test))


def test_label_prior_by_hand() -> None:
    labels = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.uint8)
    assert label_prior(labels).tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_folds_share_nothing_and_cover_everything(data: Path) -> None:
    pool = Pool([Dataset.open(data, s, standardise=True) for s in ("train", "valid", "test")])
    seen: list[str] = []
    for train, valid, test in folds(pool, 4, 0):
        names = [set(p.ids) for p in (train, valid, test)]
        assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
        assert len(set.union(*names)) == len(pool)
        seen += test.ids
    assert sorted(seen) == sorted(pool.ids)


def test_pool_batches_in_the_asked_order(data: Path) -> None:
    pool = Pool([Dataset.open(data, s, standardise=True) for s in ("train", "valid", "test")])
    chosen = torch.tensor([81, 3, 60, 99, 0])
    batch = pool.batch(chosen)
    assert batch.ids == tuple(pool.ids[i] for i in chosen)
    assert torch.equal(batch.features.lengths, pool.lengths[:, chosen])
    test = Dataset.open(data, "test", standardise=True).batch([1])
    one = pool.batch([81]).features
    assert all(torch.equal(x, y) for x, y in zip(one.values, test.features.values))
    assert torch.equal(batch.labels, pool.labels[chosen].float())


def test_pool_of_a_fixed_number_of_nodes_takes_batches_from_one_split(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    for split, n in (("train", 12), ("valid", 6), ("test", 6)):
        labels = generator.integers(0, 2, size=(n, 2)).astype(np.uint8)
        np.savez(tmp_path / f"{split}.npz", a=1 + generator.random(size=(n, 4, 3)), y=labels)
    path = convert("npz", tmp_path, tmp_path / "set", modalities=["a=a"], labels="y", label_names=["x", "z"])
    pool = Pool([Dataset.open(path, s, standardise=True) for s in ("train", "valid", "test")])
    batch = pool.batch([13, 12])
    assert batch.features.values[0].shape == (8, 3) and len(batch.ids) == 2
