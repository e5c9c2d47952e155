"""The CUDA kernels on a CPU (tests/cuda_emulator): indices, masks, barriers, tensor-core fragments.

Between barriers one warp runs far ahead of the others, in random order; the lanes of a warp must
meet in the same call; shared memory starts as NaN; asynchronous copies come as late as they may.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
CSRC = TESTS.parent / "csrc"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_kernels_give_the_answers_of_the_cpu(tmp_path):
    program = tmp_path / "run"
    flags = "-std=c++17 -O2 -w -ffp-contract=off"
    flags += " -fsanitize=undefined -fsanitize-undefined-trap-on-error"
    sources = [TESTS / "cuda_emulator" / "run.cpp", CSRC / "topk_cpu.cpp"]
    command = [
        "g++",
        *flags.split(),
        f"-I{TESTS / 'cuda_emulator'}",
        "-x",
        "c++",
        *map(str, sources),
    ]
    subprocess.run([*command, str(CSRC / "topk_cpu_portable.cpp"), "-o", str(program)], check=True)
    result = subprocess.run([program, "2"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "40 problems agree\n"
