"""Plants one bug at a time in csrc/cuda and shows what notices it: `python tests/cuda/mutants.py [word ...]`.

A mutant is caught by wrong values (against float64) or by a report of the checks (race, bounds, uninitialised read,
divergent barrier). Every `__syncthreads` and every wait for copies is removed in turn; planted.py has the others.
Exit status 1 if one survives or an unchanged source is blamed. Words pick the mutants whose names hold one of them.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.cuda.planted import MUTANTS, Mutant  # noqa: E402

CPU_SECONDS = 300  # of a probe, several times what an unchanged one needs; the clock would depend on the load
PROBES = {
    "attention": ("attention",),
    "update": ("update", "weight_gradients"),
    "tower": ("tower", "weight_gradients"),
}  # the folders whose sources a probe needs
PROBE_OF_HEADER = {"base/weights.cuh": "update"}  # the other headers of base/: attention


def removed() -> list[Mutant]:
    """A mutant for every __syncthreads and every wait for copies of the sources."""
    from tests.cuda.harness import SOURCES

    found = []
    for source in sorted(SOURCES.rglob("*.cu*")):
        for what, call in (("barrier", r"__syncthreads\(\);"), ("wait", r"cp_async_wait<0>\(\);")):
            for n, match in enumerate(re.finditer(call + "( *// (.*))?", source.read_text())):
                said = f" ({match[2]})" if match[2] else ""
                found.append(Mutant(f"{what} {n + 1} removed{said}", str(source.relative_to(SOURCES)), call, ";", n))
    return found


def probe_of(file: str) -> str:
    """The probe that runs a file's code."""
    folder = file.split("/")[0]
    if folder == "base":
        return PROBE_OF_HEADER.get(file, "attention")
    return "update" if folder == "weight_gradients" else folder


def mutate(folder: Path, mutant: Mutant) -> None:
    """Plants the mutant in a copy of csrc/cuda."""
    path = folder / mutant.file
    text = path.read_text()
    matches = list(re.finditer(mutant.pattern, text))
    if len(matches) <= mutant.nth:
        raise SystemExit(f"{mutant.file} has no match {mutant.nth} of {mutant.pattern!r}: the mutant must be rewritten")
    match = matches[mutant.nth]
    path.write_text(text[: match.start()] + mutant.replacement + text[match.end() :])


def probe(name: str, library: str) -> None:
    """Runs one probe with a library up to the first thing that is wrong; prints it, or two empty strings."""
    import torch

    from hhmpn_fast.backends.cuda import launch
    from tests.cuda.harness import Harness
    from tests.ops.bounds import check_all

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 10))
    harness, values = Harness(Path(library)), ""
    tries = [(o, t, run) for o in (0, 1, 2) for t in (torch.float32, torch.bfloat16) for run in CASES[name]]
    for order, dtype, run in tries:
        harness.order = harness.seed = order
        with launch.using(harness):
            found, names, allowed = run(dtype, order)
        if not harness.reports:
            try:
                check_all(names, found, allowed())
            except AssertionError as error:
                values = str(error).splitlines()[0]
        if harness.reports or values:
            break
    said = harness.reports[0].splitlines()[0] if harness.reports else ""
    print(json.dumps({"values": values, "report": said}))


def _attention(kind: str):
    def run(dtype, order):
        import torch

        from hhmpn_fast.ops.dropout import Dropout
        from tests.cuda import test_attention as tests
        from tests.ops.under import cuda

        g = torch.Generator().manual_seed(order)
        options = tests.case(kind, g) | {"dropout": Dropout(0.25, torch.tensor([5, 9]), 256)}
        rows, nodes, groups = int(options["q_offsets"][-1]), int(options["x_offsets"][-1]), options["groups"]
        q, x = torch.randn(rows, 64, generator=g) / 8, torch.randn(nodes, 64, generator=g)
        grad, dlse = torch.randn(groups, rows, 64, generator=g), torch.randn(groups, rows, generator=g)
        q, x, grad, dlse = (t.to(dtype) for t in (q, x, grad, dlse))

        found = tests.run(cuda.attention, q, x, grad, dlse, options)
        return found, tests.RESULTS, lambda: tests.allowed(q, x, grad, dlse, options)

    return run


def _one_key(dtype, order):
    from tests.cuda import test_attention as tests
    from tests.ops.under import cuda

    arguments = tests.one_key_case("one_of_two_tiles", dtype, 0.25 * (order > 0))
    return tests.run(cuda.attention, *arguments), tests.RESULTS, lambda: tests.allowed(*arguments)


def _update(kind: str):
    def run(dtype, order):
        import torch

        from hhmpn_fast.ops.dropout import Dropout
        from tests.cuda import test_update as tests
        from tests.ops.under import cuda, plain

        tensors = tests.inputs(kind, 65, 64, dtype, order)
        dropout = Dropout(0.25, torch.tensor([5, 9]), 256) if order < 2 else None
        name = "update_features" if kind == "features" else "update_labels"

        found = tests.run(getattr(cuda, name), tensors, dropout)
        return found, tests.NAMES, lambda: tests.allowed(getattr(plain, name), tensors, dropout)

    return run


