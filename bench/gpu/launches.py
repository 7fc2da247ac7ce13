"""The launches the Triton ops make, recorded on shapes alone: the forms whose machine code is held to a budget.

`recorded` calls the ops' bodies with meta tensors inside `launch.using`: nothing runs. A kernel's first launch is its
main form, named ""; others are named by the flags of their constants.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor

from hhmpn_fast.kernels.attention import op as attention
from hhmpn_fast.kernels.joint_bce import op as joint_bce
from hhmpn_fast.kernels.launch import Launch, using
from hhmpn_fast.kernels.launch_table import Entry
from hhmpn_fast.kernels.readout import op as readout
from hhmpn_fast.kernels.tower import op as tower
from hhmpn_fast.kernels.update import op as update

KINDS = {"bf16": "half", "fp16": "half", "mixed": "half", "tf32": "tf32", "ieee": "ieee"}
_DTYPES = {
    **{"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "ieee": torch.float32},
    "mixed": torch.bfloat16,  # the rows', beside float32 weights
}
_WORDS = {
    "MASK": "mask",
    "SELF": "exclude_self",
    "DROPOUT": "dropout",
    "SAVE": "kept",
    "TWO": "two products",
    "GATE": "gate",
    "RESIDUAL": "residual",
    "SUM": "sum of sources",
    "STACKED": "a stack",
    "WEIGHTED": "label weights",
}
_MODALITIES, _BATCH, _LABELS, _STEPS = 3, 2, 6, 4
_SITE = 256


def recorded(dtype: str, dim: int, architecture: str, entry: Entry | None = None) -> dict[tuple[str, str], Launch]:
    """(kernel, form) -> launch, with the launch table's tiles for a part, or one entry for all."""
    out: dict[tuple[str, str], Launch] = {}
    mains: set[str] = set()

    def note(launch: Launch) -> None:
        kernel = launch.entry.kernel
        out.setdefault((kernel, named(launch) if kernel in mains else ""), launch)
        mains.add(kernel)

    with precision(dtype), using(note, architecture, entry):
        rows = _DTYPES[dtype]
        weights = torch.float32 if dtype == "mixed" else rows
        _attention(rows, dim)
        _update(rows, weights, dim)
        _readout(rows, weights, dim)
        _joint_bce(rows)
        _tower(rows, dim)
    main_names = {(kernel, named(launch)) for (kernel, form), launch in out.items() if not form}
    return {key: launch for key, launch in out.items() if key not in main_names}


def named(launch: Launch) -> str:
    """A form in words."""
    flags = launch.form._asdict()
    return ", ".join(word for flag, word in _WORDS.items() if flags.get(flag)) or "plain"


@cache
def forms() -> dict[str, tuple[str, ...]]:
    """kernel -> the names of its forms beside the main one."""
    out: dict[str, list[str]] = {}
    for kernel, form in recorded("bf16", 256, "sm80"):
        out.setdefault(kernel, []).extend([form] if form else [])
    return {kernel: tuple(found) for kernel, found in out.items()}


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """PyTorch's switch for fp32 products, as `dtype` means it."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _rng() -> Tensor:
    return _empty(2, dtype=torch.int64)


def _attention(dtype: torch.dtype, dim: int) -> None:
    segments = _MODALITIES * _BATCH
    table = _empty(segments + 1, dtype=torch.int32)
    for rows in (100 * segments, 10 * segments):  # long segments, and those that take the `_short` entries
        mask = _empty(10, 10, dtype=torch.bool)
        options = [(_rng(), False, None), (None, False, None), (_rng(), True, None)]
        for rng, exclude_self, own in [*options, (_rng(), False, mask)] if rows == 10 * segments else options:
            nodes = _empty(rows, dim, dtype=dtype)
            i = SimpleNamespace(q=nodes, x=nodes, q_offsets=table, x_offsets=table, groups=_MODALITIES)
            i.__dict__.update(mask=own, exclude_self=exclude_self, p=0.5, rng=rng, site=_SITE)
            out = SimpleNamespace(**attention.forward(i, True))
            attention.backward(out, i, SimpleNamespace(lse=out.lse))


def _update(dtype: torch.dtype, weights: torch.dtype, dim: int) -> None:
    rows = 1000
    for hidden in ((dim, dim), (_MODALITIES, dim, dim)):
        shapes = {"value": (dim, dim), "hidden": hidden, "b1": (dim,), "output": (dim, dim), "b2": (dim,)}
        i = SimpleNamespace(**{name: _empty(*shape, dtype=weights) for name, shape in shapes.items()})
        i.state, i.context = _empty(rows, dim, dtype=dtype), _empty(_MODALITIES, rows, dim, dtype=dtype)
        i.p, i.rng, i.site = 0.5, _rng(), _SITE
        kept = SimpleNamespace(**update.forward(i, True))
        update.backward(SimpleNamespace(out=kept.out), i, kept)
        i.rng = None
        update.forward(i, False)


def _tower(dtype: torch.dtype, dim: int) -> None:
    blocks = {"query": (dim, dim), "value": (dim, dim), "hidden": (dim, dim), "output": (dim, dim)}
    blocks |= {"b1": (dim,), "b2": (dim,)}
    own = {f"{block}_{name}": (_STEPS, *shape) for block in ("f2l", "l2l") for name, shape in blocks.items()}
    own |= {"z": (100, dim), "label_embedding": (_LABELS, dim), "wl": (dim,), "wo": (_LABELS, dim)}
    i = SimpleNamespace(**{name: _empty(*shape, dtype=dtype) for name, shape in own.items()})
    i.offsets = _empty(_MODALITIES * _BATCH + 1, dtype=torch.int32)
    i.present = _empty(_MODALITIES, _BATCH, dtype=torch.bool)
    i.mask, i.steps, i.p, i.rng = None, _STEPS, 0.5, _rng()
    out = SimpleNamespace(**tower.forward(i, True))
    tower.backward(out, i, out)


def _readout(dtype: torch.dtype, weights: torch.dtype, dim: int) -> None:
    i = SimpleNamespace(
        u=_empty(_MODALITIES, _BATCH, _LABELS, dim, dtype=dtype),
        present=_empty(_MODALITIES, _BATCH, dtype=torch.bool),
        wl=_empty(dim, dtype=weights),
        wo=_empty(_LABELS, dim, dtype=weights),
    )
    out = SimpleNamespace(**readout.forward(i, True))
    readout.backward(out, i, SimpleNamespace(fused=out.fused))


def _joint_bce(dtype: torch.dtype) -> None:
    i = SimpleNamespace(
        logits=_empty(_STEPS, _BATCH, _LABELS, dtype=dtype),
        targets=_empty(_BATCH, _LABELS, dtype=dtype),
        label_weights=_empty(_LABELS, dtype=dtype),
        intermediate_weight=0.3,
    )
    joint_bce.forward(i, True)
