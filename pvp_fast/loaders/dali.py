"""NVIDIA DALI: one graph for CPU and GPU, with the geometry of open_clip's transform.

DALI is given only JPEGs whose header was read and whose body was decoded once for a check (at one
eighth of the size): a bad sample would fail its whole batch and the pipeline with it. All other
formats and rare kinds of JPEG are decoded as in the torch backend and join the batch afterwards.
Should DALI fail all the same, the pipeline is built anew and the batch split until the culprit is
alone; Pillow then has the last word on it.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pvp_fast.errors import BackendError
from pvp_fast.loaders.decode import Jpeg, check_body, fetch, have_simplejpeg
from pvp_fast.loaders.threads import (
    Settings,
    empty_pixels,
    metadata_of,
    reason_of,
    to_device,
)
from pvp_fast.loaders.windows import Listed, Loaded
from pvp_fast.pictures import open_image
from pvp_fast.pictures.turn import AS_STORED, Turn


def _probe(rows: int, columns: int) -> Jpeg:
    """A picture of the input's shape: one that needs bars would not come here."""
    stream = io.BytesIO()
    Image.new("RGB", (columns, rows), "red").save(stream, "JPEG")
    return Jpeg(stream.getvalue(), columns, rows)


class DaliLoader:
    """The backend on DALI.

    Args:
        settings: as for every backend.
        batch_size: most samples of a window.

    Raises:
        BackendError: DALI or simplejpeg cannot be imported, or DALI cannot use the device.
    """

    def __init__(self, settings: Settings, batch_size: int) -> None:
        if settings.device.type not in ("cpu", "cuda"):
            raise BackendError(f"backend='dali' runs on cpu and cuda, not on {settings.device}")
        if not have_simplejpeg():
            raise BackendError(
                "backend='dali' needs simplejpeg to check images before DALI sees them: "
                "pip install 'pvp_fast[loaders]'"
            )
        self._settings, self._batch_size = settings, batch_size
        square = settings.square
        shape = square.preprocess
        self._shortcut = (
            square.fast and shape.resize_mode == "shortest" and isinstance(shape.size, int)
        )
        self._pipeline: Any = self._build()
        try:  # or a graph that cannot run here would pass for one bad image after another
            self._run([(_probe(*shape.sides), 0)])
        except RuntimeError as error:
            raise BackendError(
                f"backend='dali' cannot run on {settings.device}: {error}"
            ) from error
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="pvp-fast-loader")
        # The pipeline is fed by one thread, which runs it while the consumer is busy.
        self._runner = ThreadPoolExecutor(1, thread_name_prefix="pvp-fast-dali")

    def start(self, window: Sequence[Listed]) -> Future[Loaded]:
        work = [self._pool.submit(self._prepare, listed) for listed in window]
        return self._runner.submit(self._finish, list(window), work)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._runner.shutdown(wait=True, cancel_futures=True)
        self._pipeline = None

    def _prepare(self, listed: Listed) -> tuple[Jpeg | np.ndarray, Mapping[str, Any]] | str:
        """A checked JPEG for DALI, or a finished square (3, S, S), or why there is none."""
        try:
            settings = self._settings
            found = fetch(listed.sample, settings.pictures)
            metadata = metadata_of(listed.sample)
            if isinstance(found, Jpeg):
                upright = found.turn.size(found.width, found.height)
                preprocess = settings.square.preprocess
                plan = preprocess.plan(*upright)
                plain = plan.trim is None and not plan.has_bars(*preprocess.sides)
                # Turned on its side afterwards, its rows would not be the other images'.
                fits = isinstance(preprocess.size, int) or not found.turn.exchange
                if found.by == 1 and fits and (plain or settings.square.augment is not None):
                    check_body(found)
                    return found, metadata
            return settings.square(found, settings.chance(listed.index)), metadata
        except Exception as error:
            return reason_of(error)

    def _finish(self, window: list[Listed], work: list[Future[Any]]) -> Loaded:
        prepared = [future.result() for future in work]
        settings = self._settings
        outcomes: list[Mapping[str, Any] | str] = [
            found if isinstance(found, str) else found[1] for found in prepared
        ]
        jpegs = {
            row: (found[0], window[row].index)
            for row, found in enumerate(prepared)
            if not isinstance(found, str) and isinstance(found[0], Jpeg)
        }
        squares = {
            row: found[0]
            for row, found in enumerate(prepared)
            if not isinstance(found, str) and not isinstance(found[0], Jpeg)
        }
        sides = settings.square.preprocess.sides
        pixels = torch.empty(len(window), 3, *sides, device=settings.device)
        self._decode(jpegs, pixels, squares, outcomes)
        if squares:
            host = torch.from_numpy(np.stack([np.ascontiguousarray(s) for s in squares.values()]))
            rows = torch.tensor(list(squares), device=settings.device)
            buffer = empty_pixels(0, sides, settings.device)
            if buffer.dtype == torch.uint8 and buffer.is_pinned():
                host = host.pin_memory()
            pixels[rows] = to_device(host, settings)
        good = [row for row, outcome in enumerate(outcomes) if not isinstance(outcome, str)]
        if len(good) < len(outcomes):
            pixels = pixels[good]
        if settings.device.type == "cuda":
            torch.cuda.current_stream(settings.device).synchronize()
        return Loaded(pixels, tuple(outcomes))

    def _decode(
        self,
        jpegs: dict[int, tuple[Jpeg, int]],
        pixels: Tensor,
        squares: dict[int, np.ndarray],
        outcomes: list[Mapping[str, Any] | str],
    ) -> None:
        """Write the rows of ``jpegs`` into ``pixels``; one that DALI refuses goes to the others."""
        if not jpegs:
            return
        rows = list(jpegs)
        try:
            made = self._run([jpegs[row] for row in rows])
        except RuntimeError:
            self._pipeline = None
            self._pipeline = self._build()  # a pipeline that failed once is of no more use
            if len(rows) > 1:
                for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                    self._decode({row: jpegs[row] for row in half}, pixels, squares, outcomes)
                return
            (row,) = rows
            jpeg, index = jpegs[row]
            try:
                image = np.asarray(open_image(jpeg.data, self._settings.pictures))
                squares[row] = self._settings.square(image, self._settings.chance(index))
            except Exception as error:
                outcomes[row] = reason_of(error)
            return
        if len(rows) == len(pixels):
            pixels.copy_(made)
        else:
            pixels[torch.tensor(rows, device=pixels.device)] = made

    # --- the pipeline -------------------------------------------------------------------------

    def _run(self, jpegs: list[tuple[Jpeg, int]]) -> Tensor:
        """(B, 3, S, S) float32 on the device, valid until the next call.

        Raises:
            RuntimeError: from DALI.
        """
        square = self._settings.square
        places, turns = zip(*(self._place(jpeg, index) for jpeg, index in jpegs), strict=True)
        self._pipeline.feed_input("jpeg", [np.frombuffer(j.data, np.uint8) for j, _ in jpegs])
        if square.augment is not None:
            self._pipeline.feed_input("start", [p[0] for p in places])
            self._pipeline.feed_input("end", [p[1] for p in places])
            self._pipeline.feed_input("flip", [p[2] for p in places])
        elif not self._shortcut:
            for number, name in enumerate(("narrow", "size", "corner")):
                self._pipeline.feed_input(name, [place[number] for place in places])
        (made,) = self._pipeline.run()
        if self._settings.device.type == "cpu":
            pixels = torch.from_numpy(made.as_array())
        else:
            from nvidia.dali.plugin.pytorch import feed_ndarray

            sides = square.preprocess.sides
            pixels = torch.empty(len(jpegs), 3, *sides, device=self._settings.device)
            stream = torch.cuda.current_stream(self._settings.device)
            feed_ndarray(made.as_tensor(), pixels, cuda_stream=stream)
        if all(turn == AS_STORED for turn in turns):
            return pixels
        return torch.stack([turn.tensor(row) for turn, row in zip(turns, pixels, strict=True)])

    def _place(self, jpeg: Jpeg, index: int) -> tuple[tuple[np.ndarray, ...], Turn]:
        """What the graph needs to know of one image as stored, (height, width) order, and the turn
        that its square needs afterwards."""
        settings, turn = self._settings, jpeg.turn
        width, height = turn.size(jpeg.width, jpeg.height)
        chance = settings.chance(index)
        if chance is not None and settings.square.augment is not None:
            view = settings.square.augment.view(width, height, chance)
            left, top, right, bottom = turn.box(view.box, width, height)
            # Mirrored by the graph where nothing else is to be turned.
            flip = view.flip and turn == AS_STORED
            ends = (np.array(end, np.float32) for end in ((top, left), (bottom, right)))
            place = (*ends, np.array(flip, np.int32))
            return place, turn.mirrored() if view.flip and not flip else turn
        plan = settings.square.preprocess.plan(width, height)
        rows, columns = settings.square.preprocess.sides
        square = (plan.left, plan.top, plan.left + columns, plan.top + rows)
        left, top, _, _ = turn.box(square, *plan.resized)
        resized = turn.size(*plan.resized)
        place = (
            np.array([jpeg.height, resized[0]], np.float32),
            np.array(resized[::-1], np.float32),
            np.array([top, left], np.int32),
        )
        return place, turn

    def _build(self) -> Any:
        try:
            dali: Any = importlib.import_module("nvidia.dali")
            fn: Any = importlib.import_module("nvidia.dali.fn")
            types: Any = importlib.import_module("nvidia.dali.types")
        except ImportError as error:
            raise BackendError(
                f"backend='dali': NVIDIA DALI cannot be imported ({error}); "
                "pip install 'pvp_fast[dali]'"
            ) from error
        settings = self._settings
        square, preprocess = settings.square, settings.square.preprocess
        sides, cuda = preprocess.sides, settings.device.type == "cuda"
        device_id = (settings.device.index or 0) if cuda else None
        kind = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}
        options = {
            "interp_type": kind[preprocess.interpolation],
            "antialias": True,
            "subpixel_scale": False,
        }
        try:
            pipeline = dali.Pipeline(
                self._batch_size,
                settings.workers,
                device_id,
                prefetch_queue_depth=1,
                set_affinity=False,
            )
            with pipeline:
                jpeg = fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1)
                images = fn.decoders.image(
                    jpeg,
                    device="mixed" if cuda else "cpu",
                    output_type=types.RGB,
                    adjust_orientation=False,  # the squares are turned afterwards
                )
                mirror: Any = 0
                if square.augment is not None:
                    start = fn.external_source(name="start", dtype=types.FLOAT, ndim=1)
                    end = fn.external_source(name="end", dtype=types.FLOAT, ndim=1)
                    mirror = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
                    images = fn.resize(
                        images, size=list(sides), roi_start=start, roi_end=end, **options
                    )
                elif self._shortcut:
                    images = fn.resize(images, resize_shorter=sides[0], **options)
                else:
                    narrow = fn.external_source(name="narrow", dtype=types.FLOAT, ndim=1)
                    wanted = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
                    corner = fn.external_source(name="corner", dtype=types.INT32, ndim=1)
                    # Rows, then columns, rounded in between as Pillow does: DALI alone keeps
                    # the overshoot of the first pass, which shows at hard edges.
                    for side in (narrow, wanted):
                        images = fn.resize(images, size=side, **options)
                    images = fn.slice(images, start=corner, shape=list(sides), axes=(0, 1))
                images = fn.crop_mirror_normalize(
                    images,
                    crop=sides,
                    mirror=mirror,
                    dtype=types.FLOAT,
                    output_layout="CHW",
                    mean=[255 * m for m in preprocess.mean],
                    std=[255 * s for s in preprocess.std],
                )
                pipeline.set_outputs(images)
            pipeline.build()
        except RuntimeError as error:
            raise BackendError(f"backend='dali' cannot use {settings.device}: {error}") from error
        return pipeline
