"""The service's limits, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pvp_fast.errors import InputError


@dataclass(frozen=True)
class ServeConfig:
    """How much the service takes on, and how long it lets a request wait.

    Attributes:
        max_batch: most images encoded at once.
        max_wait_ms: how long a first image waits for others, in milliseconds; 0 never waits.
        workers: threads that decode images.
        queue: most images accepted and not yet answered; requests beyond it get 503.
        max_body: most bytes of a request's body.
        max_images: most images of a request.
        timeout: seconds from a request's first byte to its answer; then it gets 504.
        max_added: categories that clients may add by name (POST /categories); 0 lets them add none.
        token: what clients must send as ``Authorization: Bearer TOKEN``; None asks for nothing.

    Raises:
        InputError: a value that cannot work.
    """

    max_batch: int = 64
    max_wait_ms: float = 2.0
    workers: int = 2
    queue: int = 256
    max_body: int = 32 << 20
    max_images: int = 64
    timeout: float = 30.0
    token: str | None = None
    max_added: int = 0

    def __post_init__(self) -> None:
        for name in ("max_batch", "workers", "queue", "max_body", "max_images"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.max_added < 0:
            raise InputError(f"max_added is {self.max_added}; give 0 or more")
        if not (math.isfinite(self.max_wait_ms) and self.max_wait_ms >= 0):
            raise InputError(f"max_wait_ms is {self.max_wait_ms}; give 0 or more milliseconds")
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise InputError(f"timeout is {self.timeout}; give more than 0 seconds")
        if self.max_images > self.queue:
            raise InputError(
                f"max_images is {self.max_images}, more than queue={self.queue} can ever hold"
            )
        if self.token is not None and not self.token.strip():
            raise InputError("token is empty; leave it out, or give a secret")
