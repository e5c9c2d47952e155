"""Shared by the benchmarks: fair timing of several contenders in one process, and their memory."""

from __future__ import annotations

import json
import math
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from pvp_fast.files import atomic_write

# What holds a library to an instruction set.
LIMITS = (
    "PVP_FAST_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "DNNL_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE", "FAISS_SIMD_LEVEL",
)  # fmt: skip
Contender = Callable[[], object]
Clock = Callable[[], float]  # seconds
T = TypeVar("T")


class Timing(NamedTuple):
    """Milliseconds of one call: the median of the rounds, and what 20 % and 80 % stay under."""

    median: float
    p20: float
    p80: float


def limits() -> dict[str, str]:
    """Those of ``LIMITS`` that are set, for the record."""
    return {name: os.environ[name] for name in LIMITS if name in os.environ}


def rotate(call: Callable[[T], object], inputs: Iterable[T]) -> Contender:
    """The call over several inputs in turn, so that none stays in a cache between two calls."""
    turn = cycle(inputs)
    return lambda: call(next(turn))


def _clock(
    call: Contender, calls: int, device: torch.device, clock: Clock = time.perf_counter
) -> float:
    """Milliseconds of one call, the mean of ``calls`` in a row."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / calls
    begin = clock()
    for _ in range(calls):
        call()
    return 1e3 * (clock() - begin) / calls


def timings(
    contenders: Mapping[str, Contender],
    *,
    rounds: int = 7,
    warmup: int = 2,
    device: str | torch.device = "cpu",
    least_ms: float = 0.0,
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Times of each contender over interleaved rounds.

    Every round runs each contender in an order of its own, so that a slow spell of the machine and
    what a neighbour leaves (warm caches, threads that still spin) fall on all alike. A contender
    is called as often in a row as it takes to fill ``least_ms``, 100 times at most. On a CUDA
    device the times are those between two events, with nothing else running; on a CPU those of
    ``clock``.
    """
    device = torch.device(device)
    names = list(contenders)
    calls = {}
    for name in names:
        for _ in range(warmup):
            contenders[name]()
        once = _clock(contenders[name], 1, device, clock) if least_ms else math.inf
        calls[name] = max(1, min(100, math.ceil(least_ms / max(once, 1e-3))))
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in random.Random(turn).sample(names, len(names)):
            times[name].append(_clock(contenders[name], calls[name], device, clock))
    return {
        name: Timing(*(float(np.percentile(values, q)) for q in (50, 20, 80)))
        for name, values in times.items()
    }


def race(
    contenders: Mapping[str, Contender],
    *,
    rounds: int = 7,
    warmup: int = 2,
    least_ms: float = 0.0,
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds of each contender on the CPU, see :func:`timings`."""
    times = timings(contenders, rounds=rounds, warmup=warmup, least_ms=least_ms, clock=clock)
    return {name: timing.median for name, timing in times.items()}


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what native code writes to stderr, where the profiler announces its start and end."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def peak_memory(call: Contender, device: str | torch.device = "cpu") -> int:
    """Bytes that one call holds at its peak, beyond what was there before: results and scratch.

    Counted in PyTorch's allocator of the device; what a library takes elsewhere is not seen.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        _silent_stderr(),
        torch.profiler.profile(activities=activities, profile_memory=True) as profile,
    ):
        call()
    # The profiler's own summaries sum allocations up; the order of the events gives the peak.
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def machine(device: str | torch.device = "cpu") -> str:
    """One line that says on what the numbers were taken."""
    if torch.device(device).type == "cuda":
        import triton

        name = torch.cuda.get_device_name(device)
        return f"{name}, torch {torch.__version__}, triton {triton.__version__}"
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            model = next(line.split(":", 1)[1].strip() for line in stream if "model name" in line)
    except (OSError, StopIteration):
        pass
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def write_results(
    path: Path, record: Mapping[str, Any], device: str | torch.device = "cpu"
) -> None:
    """Write a record as JSON, with the command, the commit and the machine that made it."""
    root = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    # A script of this folder and its options; the paths of inputs and outputs are the user's own.
    script = Path(sys.argv[0]).name
    options = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    header = {
        "command": " ".join(["python", f"benchmarks/{script}", *options]),
        "commit": commit,
        "device": machine(device),
    }
    with atomic_write(path, "w") as stream:
        json.dump({**header, **record}, stream, indent=1)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with padded columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| "
        + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )
