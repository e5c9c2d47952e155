"""The InfoNCE kernels, run by Triton's interpreter in a process of their own, as
test_kernels.py runs the others: the checks are in infonce_interpreter.py."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_infonce_kernels_in_the_interpreter() -> None:
    folder = Path(__file__).parent
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "pytest", "-q", "-p", "no:cacheprovider"),
            str(folder / "infonce_interpreter.py"),
        ],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
