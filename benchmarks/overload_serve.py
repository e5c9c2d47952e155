"""The HTTP service under wrk, with more connections than its queue takes: the rest is shed.

``python benchmarks/overload_serve.py [--seconds 60] [--connections 64] [--queue 16]``. wrk asks
again at once after a 503, so that the load never ends; it counts answers by status. While it does,
the service says how many images wait and its memory is read; then it must tag every image as the
library does. An answer of another status than 200 and 503, a broken connection or more images
waiting than the queue takes ends the run. The first ``--warm`` seconds do not count: until batches
of every size have been seen, PyTorch and the allocator keep more each time. wrk shares the
machine's cores with the service.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench_serve import PATH, ask, free_port, make_artifact, service
from common import write_results
from soak_serve import resident

from pvp_fast import Tagger
from pvp_fast.demo import demo_set
from pvp_fast.loaders.sources import find_images

# Images in turn; at the end a line of JSON: answers by status, broken connections, milliseconds.
SCRIPT = """\
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(paths)
  counts, turn, requests = {}, 0, {}
  for _, path in ipairs(paths) do
    local file = io.open(path, "rb")
    local body = file:read("*a")
    file:close()
    requests[#requests + 1] = wrk.format("POST", nil, {["Content-Type"] = "image/jpeg"}, body)
  end
end
function request()
  turn = turn % #requests + 1
  return requests[turn]
end
function response(status) counts[status] = (counts[status] or 0) + 1 end
function done(summary, latency)
  local all, parts = {}, {}
  for _, thread in ipairs(threads) do
    for status, count in pairs(thread:get("counts")) do all[status] = (all[status] or 0) + count end
  end
  for status, count in pairs(all) do
    parts[#parts + 1] = string.format('"%d": %d', status, count)
  end
  local errors = summary.errors
  print(string.format('{"counts": {%s}, "broken": %d, "p50_ms": %.3f, "p99_ms": %.3f}',
    table.concat(parts, ", "), errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


def wrk(
    port: int, images: Sequence[bytes], connections: int, seconds: float, folder: Path
) -> subprocess.Popen[str]:
    """wrk, started; its last line is SCRIPT's."""
    paths = [folder / str(number) for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(image)
    script = folder / "overload.lua"
    script.write_text(SCRIPT, encoding="utf-8")
    line = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    line += ["-s", str(script), f"http://127.0.0.1:{port}{PATH}", *map(str, paths)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True)


def images_waiting(port: int) -> int:
    """Images that the service has accepted and not answered."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60) as answer:
        return int(json.load(answer)["waiting"])


def overload(
    process: int, port: int, images: Sequence[bytes], connections: int, seconds: float, queue: int
) -> dict[str, Any]:
    """What wrk counted, and what the service's process held meanwhile."""
    memory: list[float] = []
    waiting: list[int] = []
    with tempfile.TemporaryDirectory() as name:
        client = wrk(port, images, connections, seconds, Path(name))
        while client.poll() is None:
            time.sleep(seconds / 24)
            waiting.append(images_waiting(port))
            memory.append(resident(process))
        assert client.stdout is not None
        text = client.stdout.read()
    while images_waiting(port):  # of connections that wrk closed at its end
        time.sleep(0.05)
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    counts = found.pop("counts")
    if found["broken"] or not set(counts) <= {"200", "503"} or max(waiting) > queue:
        raise SystemExit(f"{counts}, at most {max(waiting)} waiting: {text}")
    return {
        "connections": connections,
        "queue": queue,
        "seconds": seconds,
        "tagged": counts.get("200", 0),
        "503": counts.get("503", 0),
        **found,
        "most_waiting": max(waiting),
        "memory_mib": [round(value, 1) for value in memory],
        "memory_spread": (max(memory) - min(memory)) / min(memory),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--queue", type=int, default=16)
    parser.add_argument("--warm", type=float, default=30, help="seconds of it before it counts")
    options = parser.parse_args()
    others = os.getloadavg()[0]  # processes that want to run, before any of these
    images = [path.read_bytes() for path in find_images([demo_set()])][:150]
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        artifact = make_artifact(Path(name))
        right = [
            {tag.name: tag.score for tag in result.tags}
            for result in Tagger.load(artifact).tag(images, threshold=0.0)
        ]
        with service(artifact, port, options.queue) as process:
            of_service = (process.pid, port, images, options.connections)
            overload(*of_service, options.warm, options.queue)
            row = overload(*of_service, options.seconds, options.queue)
            ask(port, images, right, 4, len(images))  # ends the run on a wrong answer
    print(json.dumps(row, indent=1))
    if options.json:
        write_results(options.json, {"overload": row, "load": others})


if __name__ == "__main__":
    main()
