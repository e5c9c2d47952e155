"""The extension built by itself: its CUDA kernels on a CPU, and what happens without memory.

The emulator (cuda_emulator) checks indices, masks, barriers and tensor-core fragments.
Between barriers one warp runs far ahead of the others, in random order; the lanes of a warp must
meet in the same call; shared memory starts as NaN; asynchronous copies come as late as they may.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"


pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def build_and_run(folder: Path, flags: str, sources: list[Path], *arguments: str) -> str:
    program = folder / "run"
    command = ["g++", "-std=c++17", "-O2", "-w", "-ffp-contract=off", *flags.split(), "-x", "c++"]
    sources = [
        *sources,
        *(CSRC / name for name in ("cpu.cpp", "topk/topk.cpp", "topk/portable.cpp")),
    ]
    subprocess.run([*command, *map(str, sources), "-o", str(program)], check=True)
    result = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_kernels_give_the_answers_of_the_cpu(tmp_path):
    flags = f"-I{CSRC} -I{HERE / 'cuda_emulator'} -fsanitize=undefined"
    flags += " -fsanitize-undefined-trap-on-error"
    source = HERE / "cuda_emulator" / "run.cpp"
    assert build_and_run(tmp_path, flags, [source], "2") == "40 problems agree\n"


def test_running_out_of_memory_is_an_exception_on_every_thread(tmp_path):
    output = build_and_run(tmp_path, f"-fopenmp -I{CSRC}", [HERE / "out_of_memory.cpp"])
    assert "allocations may fail" in output
