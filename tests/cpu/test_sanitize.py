"""An AddressSanitizer and UBSan build of csrc/cpu runs the ops and reports nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "sanitize.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the sanitizers' runtime is preloaded the Linux way")
def test_sanitizers_report_nothing(tmp_path):
    out = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True)
    assert out.returncode == 0, (out.stdout + out.stderr)[-4000:]
