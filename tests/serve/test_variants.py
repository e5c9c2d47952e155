"""Requests as clients really send them: in pieces, without a type, with names of all sorts."""

from __future__ import annotations

import base64
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pvp_fast import Tagger
from pvp_fast.demo import demo_set

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from support.service import Server, expected, post, serving

NAMES = ["C:\\fotos\\a.jpg", "../../etc/passwd", "été 写真.jpg", 'a"b.jpg', "a\x01b.jpg", "", " "]


@pytest.fixture(scope="module")
def photo() -> bytes:
    return sorted(demo_set().glob("*.jpg"))[0].read_bytes()


@pytest.fixture(scope="module")
def server(tagger: Tagger) -> Iterator[Server]:
    with serving(tagger, max_batch=8, max_wait_ms=5) as running:
        yield running


def test_a_body_in_pieces_is_one_image(server: Server, photo: bytes) -> None:
    def pieces() -> Iterator[bytes]:
        for at in range(0, len(photo), 100):
            yield photo[at : at + 100]

    answer = post(f"{server.url}/tag", content=pieces(), headers={"content-type": "image/jpeg"})
    assert answer.status_code == 200
    assert answer.json()["results"][0].get("error") is None


@pytest.mark.parametrize("kind", [None, "", "application/octet-stream", "text/plain", "image/x-y"])
def test_an_image_of_whatever_type_is_read_or_refused_in_words(
    server: Server, photo: bytes, kind: str | None
) -> None:
    head = {} if kind is None else {"content-type": kind}
    answer = post(f"{server.url}/tag", content=photo, headers=head)
    if answer.status_code == 200:
        assert answer.json()["results"][0].get("error") is None
    else:
        assert answer.status_code == 415
        assert "image/" in answer.json()["detail"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_names_and_never_paths(
    server: Server, tagger: Tagger, photo: bytes, name: str, tmp_path: Path
) -> None:
    coded = base64.b64encode(photo).decode()
    body = {"images": [{"image": name, "data": coded}]}
    answer = post(f"{server.url}/tag", json=body)
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    assert result["image"] == name
    assert result.get("error") is None
    if name.strip():
        answer = post(f"{server.url}/tag", files=[("images", (name, photo))])
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"][0].get("error") is None
    assert expected(tagger, photo, threshold=0.0, top_k=3)


def test_head_and_other_methods_have_an_answer(server: Server) -> None:
    address = urlsplit(server.url)
    for method, path, right in (
        ("HEAD", "/healthz", {200, 405}),
        ("GET", "/tag", {405}),
        ("PUT", "/tag", {405}),
        ("OPTIONS", "/tag", {200, 405}),
        ("GET", "/..%2f..%2fetc%2fpasswd", {404}),
    ):
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        connection.request(method, path)
        assert connection.getresponse().status in right, (method, path)
        connection.close()


def test_what_breaks_off_in_the_middle_harms_nobody(server: Server, photo: bytes) -> None:
    address = urlsplit(server.url)
    head = b"POST /tag HTTP/1.1\r\nhost: x\r\n"
    for sent in (
        head + b"content-type: image/jpeg\r\ncontent-length: 9999\r\n\r\n",
        head + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # as if it were TLS
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 2000,
    ):
        with socket.create_connection((address.hostname or "", address.port or 0), 60) as wire:
            wire.sendall(sent + photo[:50])
    answer = post(f"{server.url}/tag", content=photo, headers={"content-type": "image/jpeg"})
    assert answer.status_code == 200
