"""Decoding on a pool of threads: libjpeg-turbo, Pillow and torch all release the GIL."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pvp_fast.errors import ImageError
from pvp_fast.loaders.decode import Normalise, Square, fetch
from pvp_fast.loaders.samples import Sample
from pvp_fast.loaders.windows import Listed, Loaded
from pvp_fast.pictures import PictureSettings


@dataclass(frozen=True)
class Settings:
    """What every backend needs to know.

    ``seed`` names the run and epoch; with a sample's index it gives the augmentation's draws.
    """

    square: Square
    device: torch.device
    workers: int
    pictures: PictureSettings
    seed: str

    def chance(self, index: int) -> random.Random | None:
        """The random numbers of one sample, whichever worker loads it."""
        if self.square.augment is None:
            return None
        return random.Random(f"{self.seed}/{index}")


def reason_of(error: BaseException) -> str:
    """A failure's reason; a surprise inside a decoder must not end a run over millions of files."""
    if isinstance(error, ImageError):
        return error.reason
    return f"{type(error).__name__}: {error}"


def metadata_of(sample: Sample) -> Mapping[str, Any]:
    """A sample's metadata, read now where they lie in a file."""
    found = sample.metadata
    return found() if callable(found) else found


def empty_pixels(count: int, sides: tuple[int, int], device: torch.device) -> Tensor:
    """A buffer of ``count`` squares: float32, or pinned uint8 to be normalised on a CUDA device."""
    if device.type == "cpu":
        return torch.empty(count, 3, *sides)
    return torch.empty(count, 3, *sides, dtype=torch.uint8, pin_memory=device.type == "cuda")


class TorchLoader:
    """The backend that runs everywhere."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._normalise = Normalise(settings.square.preprocess)
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="pvp-fast-loader")

    def start(self, window: Sequence[Listed]) -> _Window:
        settings = self._settings
        sides = settings.square.preprocess.sides
        pixels = empty_pixels(len(window), sides, settings.device)
        rows = pixels.numpy()
        work = [
            self._pool.submit(self._load, listed, rows[row]) for row, listed in enumerate(window)
        ]
        return _Window(work, pixels, settings)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, listed: Listed, out: np.ndarray) -> Mapping[str, Any] | str:
        try:
            settings = self._settings
            found = fetch(listed.sample, settings.pictures)
            square = settings.square(found, settings.chance(listed.index))
            if out.dtype == np.uint8:
                out[...] = square
            else:
                self._normalise(square, out)
            return metadata_of(listed.sample)
        except Exception as error:
            return reason_of(error)


class _Window:
    def __init__(
        self,
        work: Sequence[Future[Mapping[str, Any] | str]],
        pixels: Tensor,
        settings: Settings,
    ) -> None:
        self._work, self._pixels, self._settings = work, pixels, settings

    def result(self) -> Loaded:
        outcomes = tuple(future.result() for future in self._work)
        good = [row for row, outcome in enumerate(outcomes) if not isinstance(outcome, str)]
        pixels = self._pixels if len(good) == len(outcomes) else self._pixels[good]
        return Loaded(to_device(pixels, self._settings), outcomes)


def to_device(pixels: Tensor, settings: Settings) -> Tensor:
    """Squares from :func:`empty_pixels` as normalised float32 on the device."""
    if pixels.dtype == torch.float32:
        return pixels
    preprocess = settings.square.preprocess
    mean, std = (
        torch.tensor(v, device=settings.device).view(3, 1, 1)
        for v in (preprocess.mean, preprocess.std)
    )
    moved = pixels.to(settings.device, non_blocking=True).to(torch.float32)
    return moved.div_(255).sub_(mean).div_(std)
