"""Compares this tree's bits with the recorded ones: python tests/bits/compare.py PART [--all] [--threads N].

PART is "torch" or "cpu <instruction set>", which HHMPN_CPU_ISA must name too (record.py and test_same.py see to that).
Prints the cases, readings and quantities that differ. Exit status 0: equal; 1: not; 3: this machine cannot run the
part, or nothing of it can be compared here, as one sentence says.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from cases import FAST, Case, cases
from digests import run

import hhmpn_fast
from hhmpn_fast import InputError, use_backend

HERE = Path(__file__).resolve().parent
FLAGS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "amx_bf16")
# What must agree for bytes of a letter to be comparable; see digests.py.
KEYS = {
    "k": ("architecture", "compiler", "isa"),
    "l": ("torch", "libc", "vectors"),
    "m": ("processor", "features", "threads"),
}
CANNOT = 3


def made_on(part: str) -> dict[str, str]:
    """This build and machine, as far as bits can depend on them."""
    flags, said = set(), {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        said[name.strip()] = value.strip()
        flags |= set(value.split()) if name.strip() == "flags" else set()
    family = f"{said.get('vendor_id', '?')} family {said.get('cpu family', '?')} model {said.get('model', '?')}"
    return {
        "commit": _commit(),
        "architecture": platform.machine(),
        "compiler": _compiler(),
        "isa": part.partition(" ")[2],
        "torch": torch.__version__,
        "libc": " ".join(platform.libc_ver()),
        "vectors": torch.backends.cpu.get_cpu_capability() + (" fma" if "fma" in flags else ""),
        "processor": family,
        "name": said.get("model name", "?"),
        "features": " ".join(f for f in FLAGS if f in flags),
        "threads": str(torch.get_num_threads()),
    }


def _commit() -> str:
    out = subprocess.run(["git", "-C", str(HERE), "rev-parse", "HEAD"], capture_output=True, text=True)
    return out.stdout.strip()[:12] or "unknown"


def _compiler() -> str:
    """Name and major version of the extension's compiler, which the linker noted in it."""
    for file in Path(hhmpn_fast.__file__).parent.glob("_C*.so"):
        found = re.search(rb"(GCC): \([^)]*\) (\d+)|(clang) version (\d+)", file.read_bytes())
        if found:
            return b" ".join(part for part in found.groups() if part).decode()
    return "unknown"


def cannot(part: str) -> str | None:
    """Why this machine cannot run the part, or None. An extension that is there and fails otherwise is an error."""
    backend = part.partition(" ")[0]
    if backend == "torch":
        return None
    if not list(Path(hhmpn_fast.__file__).parent.glob("_C*.so")):
        return "the C++ extension is not built"
    try:
        plain = next(c for c in cases() if c.kind == "plain" and c.dtype == "float32" and c.lengths.size)
        with use_backend(backend), torch.no_grad():
            plain.model()(plain.batch())
    except InputError as error:
        if "does not have" not in str(error):
            raise
        return f"this processor or this build has no {part.partition(' ')[2]}"
    return None


def record(part: str) -> dict[str, Any]:
    """What expected.json holds of a part: each digest behind its letter."""
    held, backend = {}, part.partition(" ")[0]
    for case in cases():
        found = run(case, backend)
        letters = dict.fromkeys(found, "m") if backend == "torch" else run(case, backend, traced=True)
        held[str(case.number)] = {k: f"{_letter(letters[k])} {text}" for k, text in found.items()}
    return {"made_on": made_on(part), "cases": held}


def _letter(found: str) -> str:
    return found if found in KEYS else "k"  # an error is one everywhere


def comparable(then: dict[str, str], now: dict[str, str]) -> tuple[str, str]:
    """The letters whose bytes can be compared, and why not the others."""
    letters = ""
    for letter, names in KEYS.items():
        for name in names:
            if then[name] != now[name]:
                return letters, f"recorded with {name} '{then[name]}', found '{now[name]}'"
        letters += letter
    return letters, ""


def differences(case: Case, then: dict[str, str], now: dict[str, str], letters: str) -> tuple[int, list[str]]:
    """How many quantities of the case were compared, and a line for each that differs."""
    compared, lines = 0, []
    for name in dict.fromkeys([*then, *now]):
        letter, _, text = then.get(name, "k nothing").partition(" ")
        found = now.get(name, "nothing")
        if letter in letters:
            compared += 1
            if found != text:
                lines.append(f"{name}{_which(case, text, found)}: found {found[:12]}; expected {text[:12]}")
    return compared, lines


def _which(case: Case, then: str, now: str) -> str:
    """The first gradient that differs, where both sides have the same ones."""
    a, b = then.split(), now.split()
    if len(a) < 3 or len(b) < 3:
        return ""
    if a[1] != b[1]:
        return ", other names"
    names = sorted(name for name, _ in case.model().named_parameters())
    names = names if len(a[2]) == 4 * len(names) else list(case.config().modalities)
    differ = [name for i, name in enumerate(names) if a[2][4 * i : 4 * i + 4] != b[2][4 * i : 4 * i + 4]]
    return f", first of {differ[0]} ({len(differ)} of {len(names)} differ)" if differ else ""


def check(part: str, every: int, file: Path) -> int:
    """Compares every `every`-th case and prints what was found; the exit status."""
    held = json.loads(file.read_text(encoding="utf-8")).get(part)
    if held is None:
        print(f"nothing is recorded for {part}")
        return CANNOT
    letters, why = comparable(held["made_on"], made_on(part))
    if not letters:
        print(why)
        return CANNOT
    quantities, wrong = 0, []
    for case in cases()[::every]:
        then = held["cases"][str(case.number)]
        if not any(text.partition(" ")[0] in letters for text in then.values()):
            continue
        compared, lines = differences(case, then, run(case, part.partition(" ")[0]), letters)
        quantities += compared
        wrong += [f"{case.name}\n    {case.base}, {case.changes}\n    " + "\n    ".join(lines)] if lines else []
    if not quantities:
        print(why)
        return CANNOT
    print(f"{part}: {quantities} quantities compared{f'; the others not: {why}' if why else ''}")
    if wrong:
        print(f"{len(wrong)} cases differ; the first ones:", *wrong[:5], sep="\n  ")
    return int(bool(wrong))


def main() -> int:
    """Compares or, with --record, prints what the part gives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", help='"torch" or "cpu <instruction set>"')
    parser.add_argument("--all", action="store_true", help=f"every case, not only every {FAST}th")
    parser.add_argument("--record", action="store_true", help="print what this tree gives, for record.py")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--file", type=Path, default=HERE / "expected.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if reason := cannot(options.part):
        print(reason)
        return CANNOT
    if options.record:
        print(json.dumps(record(options.part)))
        return 0
    return check(options.part, 1 if options.all else FAST, options.file)


if __name__ == "__main__":
    sys.exit(main())
