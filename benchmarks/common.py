"""Shared by the benchmarks: fair timing of several contenders in one process."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pvp_fast.files import atomic_write

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


def write_results(path: Path, record: Mapping[str, Any]) -> None:
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
        "device": machine(),
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
