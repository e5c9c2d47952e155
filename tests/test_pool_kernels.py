"""The pooling and InfoNCE kernels, run by Triton's interpreter in a process of their own, as
test_kernels.py runs the others: the checks are in pool_interpreter.py
and infonce_interpreter.py."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("checks", ["pool_interpreter.py", "infonce_interpreter.py"])
def test_kernels_in_the_interpreter(checks: str) -> None:
    folder = Path(__file__).parent
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "pytest", "-q", "-p", "no:cacheprovider"),
            str(folder / checks),
        ],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
