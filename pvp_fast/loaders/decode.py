"""One image from a file or bytes to the network's square in uint8, or the reason why not.

JPEG is decoded by libjpeg-turbo (simplejpeg, where it is installed), everything else and every
odd JPEG by Pillow; both give the same pixels. Resizing is torch's antialiased uint8 kernel, a port
of Pillow-SIMD's: within two levels of Pillow's own, four times faster. All of it releases the GIL.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.errors import ImageError, InputError
from pvp_fast.loaders.augment import Augment, View
from pvp_fast.loaders.samples import Sample
from pvp_fast.pictures import PictureSettings, open_image
from pvp_fast.pictures.jpeg import is_progressive, reduced, reduction
from pvp_fast.pictures.reader import DEFAULT
from pvp_fast.pictures.turn import AS_STORED, Turn, jpeg_turn

try:
    import simplejpeg
except ImportError:  # Pillow then decodes everything: same pixels, half the speed
    simplejpeg = None

_JPEG = b"\xff\xd8\xff"
_MAX_BYTES = 1 << 29  # a JPEG file over half a GiB is left to Pillow, which reads it by pieces
_PADDING = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_ONE_AT_A_TIME = threading.Lock()  # large progressive JPEGs
# What libjpeg warns of when pixels are missing or wrong; its other warnings are about oddities.
_DAMAGE = re.compile(r"Corrupt JPEG data|Premature end of JPEG")


@dataclass(frozen=True)
class Jpeg:
    """An encoded JPEG of a plain kind (8 bits, gray or YCbCr), its header read and bounded.

    ``width`` and ``height`` are as stored and as it is decoded; ``turn`` is still to be done.
    ``by`` is 1, or 2, 4, 8 where it is too large to decode but at that fraction, ``most`` the
    megapixels that make it so.
    """

    data: bytes
    width: int
    height: int
    turn: Turn = AS_STORED
    by: int = 1
    most: float = DEFAULT.max_megapixels


def have_simplejpeg() -> bool:
    """Whether libjpeg-turbo decodes here, which also is what finds damaged JPEG bodies."""
    return simplejpeg is not None


def fetch(sample: Sample, pictures: PictureSettings = DEFAULT) -> Jpeg | np.ndarray:
    """Read a sample: a plain JPEG still encoded, or anything else decoded, (H, W, 3) uint8.

    Raises:
        ImageError: it cannot be read, or is larger than ``pictures`` allow.
    """
    image = sample.image
    if isinstance(image, ImageError):
        raise image
    if callable(image):
        image = image()
    if isinstance(image, str | os.PathLike):
        image = _jpeg_bytes(os.fspath(image)) or image
    if isinstance(image, bytes) and image.startswith(_JPEG):
        plain = _plain(image, pictures)
        if plain is not None:
            return plain
    return np.asarray(open_image(image, pictures))


def _jpeg_bytes(path: str) -> bytes | None:
    """The bytes of a JPEG file; None for any other file, and for one that cannot be read."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(len(_JPEG))
            if head != _JPEG or os.fstat(stream.fileno()).st_size > _MAX_BYTES:
                return None
            return head + stream.read()
    except (OSError, ValueError):
        return None


def _plain(data: bytes, pictures: PictureSettings) -> Jpeg | None:
    if simplejpeg is None:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "Gray"):
        return None
    by = reduction(width, height, pictures, data, len(data))
    turn = jpeg_turn(data) if pictures.upright else AS_STORED
    return Jpeg(data, *reduced(width, height, by), turn, by, pictures.max_megapixels)


