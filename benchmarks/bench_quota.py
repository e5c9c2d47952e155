"""Tagging in a container with a quota of CPUs, beside as many CPUs of its own.

``python benchmarks/bench_quota.py PHOTOS [--model pocket] [--count 512] [--rounds 5] --json FILE``

A control group is made (version 1 or 2; it takes root) with a quota of one CPU fewer than the
machine has. Every round runs each contender once, in a process of its own that tags the photos
twice and times the second time: on that many CPUs by affinity without a quota; in the group with
all CPUs in sight; and there with a thread a CPU, as who does not look at the quota. Beside the
images/s are CPU seconds, and the share of the group's periods that it was held up in.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from common import table, write_results

ROOT = Path("/sys/fs/cgroup")
PERIOD = 100_000  # microseconds
CASE = """
import json, os, sys, time
from pathlib import Path
group, cpus, threads, model, count, photos = sys.argv[1:]
if group:
    (Path(group) / "cgroup.procs").write_text("0")
else:
    os.sched_setaffinity(0, range(int(cpus)))
from pvp_fast.threads.budget import budget, set_budget, tell_openmp
set_budget(int(threads) or None)
tell_openmp()
import torch
torch.set_num_threads(budget())
from bench_tag import untrained
from pvp_fast import Backbone, Tagger, Vocabulary
from pvp_fast.loaders.sources import find_images
backbone = Backbone.load(model, None if model == "pocket" else "random")
tagger = Tagger(untrained(backbone, Vocabulary.builtin("coco80")), backbone)
files = [str(path) for path in find_images([photos])]
files = (files * -(-int(count) // len(files)))[: int(count)]
tagger.tag(files)

def held_up():
    pairs = (line.split() for line in (Path(group) / "cpu.stat").read_text().splitlines())
    return {name: int(value) for name, value in pairs}

before = held_up() if group else {}
wall, cpu = time.perf_counter(), time.process_time()
tagger.tag(files)
found = {"threads": budget(), "images_per_second": len(files) / (time.perf_counter() - wall),
         "cpu_seconds": time.process_time() - cpu}
if group:
    after = held_up()
    periods = after["nr_periods"] - before["nr_periods"]
    found["held_up"] = (after["nr_throttled"] - before["nr_throttled"]) / max(1, periods)
print(json.dumps(found))
"""


@contextmanager
def group(cpus: int) -> Iterator[Path]:
    """A control group with a quota of so many CPUs."""
    second = (ROOT / "cgroup.controllers").exists()
    folder = (ROOT if second else ROOT / "cpu") / f"pvp-fast-quota-{os.getpid()}"
    if second:
        (ROOT / "cgroup.subtree_control").write_text("+cpu")
    folder.mkdir()
    try:
        if second:
            (folder / "cpu.max").write_text(f"{cpus * PERIOD} {PERIOD}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD))
            (folder / "cpu.cfs_quota_us").write_text(str(cpus * PERIOD))
        yield folder
    finally:
        folder.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    shown = len(os.sched_getaffinity(0))
    cpus = max(1, shown - 1)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "PVP_FAST_T"))}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    runs: dict[str, list[dict[str, float]]] = {}
    with group(cpus) as folder:
        contenders = {
            "CPUs by affinity": ["", "0"],
            "quota": [str(folder), "0"],
            "quota, a thread a CPU": [str(folder), str(shown)],
        }
        for turn in range(options.rounds):
            for name in random.Random(turn).sample(list(contenders), len(contenders)):
                where, threads = contenders[name]
                words = [where, str(cpus), threads, options.model, str(options.count)]
                line = [sys.executable, "-c", CASE, *words, str(options.photos)]
                done = subprocess.run(
                    line, check=True, capture_output=True, text=True, env=environment
                )
                runs.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
    record = {
        name: {key: median(run[key] for run in found) for key in found[0]}
        for name, found in runs.items()
    }
    cells = [
        [name, *(f"{found[key]:.3f}" if key in found else "" for key in record["quota"])]
        for name, found in record.items()
    ]
    print(table([f"{cpus} of {shown} CPUs", *record["quota"]], cells))
    if options.json:
        about = {"model": options.model, "photos": options.count, "cpus": cpus, "of": shown}
        write_results(options.json, {**about, "contenders": record})


if __name__ == "__main__":
    main()
