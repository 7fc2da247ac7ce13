"""What `bench.gpu.measure` measures: cells, the most important first, so that a budget cuts off the least.

A cell is one interleaved comparison. part "model" runs whole models of a workload at a batch size; "attention" and
"update" run one op on `batch` segments of `length` rows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from bench.core.workloads import BATCH, NAMES

OURS = ("ours (cuda)", "ours (triton)", "ours (torch)")
PADDED, COMPILED = "padded eager", "padded torch.compile (reduce-overhead)"
PACKED = ("packed, varlen_attn", "packed, flash-attn", "packed, SDPA by length bucket")
EVERYONE = (*OURS[:2], *PACKED, PADDED, OURS[2])
ATTENTION = (*OURS, "varlen_attn", "flash-attn", "SDPA, equal lengths")
BATCHES = (1, BATCH, 256, 1024)
LENGTHS = (8, 64, 512, 4096)
ROWS = 65536  # of an attention cell: segments of any length hold as many
MODES = {"model": ("train", "infer"), "attention": ("both", "forward"), "update": ("both", "forward")}


@dataclass(frozen=True)
class Cell:
    """One comparison of one dtype: fp32 is IEEE, bf16 autocast in whole models and operands in ops."""

    part: str
    workload: str
    mode: str
    contestants: tuple[str, ...]
    dtype: str = "bf16"
    batch: int = BATCH
    length: int = 0

    @property
    def name(self) -> str:
        """Unique a set of contestants."""
        length = f"-length{self.length}" if self.length else ""
        return f"{self.part}-{self.workload}-{self.mode}-{self.dtype}-B{self.batch}{length}"

    @classmethod
    def of(cls, values: dict) -> Cell:
        """The inverse of `dataclasses.asdict`, lists for tuples allowed."""
        return cls(**values | {"contestants": tuple(values["contestants"])})

    def values(self) -> dict:
        """As JSON holds it."""
        return dataclasses.asdict(self)


def full() -> list[Cell]:
    """Everything."""
    first, *rest = NAMES
    modes = MODES["model"]
    cells = [Cell("model", first, mode, EVERYONE) for mode in modes]
    cells += [Cell("model", first, "train", EVERYONE, batch=1024), *_op("attention", 64), *_op("update", 64)]
    cells += [Cell("model", first, "train", EVERYONE, dtype="fp32"), Cell("model", rest[-1], "train", EVERYONE)]
    cells += [Cell("model", first, "train", (OURS[0], COMPILED))]
    cells += [c for n in (512, 4096, 8) for part in ("attention", "update") for c in _op(part, n)]
    cells += [Cell("model", first, "infer", EVERYONE, batch=b) for b in (1, 1024)]
    cells += [Cell("model", name, mode, EVERYONE) for name in rest for mode in modes]
    cells += [Cell("model", first, "infer", (OURS[0], COMPILED))]
    cells += [
        Cell("model", n, m, EVERYONE, t, b)
        for t in ("bf16", "fp32", "tf32")
        for b in BATCHES
        for n in NAMES
        for m in modes
    ]
    cells += [
        c
        for dtype in ("fp32", "tf32")
        for n in LENGTHS
        for part in ("attention", "update")
        for c in _op(part, n, dtype)
    ]
    return list(dict.fromkeys(cells))


def smoke() -> list[Cell]:
    """Every contestant, part, mode and dtype, at tiny sizes."""
    everyone = (*EVERYONE, COMPILED)
    cells = [Cell("model", "length-6", m, everyone, t, batch=2) for m, t in (("train", "bf16"), ("infer", "fp32"))]
    cells += [dataclasses.replace(cells[0], dtype="tf32", contestants=EVERYONE, batch=20)]
    return cells + [c for part in ("attention", "update") for t in ("fp32", "bf16") for c in _op(part, 8, t, rows=32)]


def _op(part: str, length: int, dtype: str = "bf16", rows: int = ROWS) -> list[Cell]:
    contestants = {"attention": ATTENTION, "update": OURS}[part]
    workload = {"attention": "one group", "update": "features"}[part]
    return [Cell(part, workload, mode, contestants, dtype, max(1, rows // length), length) for mode in MODES[part]]
