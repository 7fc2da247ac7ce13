"""Writes what every case gives on this build into a file: python tests/bits/record.py [FILE], default expected.json.

A part is a backend and, for `cpu`, an instruction set; each runs in a process of its own, one thread. Parts that this
machine cannot run stay as the file has them, so that several machines can add to one file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXPECTED = HERE / "expected.json"
ISAS = ("portable", "avx2", "avx512", "avx512_bf16")
PARTS = ("torch", *(f"cpu {isa}" for isa in ISAS))


def worker(part: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs compare.py for one part, with this tree's package and the part's instruction set."""
    env = {k: v for k, v in os.environ.items() if k != "HHMPN_FAST_BACKEND"}
    env["PYTHONPATH"] = os.pathsep.join(p for p in (str(ROOT), env.get("PYTHONPATH", "")) if p)
    env["HHMPN_CPU_ISA"] = part.partition(" ")[2]
    command = [sys.executable, str(HERE / "compare.py"), part, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def dumps(parts: dict) -> str:
    """JSON with a line a case."""
    blocks = []
    for part, held in sorted(parts.items()):
        about = f'"made_on": {json.dumps(held["made_on"])}'
        rows = ",\n".join(f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in held["cases"].items())
        blocks.append(f' {json.dumps(part)}: {{\n  {about},\n  "cases": {{\n{rows}\n  }}\n }}')
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def main() -> int:
    """Records every part that runs here."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else EXPECTED
    parts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for part in PARTS:
        out = worker(part, "--record")
        if out.returncode == 3:
            print(f"{part}: left as it is; {out.stdout.strip()}")
            continue
        if out.returncode:
            print(out.stdout + out.stderr, file=sys.stderr)
            return 1
        parts[part] = json.loads(out.stdout)
        print(f"{part}: {len(parts[part]['cases'])} cases")
    file.write_text(dumps(parts), encoding="utf-8")
    print(f"{file.name}: {file.stat().st_size / 1024:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
