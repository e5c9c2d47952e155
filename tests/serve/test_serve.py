"""The HTTP service, by a real server on loopback."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from pvp_fast import Tagger
from pvp_fast.cli import run
from pvp_fast.demo import demo_set
from pvp_fast.errors import InputError

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

import uvicorn

from pvp_fast.pictures import PictureSettings
from pvp_fast.serve import ServeConfig, create_app
from pvp_fast.serve.batching import Batcher, QueueFull


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    words = "dog\ncat\ncar\ntree\nhouse\nbird\n"
    (folder / "words.txt").write_text(words, encoding="utf-8")
    line = ["train", "--vocabulary", str(folder / "words.txt"), "--grammar", "40", "--quiet"]
    assert run([*line, "--steps", "2", "--out", str(folder / "run")]) == 0
    return folder / "run" / "artifact"


@pytest.fixture(scope="module")
def tagger(artifact: Path) -> Tagger:
    return Tagger.load(artifact)


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(demo_set().glob("*.jpg"))[:24]}


class Server(uvicorn.Server):
    """uvicorn on a free port, in a thread."""

    def __init__(self, tagger: Tagger, config: ServeConfig) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        app = create_app(tagger, config)
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=20))
        self.thread = threading.Thread(target=self.run, args=([self.socket],))

    def install_signal_handlers(self) -> None:
        """Signals belong to pytest."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def serving(tagger: Tagger, **options: object) -> Iterator[Server]:
    server = Server(tagger, ServeConfig(**options))
    server.thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.started
        yield server
    finally:
        server.should_exit = True
        server.thread.join(30)
        server.socket.close()
    assert not server.thread.is_alive()


@pytest.fixture(scope="module")
def server(tagger: Tagger) -> Iterator[Server]:
    with serving(tagger, max_batch=8, max_wait_ms=5) as running:
        yield running


def expected(tagger: Tagger, data: bytes, **options: object) -> dict[str, float]:
    (result,) = tagger.tag([data], **options)
    return {tag.name: tag.score for tag in result.tags}


def check(found: dict, right: dict[str, float]) -> None:
    """Batches differ in size, so scores may differ in their last bits."""
    assert found["error"] is None
    scores = {tag["name"]: tag["score"] for tag in found["tags"]}
    assert scores.keys() == right.keys()
    for name, score in scores.items():
        assert score == pytest.approx(right[name], abs=2e-4)


def test_every_form_of_request(server: Server, tagger: Tagger, photos: dict[str, bytes]) -> None:
    name, data = next(iter(photos.items()))
    right = expected(tagger, data, threshold=0.0, top_k=3)
    where = {"url": f"{server.url}/tag", "params": {"top_k": 3, "threshold": 0.0}}
    coded = base64.b64encode(data).decode()
    answers = [
        httpx.post(**where, files=[("images", (name, data)), ("images", ("b", data))]),
        httpx.post(**where, json={"images": [{"image": name, "data": coded}, {"data": coded}]}),
        httpx.post(**where, json={"images": [{"key": name, "data": coded}]}),  # its old name
        httpx.post(**where, content=data, headers={"content-type": "image/jpeg"}),
    ]
    for answer, names in zip(answers, ([name, "b"], [name, "1"], [name], ["0"]), strict=True):
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["artifact"] == tagger.artifact.version
        assert [result["image"] for result in body["results"]] == names
        for result in body["results"]:
            check(result, right)


def test_own_thresholds_and_limits_of_each_request_in_one_batch(
    server: Server, tagger: Tagger, photos: dict[str, bytes]
) -> None:
    data = list(photos.values())[:4]
    options: list[dict] = [{}, {"top_k": 1, "threshold": 0.0}, {"threshold": 0.5}, {"top_k": 6}]
    right = [expected(tagger, d, **{"top_k": 5, **o}) for d, o in zip(data, options, strict=True)]

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url) as client:
            head = {"content-type": "image/jpeg"}
            calls = (
                client.post("/tag", params=o, content=d, headers=head)
                for d, o in zip(data, options, strict=True)
            )
            return await asyncio.gather(*calls)

    for answer, wanted in zip(asyncio.run(ask()), right, strict=True):
        check(answer.json()["results"][0], wanted)


