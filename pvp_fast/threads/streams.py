"""Work on batches side by side instead of one batch by all threads.

One call by T threads waits at a barrier behind every operation, for the slowest of them; with
another busy process on the same CPUs that is most of the time, since OpenMP's workers spin there.
Streams meet nowhere: each works on a batch of its own, by few threads (one, where it can be).
A result's bits are those of one call by as few threads; the matrix products of MKL and oneDNN give
more threads the same for whole batches, and differ in the last bit for batches of a few images.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from pvp_fast.threads.budget import Streams

T = TypeVar("T")
R = TypeVar("R")
_one_at_a_time = threading.Lock()


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
    pool = ThreadPoolExecutor(
        streams.number,
        thread_name_prefix="pvp-fast-stream",
        initializer=_begin,
        initargs=(streams.threads,),
    )
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
