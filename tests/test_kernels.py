"""The Triton kernels, run by Triton's interpreter: it must be asked for before Triton is imported,
so the checks themselves are in kernels_interpreter.py, in a process of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_in_the_interpreter() -> None:
    folder = Path(__file__).parent
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "pytest", "-q", "-p", "no:cacheprovider"),
            str(folder / "kernels_interpreter.py"),
        ],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
