"""The HTTP service against the library call it wraps.

``python benchmarks/bench_serve.py [PHOTOS] [--json FILE]``. The library tags the encoded images as
one list; the service (a process of its own, on loopback, as ``pvp-fast serve`` starts it) gets the
same images one a request from 1, 4 and 16 clients that keep their connections. Every answer is
compared with the library's for that image: one that is missing or another's ends the benchmark.
Clients share the machine's cores with the service, so what it costs is overstated. Library and
service take turns. Where wrk is installed, its figures are added; it does not look at answers.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import table, write_results

from pvp_fast import Tagger
from pvp_fast.cli import run
from pvp_fast.demo import demo_set
from pvp_fast.loaders.sources import find_images

CLIENTS = (1, 4, 16)
PATH, HEADERS = "/tag?top_k=5&threshold=0", {"Content-Type": "image/jpeg"}


def make_artifact(folder: Path) -> Path:
    """A vocabulary on the pocket model; how well it tags does not matter here."""
    line = ["train", "--vocabulary", "coco80", "--grammar", "400", "--steps", "2", "--quiet"]
    if run([*line, "--out", str(folder / "run")]) != 0:
        raise SystemExit("the artifact could not be trained")
    return folder / "run" / "artifact"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@contextlib.contextmanager
def service(artifact: Path, port: int, queue: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that answers on ``port``; killed at the end."""
    code = "from pvp_fast.cli import main; main()"
    line = [sys.executable, "-c", code, "serve", str(artifact), "--port", str(port)]
    # The installed package and not the checkout, which holds no extension (from Python 3.11 on).
    away = {**os.environ, "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen([*line, "--queue", str(queue)], stderr=subprocess.DEVNULL, env=away)
    try:
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/healthz")
                if connection.getresponse().status == 200:
                    break
            if process.poll() is not None:
                raise SystemExit("the service ended")
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def ask(port: int, images: Sequence[bytes], right: Sequence[dict[str, float]], clients: int,
        count: int) -> tuple[float, list[float]]:  # fmt: skip
    """Images/s, and the milliseconds of each request; every answer is checked."""
    turn, lock = iter(islice(cycle(range(len(images))), count)), threading.Lock()
    times: list[float] = []
    faults: list[str] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        while not faults:
            with lock:
                number = next(turn, None)
            if number is None:
                return
            start = time.perf_counter()
            connection.request("POST", PATH, images[number], HEADERS)
            answer = connection.getresponse()
            body = answer.read()
            times.append(1e3 * (time.perf_counter() - start))
            found = json.loads(body)["results"][0] if answer.status == 200 else {"tags": []}
            scores = {tag["name"]: tag["score"] for tag in found["tags"]}
            close = (abs(scores.get(k, 9) - v) < 2e-4 for k, v in right[number].items())
            if not all(close):
                faults.append(f"image {number}: {answer.status} {body[:300]!r}")

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if faults or len(times) != count:
        raise SystemExit(f"{len(times)} of {count} answers; {faults[:1]}")
    return count / seconds, times


def wrk(port: int, image: bytes, connections: int, folder: Path) -> dict[str, float] | None:
    """Requests/s and milliseconds by wrk, or None where it is not installed."""
    if shutil.which("wrk") is None:
        return None
    (folder / "image").write_bytes(image)
    script = folder / "post.lua"
    script.write_text(
        f'local f = io.open("{folder / "image"}", "rb")\n'
        'wrk.method, wrk.body = "POST", f:read("*a")\n'
        'wrk.headers["Content-Type"] = "image/jpeg"\n',
        encoding="utf-8",
    )
    url = f"http://127.0.0.1:{port}{PATH}"
    line = ["wrk", "-t1", f"-c{connections}", "-d5s", "--latency", "-s", str(script), url]
    text = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(text)
    unit = {"us": 1e-3, "ms": 1.0, "s": 1e3}

    def percentile(percent: str) -> float:
        value, of = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
        return float(value) * unit[of]

    speed = float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1))  # type: ignore[union-attr]
    return {"images_per_second": speed, "p50_ms": percentile("50"), "p99_ms": percentile("99")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="?", type=Path, default=demo_set())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--images", type=int, default=300, help="images a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    images = [path.read_bytes() for path in find_images([options.photos])][:150]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact = make_artifact(folder)
        tagger = Tagger.load(artifact)
        listed = list(islice(cycle(images), options.images))
        right = [
            {tag.name: tag.score for tag in result.tags}
            for result in tagger.tag(images, threshold=0.0)
        ]
        library: list[float] = []
        single: list[float] = []
        speeds: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
        times: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
        port = free_port()
        with service(artifact, port, 1024):
            ask(port, images, right, 4, len(images))
            for _ in range(options.rounds):
                start = time.perf_counter()
                tagger.tag(listed, threshold=0.0)
                library.append(len(listed) / (time.perf_counter() - start))
                for image in listed[:50]:
                    start = time.perf_counter()
                    tagger.tag(image, threshold=0.0)
                    single.append(1e3 * (time.perf_counter() - start))
                for clients in CLIENTS:
                    speed, found = ask(port, images, right, clients, options.images)
                    speeds[clients].append(speed)
                    times[clients] += found
            by_wrk = {clients: wrk(port, images[0], clients, folder) for clients in CLIENTS}
    rows = [
        {
            "way": "Tagger.tag, one list",
            "images_per_second": float(np.median(library)),
        },
        {
            "way": "Tagger.tag, one image a call",
            "images_per_second": 1e3 / float(np.mean(single)),
            "p50_ms": float(np.percentile(single, 50)),
            "p99_ms": float(np.percentile(single, 99)),
        },
    ]
    for clients in CLIENTS:
        rows.append(
            {
                "way": f"service, {clients} clients, every answer checked",
                "images_per_second": float(np.median(speeds[clients])),
                "p50_ms": float(np.percentile(times[clients], 50)),
                "p99_ms": float(np.percentile(times[clients], 99)),
            }
        )
        measured = by_wrk[clients]
        if measured is not None:
            rows.append({"way": f"service, {clients} connections of wrk", **measured})
    shown = [
        [row["way"], f"{row['images_per_second']:.0f}",
         *(f"{row[k]:.1f}" if k in row else "" for k in ("p50_ms", "p99_ms"))]
        for row in rows
    ]  # fmt: skip
    print(table(["", "images/s", "p50 ms", "p99 ms"], shown))
    if options.json:
        requests = options.rounds * options.images * len(CLIENTS)
        write_results(options.json, {"images": len(images), "checked": requests, "rows": rows})


if __name__ == "__main__":
    main()
