"""What passes between a stream and a backend: a window of samples, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from pvp_fast.loaders.samples import Sample


@dataclass(frozen=True)
class Failure:
    """An image that was listed and could not be read.

    Attributes:
        key: how the source names it.
        reason: a short phrase.
        index: its place in the epoch's order.
    """

    key: str
    reason: str
    index: int


@dataclass(frozen=True)
class Batch:
    """Images that were read, in the epoch's order.

    Attributes:
        pixels: (B, 3, H, W) float32, normalised, on the stream's device.
        keys: B names, as the source gives them.
        metadata: B mappings; empty where the source has none.
        indices: B places in the epoch's order (of the whole source, not of a rank's part).
    """

    pixels: Tensor
    keys: tuple[str, ...]
    metadata: tuple[Mapping[str, Any], ...]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Listed:
    """A sample and its place in the epoch's order."""

    index: int
    sample: Sample


@dataclass(frozen=True)
class Loaded:
    """A finished window.

    Attributes:
        pixels: (B, 3, S, S) float32 on the device, a row for each that was read.
        outcomes: for each listed sample its metadata, or why it could not be read.
    """

    pixels: Tensor
    outcomes: tuple[Mapping[str, Any] | str, ...]


class Pending(Protocol):
    """A window at work."""

    def result(self) -> Loaded:
        """Wait for it; called once, by the thread that iterates the stream."""


class Loader(Protocol):
    """A backend."""

    def start(self, window: Sequence[Listed]) -> Pending:
        """Begin to read a window in the background, without waiting for anything."""

    def close(self) -> None:
        """Drop what is at work, and wait until every thread is gone."""
