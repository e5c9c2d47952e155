"""The Triton kernels, run by Triton's interpreter.

It must be asked for before Triton is imported, so the checks are in the ``*_interpreter.py`` files
beside this one, in a process that all of them share.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
CHECKS = sorted(FOLDER.glob("*_interpreter.py"))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_in_the_interpreter() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *(path.name for path in CHECKS),
        ],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=FOLDER,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
