"""From a list of names to tags: seconds and peak memory against the number of names.

``python benchmarks/bench_names.py [--model pocket] [--counts 1000 10000] [--learn none text]
[--json FILE]``

Each case is a process of its own with an empty cache: names to an artifact, then one scene of the
demo tagged; the same list with ten names changed; and the artifact loaded again. With any model but
the pocket model, whose weights are random, "open_clip" is its own loop over the same names and
templates (``build_zero_shot_classifier``), in the same process. Names are two-word compounds, all
different. Wall-clock seconds mean something on an idle machine only; seconds of the processor are
given beside them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import write_results

CASE = """
import json, re, sys, time
count, learn, cache, model = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
import torch
from pvp_fast import Backbone, Tagger
from pvp_fast.artifact import Artifact
from pvp_fast.demo import demo_set
from pvp_fast.names import Request, prepare
from pvp_fast.vocabulary.categories import Vocabulary

heads = "lamp boat tree cake shirt tower chair plate glove fence".split()
names = [f"kind{i} {heads[i % 10]}" for i in range(count)]
backbone = Backbone.load(model, None if model == "pocket" else "random")
result = {}

def timed(what, work):
    wall, cpu = time.perf_counter(), time.process_time()
    value = work()
    result[what] = {"seconds": round(time.perf_counter() - wall, 2),
                    "cpu_seconds": round(time.process_time() - cpu, 2)}
    return value

def tagged(names):
    found = prepare(Request(Vocabulary(names), learn), backbone, cache=cache)
    Tagger(found.loaded(), backbone).tag([demo_set() / "scene_000.jpg"])
    return found

first = timed("first", lambda: tagged(names))
if learn == "none" and model != "pocket":
    from functools import partial
    import open_clip
    from pvp_fast.names.zero_shot import TEMPLATES
    ways = [partial(str.format, template) if isinstance(template, str) else template
            for template in TEMPLATES]
    timed("open_clip", lambda: open_clip.build_zero_shot_classifier(
        backbone.model, open_clip.get_tokenizer(model), names, ways, device="cpu"))
if learn == "none":
    timed("ten_changed", lambda: tagged(["new " + name for name in names[:10]] + names[10:]))
timed("load", lambda: Tagger(Artifact.load(first.path), backbone))
result["artifact_mb"] = round(sum(f.stat().st_size for f in first.path.iterdir()) / 1e6, 2)
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())
result["peak_mb"] = int(peak[1]) // 1024
print(json.dumps(result))
"""


def measure(count: int, learn: str, model: str) -> dict[str, object]:
    """One case in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-c", CASE, str(count), learn, cache, model],
            capture_output=True,
            text=True,
            check=True,
        )
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--learn", nargs="+", default=["none", "text"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for learn in options.learn:
        for count in options.counts:
            rows.append({"names": count, "learn": learn, **measure(count, learn, options.model)})
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        write_results(options.json, {"model": options.model, "cases": rows})


if __name__ == "__main__":
    main()
