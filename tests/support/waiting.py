"""Waiting for a state of things, on a machine however slow."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 600.0  # seconds after which something hangs


def until(holds: Callable[[], bool]) -> None:
    """Returns as soon as ``holds()`` is true."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"nothing happened in {PATIENCE:.0f} s"
        time.sleep(0.01)
