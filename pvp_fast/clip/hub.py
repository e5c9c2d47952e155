"""Hubs that cannot be reached: known in seconds, and then only the local cache is asked.

huggingface_hub and transformers repeat every request with growing pauses; without a network a
tokenizer takes over a minute to fail.
"""

from __future__ import annotations

import contextlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator

SECONDS = 3.0


@contextlib.contextmanager
def cache_only_when_offline() -> Iterator[bool]:
    """Inside, huggingface_hub reads its cache alone where its server cannot be reached.

    Gives whether it can be reached. ``HF_HUB_OFFLINE`` says no without a try.
    """
    try:
        from huggingface_hub import constants
    except ImportError:
        yield True
        return
    before = constants.HF_HUB_OFFLINE
    online = not before and _reachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = not online
    try:
        yield online
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(address: str) -> bool:
    """Whether a connection to the server, or to the proxy in front of it, opens at all."""
    parts = urllib.parse.urlsplit(address)
    host = parts.hostname or ""
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=SECONDS):
            return True
    except (OSError, UnicodeError):
        return False
