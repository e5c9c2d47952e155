"""The HTTP service, by a real server on loopback."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from support.waiting import PATIENCE, until

from pvp_fast import Tagger
from pvp_fast.demo import demo_set
from pvp_fast.errors import InputError

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from support.service import Held, Server, check, expected, get, post, serving

from pvp_fast.pictures import PictureSettings
from pvp_fast.serve import ServeConfig
from pvp_fast.serve.batching import Batcher, QueueFull
from pvp_fast.tagging import SCHEMA_VERSION


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(demo_set().glob("*.jpg"))[:24]}


def batched(metrics: str) -> tuple[float, float]:
    """Batches and images that the service has counted."""
    name = "pvp_fast_batch_images"
    count, total = (metrics.split(f"{name}_{what} ")[1].split()[0] for what in ("count", "sum"))
    return float(count), float(total)


@pytest.fixture(scope="module")
def server(tagger: Tagger) -> Iterator[Server]:
    with serving(tagger, max_batch=8, max_wait_ms=5) as running:
        yield running


def test_every_form_of_request(server: Server, tagger: Tagger, photos: dict[str, bytes]) -> None:
    name, data = next(iter(photos.items()))
    right = expected(tagger, data, threshold=0.0, top_k=3)
    where = {"url": f"{server.url}/tag", "params": {"top_k": 3, "threshold": 0.0}}
    coded = base64.b64encode(data).decode()
    answers = [
        post(**where, files=[("images", (name, data)), ("images", ("b", data))]),
        post(**where, json={"images": [{"image": name, "data": coded}, {"data": coded}]}),
        post(**where, json={"images": [{"key": name, "data": coded}]}),  # its old name
        post(**where, content=data, headers={"content-type": "image/jpeg"}),
    ]
    for answer, names in zip(answers, ([name, "b"], [name, "1"], [name], ["0"]), strict=True):
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["artifact"] == tagger.artifact.version
        assert [result["image"] for result in body["results"]] == names
        for result in body["results"]:
            check(result, right)


def test_one_entry_that_is_no_base64_is_its_own_error(
    server: Server, tagger: Tagger, photos: dict[str, bytes]
) -> None:
    data = next(iter(photos.values()))
    coded = base64.b64encode(data).decode()
    wrapped = base64.encodebytes(data).decode()
    url = base64.urlsafe_b64encode(data).decode()
    good = {
        "plain": coded,
        "wrapped": wrapped,
        "with returns": wrapped.replace("\n", "\r\n"),
        "of URLs": url,
        "without padding": url.rstrip("="),
        "data URI": f"data:image/jpeg;base64,{coded}",
        "data URI in capitals": f"DATA:;charset=utf-8;BASE64,{wrapped}",
        "percent in Base64": f"data:image/jpeg;base64,{quote(coded, safe='')}",
        "percent alone": f"data:image/jpeg,{quote(data)}",
    }
    bad = {
        "text": "no base64!",
        "broken": coded[:9] + "~" + coded[9:],
        "cut off": "AAAAA",
        "not ASCII": "é" + coded,
        "nothing": "",
        "no comma": "data:image/jpeg;base64",
        "a path": "/home/me/photo.jpg",
        "no image": base64.b64encode(b"hello").decode(),
    }
    right = expected(tagger, data, threshold=0.0, top_k=3)
    entries = [{"image": name, "data": text} for name, text in {**bad, **good}.items()]
    entries.insert(3, {"image": "first", "data": coded})
    where = {"url": f"{server.url}/tag", "params": {"top_k": 3, "threshold": 0.0}}
    answer = post(**where, json={"images": entries})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [r["image"] for r in results] == [e["image"] for e in entries]
    for result in results:
        if result["image"] in bad:
            assert result["error"], result
            assert result["tags"] == []
        else:
            check(result, right)
    assert "no Base64" in results[0]["error"]
    answer = post(**where, json={"images": [{"data": "no base64!"}]})
    assert answer.status_code == 200
    assert "no Base64" in answer.json()["results"][0]["error"]


def test_own_thresholds_and_limits_of_each_request_in_one_batch(
    server: Server, tagger: Tagger, photos: dict[str, bytes]
) -> None:
    data = list(photos.values())[:4]
    options: list[dict] = [{}, {"top_k": 1, "threshold": 0.0}, {"threshold": 0.5}, {"top_k": 6}]
    right = [expected(tagger, d, **{"top_k": 5, **o}) for d, o in zip(data, options, strict=True)]

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
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
    names = list(photos) * 5

    def ask(name: str) -> None:
        answer = post(
            f"{server.url}/tag",
            params={"top_k": 6, "threshold": 0.0},
            files=[("images", (name, photos[name]))],
        )
        (result,) = answer.json()["results"]
        assert result["image"] == name
        check(result, right[name])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, names))
    text = get(f"{server.url}/metrics").text
    assert batched(text)[1] >= len(names)
    assert "pvp_fast_images_waiting 0.0" in text


def test_a_bad_image_harms_no_other(
    server: Server, tagger: Tagger, photos: dict[str, bytes]
) -> None:
    data = next(iter(photos.values()))
    files = [
        ("images", (n, d)) for n, d in (("a", data), ("b", b""), ("c", data[:200]), ("d", data))
    ]
    answer = post(f"{server.url}/tag", files=files, params={"threshold": 0.0})
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
    answer = post(f"{server.url}/tag", **request_)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]


def test_health_and_documentation(server: Server, tagger: Tagger) -> None:
    health = get(f"{server.url}/healthz").json()
    assert (health["status"], health["categories"]) == ("ok", len(tagger.artifact.vocabulary))
    assert health["schema"] == SCHEMA_VERSION
    schema = get(f"{server.url}/openapi.json").json()
    assert set(schema["paths"]) == {"/tag", "/healthz", "/metrics"}
    content = schema["paths"]["/tag"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json", "image/*"}


def test_large_bodies_and_large_images(tagger: Tagger, photos: dict[str, bytes]) -> None:
    data = next(iter(photos.values()))
    small = Tagger(tagger.artifact, tagger.backbone)
    small.pictures = PictureSettings(max_megapixels=0.0001)
    with serving(small, max_body=16_384) as server:
        url, head = f"{server.url}/tag", {"content-type": "image/jpeg"}
        assert post(url, content=b"x" * 20_000, headers=head).status_code == 413

        def pieces() -> Iterator[bytes]:  # without a Content-Length
            for _ in range(50):
                yield b"x" * 1000

        assert post(url, content=pieces(), headers=head).status_code == 413
        assert len(data) < 16_384
        (result,) = post(url, content=data, headers=head).json()["results"]
        assert "--max-megapixels" in result["error"]
        assert 'pvp_fast_requests_total{status="413"} 2.0' in get(f"{server.url}/metrics").text


def test_token(tagger: Tagger, photos: dict[str, bytes]) -> None:
    data = next(iter(photos.values()))
    with serving(tagger, token="open sesame é") as server:
        url, head = f"{server.url}/tag", {"content-type": "image/jpeg"}
        for given in (None, "Bearer wrong", "Basic open", "Bearer"):
            sent = head if given is None else {**head, "authorization": given}
            answer = post(url, content=data, headers=sent)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        right = {**head, "authorization": "Bearer open sesame é".encode()}
        assert post(url, content=data, headers=right).status_code == 200
        assert get(f"{server.url}/healthz").status_code == 200
        schema = get(f"{server.url}/openapi.json").json()
        assert schema["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def ask(server: Server, data: bytes) -> httpx.Response:
    head = {"content-type": "image/jpeg"}
    return post(f"{server.url}/tag", content=data, headers=head, params={"threshold": 0.0})


def waiting(server: Server) -> int:
    return get(f"{server.url}/healthz").json()["waiting"]


def test_what_waits_shares_a_batch(tagger: Tagger, photos: dict[str, bytes]) -> None:
    held, data = Held(tagger), list(photos.values())[:6]
    right = [expected(tagger, d, threshold=0.0, top_k=5) for d in data]
    with serving(held, max_batch=4) as server, ThreadPoolExecutor(6) as pool, held:
        asked = [pool.submit(ask, server, d) for d in data]
        until(lambda: waiting(server) == 6)
        held.gate.set()
        for call, wanted in zip(asked, right, strict=True):
            check(call.result().json()["results"][0], wanted)
        # One batch in the encoder, one on its way there, and the rest in a third.
        batches, images = batched(get(f"{server.url}/metrics").text)
        assert images == 6
        assert batches <= 3


def test_a_full_queue(tagger: Tagger, photos: dict[str, bytes]) -> None:
    held, data = Held(tagger), next(iter(photos.values()))
    limits = {"queue": 3, "max_images": 3}
    with serving(held, **limits) as server, ThreadPoolExecutor(8) as pool, held:
        asked = [pool.submit(ask, server, data) for _ in range(8)]
        until(lambda: sum(call.done() for call in asked) == 5)
        full = [call.result() for call in asked if call.done()]
        assert [answer.status_code for answer in full] == [503] * 5
        assert full[0].headers["retry-after"] == "1"
        held.gate.set()
        assert sorted(call.result().status_code for call in asked) == [200] * 3 + [503] * 5
        until(lambda: waiting(server) == 0)
        assert ask(server, data).status_code == 200  # and it goes on


def test_a_late_answer(tagger: Tagger, photos: dict[str, bytes]) -> None:
    held, data = Held(tagger), next(iter(photos.values()))
    with serving(held, timeout=0.5) as server, held:
        assert ask(server, data).status_code == 504
        assert waiting(server) == 0
        held.gate.set()
        until(lambda: ask(server, data).status_code == 200)  # and it goes on


def test_shutdown_answers_what_was_accepted(tagger: Tagger, photos: dict[str, bytes]) -> None:
    held, data = Held(tagger), next(iter(photos.values()))
    with ThreadPoolExecutor(6) as pool, serving(held, max_batch=2) as server, held:
        asked = [pool.submit(ask, server, data) for _ in range(6)]
        until(lambda: waiting(server) == 6)
        server.should_exit = True
        until(lambda: server.socket.fileno() == -1)  # nothing new is accepted
        with pytest.raises(httpx.ConnectError):
            ask(server, data)
        assert not any(call.done() for call in asked)
        held.gate.set()
        assert [call.result().status_code for call in asked] == [200] * 6


def test_a_failing_encoder_is_an_answer_and_not_the_end(
    tagger: Tagger, photos: dict[str, bytes]
) -> None:
    data = next(iter(photos.values()))

    class Broken(Held):
        broken = True

        def encode(self, pixels):
            if self.broken:
                raise RuntimeError("out of memory")
            return self._tagger.encode(pixels)

    async def ask() -> None:
        broken = Broken(tagger)
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
    options += ["--request-timeout", str(PATIENCE)]
    # It keeps a cache where it stands.
    done = subprocess.run(
        [*line, *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert get(f"{server.url}/healthz").json()["status"] == "ok"


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
    line = [sys.executable, "-c", "from pvp_fast.cli import main; main()", "serve"]
    process = subprocess.Popen(
        [*line, str(artifact), "--port", str(port)],
        env={**os.environ, "PVP_FAST_TOKEN": "secret"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            with contextlib.suppress(httpx.ConnectError):
                return get(f"{url}/healthz").json()["status"] == "ok"
            return process.poll() is not None

        until(answers)
        head = {"content-type": "image/jpeg", "authorization": "Bearer secret"}
        data = next(iter(photos.values()))
        answer = post(f"{url}/tag", content=data, headers=head, params={"threshold": 0})
        assert json.loads(answer.text)["results"][0]["tags"]
        assert post(f"{url}/tag", content=data).status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()
