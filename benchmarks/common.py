"""Shared by the benchmarks: fair timing of several contenders in one process."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

Contender = Callable[[], object]


def race(
    contenders: Mapping[str, Contender], *, rounds: int = 7, warmup: int = 2
) -> dict[str, float]:
    """Median milliseconds of each contender over interleaved rounds.

    Every round runs each contender once, starting one further along each time, so that a slow spell
    of the machine or a warm cache left by a neighbour falls on all of them alike.
    """
    names = list(contenders)
    for name in names * warmup:
        contenders[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            contenders[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(values) for name, values in times.items()}


def machine() -> str:
    """One line that says on what the numbers were taken."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            model = next(line.split(":", 1)[1].strip() for line in stream if "model name" in line)
    except (OSError, StopIteration):
        pass
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


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
