"""What a plan says against what then happens: seconds of the processor and peak memory.

``python benchmarks/bench_plans.py [--counts 20 200 2000] [--learn none text full] [--json FILE]``

Each case is a process of its own with an empty cache and the pocket model; its plan is made from
unit costs measured in seconds of the processor, as a shared machine's clock would count others'
work. Of "full" no stage runs more than 200 steps, in the plan as in the run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import write_results

CASE = """
import dataclasses, json, re, sys, time, types
learn, count, cache = sys.argv[1], int(sys.argv[2]), sys.argv[3]
from pvp_fast import Backbone, Vocabulary
from pvp_fast.names import Request, learn as learning, plan as planning, prepare

planning.time = types.SimpleNamespace(perf_counter=time.process_time)
whole = learning._config

def capped(*given):
    config = whole(*given)
    for name in ("visual", "text", "adapter") if learn == "full" and given[1] == "full" else ():
        section = getattr(config, name)
        loop = dataclasses.replace(section.loop, steps=min(200, section.loop.steps))
        config = dataclasses.replace(config, **{name: dataclasses.replace(section, loop=loop)})
    return config

learning._config = capped
heads = "lamp boat tree cake shirt tower chair plate glove fence".split()
backbone = Backbone.load("pocket")
request = Request(Vocabulary([f"kind{i} {heads[i % 10]}" for i in range(count)]), learn)
plan = prepare(request, backbone, cache=cache, dry_run=True).plan
start = time.process_time()
prepare(request, backbone, cache=cache)
took = time.process_time() - start
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10
print(json.dumps({
    "planned_seconds": round(plan.seconds, 1), "cpu_seconds": round(took, 1),
    "planned_mb": plan.memory >> 20, "peak_mb": peak,
    "stages": {name: round(seconds, 2) for name, seconds in plan.stages},
}))
"""


def measure(learn: str, count: int) -> dict[str, Any]:
    """One case, with the plan's share of what happened."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-c", CASE, learn, str(count), cache],
            capture_output=True,
            text=True,
            check=True,
        )
    case: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    ratios = {
        "seconds_ratio": round(case["planned_seconds"] / case["cpu_seconds"], 2),
        "memory_ratio": round(case["planned_mb"] / case["peak_mb"], 2),
    }
    return {"names": count, "learn": learn, **ratios, **case}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[20, 200, 2000])
    parser.add_argument("--learn", nargs="+", default=["none", "text", "full"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for learn in options.learn:
        for count in options.counts:
            rows.append(measure(learn, count))
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        write_results(options.json, {"model": "pocket", "cases": rows})


if __name__ == "__main__":
    main()
