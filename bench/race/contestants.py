"""Every contestant by name, its correctness gate, and the closures that are timed."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.core.workloads import BATCH, Workload
from bench.race.peers.base import Case, Peer
from bench.race.peers.flex import Flex
from bench.race.peers.nested import Nested
from bench.race.peers.ours import ours
from bench.race.peers.packed_padded import PackedPadded
from bench.race.peers.packed_sdpa import PackedSDPA
from bench.race.peers.padded import Padded, PaddedCompiled
from bench.race.peers.segment import Segment
from hhmpn_fast import Ragged, reference
from hhmpn_fast.backends import use_backend
from hhmpn_fast.model import HHMPN

PEERS: tuple[type[Peer], ...] = (Padded, PaddedCompiled, PackedSDPA, PackedPadded, Nested, Segment, Flex)
CONTESTANTS: dict[str, type[Peer]] = {c.name: c for c in (ours("cpu"), ours("torch"), *PEERS)}
# Errors against the float64 reference. Logits: largest difference over largest entry. Gradients: norm of the difference
# over the tensor's norm, as rounding may flip a few ReLUs; one that nearly cancels is held against a twentieth of the
# largest norm.
LIMITS = {("fp32", "logits"): 1e-5, ("fp32", "grad"): 1e-5, ("bf16", "logits"): 0.04, ("bf16", "grad"): 0.04}


class WrongResult(RuntimeError):
    """A contestant does not compute the model; it gets no time."""


class Task:
    """One contestant on one batch: `run()` is an inference call or a whole training step."""

    def __init__(self, peer: Peer, batch: Ragged, targets: Tensor, case: Case) -> None:
        self.peer, self.case, self.targets = peer, case, targets
        self.data = peer.prepare(batch)
        peer.train(case.mode == "train")
        self.parameters = list(peer.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=2e-4, betas=(0.9, 0.98), fused=True)
        self.run: Callable[[], object] = {"infer": self.infer, "train": self.train}[case.mode]

    def autocast(self) -> torch.autocast:
        """The dtype of the case."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.case.dtype == "bf16")

    @torch.no_grad()
    def infer(self) -> Tensor:
        """Inference, (T, B, L)."""
        with self.autocast():
            return self.peer(self.data)

    def backward(self) -> Tensor:
        """Forward, joint loss, backward: gradients in place, logits returned."""
        with self.autocast():
            loss, logits = self.peer.joint_loss(self.data, self.targets)
        self.optimizer.zero_grad()
        loss.backward()
        return logits

    def train(self) -> None:
        """One training step: gradients, clipping, Adam."""
        self.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 10.0)
        self.optimizer.step()


def expected(workload: Workload, model: HHMPN, batch: Ragged, targets: Tensor, mode: str) -> dict[str, Tensor]:
    """Logits and gradients of the reference in float64; kept in the temporary folder, as it takes seconds."""
    key = hashlib.sha256(Path(reference.__file__).read_bytes())
    key.update(repr((workload, batch.lengths.tolist(), mode, torch.__version__)).encode())
    for tensor in (*model.state_dict().values(), *batch.values, targets):
        key.update(tensor.numpy().tobytes())
    file = Path(tempfile.gettempdir()) / f"hhmpn_fast-expected-{key.hexdigest()[:24]}.pt"
    if file.exists():
        return torch.load(file)
    double = _copy(model, torch.float64)
    with use_backend("reference"), torch.set_grad_enabled(mode == "train"):
        logits = double(batch.to(torch.float64))
        out = {"logits": logits.detach()}
        if mode == "train":
            double.loss(logits, targets.double()).backward()
            out |= {name: p.grad for name, p in double.named_parameters()}
    torch.save(out, file)
    return out


def _copy(model: HHMPN, dtype: torch.dtype) -> HHMPN:
    twin = HHMPN(model.config)
    twin.load_state_dict(model.state_dict())
    return twin.to(dtype).eval()


def check(task: Task, truth: dict[str, Tensor]) -> dict[str, float]:
    """Holds logits and gradients against the reference; returns the largest errors or raises WrongResult.

    Dropout is switched off for the comparison. Call it before the first step: it changes no weight.
    """
    peer = task.peer
    peer.eval()
    found = {"logits": task.backward() if task.case.mode == "train" else task.infer()}
    if task.case.mode == "train":
        found |= {name: p.grad for name, p in peer.model.named_parameters()}
    peer.train(task.case.mode == "train")
    errors = {"logits": 0.0}
    largest = max((float(t.norm()) for n, t in truth.items() if n != "logits"), default=0.0)
    for name, tensor in found.items():
        kind = "logits" if name == "logits" else "grad"
        if tensor is None or not torch.isfinite(tensor).all():
            raise WrongResult(f"{peer.name}: {name} is missing or not finite")
        if kind == "logits":
            error = relative(tensor, truth[name])
        else:
            error = float((tensor.double() - truth[name]).norm()) / max(float(truth[name].norm()), 0.05 * largest)
        errors[kind] = max(errors.get(kind, 0.0), error)
        if error > LIMITS[task.case.dtype, kind]:
            raise WrongResult(f"{peer.name}: {name} is off by {error:.1e}")
    task.optimizer.zero_grad()
    return errors


def gather(
    names: Sequence[str], workload: Workload, batch: Ragged, targets: Tensor, case: Case, dropout: float = 0.0
) -> tuple[dict[str, Task], dict[str, dict[str, float]], dict[str, str]]:
    """Tasks that passed the gate, their errors, and why the others cannot run.

    Batches of more than 64 samples are checked on their first 64: gradients alone, logits within the whole batch too.
    """
    model = workload.model(dropout=dropout)
    small, few = first_samples(batch, BATCH), targets[:BATCH]
    truth = expected(workload, workload.model(), small, few, case.mode)
    tasks, errors, skipped = {}, {}, {}
    for name in names:
        reason = CONTESTANTS[name].why_not(case, batch)
        if reason is not None:
            skipped[name] = reason
            continue
        tasks[name] = Task(CONTESTANTS[name](model), batch, targets, case)
        if batch.batch_size <= BATCH:
            errors[name] = check(tasks[name], truth)
        else:
            errors[name] = check(Task(tasks[name].peer, small, few, case), truth)
            whole = tasks[name].peer.eval()
            error = relative(tasks[name].infer()[:, :BATCH], truth["logits"])
            whole.train(case.mode == "train")
            if not error <= LIMITS[case.dtype, "logits"]:
                raise WrongResult(f"{name}: logits of the whole batch are off by {error:.1e}")
    return tasks, errors, skipped


def relative(found: Tensor, truth: Tensor) -> float:
    """Largest difference over largest entry."""
    return float((found.double() - truth).abs().max() / truth.abs().max())


def first_samples(batch: Ragged, count: int) -> Ragged:
    """The first `count` samples."""
    lengths = batch.lengths[:, :count]
    return Ragged(batch.names, tuple(v[: int(n)] for v, n in zip(batch.values, lengths.sum(1))), lengths)
