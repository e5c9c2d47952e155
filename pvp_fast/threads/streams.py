"""Work on batches side by side instead of one batch by all threads.

One call by T threads waits at a barrier behind every operation, for the slowest of them; with
another busy process on the same CPUs that is most of the time, since OpenMP's workers spin there.
Streams meet nowhere: each works on a batch of its own, by few threads (one, where it can be).
A result's bits are those of one call by as few threads; the matrix products of MKL and oneDNN give
more threads the same for whole batches, and differ in the last bit for batches of a few images.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

from pvp_fast.threads.budget import Streams, streams

T = TypeVar("T")
R = TypeVar("R")
_one_at_a_time = threading.Lock()
_NAME = "pvp-fast-stream"
ALONE = Streams(1, 0)


def team(device: torch.device) -> Streams:
    """The streams of what this thread does on a device: one unless that is a CPU, and inside of
    one no others, for whose place in the pool it would wait."""
    inside = threading.current_thread().name.startswith(_NAME)
    return ALONE if inside or device.type != "cpu" else streams()


def in_streams(work: Callable[[T], R], items: Iterable[T], streams: Streams) -> Iterator[R]:
    """``work(item)`` of every item, in their order.

    A single item is worked on by the calling thread with all its threads, as are all with
    ``streams.number`` 1. Otherwise ``work`` runs in ``streams.number`` threads at once, without
    gradients, and at most one item more than those is taken ahead of the result handed out. An
    error of ``work`` or of ``items`` is raised at its place, behind the results before it.
    """
    source = iter(items)
    error: Exception | None = None
    waiting = deque[T]()

    def take() -> bool:
        nonlocal error
        try:
            waiting.append(next(source))
            return True
        except StopIteration:
            return False
        except Exception as found:
            error = found
            return False

    if streams.number == 1 or not (take() and take()):
        yield from map(work, waiting)
        if error is not None:
            raise error
        yield from map(work, source)
        return
    pool = _pool(streams)
    running = deque[Future[R]]()
    try:
        while True:
            running.extend(pool.submit(work, waiting.popleft()) for _ in range(len(waiting)))
            if len(running) > streams.number:
                yield running.popleft().result()
            if not take():
                break
        while running:
            yield running.popleft().result()
        if error is not None:
            raise error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def side_by_side(work: Callable[[T], R], items: Iterable[T], streams: Streams) -> list[R]:
    """``work(item)`` of every item, for parts of one step: as :func:`in_streams`, but all at once.

    The threads stay for the next step. All items are worked on before an error of one is raised.
    """
    items = list(items)
    if streams.number == 1 or len(items) == 1:
        return [work(item) for item in items]
    running = [_kept_pool(streams).submit(work, item) for item in items]
    wait(running)
    return [done.result() for done in running]


def _pool(streams: Streams) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(
        streams.number, thread_name_prefix=_NAME, initializer=_begin, initargs=(streams.threads,)
    )


_kept_pool = cache(_pool)


def _in_a_child() -> None:
    """A forked process has none of its parent's threads, one of which may have held the lock."""
    global _one_at_a_time
    _one_at_a_time = threading.Lock()
    _kept_pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_child)


def _begin(threads: int) -> None:
    torch.set_grad_enabled(False)  # of this thread, which starts with gradients
    limit_this_thread(threads)


def limit_this_thread(threads: int) -> None:
    """Give the calling thread ``threads`` threads of OpenMP and MKL, and nobody else.

    ``torch.set_num_threads`` sets them for the calling thread alone, but also what every thread
    gets that calls torch for the first time afterwards: a thread that ends at once puts that back.
    """
    torch.get_num_threads()  # a thread's first call takes the usual number: not after ours is set
    with _one_at_a_time:
        usual = _in_a_new_thread(torch.get_num_threads)
        torch.set_num_threads(threads)
        _in_a_new_thread(lambda: torch.set_num_threads(usual))


def _in_a_new_thread(call: Callable[[], R]) -> R:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()
