"""One backend against the floor, in one command:

python -m bench.race.step --workload mosei-aligned --backend cpu --mode train

The logits and gradients are checked against the float64 reference first. The matrix rate is measured in the same run.
`--phases` adds PyTorch's profile of the costliest ops.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

from bench.core.flops import useful
from bench.core.timing import Session, interleave
from bench.core.workloads import BATCH, named
from bench.race.contestants import CONTESTANTS, Task, gather
from bench.race.peers.base import Case
from hhmpn_fast.source_digest import stale


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m bench.race.step", description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="mosei-aligned")
    parser.add_argument("--backend", default="cpu", help="torch, cpu, or any contestant's full name")
    parser.add_argument("--mode", choices=("train", "infer"), default="train")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="time to spend on the contestant")
    parser.add_argument("--hold", default="", help="command that keeps the machine quiet while what it starts runs")
    parser.add_argument("--phases", action="store_true", help="profile the costliest ops too")
    return parser


def main() -> int:
    """Prints the comparison."""
    options = arguments().parse_args()
    torch.set_num_threads(options.threads)
    name = options.backend if options.backend in CONTESTANTS else f"ours ({options.backend})"
    if name not in CONTESTANTS:
        print(f"backend: found '{options.backend}'; expected one of {', '.join(CONTESTANTS)}", file=sys.stderr)
        return 2
    if reason := stale():
        print(f"bench: {reason}", file=sys.stderr)
        return 2
    workload, case = named(options.workload), Case(options.mode, options.dtype)
    batch, targets = workload.batch(options.batch), workload.targets(options.batch)
    tasks, errors, skipped = gather([name], workload, batch, targets, case, options.dropout)
    if skipped:
        print(f"{name} cannot run: {skipped[name]}", file=sys.stderr)
        return 1
    task = tasks[name]
    session = Session(torch.bfloat16 if case.dtype == "bf16" else torch.float32, options.hold)
    times = interleave({name: task.run}, session, least=5, budget=options.seconds, warmup=3)[name]
    rate = session.rate
    flop = useful(task.peer.model.config, batch).of(case.mode)
    floor = flop / rate[0]
    wrong = ", ".join(f"{k} {v:.1e}" for k, v in errors[name].items())
    print(f"{name}, {workload.name}, {case.mode}, B = {options.batch}, {case.dtype}, {options.threads} threads")
    print(f"  error     {wrong}, relative, against the float64 reference")
    print(f"  median    {times.median * 1e3:9.3f} ms   mad {times.mad * 1e3:.3f}, {len(times.seconds)} rounds")
    print(f"  floor     {floor * 1e3:9.3f} ms   {flop / 1e9:.3f} useful GFLOP at {rate[0] / 1e9:.0f}/s, {rate[1]}")
    print(f"  ratio     {times.median / floor:9.3f}      {flop / times.median / 1e9:.0f} useful GFLOP/s")
    if case.mode == "train":
        print(split(task))
    if max(session.busy) > 0.1:
        print(f"  BEWARE    other processes kept {max(session.busy):.1f} cores busy meanwhile")
    if options.phases:
        print(profile(task))
    return 0


def split(task: Task, rounds: int = 15) -> str:
    """Medians of the parts of a call as Python sees them: forward and backward, clipping and Adam."""
    parts: dict[str, list[float]] = {"forward + backward": [], "clip + Adam": []}
    for _ in range(rounds):
        start = time.perf_counter()
        task.backward()
        stop = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(task.parameters, 10.0)
        task.optimizer.step()
        parts["clip + Adam"].append(time.perf_counter() - stop)
        parts["forward + backward"].append(stop - start)
        if sum(map(sum, parts.values())) > 5:
            break
    return "  parts     " + ", ".join(f"{name} {statistics.median(s) * 1e3:.3f} ms" for name, s in parts.items())


def profile(task: Task, calls: int = 5) -> str:
    """PyTorch's own profile, the costliest ops by self time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for _ in range(calls):
            task.run()
    return found.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=40)


if __name__ == "__main__":
    sys.exit(main())
