"""What a case gives on a backend, as short digests of the bytes, and how far those bytes carry to another machine.

    refused      the kind of error, where the backend leaves the reading to "auto", whose numbers follow
    logits       of the model as it is, in training or eval mode
    loss, grads  of `model.loss` and its backward pass; features: the gradients of the features
    joint, joint_grads   of `model.joint_loss`: loss and logits, and its gradients
    eval, frozen, frozen bf16   logits without gradients

A digest is 12 hex digits of sha256 over dtype, shape and bytes. That of gradients is followed by 4 digits of the names
and 4 of each gradient, in the names' order, so that a message can name the first that differs. NaNs are one NaN.

A letter beside it says what the bytes depend on beside the kernels' compiler and instruction set:

    k   nothing: only the kernels' own arithmetic, and PyTorch's copies and single roundings
    l   libraries of one version and vector width: libm's exp and log1p in the joint loss, PyTorch's sums
    m   the machine and its threads: PyTorch's matrix products and elementary functions pick their code by both
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from cases import Case
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hhmpn_fast import HHMPN, InputError, Ragged, use_backend

Tensors = dict[str, Tensor | None]
# PyTorch's ops whose result is a copy, an integer or one rounding of exact inputs: the same everywhere.
EXACT = set(
    """__rshift__ _local_scalar_dense _reshape_alias _to_copy _unsafe_view abs add add_ alias all any arange
    as_strided bitwise_and bitwise_and_ bitwise_not bitwise_or bitwise_xor bitwise_xor_ cat clone constant_pad_nd
    copy_ cumsum detach detach_ diff empty empty_like empty_strided eq expand eye fill_ full full_like ge gt
    index index_put index_put_ index_select le lift_fresh logical_and logical_not lt masked_fill masked_fill_ max
    min mul mul_ nan_to_num ne neg new_empty new_empty_strided new_full new_ones new_zeros nonzero ones ones_like
    permute relu remainder repeat repeat_interleave reshape scalar_tensor select select_backward set_ slice
    slice_backward split split_with_sizes squeeze stack sub t threshold_backward transpose unbind unfold
    unsqueeze view where zero_ zeros zeros_like""".split()
)
LIBRARY = {"sum", "div", "mean"}


class Trace(TorchDispatchMode):
    """Remembers the letter of the ops that ran under it."""

    letter = "k"
    seen: set[str] = set()  # what made a case depend on the machine, for the one who records

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        space, name = op.overloadpacket._qualified_op_name.split("::")
        if space != "aten":
            found = "l" if "joint" in name else "k"
        elif name in EXACT or (isinstance(result, Tensor) and not result.is_floating_point()):
            found = "k"
        else:
            found = "l" if name in LIBRARY else "m"
        if found != "k":
            self.seen.add(f"{found} {name}")
        self.letter = max(self.letter, found)
        return result


def run(case: Case, backend: str, traced: bool = False) -> dict[str, str]:
    """The digest of every quantity of the case or, with `traced`, its letter."""
    out: dict[str, str] = {}
    if backend != "torch" and (kind := _refusal(case, backend)):
        out["refused"], backend = kind, "auto"
    groups = [_step, _joint] + [_inference(ask) for ask in ("eval", "frozen", "frozen bf16") if ask in case.asks]
    for group in groups:
        trace, model, batch = Trace(), case.model(), case.batch()
        with use_backend(backend), trace if traced else contextlib.nullcontext():
            try:
                for name, tensors in group(case, model, batch):
                    out[name] = trace.letter if traced else _digest(tensors)
            except (InputError, ValueError, RuntimeError) as error:
                out[group.__name__.strip("_")] = type(error).__name__
    return out


def _refusal(case: Case, backend: str) -> str | None:
    try:
        with use_backend(backend), torch.no_grad(), _autocast(case):
            case.model()(case.batch())
    except InputError as error:
        return type(error).__name__
    except (ValueError, RuntimeError):
        pass  # an op's own error is no refusal: it shows below, as what the case gives
    return None


def _autocast(case: Case) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "autocast")


def _step(case: Case, model: HHMPN, batch: Ragged) -> Iterator[tuple[str, Tensors]]:
    """Logits, loss and backward as three calls."""
    if "features" in case.asks:
        values = tuple(v.requires_grad_() for v in batch.values)
        batch = Ragged(batch.names, values, batch.lengths)
    model.seed_dropout(case.number, 3)
    with _autocast(case):
        logits = model(batch)
        yield "logits", {"logits": logits}
        # As a trainer asks for it, and now and then as it lies.
        wide = logits.float() if case.held == torch.float32 or case.number % 2 else logits
        loss = model.loss(wide, case.targets(), case.label_weights())
        yield "loss", {"loss": loss}
    loss.backward()
    yield "grads", _gradients(model)
    if "features" in case.asks:
        yield "features", {name: v.grad for name, v in zip(batch.names, batch.values)}


def _joint(case: Case, model: HHMPN, batch: Ragged) -> Iterator[tuple[str, Tensors]]:
    """The training step's one call."""
    model.seed_dropout(case.number, 3)
    with _autocast(case):
        loss, logits = model.joint_loss(batch, case.targets(), case.label_weights())
    yield "joint", {"loss": loss, "logits": logits}
    loss.backward()
    yield "joint_grads", _gradients(model)


def _inference(ask: str) -> Callable[[Case, HHMPN, Ragged], Iterator[tuple[str, Tensors]]]:
    """Logits without gradients, of the model in eval mode or frozen."""

    def group(case: Case, model: HHMPN, batch: Ragged) -> Iterator[tuple[str, Tensors]]:
        model.eval()
        with torch.no_grad(), _autocast(case):
            called = model if ask == "eval" else model.freeze(torch.bfloat16 if ask == "frozen bf16" else None)
            yield ask, {"logits": called(batch), "again": called(batch)}

    group.__name__ = ask
    return group


def _gradients(model: HHMPN) -> Tensors:
    return {name: p.grad for name, p in sorted(model.named_parameters())}


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _bytes(tensor: Tensor | None) -> bytes:
    if tensor is None:
        return b"none"
    tensor = tensor.detach().contiguous()
    tensor = torch.where(tensor == tensor, tensor, torch.full_like(tensor, float("nan")))
    about = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return about + tensor.view(torch.uint8 if tensor.dim() else tensor.dtype).reshape(-1).numpy().tobytes()


def _digest(tensors: Tensors) -> str:
    parts = [_bytes(t) for t in tensors.values()]
    text = _hash(*parts)[:12]
    if set(tensors) <= {"logits", "loss", "again"}:
        return text
    names = _hash(" ".join(tensors).encode())[:4]
    return " ".join([text, names, "".join(_hash(p)[:4] for p in parts)])