def test_no_answer_is_lost_or_mixed_up(
    server: Server, tagger: Tagger, photos: dict[str, bytes]
) -> None:
    right = {n: expected(tagger, d, threshold=0.0, top_k=6) for n, d in photos.items()}
    names = list(photos) * 12

    def ask(name: str) -> None:
        answer = httpx.post(
            f"{server.url}/tag",
            params={"top_k": 6, "threshold": 0.0},
            files=[("images", (name, photos[name]))],
            timeout=60,
        )
        (result,) = answer.json()["results"]
        assert result["image"] == name
        check(result, right[name])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, names))
    text = httpx.get(f"{server.url}/metrics").text
    batches = float(text.split("pvp_fast_batch_images_count ")[1].split()[0])
    images = float(text.split("pvp_fast_batch_images_sum ")[1].split()[0])
    assert images >= len(names)
    assert images / batches > 1.2  # they did share batches
    assert "pvp_fast_images_waiting 0.0" in text


def test_a_bad_image_harms_no_other(
    server: Server, tagger: Tagger, photos: dict[str, bytes]
) -> None:
    data = next(iter(photos.values()))
    files = [
        ("images", (n, d)) for n, d in (("a", data), ("b", b""), ("c", data[:200]), ("d", data))
    ]
    answer = httpx.post(f"{server.url}/tag", files=files, params={"threshold": 0.0})
    results = answer.json()["results"]
    assert answer.status_code == 200
    assert [result["error"] is None for result in results] == [True, False, False, True]
    assert results[0]["tags"] == results[3]["tags"]
    assert not results[1]["tags"]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415),
        ({"content": b"x"}, 415),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ({"json": {}}, 400),
        ({"json": []}, 400),
        ({"json": {"images": []}}, 400),
        ({"json": {"images": ["AAAA"]}}, 400),
        ({"json": {"images": [{"data": "no base64!"}]}}, 400),
        ({"json": {"images": [{"data": "AAAA", "image": 3}]}}, 400),
        ({"json": {"images": [{"data": "AAAA", "key": 3}]}}, 400),
        ({"json": {"images": [{"data": ""}] * 65}}, 400),
        ({"files": [("pictures", ("a", b"x"))]}, 400),
        ({"files": [("images", ("a", b"x"))] * 65}, 400),
        ({"data": {"images": "no file"}}, 415),
        ({"json": {"images": [{"data": ""}]}, "params": {"top_k": 0}}, 422),
        ({"json": {"images": [{"data": ""}]}, "params": {"threshold": "nan"}}, 422),
        ({"content": b"--x\r\nbroken", "headers": {"content-type": "multipart/form-data"}}, 400),
    ],
)
def test_wrong_requests(server: Server, request_: dict, status: int) -> None:
    answer = httpx.post(f"{server.url}/tag", **request_)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]


