"""What `python -m bench.race.run` measures: cells, each timed in a child process of its own."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from bench.core.workloads import BATCH, NAMES

EVERYONE = (
    "ours (cpu)",
    "ours (torch)",
    "packed, SDPA by sample",
    "packed, padded scores",
    "nested jagged",
    "segment softmax",
    "FlexAttention",
    "padded eager",
    "padded torch.compile",
)
GROWTH = ("ours (cpu)", "packed, SDPA by sample", "padded eager")
QUICK = ("ours (cpu)", "ours (torch)", "packed, SDPA by sample")
BATCHES = (1, 4, 16, 64, 256, 1024)
LENGTHS = (10, 30, 100, 300, 1000, 3000, 6000, 20000)
FILLS = (100, 75, 50, 25, 10)


@dataclass(frozen=True)
class Cell:
    """One interleaved comparison. kind "time", "memory" or "first" (first call); budget in seconds a contestant."""

    table: str
    workload: str
    mode: str
    contestants: tuple[str, ...]
    kind: str = "time"
    dtype: str = "fp32"
    batch: int = BATCH
    dropout: float = 0.0
    budget: float = 5.0

    @property
    def name(self) -> str:
        """Unique, and fit for a file name."""
        drop = f"-dropout{self.dropout}" if self.dropout else ""
        return f"{self.table}-{self.kind}-{self.workload}-{self.mode}-{self.dtype}-B{self.batch}{drop}"

    def dumps(self) -> str:
        """JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, text: str) -> Cell:
        """The inverse."""
        values = json.loads(text)
        return cls(**values | {"contestants": tuple(values["contestants"])})


def full() -> list[Cell]:
    """Everything, some 15 minutes on two cores."""
    cells = [
        Cell("main", name, mode, EVERYONE, dtype=dtype)
        for dtype in ("fp32", "bf16")
        for mode in ("train", "infer")
        for name in NAMES
    ]
    cells += [
        Cell("latency", n, "infer", EVERYONE, dtype=d, batch=1, budget=1.5) for d in ("fp32", "bf16") for n in NAMES
    ]
    cells += [Cell("missing", f"{n}-missing", "train", GROWTH, budget=3) for n in NAMES]
    cells += [Cell("dropout", n, "train", GROWTH, dropout=0.2, budget=3) for n in NAMES]
    cells += [Cell("batch", "mosei-aligned", "train", GROWTH, batch=b, budget=1.5) for b in BATCHES]
    cells += [Cell("length", f"length-{n}", "infer", GROWTH, batch=1, budget=1.5) for n in LENGTHS]
    cells += [Cell("fill", f"fill-{n}", "train", GROWTH, budget=1.5) for n in FILLS]
    cells += [Cell("main", n, "train", EVERYONE, "memory") for n in NAMES]
    cells += [Cell("length", f"length-{n}", "train", GROWTH, "memory", batch=1) for n in (600, 2000, 6000, 20000)]
    cells += [Cell("main", "mosei-aligned", mode, EVERYONE, "first") for mode in ("train", "infer")]
    return cells


def quick() -> list[Cell]:
    """Two minutes: the three workloads, in fp32, against the best peer."""
    cells = [Cell("main", name, mode, QUICK, budget=1.5) for mode in ("train", "infer") for name in NAMES]
    return cells + [Cell("latency", n, "infer", QUICK, batch=1, budget=0.5) for n in NAMES]
