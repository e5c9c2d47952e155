"""How long a command takes that has little to do: a warm ``tag`` of one image, ``--help``.

``python benchmarks/bench_start.py [--rounds 5] [--json FILE]``

Each command is a process of its own, in turn with ``import torch`` alone, which most of a short
command is: whatever the machine, the ratio of the two says what is added. Seconds of the clock mean
something on an idle machine only; those of the processor are given beside them. Medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import table, write_results

from pvp_fast.demo import demo_set

PROGRAM = "from pvp_fast.cli import main; main()"


def once(words: list[str]) -> tuple[float, float]:
    """Seconds of the clock and of the processor of one process."""
    wall, before = time.perf_counter(), os.times()
    subprocess.run(words, check=True, capture_output=True)
    after = os.times()
    cpu = after.children_user - before.children_user
    cpu += after.children_system - before.children_system
    return time.perf_counter() - wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scene = str(demo_set() / "scene_000.jpg")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PROGRAM]
        names = ["--vocabulary", "pocket70", "--model", "pocket", "--cache", folder]
        once([*command, "tag", *names, scene])  # makes the artifact
        (made,) = Path(folder).glob("vocabularies/*/artifact")
        commands = {
            "python": [sys.executable, "-c", "pass"],
            "import torch": [sys.executable, "-c", "import torch"],
            "pvp-fast --help": [*command, "--help"],
            "pvp-fast tag --vocabulary": [*command, "tag", *names, scene],
            "pvp-fast tag ARTIFACT": [*command, "tag", str(made), scene],
        }
        times = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, words in commands.items():
                times[name].append(once(words))
    rows = {
        name: {
            "seconds": round(statistics.median(wall for wall, _ in found), 2),
            "cpu_seconds": round(statistics.median(cpu for _, cpu in found), 2),
        }
        for name, found in times.items()
    }
    shown = [[name, *map(str, row.values())] for name, row in rows.items()]
    print(table(["", "seconds", "of the processor"], shown))
    if options.json:
        write_results(options.json, {"rounds": options.rounds, "commands": rows})


if __name__ == "__main__":
    main()
