"""`make gpu-build`: builds in place what is missing of the extensions, for this Python, this torch and this GPU.

    python -m bench.gpu.build

Nothing is missing where build/gpu.json names the same sources, Python, torch and GPUs and the files are there.
Otherwise `setup.py build_ext --inplace` compiles what changed. The exit status is 1 where that leaves no cuda backend.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAMP = ROOT / "build" / "gpu.json"
PACKAGE = ROOT / "hhmpn_fast"
FOLDERS = ("csrc", "build_backend")


def wanted() -> dict[str, object]:
    """What the extensions must have been built from and for."""
    import torch

    digest = hashlib.sha256((ROOT / "setup.py").read_bytes())
    for file in sorted(f for folder in FOLDERS for f in (ROOT / folder).rglob("*") if f.suffix not in ("", ".pyc")):
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    gpus = sorted({torch.cuda.get_device_capability(n) for n in range(torch.cuda.device_count())})
    names = [f"sm_{major}{minor}" for major, minor in gpus]
    return {"sources": digest.hexdigest()[:20], "python": sys.version, "torch": torch.__version__, "gpus": names}


def missing(want: dict[str, object], stamp: Path, package: Path) -> str | None:
    """Why something has to be built, or None."""
    held = json.loads(stamp.read_text()) if stamp.is_file() else {}
    different = [name for name, value in want.items() if held.get("built", {}).get(name) != value]
    if different:
        return "nothing was built here before" if not held else f"other {', '.join(different)} than before"
    gone = [name for name in held["files"] if not (package / name).is_file()]
    return f"{gone[0]} is gone" if gone else None


def main() -> int:
    """Builds; the last line says what there is now."""
    want = wanted()
    reason = missing(want, STAMP, PACKAGE)
    if reason is None:
        print(f"nothing is missing: built for {', '.join(want['gpus'])} before")
        return 0
    print(f"building: {reason}", flush=True)
    environment = {"MAX_JOBS": str(os.cpu_count() or 1), **os.environ}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    if subprocess.run(command, cwd=ROOT, env=environment).returncode:
        print("setup.py build_ext --inplace failed, see above")
        return 1
    manifest = json.loads((PACKAGE / "cuda_manifest.json").read_text())
    if not manifest["cuda"]:
        print(f"the cuda backend is not built: {manifest['reason']}")
        return 1
    files = sorted(f.name for pattern in ("*.so", "*_manifest.json") for f in PACKAGE.glob(pattern))
    STAMP.write_text(json.dumps({"built": want, "files": files}, indent=2) + "\n")
    print(f"built for {', '.join(manifest['architectures'])} with nvcc {manifest['nvcc']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