def _splits(dtype, order):
    import torch

    from hhmpn_fast.backends.cuda.update import Job, weight_gradients
    from tests.ops.bounds import bounds

    g = torch.Generator().manual_seed(order)
    y, x = (torch.randn(1100, 64, generator=g).to(dtype) for _ in range(2))
    made = weight_gradients({"layer": [Job(y, x)]})["layer"]
    wide_y, wide_x = y.double(), x.double()
    allowed = lambda: bounds(lambda: (wide_y.T @ wide_x, wide_y.sum(0)), dtype)  # noqa: E731
    return (made.weight[0], made.bias[0]), ("dw", "db"), allowed


def _tower(shape: str):
    def run(dtype, order):
        from tests.cuda import test_tower as tests

        case = tests.tower_case(tests.SHAPES[shape], dtype, order)
        return tests.tower_run(tests.tower, case, case.leaves), case.names, lambda: tests.tower_allowed(case)

    return run


def _tower_nan(dtype, order):
    from tests.cuda import test_tower as tests

    case, others = tests.nan_sample(dtype, order)
    found = others(tests.tower_run(tests.tower, case, case.leaves))
    return found, ("logits", "z"), lambda: tests.tower_allowed(case, others)


CASES = {
    "attention": [
        _attention("f2f"),
        _attention("no_queries"),
        _attention("no_keys"),
        _attention("l2l"),
        _attention("f2f_exclude_self"),
        _one_key,
    ],
    "update": [_update("labels"), _update("features"), _splits],
    "tower": [_tower("several_samples_a_tile"), _tower("two_groups"), _tower("three_tiles_of_nodes"), _tower_nan],
}


def judge(mutant: Mutant | None, which: str) -> str:
    """Builds a mutant (None: unchanged) and runs its probe in its own process (it may crash); returns what noticed."""
    from tests.cuda import harness as cuda_harness

    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp) / "cuda"
        shutil.copytree(cuda_harness.SOURCES, folder)
        if mutant is not None:
            mutate(folder, mutant)
        sources = sorted(source for part in PROBES[which] for source in (folder / part).glob("*.cu"))
        library = cuda_harness.build(sources, folder, "-DHH_SMALLEST_ONLY -w")  # a mutant may leave a name unused
        try:
            command = [sys.executable, __file__, "--probe", which, str(library)]
            done = subprocess.run(command, capture_output=True, text=True)
        finally:
            if mutant is not None:
                library.unlink()
        if done.returncode == -signal.SIGXCPU:
            return "does not end"
        if done.returncode:
            return f"crashed: {(done.stderr.strip().splitlines() or [done.returncode])[-1]}"
        found = json.loads(done.stdout.strip().splitlines()[-1])
        return found["report"] or (found["values"] and f"wrong values: {found['values']}")


def noticed_by(said: str) -> str:
    """The check that noticed a mutant, for the summary."""
    signs = {
        "wrong values": "wrong values",
        "crashed": "crash",
        "does not end": "no end",
        "RACE": "race",
        "OUT OF BOUNDS": "bounds",
        "ARRAY INDEX": "bounds",
        "invalid launch": "bounds",
        "UNINITIALISED": "uninitialised read",
        "MISALIGNED": "alignment",
        "not 16-byte aligned": "alignment",
        "divergence": "barrier divergence",
        "deadlock": "barrier divergence",
        "not waited for": "copy not waited for",
    }
    return next((check for sign, check in signs.items() if sign in said), "other")


def main(words: list[str]) -> int:
    """Prints the table; 1 if a mutant survives or an unchanged source is blamed."""
    chosen = [m for m in [*removed(), *MUTANTS] if not words or any(w in f"{m.file} {m.name}" for w in words)]
    blamed, counts = 0, Counter()
    for which in sorted({probe_of(m.file) for m in chosen}):
        said = judge(None, which)
        blamed += bool(said)
        print(f"{'unchanged ' + which:78} {f'BLAMED: {said}' if said else 'clean'}", flush=True)
    with ThreadPoolExecutor(2) as pool:
        for mutant, said in zip(chosen, pool.map(lambda m: judge(m, probe_of(m.file)), chosen)):
            counts[noticed_by(said) if said else "SURVIVED"] += 1
            print(f"{f'{mutant.file}: {mutant.name}'[:78]:78} {(said or 'SURVIVED')[:150]}", flush=True)
    survived = counts.pop("SURVIVED", 0)
    by = ", ".join(f"{n} {check}" for check, n in counts.most_common())
    print(f"{len(chosen)} mutants, {survived} survived; noticed by: {by}")
    return 1 if survived or blamed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--probe"]:
        probe(*sys.argv[2:4])
    else:
        sys.exit(main(sys.argv[1:]))