def test_health_and_documentation(server: Server) -> None:
    health = httpx.get(f"{server.url}/healthz").json()
    assert (health["status"], health["categories"]) == ("ok", 6)
    schema = httpx.get(f"{server.url}/openapi.json").json()
    assert set(schema["paths"]) == {"/tag", "/healthz", "/metrics"}
    content = schema["paths"]["/tag"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json", "image/*"}


def test_large_bodies_and_large_images(tagger: Tagger, photos: dict[str, bytes]) -> None:
    data = next(iter(photos.values()))
    small = Tagger(tagger.artifact, tagger.backbone)
    small.pictures = PictureSettings(max_megapixels=0.0001)
    with serving(small, max_body=16_384) as server:
        url, head = f"{server.url}/tag", {"content-type": "image/jpeg"}
        assert httpx.post(url, content=b"x" * 20_000, headers=head).status_code == 413

        def pieces() -> Iterator[bytes]:  # without a Content-Length
            for _ in range(50):
                yield b"x" * 1000

        assert httpx.post(url, content=pieces(), headers=head).status_code == 413
        assert len(data) < 16_384
        (result,) = httpx.post(url, content=data, headers=head).json()["results"]
        assert "max_megapixels" in result["error"]
        assert (
            'pvp_fast_requests_total{status="413"} 2.0' in httpx.get(f"{server.url}/metrics").text
        )


def test_token(tagger: Tagger, photos: dict[str, bytes]) -> None:
    data = next(iter(photos.values()))
    with serving(tagger, token="open sesame é") as server:
        url, head = f"{server.url}/tag", {"content-type": "image/jpeg"}
        for given in (None, "Bearer wrong", "Basic open", "Bearer"):
            sent = head if given is None else {**head, "authorization": given}
            answer = httpx.post(url, content=data, headers=sent)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        right = {**head, "authorization": "Bearer open sesame é".encode()}
        assert httpx.post(url, content=data, headers=right).status_code == 200
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        schema = httpx.get(f"{server.url}/openapi.json").json()
        assert schema["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


class Slow:
    """A tagger whose encoder takes its time."""

    def __init__(self, tagger: Tagger, seconds: float) -> None:
        self._tagger, self._seconds = tagger, seconds

    def encode(self, pixels):
        time.sleep(self._seconds)
        return self._tagger.encode(pixels)

    def __getattr__(self, name: str):
        return getattr(self._tagger, name)


def test_a_full_queue_and_a_late_answer(tagger: Tagger, photos: dict[str, bytes]) -> None:
    data, head = next(iter(photos.values())), {"content-type": "image/jpeg"}
    limits = {"queue": 3, "max_images": 3, "max_batch": 1, "timeout": 1.0}
    with serving(Slow(tagger, 0.6), **limits) as server, ThreadPoolExecutor(8) as pool:

        def ask(_: int) -> httpx.Response:
            return httpx.post(f"{server.url}/tag", content=data, headers=head, timeout=30)

        answers = list(pool.map(ask, range(8)))
        found = sorted(answer.status_code for answer in answers)
        assert set(found) == {200, 503, 504}
        assert found.count(503) == 5
        full = next(answer for answer in answers if answer.status_code == 503)
        assert full.headers["retry-after"] == "1"
        time.sleep(1.5)
        assert ask(0).status_code == 200  # and it goes on
        assert httpx.get(f"{server.url}/healthz").json()["waiting"] == 0


def test_shutdown_answers_what_was_accepted(tagger: Tagger, photos: dict[str, bytes]) -> None:
    data, head = next(iter(photos.values())), {"content-type": "image/jpeg"}
    with ThreadPoolExecutor(6) as pool:
        with serving(Slow(tagger, 0.3), max_batch=2) as server:
            asked = [
                pool.submit(httpx.post, f"{server.url}/tag", content=data, headers=head, timeout=30)
                for _ in range(6)
            ]
            while httpx.get(f"{server.url}/healthz").json()["waiting"] < 4:
                time.sleep(0.01)
        assert [call.result().status_code for call in asked] == [200] * 6


def test_a_failing_encoder_is_an_answer_and_not_the_end(
    tagger: Tagger, photos: dict[str, bytes]
) -> None:
    data = next(iter(photos.values()))

    class Broken(Slow):
        broken = True

        def encode(self, pixels):
            if self.broken:
                raise RuntimeError("out of memory")
            return self._tagger.encode(pixels)

    async def ask() -> None:
        broken = Broken(tagger, 0)
        batcher = Batcher(broken, ServeConfig(queue=64))
        with pytest.raises(RuntimeError, match="memory"):
            await batcher.tag([data], 5, None)
        with pytest.raises(QueueFull):
            await batcher.tag([data] * 65, 5, None)
        broken.broken = False
        (tags,) = await batcher.tag([data], 5, 0.0)
        assert {tag.name for tag in tags} <= set(tagger.artifact.vocabulary.names)
        assert batcher.waiting == 0
        await batcher.close()

    asyncio.run(ask())


def test_generated_requests_find_no_fault(server: Server, tmp_path: Path) -> None:
    """Requests that schemathesis makes of the service's own description, valid and not."""
    pytest.importorskip("schemathesis")
    import subprocess
    import sys

    checks = "not_a_server_error,status_code_conformance,response_schema_conformance"
    line = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    options = ["--checks", checks, "--max-examples", "40", "--seed", "1", "--no-color"]
    # It keeps a cache where it stands.
    done = subprocess.run(
        [*line, *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert httpx.get(f"{server.url}/healthz").json()["status"] == "ok"


def test_wrong_limits_are_named() -> None:
    for name, value in (
        ("max_batch", 0),
        ("timeout", 0.0),
        ("max_wait_ms", float("nan")),
        ("token", " "),
        ("queue", 8),
    ):
        with pytest.raises(InputError, match=name):
            ServeConfig(**{name: value})


def test_the_command(artifact: Path, photos: dict[str, bytes], tmp_path: Path) -> None:
    """A process of its own, with a token from the environment, ended by SIGTERM."""
    import os
    import signal
    import subprocess
    import sys

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = [sys.executable, "-P", "-c", "from pvp_fast.cli import main; main()", "serve"]
    process = subprocess.Popen(
        [*line, str(artifact), "--port", str(port)],
        env={**os.environ, "PVP_FAST_TOKEN": "secret"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        head = {"content-type": "image/jpeg", "authorization": "Bearer secret"}
        data = next(iter(photos.values()))
        answer = httpx.post(f"{url}/tag", content=data, headers=head, params={"threshold": 0})
        assert json.loads(answer.text)["results"][0]["tags"]
        assert httpx.post(f"{url}/tag", content=data).status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()
