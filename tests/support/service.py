"""The HTTP service on a free port, what asks it, and what its answers must be."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from support.waiting import PATIENCE, until

from pvp_fast import Tagger
from pvp_fast.serve import ServeConfig, create_app

# Each request has a connection of its own, plain HTTP, without certificates to read.
get = functools.partial(httpx.get, timeout=PATIENCE, verify=False)
post = functools.partial(httpx.post, timeout=PATIENCE, verify=False)


class Server(uvicorn.Server):
    """uvicorn on a free port, in a thread."""

    def __init__(self, tagger: Tagger, config: ServeConfig) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        app = create_app(tagger, config)
        super().__init__(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=int(PATIENCE))
        )
        self.thread = threading.Thread(target=self.run, args=([self.socket],))

    def install_signal_handlers(self) -> None:
        """Signals belong to pytest."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def serving(tagger: Tagger, **options: object) -> Iterator[Server]:
    server = Server(tagger, ServeConfig(**{"timeout": PATIENCE, **options}))
    server.thread.start()
    try:
        until(lambda: server.started or not server.thread.is_alive())
        yield server
    finally:
        server.should_exit = True
        server.thread.join(PATIENCE)
        server.socket.close()
    assert not server.thread.is_alive()


class Held:
    """A tagger whose encoder waits for ``gate``, at the longest until this context ends."""

    def __init__(self, tagger: Tagger) -> None:
        self._tagger, self.gate = tagger, threading.Event()

    def encode(self, pixels):
        assert self.gate.wait(PATIENCE)
        return self._tagger.encode(pixels)

    def __getattr__(self, name: str):
        return getattr(self._tagger, name)

    def __enter__(self) -> None:
        """The gate is closed from the beginning."""

    def __exit__(self, *_: object) -> None:
        self.gate.set()


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
