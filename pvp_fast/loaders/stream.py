"""A stream of batches that accounts for every image that was listed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from types import TracebackType
from typing import Any

import torch

from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.errors import BackendError, InputError
from pvp_fast.loaders.augment import Augment
from pvp_fast.loaders.decode import Square
from pvp_fast.loaders.passed import PassedOver
from pvp_fast.loaders.sources import open_source, passed_over
from pvp_fast.loaders.threads import Settings, TorchLoader
from pvp_fast.loaders.windows import Batch, Failure, Listed, Loader, Pending
from pvp_fast.pictures import PictureSettings
from pvp_fast.threads.budget import budget

BACKENDS = ("auto", "dali", "torch")
MODES = ("exact", "fast")
_VERSION = 1


class ImageStream:
    """Batches of images, ready for the image tower, from files, tar shards or memory.

    Every listed image is either in exactly one batch or in ``failures``; one bad image costs
    nothing but itself. The listed samples are cut into windows of ``batch_size``; a batch is what
    could be read of a window, so it may be smaller, and a window without a readable image gives no
    batch.

    Iterating goes on where the last iteration stopped; after the last image it ends, and the next
    iteration is the next epoch. Nothing is read before the first batch is asked for, and then no
    more than ``prefetch`` windows ahead.

    Args:
        source: a folder, glob, image file, list file (``.txt``, ``.lst``), tar shards
            (``shard-{000..012}.tar``), a list of these, or an iterable of (key, encoded bytes) or
            (key, encoded bytes, metadata); or one of the classes in ``pvp_fast.loaders.sources``.
        preprocess: ``backbone.preprocess``.
        batch_size: images of a window.
        device: where the pixels go; on CUDA they travel through pinned memory.
        backend: "torch" (threads, everywhere), "dali" (NVIDIA DALI; decodes on the GPU when
            ``device`` is CUDA), or "auto": DALI where it is installed and the device is CUDA, else
            torch, whose pixels are the closer ones to open_clip's.
        mode: "exact" has open_clip's geometry; "fast" takes short cuts that move pixels (JPEGs
            decoded at a fraction of their size, and with DALI the crop rounded differently).
        shuffle: a new order each epoch, a function of ``seed`` and the epoch alone.
        seed, epoch: of the order and of the augmentation; ``epoch`` is the first one.
        rank, world: this process takes every ``world``-th image of the order, from ``rank`` on.
        augment: random crops and flips in place of the evaluation crop.
        workers: threads; by default those of ``pvp_fast.threads.budget``.
        prefetch: windows read ahead of the consumer.
        pictures: how each is opened: turn, background, largest size.
        on_failure: called with each :class:`Failure`, by the thread that iterates.

    Attributes:
        failures: the images of this epoch that could not be read, in order.
        listed, read, failed: how many of this epoch's samples were handed out; always
            ``read + failed == listed``.
        epoch: the epoch being read.
        pictures: how pictures are opened.

    Raises:
        InputError: an argument that cannot be used, or a source that lists nothing.
        BackendError: ``backend="dali"`` without DALI.
    """

    def __init__(
        self,
        source: Any,
        preprocess: Preprocess,
        batch_size: int = 64,
        device: str | torch.device = "cpu",
        *,
        backend: str = "auto",
        mode: str = "exact",
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        augment: Augment | None = None,
        workers: int | None = None,
        prefetch: int = 2,
        pictures: PictureSettings | None = None,
        on_failure: Callable[[Failure], None] | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("epoch", epoch, 0),
            ("world", world, 1),
            ("workers", 1 if workers is None else workers, 1),
            ("prefetch", prefetch, 0),
        ):
            if value < least:
                raise InputError(f"{name} is {value}; give at least {least}")
        if not 0 <= rank < world:
            raise InputError(f"rank is {rank} of world={world}; give 0 to {world - 1}")
        if mode not in MODES:
            raise InputError(f"mode={mode!r}: use one of {', '.join(MODES)}")
        self._source = open_source(source)
        self._square = Square(preprocess, augment, fast=mode == "fast")
        self._device = torch.device(device)
        self.backend = _pick_backend(backend, self._device)
        self._batch_size, self._prefetch = batch_size, prefetch
        self.pictures = pictures or PictureSettings()
        self._shuffle, self._seed = shuffle, seed
        self._rank, self._world = rank, world
        self._workers = workers or budget()
        self._on_failure = on_failure
        self._loader: Loader | None = None
        self._order: Iterator[Listed] | None = None
        self._pending: deque[tuple[tuple[Listed, ...], Pending]] = deque()
        self._source_error: Exception | None = None
        self.epoch = epoch
        self.failures: list[Failure] = []
        self.listed = self.read = 0
        self._last: str | None = None  # key of the sample handed out last
        self._done = False

    @property
    def failed(self) -> int:
        """Images of this epoch that could not be read."""
        return len(self.failures)

    @property
    def passed(self) -> PassedOver:
        """Files that the source has seen in this epoch and left out, by kind."""
        return passed_over(self._source)

    def count(self) -> int | None:
        """How many images this rank's part of an epoch has, or None where only reading tells.

        Lists the source, so it takes as long as walking its folders or the headers of its shards.
        """
        total = self._source.count()
        if total is None:
            return None
        return len(range(self._rank, total, self._world))

    def __iter__(self) -> Iterator[Batch]:
        if self._done:
            self.epoch += 1
            self.failures = []
            self.listed = self.read = 0
            self._last = None
            self._done = False
        while (batch := self._next()) is not None:
            yield batch
        self.close()
        self._done = True

    def _next(self) -> Batch | None:
        while True:
            self._fill()
            if not self._pending:
                if self._source_error is not None:
                    error, self._source_error = self._source_error, None
                    raise error
                return None
            window, pending = self._pending[0]
            loaded = pending.result()
            self._pending.popleft()
            if self._prefetch:
                self._fill()  # the next windows are at work while this one is used
            self.listed += len(window)
            self._last = window[-1].sample.key
            failed = []
            good: list[tuple[Listed, Mapping[str, Any]]] = []
            for listed, outcome in zip(window, loaded.outcomes, strict=True):
                if isinstance(outcome, str):
                    failed.append(Failure(listed.sample.key, outcome, listed.index))
                else:
                    good.append((listed, outcome))
            self.read += len(good)
            self.failures += failed
            if self._on_failure is not None:
                for failure in failed:
                    self._on_failure(failure)
            if good:
                return Batch(
                    loaded.pixels,
                    tuple(listed.sample.key for listed, _ in good),
                    tuple(metadata for _, metadata in good),
                    tuple(listed.index for listed, _ in good),
                )

    def _fill(self) -> None:
        """Start windows until ``prefetch`` are at work besides the one to be handed out."""
        if self._source_error is not None:
            return
        if self._order is None:
            self._order = self._listing(self.listed)
        while len(self._pending) < max(1, self._prefetch):
            window: list[Listed] = []
            try:
                window.extend(islice(self._order, self._batch_size))
            except Exception as error:  # what was listed before it is delivered first
                self._source_error = error
            if not window:
                return
            if self._loader is None:
                self._loader = self._open()
            self._pending.append((tuple(window), self._loader.start(window)))

    def _listing(self, skip: int) -> Iterator[Listed]:
        chance = random.Random(f"{self._seed}/{self.epoch}") if self._shuffle else None
        numbered = enumerate(self._source.samples(chance))
        first = self._rank + max(0, skip - 1) * self._world
        mine = (Listed(*pair) for pair in islice(numbered, first, None, self._world))
        if skip:
            last = next(mine, None)
            if last is None or last.sample.key != self._last:
                found = "nothing" if last is None else repr(last.sample.key)
                raise InputError(
                    f"source: it has {found} where {self._last!r} was when the stream stopped; "
                    "give the same source, unchanged, or start anew"
                )
        return mine

    def _open(self) -> Loader:
        settings = Settings(
            self._square,
            self._device,
            self._workers,
            self.pictures,
            f"{self._seed}/{self.epoch}",
        )
        if self.backend == "torch":
            return TorchLoader(settings)
        from pvp_fast.loaders.dali import DaliLoader

        return DaliLoader(settings, self._batch_size)

    # --- where the stream is ------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, in plain JSON values: after the batch handed out last."""
        return {
            "version": _VERSION,
            "epoch": self.epoch,
            "done": self._done,
            "listed": self.listed,
            "last": self._last,
            "failures": [[f.key, f.reason, f.index] for f in self.failures],
            **self._identity(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another stream with the same arguments was: exactly the rest follows.

        Raises:
            InputError: the state is none, or of a stream with another order.
        """
        try:
            wrong = {k: state[k] for k, v in self._identity().items() if state[k] != v}
            failures = [Failure(str(k), str(r), int(i)) for k, r, i in state["failures"]]
            epoch, listed, done = int(state["epoch"]), int(state["listed"]), bool(state["done"])
            known, last = state["version"] == _VERSION, state["last"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"state: this is no state of an ImageStream ({error!r})") from error
        if not known or wrong or not 0 <= len(failures) <= listed:
            raise InputError(
                f"state: of another order ({wrong or 'version'}); make the stream with the same "
                "shuffle, seed, rank and world"
            )
        self.close()
        self.epoch, self.listed, self._done = epoch, listed, done
        self.failures, self.read = failures, listed - len(failures)
        self._last = last

    def _identity(self) -> dict[str, Any]:
        return {
            "shuffle": self._shuffle,
            "seed": self._seed,
            "rank": self._rank,
            "world": self._world,
        }

    # --- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the workers and wait for them; iterating again starts them anew.

        Windows read ahead are dropped and read again then, unless they came from an iterator.
        """
        self._pending.clear()
        self._order = None
        self._source_error = None
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def __enter__(self) -> ImageStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _pick_backend(backend: str, device: torch.device) -> str:
    if backend not in BACKENDS:
        raise InputError(f"backend={backend!r}: use one of {', '.join(BACKENDS)}")
    if backend == "torch":
        return backend
    from importlib.util import find_spec

    try:
        found = find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # there is no package nvidia at all
        found = False
    if backend == "dali" and not found:
        raise BackendError(
            "backend='dali' needs NVIDIA DALI: pip install 'pvp_fast[dali]', or backend='torch'"
        )
    return "dali" if found and (backend == "dali" or device.type == "cuda") else "torch"
