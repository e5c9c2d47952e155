"""Images of many requests, encoded together.

One task gathers: the first image waits at most ``max_wait_ms`` for others. Decoding starts on the
loader's threads at once; a second batch decodes while the first is in the encoder, and a third
waits in the queue. One thread runs the encoder, which has threads of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from pvp_fast.loaders.decode import Square
from pvp_fast.loaders.samples import Sample
from pvp_fast.loaders.threads import Settings, TorchLoader
from pvp_fast.loaders.windows import Listed, Loaded
from pvp_fast.serve.added import WithAdded
from pvp_fast.serve.config import ServeConfig
from pvp_fast.tagging.tagger import Tag, Tagger

_IN_FLIGHT = 2  # one batch in the encoder, one on the decoding threads


class QueueFull(Exception):
    """More images wait than the service accepts."""


class Closed(Exception):
    """The service is shutting down."""


@dataclass(eq=False)
class _Job:
    tagger: WithAdded
    data: bytes
    top_k: int
    threshold: float | None
    answer: asyncio.Future[tuple[Tag, ...] | str] = field(repr=False)


class Batcher:
    """Tags encoded images for one event loop.

    ``tagger`` may be replaced by one that has grown: each request keeps the one it came with.

    Args:
        tagger: shared with nobody else while this runs, for the sake of speed only.
        config: ``max_batch``, ``max_wait_ms``, ``workers`` and ``queue`` count.
        observe: told the size of every batch.
    """

    def __init__(
        self,
        tagger: Tagger,
        config: ServeConfig,
        observe: Callable[[int], object] | None = None,
    ) -> None:
        self.tagger = WithAdded(tagger)
        self._config, self._observe = config, observe
        square = Square(tagger.backbone.preprocess)
        device = torch.device(tagger.backbone.device)
        self._loader = TorchLoader(
            Settings(square, device, config.workers, tagger.pictures, seed="")
        )
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="pvp-fast-serve")
        self._queue: asyncio.Queue[_Job] = asyncio.Queue()
        self._slots = asyncio.Semaphore(_IN_FLIGHT)
        self._running: set[asyncio.Task[None]] = set()
        self._gatherer = asyncio.create_task(self._gather())
        self._closed = False
        self.waiting = 0

    async def tag(
        self, images: Sequence[bytes], top_k: int, threshold: float | None
    ) -> list[tuple[Tag, ...] | str]:
        """Tags of each image, or why it could not be read, all of them by one tagger.

        Raises:
            QueueFull: all of them or none are accepted. Closed: after :meth:`close`.
        """
        if self._closed:
            raise Closed
        if self.waiting + len(images) > self._config.queue:
            raise QueueFull
        loop = asyncio.get_running_loop()
        tagger = self.tagger
        jobs = [_Job(tagger, data, top_k, threshold, loop.create_future()) for data in images]
        self.waiting += len(jobs)
        for job in jobs:
            job.answer.add_done_callback(self._answered)
            self._queue.put_nowait(job)
        try:
            return list(await asyncio.gather(*(job.answer for job in jobs)))
        finally:
            for job in jobs:  # nobody listens any more after a timeout
                job.answer.cancel()

    async def close(self) -> None:
        """Answer what was accepted, then stop the threads."""
        self._closed = True
        while self.waiting or self._running:
            await asyncio.sleep(0.005)
        self._gatherer.cancel()
        await asyncio.gather(self._gatherer, return_exceptions=True)
        await asyncio.to_thread(self._encoder.shutdown)
        await asyncio.to_thread(self._loader.close)

    def _answered(self, answer: asyncio.Future[tuple[Tag, ...] | str]) -> None:
        self.waiting -= 1

    async def _gather(self) -> None:
        while True:
            await self._slots.acquire()
            jobs = [await self._queue.get()]
            wait = self._config.max_wait_ms / 1e3
            deadline = asyncio.get_running_loop().time() + wait
            while len(jobs) < self._config.max_batch:
                try:
                    jobs.append(self._queue.get_nowait())
                except asyncio.QueueEmpty:
                    left = deadline - asyncio.get_running_loop().time()
                    if left <= 0:
                        break
                    try:
                        jobs.append(await asyncio.wait_for(self._queue.get(), left))
                    except asyncio.TimeoutError:
                        break
            task = asyncio.create_task(self._run([job for job in jobs if not job.answer.done()]))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, jobs: list[_Job]) -> None:
        try:
            if not jobs:
                return
            if self._observe is not None:
                self._observe(len(jobs))
            window = self._loader.start(
                [Listed(row, Sample(str(row), job.data)) for row, job in enumerate(jobs)]
            )
            loop = asyncio.get_running_loop()
            answers = await loop.run_in_executor(
                self._encoder, lambda: self._tag(window.result(), jobs)
            )
            for job, answer in zip(jobs, answers, strict=True):
                if not job.answer.done():
                    job.answer.set_result(answer)
        # Whatever went wrong is the answer to these requests, and not the end of the service.
        except Exception as error:
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(error)
        finally:
            self._slots.release()

    def _tag(self, loaded: Loaded, jobs: Sequence[_Job]) -> list[tuple[Tag, ...] | str]:
        """On the encoder's thread."""
        answers: list[tuple[Tag, ...] | str] = [
            outcome if isinstance(outcome, str) else () for outcome in loaded.outcomes
        ]
        good = [row for row, answer in enumerate(answers) if not isinstance(answer, str)]
        if not good:
            return answers
        z, regions = jobs[0].tagger.encode(loaded.pixels)  # all have one CLIP
        asked: dict[tuple[WithAdded, int, float | None], list[int]] = {}
        for place, row in enumerate(good):
            job = jobs[row]
            asked.setdefault((job.tagger, job.top_k, job.threshold), []).append(place)
        for (tagger, top_k, threshold), places in asked.items():
            found = tagger.tag_features(
                z[places],
                None if regions is None else regions[places],
                top_k=top_k,
                threshold=threshold,
            )
            for place, tags in zip(places, found, strict=True):
                answers[good[place]] = tags
        return answers
