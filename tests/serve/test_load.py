"""The service under more clients than it takes, one request in ten bad; killed and restarted.

A short form of ``benchmarks/soak_serve.py``, whose clients these are: they check every answer; and
of ``benchmarks/overload_serve.py``, whose client is wrk.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.waiting import until

from pvp_fast import Tagger
from pvp_fast.demo import demo_set

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from support.service import expected, get, serving

CLIENTS, QUEUE = 64, 8
FOLDER = Path(__file__).parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    """A module of the benchmarks, which find each other on the path."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.modules[name] = module  # a dataclass looks for its module there
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
        del sys.modules[name]
    return module


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    return script("soak_serve")


@pytest.fixture(scope="module")
def asked(tagger: Tagger) -> tuple[list[bytes], list[dict[str, float]]]:
    images = [path.read_bytes() for path in sorted(demo_set().glob("*.jpg"))[:12]]
    return images, [expected(tagger, image, threshold=0.0) for image in images]


def test_a_bounded_queue_sheds_the_rest_and_loses_nothing(
    tagger: Tagger, soak: ModuleType, asked: tuple[list[bytes], list[dict[str, float]]]
) -> None:
    with serving(tagger, queue=QUEUE, max_images=QUEUE) as server:
        load = soak.Load(server.socket.getsockname()[1], *asked)
        waiting = []

        def enough() -> bool:
            waiting.append(get(f"{server.url}/healthz").json()["waiting"])
            return load.faults or (
                load.counts["tagged"] >= 300 and load.counts["refused"] >= 30 and load.counts["503"]
            )

        soak.run(load, CLIENTS, lambda: until(lambda: bool(enough())))
        assert max(waiting) <= QUEUE
        until(lambda: get(f"{server.url}/healthz").json()["waiting"] == 0)
        metrics = get(f"{server.url}/metrics").text
    assert load.counts["broken connections"] == 0
    counted = re.findall(r'pvp_fast_requests_total\{status="(\d+)"\} (\S+)', metrics)
    assert sum(float(number) for _, number in counted) == sum(load.counts.values())
    assert {status for status, _ in counted} == {"200", "400", "415", "503"}
    assert float(dict(counted)["503"]) == load.counts["503"]


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk")
def test_wrk_is_answered_200_or_503_and_the_queue_stays_bounded(
    tagger: Tagger, asked: tuple[list[bytes], list[dict[str, float]]]
) -> None:
    overload = script("overload_serve").overload
    for seconds in (1, 4, 16, 64):  # until a busy machine has answered in them
        with serving(tagger, queue=QUEUE, max_images=QUEUE) as server:
            port = server.socket.getsockname()[1]
            found = overload(os.getpid(), port, asked[0], CLIENTS, seconds, QUEUE)
            metrics = get(f"{server.url}/metrics").text
        if found["tagged"] and found["503"]:
            break
    counted = dict(re.findall(r'pvp_fast_requests_total\{status="(\d+)"\} (\S+)', metrics))
    # wrk drops what it waits for when its time is up.
    assert 0 < found["tagged"] <= float(counted["200"]) <= found["tagged"] + CLIENTS
    assert 0 < found["503"] <= float(counted["503"]) <= found["503"] + CLIENTS


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_and_restarted_under_load(
    artifact: Path, soak: ModuleType, asked: tuple[list[bytes], list[dict[str, float]]]
) -> None:
    """Clients see right answers, 503 and broken connections, and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    load = soak.Load(port, *asked, down=True)

    def kill() -> None:
        with soak.service(artifact, port, QUEUE) as process:
            until(lambda: bool(load.faults) or load.counts["tagged"] >= 30)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        before = load.counts["tagged"]
        with soak.service(artifact, port, QUEUE):
            until(lambda: bool(load.faults) or load.counts["tagged"] >= before + 30)

    soak.run(load, 16, kill)
    assert load.counts["broken connections"] > 0
    assert set(load.counts) <= {"tagged", "refused", "503", "broken connections"}
