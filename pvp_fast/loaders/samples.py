"""What a source lists: one sample an image, not read yet."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

_NO_METADATA: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Sample:
    """One listed image, not read yet.

    Attributes:
        key: how results and failures name it.
        image: what :func:`pvp_fast.pictures.open_image` takes (path, bytes, PIL image, …), or
            a function that returns such a thing and is called by a worker, or the ImageError that
            says why it was lost before it could be read.
        metadata: labels and the like, or a function that returns them, called by a worker.
    """

    key: str
    image: Any
    metadata: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = field(
        default_factory=lambda: _NO_METADATA
    )


class Source(Protocol):
    """What an :class:`~pvp_fast.loaders.ImageStream` reads."""

    def samples(self, shuffle: random.Random | None) -> Iterator[Sample]:
        """Every sample once, in the same order for the same state of ``shuffle``."""

    def count(self) -> int | None:
        """How many samples there are, or None where only reading them tells."""