def decode(jpeg: Jpeg, least: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of a JPEG.

    Args:
        least: decode at a fraction of the size (in eighths, at most a half) that keeps this many
            columns and rows; (0, 0) decodes at full size.

    Raises:
        ImageError: the body is truncated or damaged.
    """
    scaled: dict[str, Any] = {}
    if least == (0, 0) and jpeg.by > 1:
        least = jpeg.width, jpeg.height
    if least != (0, 0):
        # Five to seven eighths would take longer than the full size, which has vector code.
        scaled = {"min_width": least[0], "min_height": least[1], "min_factor": 2}
    # Its memory is that of all coefficients, three bytes a pixel, whatever the fraction.
    alone = jpeg.by > 1 and is_progressive(jpeg.data)
    with _ONE_AT_A_TIME if alone else contextlib.nullcontext():
        try:
            pixels: np.ndarray = simplejpeg.decode_jpeg(jpeg.data, **scaled)
        except ValueError as error:
            return _second_opinion(jpeg, str(error))
    return pixels


def check_body(jpeg: Jpeg) -> None:
    """Raise ImageError where :func:`decode` would, at about half its cost.

    Entropy decoding finds damage; the rest of the work is skipped by decoding to one eighth.
    """
    try:
        simplejpeg.decode_jpeg(jpeg.data, "GRAY", min_width=1, min_height=1, min_factor=8)
    except ValueError as error:
        _second_opinion(jpeg, str(error))


def _second_opinion(jpeg: Jpeg, warning: str) -> np.ndarray:
    """Pillow's pixels, unless it finds an error or the warning means damage."""
    as_stored = PictureSettings(upright=False, max_megapixels=jpeg.most)
    pixels = np.asarray(open_image(jpeg.data, as_stored))
    if _DAMAGE.match(warning) and not _is_padding(jpeg.data, warning):
        raise ImageError(f"damaged: {warning}")
    return pixels


def _is_padding(data: bytes, warning: str) -> bool:
    """Whether what lies before the end marker is filler, which some cameras write."""
    found = _PADDING.match(warning)
    if found is None:
        return False
    end = data.rfind(b"\xff\xd9")
    return set(data[end - int(found.group(1)) : end]) <= {0x00, 0xFF}


class Square:
    """Pixels (H, W, 3) uint8 of any size -> (3, S, S) uint8, as ``preprocess`` would crop them.

    S, S is the input's height and width where it is no square.

    Args:
        preprocess: the geometry.
        augment: random crops and flips instead.
        fast: decode JPEGs at a fraction of their size where the target allows it.
    """

    def __init__(
        self, preprocess: Preprocess, augment: Augment | None = None, fast: bool = False
    ) -> None:
        self.preprocess, self.augment, self.fast = preprocess, augment, fast
        rows, columns = preprocess.sides
        self._size = columns, rows

    def __call__(self, found: Jpeg | np.ndarray, chance: random.Random | None = None) -> np.ndarray:
        """(3, S, S) uint8.

        Args:
            chance: where the augmentation's draws come from.

        Raises:
            ImageError: a JPEG's body is damaged.
        """
        turn = AS_STORED
        if isinstance(found, Jpeg):
            turn = found.turn
            found = decode(found, self._least(found) if self.fast else (0, 0))
        # Planned for the picture upright, cut and resized as stored, and turned when it is small.
        height, width = found.shape[:2]
        width, height = turn.size(width, height)
        if self.augment is not None:
            if chance is None:
                raise InputError("chance: augmentation needs a random.Random")
            return self._view(found, self.augment.view(width, height, chance), turn)
        plan = self.preprocess.plan(width, height)
        if plan.trim is not None:
            left, top, right, bottom = turn.box(plan.trim, width, height)
            found = found[top:bottom, left:right]
        resized = turn.array(self._resize(found, turn.size(*plan.resized)))
        columns, rows = self._size
        if plan.has_bars(rows, columns):
            whole = np.full((3, rows, columns), self.preprocess.fill, np.uint8)
            _, height, width = resized.shape
            whole[:, -plan.top : height - plan.top, -plan.left : width - plan.left] = resized
            return whole
        square = resized[:, plan.top : plan.top + rows, plan.left : plan.left + columns]
        return _in_order(square, turn)

    def _view(self, pixels: np.ndarray, view: View, turn: Turn) -> np.ndarray:
        width, height = turn.size(pixels.shape[1], pixels.shape[0])
        left, top, right, bottom = turn.box(view.box, width, height)
        square = self._resize(pixels[top:bottom, left:right], turn.size(*self._size))
        return _in_order((turn.mirrored() if view.flip else turn).array(square), turn)

    def _least(self, jpeg: Jpeg) -> tuple[int, int]:
        if self.augment is not None or self.preprocess.resize_mode == "squash":
            return jpeg.turn.size(*self._size)
        upright = jpeg.turn.size(jpeg.width, jpeg.height)
        return jpeg.turn.size(*self.preprocess.plan(*upright).resized)

    def _resize(self, pixels: np.ndarray, target: tuple[int, int]) -> np.ndarray:
        """(H, W, 3) -> (3, height, width) of ``target`` (width, height); a view is fine."""
        height, width = pixels.shape[:2]
        if (width, height) == target:
            return pixels.transpose(2, 0, 1)
        if not pixels.flags.writeable:  # torch warns, and does not write
            pixels = pixels.copy()
        chw = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        resized = F.interpolate(
            chw,
            size=(target[1], target[0]),
            mode=self.preprocess.interpolation,
            antialias=True,
            align_corners=False,
        )
        array: np.ndarray = resized[0].numpy()
        return array


def _in_order(square: np.ndarray, turn: Turn) -> np.ndarray:
    """Rows and columns that were exchanged, as bytes in order: made floats as they lie, the same
    square takes twice as long."""
    return np.ascontiguousarray(square) if turn.exchange else square


class Normalise:
    """(3, S, S) uint8 -> float32, bit for bit what ``preprocess`` computes.

    NumPy, since torch would start threads of its own inside every worker.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        self._mean = np.array(preprocess.mean, np.float32).reshape(3, 1, 1)
        self._std = np.array(preprocess.std, np.float32).reshape(3, 1, 1)

    def __call__(self, square: np.ndarray, out: np.ndarray) -> None:
        """Write the normalised pixels of ``square`` into ``out`` (3, S, S) float32."""
        out[...] = square
        np.divide(out, np.float32(255), out=out)
        np.subtract(out, self._mean, out=out)
        np.divide(out, self._std, out=out)
