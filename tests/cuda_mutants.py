"""Plants one bug at a time in csrc/cuda and shows what notices it: `python tests/cuda_mutants.py [word ...]`.

A mutant is caught by wrong values (against float64) or by a report of the checks (race, bounds, uninitialised read,
divergent barrier). Every `__syncthreads` and every wait for copies is removed in turn; the others are written down in
MUTANTS. Exit status 1 if one survives or an unchanged source is blamed. Words pick the mutants whose names hold one of
them.
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

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

CPU_SECONDS = 300  # of a probe, several times what an unchanged one needs; the clock would depend on the load
PROBES = {
    "attention": ("attention.cu", "attention_backward.cu"),
    "update": ("update.cu", "update_backward.cu", "weight_gradients.cu"),
    "tower": ("tower.cu", "tower_backward.cu", "weight_gradients.cu"),
}
PROBE_OF = {"rows.cuh": "attention", "tile.cuh": "attention", "attention.cuh": "attention", "philox.cuh": "attention"}
PROBE_OF |= {"weights.cuh": "update", "update.cuh": "update", "tower.cuh": "tower"}
PROBE_OF |= {source: probe for probe, sources in PROBES.items() for source in sources}
PROBE_OF["weight_gradients.cu"] = "update"

# name, file, pattern (a regular expression), replacement, which match
MUTANTS = [
    ("queries one row too many", "rows.cuh", r"row < count;", "row <= count;", 0),
    ("rows stored one too many", "rows.cuh", r"i < count \* kPieces", "i < (count + 1) * kPieces", 0),
    ("tile count not clipped", "rows.cuh", r"min\(kRows, offsets\[i \+ 1\] - first\)", "kRows", 0),
    ("tile numbers one off", "rows.cuh", r"to / kRows \+ i \+ 1", "to / kRows + i", 0),
    ("B fragments swapped", "tile.cuh", r"fb\[0\], fb\[1\]\);\s+mma_bf16_16816\(v\[j \+ 1\], fa\[0\], fb\[2\], fb\[3\]",
     "fb[0], fb[2]); mma_bf16_16816(v[j + 1], fa[0], fb[1], fb[3]", 0),
    ("A read untransposed", "tile.cuh", r"ldmatrix_x4_trans\(fa", "ldmatrix_x4(fa", 0),
    ("fp32 rows interleaved wrongly", "tile.cuh", r"lane / 8 \+ i \* 4;", "lane / 8 * 4 + i;", 0),
    ("row stride without padding", "tile.cuh", r"n \+ kPad<T>", "n + kPad<T> / 2", 0),
    ("stored columns off by one", "tile.cuh", r"j \* 8 \+ lane % 4 \* 2;", "j * 8 + lane % 4 * 2 + 1;", 0),
    ("key bound off by one", "attention.cuh", r"key >= keys", "key > keys", 0),
    ("mask transposed", "attention.cuh", r"p\.mask\[int64_t\(row\) \* p\.mask_columns \+ key\]",
     "p.mask[int64_t(key) * p.mask_columns + row]", 0),
    ("self excluded in every segment", "attention.cuh", r"query == source && row == key", "row == key", 0),
    ("running sum not rescaled", "attention.cuh", r"sum = sum \* factor \+", "sum = sum +", 0),
    ("maximum over half a row", "attention.cuh", r"int o = 4; o; o >>= 1\) x = fmaxf",
     "int o = 2; o; o >>= 1) x = fmaxf", 0),
    ("empty row divides by zero", "attention.cuh", r"sum == 0\.f \? 0\.f : 1\.f / sum", "1.f / sum", 0),
    ("context not rescaled", "attention.cu", r"v \*= s\.factor\[r\];", "(void)v;", 0),
    ("prefetch wait missing", "attention.cu", r"cp_async_wait<0>\(\);", "cp_async_wait<1>();", 0),
    ("short shared-memory request", "attention.cu", r"sizeof\(ForwardSmem<T, D>\), stream",
     "sizeof(ForwardSmem<T, D>) - 16, stream", 0),
    ("dropout row off by one", "attention.cu", r"q\.begin \+ place, k0", "q.begin + place + 1, k0", 0),
    ("delta forgotten", "attention_backward.cu", r"\* keep\[i\] - delta\)", "* keep[i])", 0),
    ("dlse forgotten", "attention_backward.cu", r"if \(p\.dlse\) delta -=", "if (false) delta -=", 0),
    ("dropped weights in dx undropped", "attention_backward.cu", r"s\[i\] \*= keep\[i\];", "", 0),
    ("last query tile skipped", "attention_backward.cu", r"r0 < rows; r0", "r0 + kQ < rows; r0", 0),
    ("short shared-memory request backward", "attention_backward.cu", r"sizeof\(KeySmem<T, D>\)",
     "sizeof(KeySmem<T, D>) - 16", 0),
    ("Philox key not stepped", "philox.cuh", r"k0 \+= 0x9E3779B9u", "k0 += 0u", 0),
    ("Philox word of another column", "philox.cuh", r"column >> 2, row", "column >> 3, row", 0),
    ("weight slice wait missing", "weights.cuh", r"cp_async_wait<0>\(\);", "cp_async_wait<1>();", 0),
    ("weight slices in one stage", "weights.cuh", r"stage\[slice % 2\], w \+ slice", "stage[0], w + slice", 0),
    ("relu negated", "weights.cuh", r"x < 0\.f \? 0\.f : x", "-x", 0),
    ("dropout backward of another row", "update.cuh", r"first \+ row, c, keep", "row, c, keep", 0),
    ("residual of another row", "update.cu", r"% p\.u_rows", "% (p.u_rows + 1)", 0),
    ("dropout forgotten", "update.cu", r"if \(p\.dropout\.rng\) v \*= keep1\(p\.dropout, first \+ r, c\);",
     "v += 0.f;", 0),
    ("first modality left out of the sum", "update.cu", r"int m = 0; m < p\.modalities; m\+\+\) \{\s+const T\* at",
     "int m = 1; m < p.modalities; m++) { const T* at", 0),
    ("last rows not stored", "update.cu", r"s\.x, count\);\n\}", "s.x, count - 1);\n}", 0),
    ("relu's mask forgotten", "update_backward.cu", r"<= 0\.f\) v = 0\.f;", "<= -1e30f) v = 0.f;", 0),
    ("dg without dy", "update_backward.cu", r"v \+= to_float\(s\.x\[r \* kLd \+ c\]\);", "(void)v;", 0),
    # A row's last 16 bytes are padding that nobody reads, and a slice of W leaves 512 bytes of its stage.
    ("short shared-memory request update", "update.cu", r"smem = sizeof\(UpdateSmem<T, D>\)",
     "smem = sizeof(UpdateSmem<T, D>) - 32", 0),
    ("short shared-memory request update backward", "update_backward.cu", r"smem = sizeof\(UpdateSmem<T, D>\)",
     "smem = sizeof(UpdateSmem<T, D>) - 544", 0),
    ("split overlaps the next", "weight_gradients.cu", r"min\(from \+ share, rows\)", "min(from + share + 1, rows)", 0),
    ("bias over one row less", "weight_gradients.cu", r"k < kSlice; k\+\+", "k < kSlice - 1; k++", 0),
    ("one split forgotten", "weight_gradients.cu", r"int s = 0; s < p\.splits", "int s = 1; s < p.splits", 0),
    ("group's rows of another modality", "tower.cuh", r"b\.m0 \+ row / b\.rows", "row / b.rows", 0),
    ("step's dropout site", "tower.cuh", r"site \+ t \* 8 \* 256", "site + t * 256", 0),
    ("readout not rescaled", "tower.cu", r"total\[i\] \* s\.factor\[r\]", "total[i]", 0),
    ("absent modality read out", "tower.cu", r"p\.present\[m \* p\.batch \+ sample\] \? e : -INFINITY", "e", 0),
    ("label mask ignored", "tower.cu", r"!p\.mask \|\| p\.mask\[row \* p\.labels \+ key\]", "true", 0),
    ("u short in shared memory", "tower.cu", r"u \* kStride<T, D> \* sizeof\(T\)",
     "(u - 1) * kStride<T, D> * sizeof(T)", 0),
    ("states read behind their end", "tower.cu", r"f2l\.a, b\.rows\);", "f2l.a);", 0),
    ("queries of the pair not clipped", "tower.cu", r"kLd, labels\);", "kLd, kAllRows);", 0),
    ("keys of the pair not clipped", "tower.cu", r"kQ, key_rows\);", "kQ, kAllRows);", 0),
    ("label gradients of the pair not clipped", "tower_backward.cu", r"kQ, labels\);", "kQ, kAllRows);", 0),
    ("node gradients of the pair not clipped", "tower_backward.cu", r"kQ, labels\);", "kQ, kAllRows);", 1),
    ("readout gradient uncentred", "tower_backward.cu", r"\(to_float\(u2\[c\]\) - to_float\(u\[c\]\)\)",
     "to_float(u2[c])", 0),
    ("next du not cleared", "tower_backward.cu", r"next\[i\] = 0\.f;", "if (t == p.steps - 1) next[i] = 0.f;", 0),
    ("dq of the first group only", "tower_backward.cu", r"b\.m0 == 0 \? v : to_float\(kept\[i\]\) \+ v", "v", 0),
    ("node gradient overwritten", "tower_backward.cu", r"\* D \+ c\] \+= v;", "* D + c] = v;", 0),
    ("queries committed with the weights", "tower_backward.cu", r"labels\);\s+cp_async_commit\(\);\s+for \(int m",
     "labels); for (int m", 0),
]  # fmt: skip


def removed() -> list[tuple[str, str, str, str, int]]:
    """A mutant for every __syncthreads and every wait for copies of the sources."""
    from cuda_harness import SOURCES

    found = []
    for source in sorted(SOURCES.glob("*.cu*")):
        for what, call in (("barrier", r"__syncthreads\(\);"), ("wait", r"cp_async_wait<0>\(\);")):
            for n, match in enumerate(re.finditer(call + "( *// (.*))?", source.read_text())):
                said = f" ({match[2]})" if match[2] else ""
                found.append((f"{what} {n + 1} removed{said}", source.name, call, ";", n))
    return found


def mutate(folder: Path, file: str, pattern: str, replacement: str, nth: int) -> None:
    path = folder / file
    text = path.read_text()
    matches = list(re.finditer(pattern, text))
    if len(matches) <= nth:
        raise SystemExit(f"{file} has no match {nth} of {pattern!r}: the mutant must be rewritten")
    match = matches[nth]
    path.write_text(text[: match.start()] + replacement + text[match.end() :])


def probe(name: str, library: str) -> None:
    """Runs one probe with a library up to the first thing that is wrong; prints it, or two empty strings."""
    import torch
    from bounds import check_all
    from cuda_harness import Harness

    from hhmpn_fast.ops import cuda_launch

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 10))
    harness, values = Harness(Path(library)), ""
    tries = [(o, t, run) for o in (0, 1, 2) for t in (torch.float32, torch.bfloat16) for run in CASES[name]]
    for order, dtype, run in tries:
        harness.order = harness.seed = order
        with cuda_launch.using(harness):
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
        import test_cuda_attention as tests
        import torch

        from hhmpn_fast.ops.cuda_attention import attention
        from hhmpn_fast.ops.dropout import Dropout

        g = torch.Generator().manual_seed(order)
        options = tests.case(kind, g) | {"dropout": Dropout(0.25, torch.tensor([5, 9]), 256)}
        rows, nodes, groups = int(options["q_offsets"][-1]), int(options["x_offsets"][-1]), options["groups"]
        q, x = torch.randn(rows, 64, generator=g) / 8, torch.randn(nodes, 64, generator=g)
        grad, dlse = torch.randn(groups, rows, 64, generator=g), torch.randn(groups, rows, generator=g)
        q, x, grad, dlse = (t.to(dtype) for t in (q, x, grad, dlse))

        found = tests.run(attention, q, x, grad, dlse, options)
        return found, tests.RESULTS, lambda: tests.allowed(q, x, grad, dlse, options)

    return run


def _update(kind: str):
    def run(dtype, order):
        import test_cuda_update as tests
        import torch

        from hhmpn_fast.ops import cuda_update, update
        from hhmpn_fast.ops.dropout import Dropout

        tensors = tests.inputs(kind, 65, 64, dtype, order)
        dropout = Dropout(0.25, torch.tensor([5, 9]), 256) if order < 2 else None
        name = "update_features" if kind == "features" else "update_labels"

        found = tests.run(getattr(cuda_update, name), tensors, dropout)
        return found, tests.NAMES, lambda: tests.allowed(getattr(update, name), tensors, dropout)

    return run


def _splits(dtype, order):
    import torch
    from bounds import bounds

    from hhmpn_fast.ops.cuda_update import weight_gradients

    g = torch.Generator().manual_seed(order)
    y, x = (torch.randn(1100, 64, generator=g).to(dtype) for _ in range(2))
    dw, db = weight_gradients([(y, x)])
    wide_y, wide_x = y.double(), x.double()
    return (dw[0], db[0]), ("dw", "db"), lambda: bounds(lambda: (wide_y.T @ wide_x, wide_y.sum(0)), dtype)


def _tower(shape: str):
    def run(dtype, order):
        import test_cuda_tower as tests

        from hhmpn_fast.ops.cuda_tower import tower

        case = tests.tower_case(**tests.SHAPES[shape], dtype=dtype, seed=order)
        return tests.tower_run(tower, case, case.leaves), case.names, lambda: tests.tower_allowed(case)

    return run


def _tower_nan(dtype, order):
    import test_cuda_tower as tests

    from hhmpn_fast.ops.cuda_tower import tower

    case, others = tests.nan_sample(dtype, order)
    found = others(tests.tower_run(tower, case, case.leaves))
    return found, ("logits", "z"), lambda: tests.tower_allowed(case, others)


CASES = {
    "attention": [
        _attention("f2f"),
        _attention("no_queries"),
        _attention("no_keys"),
        _attention("l2l"),
        _attention("f2f_exclude_self"),
    ],
    "update": [_update("labels"), _update("features"), _splits],
    "tower": [_tower("several_samples_a_tile"), _tower("two_groups"), _tower("three_tiles_of_nodes"), _tower_nan],
}


def judge(mutant: tuple[str, str, str, str, int] | None, which: str) -> str:
    """Builds a mutant (None: unchanged) and runs its probe in its own process (it may crash); returns what noticed."""
    import cuda_harness

    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp) / "cuda"
        shutil.copytree(cuda_harness.SOURCES, folder)
        if mutant is not None:
            mutate(folder, *mutant[1:])
        sources = [folder / source for source in PROBES[which]]
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
    chosen = [m for m in [*removed(), *MUTANTS] if not words or any(w in f"{m[1]} {m[0]}" for w in words)]
    blamed, counts = 0, Counter()
    for which in sorted({PROBE_OF[m[1]] for m in chosen}):
        said = judge(None, which)
        blamed += bool(said)
        print(f"{'unchanged ' + which:78} {f'BLAMED: {said}' if said else 'clean'}", flush=True)
    with ThreadPoolExecutor(2) as pool:
        for mutant, said in zip(chosen, pool.map(lambda m: judge(m, PROBE_OF[m[1]]), chosen)):
            counts[noticed_by(said) if said else "SURVIVED"] += 1
            print(f"{(mutant[1] + ': ' + mutant[0])[:78]:78} {(said or 'SURVIVED')[:150]}", flush=True)
    survived = counts.pop("SURVIVED", 0)
    by = ", ".join(f"{n} {check}" for check, n in counts.most_common())
    print(f"{len(chosen)} mutants, {survived} survived; noticed by: {by}")
    return 1 if survived or blamed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--probe"]:
        probe(*sys.argv[2:4])
    else:
        sys.exit(main(sys.argv[1:]))
