"""The trainer: Adam on the joint loss, the best validation epoch kept, resumable to the bit.

Everything random is counted, not drawn: the order of an epoch from (seed, epoch), dropout from (seed, step). A run
therefore is its checkpoint, and a resumed one ends with the weights of one that was never stopped.

Steps are started without waiting for the device (`hhmpn_fast.train.step`); their losses are read every `READ_EVERY`
steps, before a checkpoint and at an epoch's end.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from hhmpn_fast import metrics
from hhmpn_fast.config import HHMPNConfig, TrainingConfig
from hhmpn_fast.data.store import Batch, Dataset
from hhmpn_fast.errors import Diverged, InputError
from hhmpn_fast.files import decoding, read_tensors, write_tensors, write_text
from hhmpn_fast.graph import GraphedStep
from hhmpn_fast.label_graph import label_prior
from hhmpn_fast.model import HHMPN
from hhmpn_fast.train.captured import over_buffers
from hhmpn_fast.train.checkpoint import Best, Progress, Weights, group, joined, optimizer_tensors, restore_optimizer
from hhmpn_fast.train.feed import Feed
from hhmpn_fast.train.predict import probabilities
from hhmpn_fast.train.step import Step

CHECKPOINT = "checkpoint.safetensors"
READ_EVERY = 32  # steps between readings of the losses: each waits for the device
NAMED = 8  # samples of a batch that a message names


class Feeds(NamedTuple):
    """Where the batches of the two splits come from."""

    train: Feed
    valid: Feed


def new_model(config: HHMPNConfig, train_labels: Tensor, seed: int) -> HHMPN:
    """A model whose initial weights depend on the seed alone."""
    mask = label_prior(train_labels) if config.label_graph == "prior" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HHMPN(config, mask)


class Trainer:
    """Trains one model on one data set.

    Args:
        config, training: the readings of the model and of the protocol.
        train, valid: splits with labels; `valid` chooses the epoch.
        directory: where metrics.jsonl, checkpoint.safetensors and weights.safetensors go; None writes nothing.
        device: where the model lies and the batches go; a checkpoint of one device resumes on any other.
        progress: show a progress bar.
        on_epoch: called with every epoch's metrics.

    Raises:
        InputError: a split without labels or without samples.
    """

    def __init__(
        self,
        config: HHMPNConfig,
        training: TrainingConfig,
        train: Dataset,
        valid: Dataset,
        directory: Path | None = None,
        *,
        device: torch.device | str = "cpu",
        progress: bool = False,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        for data in (train, valid):
            if data.labels is None:
                raise InputError(f"split '{data.split}' of '{data.path}': has no labels; training needs them.")
            if not len(data):
                raise InputError(f"split '{data.split}' of '{data.path}': holds no sample; expected at least one.")
        self.config, self.training, self.train, self.valid = config, training, train, valid
        self.directory, self.show_bar, self.on_epoch = directory, progress, on_epoch
        self.device = torch.device(device)
        self.model = new_model(config, train.labels, training.seed).to(self.device)
        self.label_weights = self._label_weights()
        self.step = Step(self.model, training, training.epochs * self.steps_per_epoch, self.label_weights)
        self.optimizer, self.average = self.step.optimizer, self.step.average
        self.run_step = over_buffers(self.step, "auto")
        self.best_state = _copied(self.model.state_dict())
        self.feeds = Feeds(*(Feed(data, self.device, keep=True) for data in (train, valid)))
        self.progress = Progress()
        self._read_to = 0

    def use_graph(self, mode: str) -> None:
        """How the steps run on a GPU: "auto" as at first, "on", "off"; the same weights bit for bit.

        Raises:
            InputError: "on" where nothing can be captured.
        """
        self.run_step = over_buffers(self.step, mode)

    def describe(self) -> str:
        """How the steps ran, in words; nothing where they run over no buffers."""
        return self.run_step.describe() if isinstance(self.run_step, GraphedStep) else ""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last one may be smaller."""
        return -(-len(self.train) // self.training.batch_size)

    def fit(self, checkpoint_every: int | None = None, stop: Callable[[], bool] | None = None) -> HHMPN:
        """Trains to the end and returns the model with the best epoch's weights.

        Args:
            checkpoint_every: also write a checkpoint after every so many steps, besides every epoch's end.
            stop: asked after every step; True ends the call where it stands (the checkpoint is the last one written).

        Raises:
            Diverged: the loss or a gradient stopped being finite. The weights are those before that step.
        """
        at = self.progress
        while at.epoch < self.training.epochs and not self._out_of_patience():
            self.model.train()
            self.step.start(at.step)
            for batch in self._batches():
                self.run_step(batch.features, batch.labels)
                at.batch += 1
                at.step += 1
                if stop is not None and stop():
                    self._read_losses()
                    return self.model
                if at.step - self._read_to >= READ_EVERY:
                    self._read_losses()
                if checkpoint_every and at.step % checkpoint_every == 0 and at.batch < self.steps_per_epoch:
                    self.save_checkpoint()
            self._end_epoch()
            self.save_checkpoint()
        self.model.load_state_dict(self.best_state)
        return self.model.eval()

    def _order(self, epoch: int) -> tuple[Tensor, ...]:
        """An epoch's batches, as indices."""
        generator = torch.Generator().manual_seed(self.training.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.train), generator=generator).split(self.training.batch_size)

    def _batches(self) -> Iterator[Batch]:
        at = self.progress
        title = f"epoch {at.epoch + 1}/{self.training.epochs}"
        bar = tqdm(self._order(at.epoch)[at.batch :], title, disable=not self.show_bar, leave=False)
        for batch in self.feeds.train(bar):
            yield batch
            bar.set_postfix(loss=f"{at.loss_sum / max(at.batch, 1):.4f}", refresh=False)

    def _read_losses(self) -> None:
        """Waits for the device and adds the losses of the steps since the last time; ends a run that diverged."""
        at = self.progress
        for k, seen in enumerate(self.step.seen(self._read_to, at.step), self._read_to):
            if not seen.finite:
                batch = at.batch - (at.step - k)
                names = [f"'{self.train.ids[i]}'" for i in self._order(at.epoch)[batch].tolist()]
                raise Diverged(
                    f"training: the loss is {seen.loss} and the gradient's norm {seen.norm} at step {k}, batch "
                    f"{batch + 1} of epoch {at.epoch + 1} (samples {', '.join(names[:NAMED])}"
                    f"{', ...' if len(names) > NAMED else ''}); expected finite values (a smaller --lr may help)."
                )
            at.loss_sum += seen.loss
        self._read_to = at.step

    def _label_weights(self) -> Tensor | None:
        if self.training.class_weights == "none":
            return None
        positive = self.train.labels.double().mean(0).clamp(min=1e-6)
        return ((1 - positive) / positive).float().to(self.device)

    def _end_epoch(self) -> None:
        at = self.progress
        self._read_losses()
        model = self.model if self.average is None else self.average
        targets, p = self.valid.labels.numpy(), probabilities(model, self.valid, feed=self.feeds.valid)
        found = metrics.scores(targets, metrics.decisions(p, self.training.threshold))
        tuned = metrics.tune_threshold(targets, p)
        found["micro_f1_tuned"] = metrics.scores(targets, metrics.decisions(p, tuned))["micro_f1"]
        line = {"epoch": at.epoch + 1, "step": at.step, "train_loss": at.loss_sum / self.steps_per_epoch}
        line |= {f"valid_{k}": v for k, v in found.items()} | {"valid_threshold": tuned}
        score = at.epoch if self.training.select_by == "last" else found[self.training.select_by]
        if score > at.best.score:
            at.best = Best(at.epoch + 1, score, tuned)
            self.best_state = _copied(model.state_dict())
        line["best_epoch"] = at.best.epoch
        at.history.append(line)
        at.epoch, at.batch, at.loss_sum = at.epoch + 1, 0, 0.0
        if self.on_epoch is not None:
            self.on_epoch(line)

    def _out_of_patience(self) -> bool:
        patience, at = self.training.patience, self.progress
        return patience is not None and bool(at.history) and at.epoch - at.best.epoch >= patience

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the trainer that resumes from it."""
        fingerprint = self.train.metadata["fingerprint"]
        return {"config": self.config.to_dict(), "training": self.training.to_dict(), "fingerprint": fingerprint}

    def save_checkpoint(self) -> None:
        """Everything the rest of the run depends on, then metrics.jsonl from the same history."""
        if self.directory is None:
            return
        self._read_losses()
        self.directory.mkdir(parents=True, exist_ok=True)
        tensors = joined(
            model=self.model.state_dict(),
            best=self.best_state,
            average={} if self.average is None else self.average.state_dict(),
            optimizer=optimizer_tensors(self.optimizer),
        )
        write_tensors(self.directory / CHECKPOINT, tensors, self.progress.to_dict() | self._identity())
        self._write_history()

    def _write_history(self) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in self.progress.history)
        write_text(self.directory / "metrics.jsonl", lines)

    def resume(self) -> None:
        """Continues from the directory's checkpoint; refuses one of another configuration or data set."""
        path, own = self.directory / CHECKPOINT, self._identity()
        tensors, header = read_tensors(path, "checkpoint", (*Progress().to_dict(), *own))
        with decoding(path, "checkpoint"):
            self._check_identity(header, own)
            self._restore(tensors, header)
        self._write_history()

    def _check_identity(self, header: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        for name, expected in own.items():
            found = header[name]
            if name == "training":
                # More epochs than planned at first are a continuation, not another run.
                found, expected = ({**d, "epochs": None} for d in (found, expected))
            if found != expected:
                differs = name if name == "fingerprint" else f"{name}: {_difference(found, expected)}"
                raise InputError(
                    f"checkpoint '{self.directory}': belongs to another run ({differs}); expected the same."
                )

    def _restore(self, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        self.model.load_state_dict(group(tensors, "model"))
        if self.average is not None:
            self.average.load_state_dict(group(tensors, "average"))
        best = group(tensors, "best")
        self.best_state = {k: best[k].to(self.device, copy=True) for k in self.best_state}
        restore_optimizer(self.optimizer, group(tensors, "optimizer"))
        self.progress = Progress.from_dict(header)
        self._read_to = self.progress.step

    def weights(self) -> Weights:
        """The best epoch's model, with what it needs on new samples."""
        model, best = copy.deepcopy(self.model), self.progress.best
        model.load_state_dict(self.best_state)
        statistics = {n: self.train.statistics[n] for n in self.train.standardised}
        about = {"fingerprint": self.train.metadata["fingerprint"], "epoch": best.epoch}
        thresholds = {"fixed": self.training.threshold, "tuned": best.threshold}
        return Weights(model.eval(), self.training, statistics, thresholds, about)


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in state.items()}


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    for key in sorted(set(found) | set(expected)):
        if found.get(key) != expected.get(key):
            return f"{key} was {found.get(key)!r}, is {expected.get(key)!r}"
    return "unknown"
