"""The HTTP service under load, every answer checked; then killed and restarted under it.

``python benchmarks/soak_serve.py [--seconds 60] [--clients 64] [--json FILE]``. One client in ten
sends what is no image, or no request that can be answered. First the service stays up: answers,
milliseconds, and the memory of its process as it goes on, once ``--warm`` images were tagged: until
batches of every size have been seen, PyTorch and the allocator keep more each time. Then it has a
queue of 16 images, is killed with SIGKILL in the middle and started again on the same port. An
answer that is missing, another image's or of a status that nobody should see ends the run. Clients
share the machine's cores with the service, so the times are overstated.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench_serve import HEADERS, PATH, free_port, make_artifact, service
from common import write_results

from pvp_fast import Tagger
from pvp_fast.demo import demo_set
from pvp_fast.loaders.sources import find_images

BAD = 0.1  # of the requests
# Body, content type, status, and whether the answer tells of an image that cannot be read.
WRONG: tuple[tuple[bytes, str, int, bool], ...] = (
    (b"no image at all", "image/jpeg", 200, True),
    (b"", "image/jpeg", 200, True),
    (b"{", "application/json", 400, False),
    (b"x", "text/plain", 415, False),
)


@dataclass
class Load:
    """Clients that ask until they are told to stop.

    Attributes:
        counts: requests by outcome. times: milliseconds of tagged images. faults: what must not be.
    """

    port: int
    images: Sequence[bytes]
    right: Sequence[dict[str, float]]
    down: bool = False  # whether connections may break
    stop: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self, seed: int) -> None:
        draw = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        while not self.stop:
            bad = draw.random() < BAD
            number = draw.randrange(len(WRONG if bad else self.images))
            start = time.perf_counter()
            try:
                outcome = self.bad(connection, number) if bad else self.good(connection, number)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                outcome = "broken connections"
                if not self.down:
                    self.faults.append(repr(error))
                time.sleep(0.05)
            with self.lock:
                self.counts[outcome] += 1
                if outcome == "tagged":
                    self.times.append(1e3 * (time.perf_counter() - start))
            if outcome == "503":
                time.sleep(0.2)

    def good(self, connection: http.client.HTTPConnection, number: int) -> str:
        connection.request("POST", PATH, self.images[number], HEADERS)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == 503:
            return "503"
        found = json.loads(body)["results"][0]["tags"] if answer.status == 200 else ()
        scores = {tag["name"]: tag["score"] for tag in found}
        if not all(abs(scores.get(k, 9) - v) < 2e-4 for k, v in self.right[number].items()):
            self.faults.append(f"image {number}: {answer.status} {body[:300]!r}")
        return "tagged"

    def bad(self, connection: http.client.HTTPConnection, number: int) -> str:
        body, kind, status, unreadable = WRONG[number]
        connection.request("POST", PATH, body, {"Content-Type": kind})
        answer = connection.getresponse()
        read = json.loads(answer.read())
        if answer.status == 503:
            return "503"
        if answer.status != status or (unreadable and not read["results"][0]["error"]):
            self.faults.append(f"bad request {number}: {answer.status} {read}")
        return "refused"


def run(load: Load, clients: int, work: Callable[[], None]) -> None:
    """Keep clients asking while ``work`` goes on."""
    threads = [threading.Thread(target=load.client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    try:
        work()
    finally:
        load.stop = True
        for thread in threads:
            thread.join()
    if load.faults:
        raise SystemExit(f"{len(load.faults)} faults: {load.faults[:2]}")


def resident(pid: int) -> float:
    """MiB of a process in memory, those of its threads included."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--warm", type=int, default=6000, help="images tagged before it counts")
    options = parser.parse_args()
    others = os.getloadavg()[0]  # processes that want to run, before any of these
    images = [path.read_bytes() for path in find_images([demo_set()])][:150]
    port = free_port()
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        artifact = make_artifact(Path(name))
        right = [
            {tag.name: tag.score for tag in result.tags}
            for result in Tagger.load(artifact).tag(images, threshold=0.0)
        ]
        with service(artifact, port, 256) as process:

            def watch() -> None:
                for _ in range(12):
                    time.sleep(options.seconds / 12)
                    memory.append(resident(process.pid))

            cold = resident(process.pid)
            warm = Load(port, images, right)

            def warmed() -> None:
                while warm.counts["tagged"] < options.warm and not warm.faults:
                    time.sleep(0.05)

            run(warm, options.clients, warmed)
            load = Load(port, images, right)
            start = time.perf_counter()
            run(load, options.clients, watch)
            seconds = time.perf_counter() - start

        restarted = Load(port, images, right, down=True)

        def kill() -> None:
            with service(artifact, port, 16) as process:
                time.sleep(options.seconds / 6)
                os.kill(process.pid, signal.SIGKILL)
            before = restarted.counts["tagged"]
            with service(artifact, port, 16):
                while restarted.counts["tagged"] < before + 200 and not restarted.faults:
                    time.sleep(0.05)

        run(restarted, options.clients, kill)
    row: dict[str, Any] = {
        "clients": options.clients,
        "seconds": seconds,
        "requests": sum(load.counts.values()),
        **{outcome: load.counts[outcome] for outcome in ("tagged", "refused", "503")},
        "images_per_second": load.counts["tagged"] / seconds,
        "p50_ms": float(np.percentile(load.times, 50)),
        "p99_ms": float(np.percentile(load.times, 99)),
        "memory_mib": [round(value, 1) for value in memory],
        "memory_mib_before_the_first_request": round(cold, 1),
        "memory_spread": (max(memory) - min(memory)) / min(memory),
    }
    print(json.dumps(row, indent=1))
    print("killed and restarted, a queue of 16:", dict(restarted.counts))
    if options.json:
        found = {"soak": row, "killed_and_restarted": dict(restarted.counts), "load": others}
        write_results(options.json, found)


if __name__ == "__main__":
    main()
