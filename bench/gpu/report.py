"""`make gpu-report`: budgets of the compiled kernels, and predicted times beside other ways. Writes docs/gpu.

python -m bench.gpu.report                 everything; compiles a thousand kernels, minutes
python -m bench.gpu.report --predict       the predictions only, seconds
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch

from bench.core.workloads import BATCH, DIM, NAMES, STEPS, WORKLOADS
from bench.gpu.predict import LIMIT, PARTS, f2f_megabytes, forward, seconds

OUT = Path(__file__).resolve().parents[2] / "docs" / "gpu"
WAYS = ("ours", "separate", "padded")


def predicted() -> str:
    """Tables of predicted times and of counted traffic."""
    return "\n".join([*_times(), "", *_traffic()])


def _times() -> list[str]:
    lines = [
        "## Predicted times of a forward pass",
        "",
        "Predicted, not measured: bytes and FLOP of every launch over datasheet rates (`bench/gpu/predict.py`),",
        f"batch {BATCH}, d = {DIM}, T = {STEPS}. *ours*: keys = values = nodes; *separate*: FlashAttention-varlen with",
        "K and V projected apart; *padded*: SDPA on padded modalities. Microseconds, and each way's time over ours.",
        "",
        "| workload | dtype | part | ours | separate | padded | separate / ours | padded / ours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in NAMES:
        workload = WORKLOADS[name]
        lengths = workload.lengths(BATCH)
        for dtype in ("bf16", "tf32"):
            for part in PARTS:
                times = [1e6 * seconds(forward(lengths, DIM, workload.labels, STEPS, way), part, dtype) for way in WAYS]
                shares = [f"{t / times[0]:.2f}" for t in times[1:]]
                lines.append(f"| {' | '.join([name, dtype, part.name, *(f'{t:.0f}' for t in times), *shares])} |")
    return lines


def _traffic() -> list[str]:
    lines = [
        "## Predicted device-memory traffic of the F2F forward pass",
        "",
        "Megabytes in bf16, counted by one rule for both ways (a launch reads each tensor once and writes its outputs",
        f"once). What is held to {LIMIT}x of separate K and V is the F2F forward pass with its projections: the query,",
        "key and value projections and the attention, in bold. The update's tail costs both ways nearly the same; the",
        "last column counts it in on both sides.",
        "",
        "| workload | projections: ours | separate | attention: ours | separate | **projections and attention** "
        "| update: ours | separate | with the update |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    many = [
        "",
        "The same where the other way makes a launch a group and reads its queries in each, as FlashAttention-varlen,",
        "which takes one key set a call, does.",
        "",
        "| workload | attention: separate | **projections and attention** | with the update |",
        "| --- | --- | --- | --- |",
    ]
    for name in NAMES:
        lengths = WORKLOADS[name].lengths(BATCH)
        ours, one, often = (f2f_megabytes(lengths, DIM, way) for way in ("ours", "separate", "launch a group"))
        pairs = [f"{mine:.1f} | {other:.1f}" for mine, other in zip(ours, one)]
        ratios = [[f"{sum(ours[:n]) / sum(other[:n]):.2f}x" for n in (2, 3)] for other in (one, often)]
        lines.append(f"| {name} | {pairs[0]} | {pairs[1]} | **{ratios[0][0]}** | {pairs[2]} | {ratios[0][1]} |")
        many.append(f"| {name} | {often[1]:.1f} | **{ratios[1][0]}** | {ratios[1][1]} |")
    return lines + many


def main() -> int:
    """Writes the report; the exit status is 1 when a budget breaks, 2 under another triton than the pinned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", action="store_true", help="no compiling")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "predicted.md").write_text("# GPU kernels: predicted\n\n" + predicted() + "\n")
    print(predicted())
    if chosen.predict:
        return 0
    import triton

    from bench.gpu.tables import cases, compile_all, tables
    from bench.gpu.versions import PINNED

    if triton.__version__ != PINNED:
        print(f"gpu-report: found triton {triton.__version__}; budgets are made with {PINNED} (constraints.txt).")
        return 2

    rows = compile_all(cases())
    head = [
        "# GPU kernels: budgets",
        "",
        f"Written by `make gpu-report`, triton {triton.__version__}, torch {torch.__version__}: compiled, not run.",
        "The budget is `bench/gpu/budget.py`; bf16 and tf32 take tensor cores, ieee is plain fp32.",
        "Local: stack and spills.",
        "",
    ]
    (OUT / "budgets.md").write_text("\n".join([*head, tables(rows), ""]))
    return int(any(breaks for _, breaks in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
