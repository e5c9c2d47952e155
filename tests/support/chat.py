"""A language model of the tests: a real HTTP server that speaks the chat API."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]


def chat(text: Any, finish: str = "stop") -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    return 200, {}, json.dumps({"choices": [{**choice, "finish_reason": finish}]}).encode()


def captions_for(prompt: str, number: int) -> str:
    asked = re.search(r"shows: (.*?)\. Name", prompt)
    assert asked is not None
    names = asked[1].replace(" and ", ", ")
    return f'1. A picture of {names} number {number}.\n2) "{names} again, {number}"\n3. A mountain.'


class Server(ThreadingHTTPServer):
    """Speaks /v1/chat/completions; ``script`` overrides the first replies."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.script: list[Reply | Callable[[], Reply]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is part of the tests, not worth a traceback."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.requests.append(body)
        server.keys.append(self.headers.get("Authorization"))
        number = len(server.requests)
        if self.path != "/v1/chat/completions":
            reply: Reply = (404, {}, b"no such path")
        elif server.script:
            scripted = server.script.pop(0)
            reply = scripted() if callable(scripted) else scripted
        else:
            reply = chat(captions_for(body["messages"][0]["content"], number))
        status, headers, data = reply
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def running_server() -> Iterator[Server]:
    """A server on a free port of this machine."""
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()
