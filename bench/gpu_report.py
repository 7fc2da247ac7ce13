"""`make gpu-report`: budgets of the compiled kernels, and predicted times beside other ways. Writes docs/gpu/report.md.

python -m bench.gpu_report                 everything; compiles some hundred kernels, minutes
python -m bench.gpu_report --predict       the predictions only, seconds
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch

from bench.gpu_predict import PARTS, f2f_traffic, forward, seconds
from bench.workloads import BATCH, DIM, NAMES, STEPS, WORKLOADS

OUT = Path(__file__).resolve().parent.parent / "docs" / "gpu"
WAYS = ("ours", "separate", "padded")


def predicted() -> str:
    """Tables of predicted times and of counted traffic."""
    lines = [
        "## Predicted times of a forward pass",
        "",
        "Predicted, not measured: bytes and FLOP of every launch over datasheet rates (`bench/gpu_predict.py`),",
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
                row = [
                    name,
                    dtype,
                    part.name,
                    *(f"{t:.0f}" for t in times),
                    *(f"{t / times[0]:.2f}" for t in times[1:]),
                ]
                lines.append(f"| {' | '.join(row)} |")
    lines += [
        "",
        "## Predicted device-memory traffic of the F2F forward pass",
        "",
        "Counted by one rule for both (a launch reads each tensor once and writes its outputs once): ours over",
        "separate K and V. *one launch*: the other way reads its queries once for all groups. *many*: a launch a",
        "group, as FlashAttention-varlen, which takes one key set a call, runs it.",
        "",
        "| workload | projections and attention, one launch | many | with the update, one launch | many |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in NAMES:
        lengths = WORKLOADS[name].lengths(BATCH)
        ratios = [
            f2f_traffic(lengths, DIM, update=update, launches=launches)
            for update in (False, True)
            for launches in ("one", "many")
        ]
        lines.append(f"| {name} | " + " | ".join(f"{r:.2f}x" for r in ratios) + " |")
    return "\n".join(lines)


def budgets() -> tuple[str, int]:
    """The table of compiled kernels, and how many break their budget."""
    from bench.gpu_budget import ARCHITECTURES, KERNELS, broken
    from bench.gpu_compile import compiled, facts

    lines = [
        f"## Compiled kernels, d = {DIM}",
        "",
        "Compiled ahead of time, dropout on; the budget is `bench/gpu_budget.py`. Local: stack and spills.",
        "",
        "| kernel | dtype | part | registers | local | shared KiB | tensor-core instructions | 128-bit loads / stores "
        "| blocks a multiprocessor | budget |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    failures = 0
    for kernel in KERNELS:
        for dtype in ("bf16", "tf32", "ieee"):
            for architecture in ARCHITECTURES:
                found = facts(compiled(kernel, dtype, DIM, architecture), architecture)
                breaks = broken(kernel, dtype, architecture, found)
                failures += bool(breaks)
                lines.append(
                    f"| {kernel} | {dtype} | {architecture} | {found.registers} | {found.local} | "
                    f"{found.shared / 1024:.0f} | {found.tensor_instructions} | {found.wide_loads} / "
                    f"{found.wide_stores} | {found.blocks} | {'; '.join(breaks) or 'holds'} |"
                )
                print(lines[-1], flush=True)
    return "\n".join(lines), failures


def main() -> int:
    """Writes the report; the exit status counts broken budgets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", action="store_true", help="no compiling")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "predicted.md").write_text("# GPU kernels: predicted\n\n" + predicted() + "\n")
    print(predicted())
    if chosen.predict:
        return 0
    table, failures = budgets()
    head = f"# GPU kernels: budgets\n\ntriton {__import__('triton').__version__}, torch {torch.__version__}.\n\n"
    (OUT / "budgets.md").write_text(head + table + "\n")
    return failures


if __name__ == "__main__":
    raise SystemExit(main())
