"""Work on the batches of a stream, several at once, with the account of every image kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from pvp_fast.loaders.stream import ImageStream
from pvp_fast.loaders.windows import Batch, Failure
from pvp_fast.threads.streams import ALONE, in_streams, team

R = TypeVar("R")


@dataclass(frozen=True)
class Done(Generic[R]):
    """A batch that was worked on.

    Attributes:
        keys, indices: of the images that were read, as in :class:`~pvp_fast.loaders.Batch`.
        result: what the work gave; None behind the last batch, when only failures are left.
        failures: the images that could not be read since the batch before, in order.
        listed: images handed out so far, these included.
    """

    keys: tuple[str, ...]
    indices: tuple[int, ...]
    result: R | None
    failures: tuple[Failure, ...]
    listed: int


def work_through(
    stream: ImageStream,
    work: Callable[[Batch], R],
    device: torch.device,
    *,
    ahead: bool = True,
) -> Iterator[Done[R]]:
    """``work(batch)`` of every batch, in order, by as many streams as the CPUs allow.

    The last one has no batch: failures behind the last batch, and the number of all images.

    Args:
        work: may run in several threads at once.
        device: where it runs; a device that is no CPU gets one batch at a time.
        ahead: False to take no batch before the one before it is done.
    """
    told = 0

    def windows() -> Iterator[tuple[Batch, tuple[Failure, ...], int]]:
        nonlocal told
        for batch in stream:
            failures = tuple(stream.failures[told:])
            told += len(failures)
            yield batch, failures, stream.listed

    def done(window: tuple[Batch, tuple[Failure, ...], int]) -> Done[R]:
        batch, failures, listed = window
        return Done(batch.keys, batch.indices, work(batch), failures, listed)

    yield from in_streams(done, windows(), team(device) if ahead else ALONE)
    yield Done((), (), None, tuple(stream.failures[told:]), stream.listed)
