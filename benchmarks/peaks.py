"""The machine's own peaks, measured in this process: what percentages in the tables refer to."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import rotate, timings

# What PVP_FAST_ISA allows, for the compiler; all that the processor has without it.
_FLAGS = {"avx2": ["-march=haswell"], "avxvnni": ["-march=haswell", "-mavxvnni"]}
SOURCE = Path(__file__).with_name("peaks.cpp")


@dataclass(frozen=True)
class Peaks:
    """Operations a second for each dtype (None: no such instruction) and bytes a second."""

    float32: float | None
    bfloat16: float | None
    int8: float | None
    bandwidth: float | None

    def best(self, other: Peaks) -> Peaks:
        """Of two measurements: a busy machine only lowers them."""
        mine = (self.float32, self.bfloat16, self.int8, self.bandwidth)
        theirs = (other.float32, other.bfloat16, other.int8, other.bandwidth)
        return Peaks(
            *(None if b is None else max(a or b, b) for a, b in zip(mine, theirs, strict=True))
        )

    def to_dict(self) -> dict[str, float | None]:
        return {
            "float32_gflops": _giga(self.float32),
            "bfloat16_gflops": _giga(self.bfloat16),
            "int8_gops": _giga(self.int8),
            "bandwidth_gb": _giga(self.bandwidth),
        }


def _giga(value: float | None) -> float | None:
    return None if value is None else round(value / 1e9, 1)


def measure_peaks(threads: int, seconds: float = 0.3) -> Peaks:
    """Compile peaks.cpp and run it; all None without g++ or on another kind of processor.

    Of the instruction set that PVP_FAST_ISA names; without one int8's peak is that of AMX, where
    there is AMX. AVX2 has no bfloat16: its peak is float32's.
    """
    compiler = shutil.which("g++")
    if compiler is None or platform.machine() not in ("x86_64", "AMD64"):
        return Peaks(None, None, None, None)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peaks.so"
        flags = [
            "-O3",
            *_FLAGS.get(os.environ.get("PVP_FAST_ISA", ""), ["-march=native"]),
            "-ffast-math",
            "-fopenmp",
            "-shared",
            "-fPIC",
            "-std=c++17",
        ]
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library)], check=True)
        loaded = ctypes.CDLL(str(library))

    def rate(name: str) -> float | None:
        function = getattr(loaded, name)
        function.restype, function.argtypes = ctypes.c_double, [ctypes.c_int, ctypes.c_double]
        return function(threads, seconds) or None

    amx = rate("peak_amxint8") if os.environ.get("PVP_FAST_ISA", "amxint8") == "amxint8" else None
    rates = [rate("peak_float32"), rate("peak_bfloat16"), amx or rate("peak_int8")]
    loaded.bandwidth.restype = ctypes.c_double
    loaded.bandwidth.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    data = np.random.default_rng(0).random(1 << 27, dtype=np.float32)  # 512 MB, beyond any cache
    return Peaks(*rates, loaded.bandwidth(data.ctypes.data, data.size, threads))


def measure_gpu_peaks(device: torch.device, size: int = 8192) -> Peaks:
    """The rate of a large matrix product of random numbers in each dtype, and of a large copy.

    float32 is without TF32 unless the caller has switched it on; the copy's bytes are those read
    plus those written.
    """
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        pairs = [torch.randn(2, size, size, device=device, dtype=dtype) for _ in range(2)]
        call = rotate(lambda pair: pair[0] @ pair[1], pairs)
        times = timings({"product": call}, rounds=5, device=device, least_ms=10.0)
        rates.append(2e3 * size**3 / times["product"].median)
    data = torch.randn(1 << 28, device=device)  # 1 GiB, beyond any cache
    target = torch.empty_like(data)
    times = timings({"copy": lambda: target.copy_(data)}, rounds=5, device=device, least_ms=10.0)
    return Peaks(*rates, None, 2e3 * data.nbytes / times["copy"].median)
