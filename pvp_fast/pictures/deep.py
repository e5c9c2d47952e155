"""Samples of more than 8 bits, and what a file says of them: brought to 8 bits.

Pillow keeps the high byte of colours and leaves gray as it is, on the scale of whoever wrote it.
"""

from __future__ import annotations

from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin
from PIL.ImageFile import ImageFile

# A TIFF of 16-bit samples may hold a sensor's 10, 12 or 14 bits, and nothing in it says so; other
# formats stretch to the full range by their own rules.
_SENSOR_SCALES = (1023, 4095, 16383, 65535)
_PHOTOMETRIC, _FORMAT = 262, 339
_MIN_IS_WHITE, _SIGNED = 0, 2
# The same with the bytes of a sample exchanged; libtiff gives the machine's order.
_BYTES_EXCHANGED = {"RGB;16L": "RGB;16B", "RGB;16B": "RGB;16L", "RGB;16N": "RGB;16B"}
_GRAYS = {"L;2": 85, "L;4": 17}  # levels between two grays, as Pillow spreads them


class Samples(NamedTuple):
    """What a file says of its samples.

    Attributes:
        sensor: deep ones that nothing over 10, 12 or 14 bits occurs in are of that depth.
        negative: the smallest is white, and Pillow has not turned that round.
        signed: they have a sign, and so no full scale.
        colours: they are colours, of which Pillow keeps the high bytes.
    """

    sensor: bool = False
    negative: bool = False
    signed: bool = False
    colours: bool = False


PLAIN = Samples()


def samples_of(image: Image.Image) -> Samples:
    """Of an image that is not loaded yet."""
    if image.format != "TIFF" or not isinstance(image, TiffImagePlugin.TiffImageFile):
        return PLAIN
    tags = image.tag_v2
    sign = tags.get(_FORMAT, (1,))
    signed = _SIGNED in (sign if isinstance(sign, tuple) else (sign,))
    colours = _form(image) in _BYTES_EXCHANGED
    return Samples(True, tags.get(_PHOTOMETRIC) == _MIN_IS_WHITE, signed, colours)


def _form(image: Image.Image) -> str:
    """How the samples lie in the file, as Pillow calls it."""
    tiles = image.tile if isinstance(image, ImageFile) else []
    return str(_arguments(tiles[0].args)[0]) if tiles else ""


def _arguments(given: Any) -> tuple[Any, ...]:
    """Of Pillow's decoder: the form of the samples comes first, or alone."""
    return given if isinstance(given, tuple) else (given,)


def transparent_key(image: Image.Image) -> int | tuple[int, ...] | None:
    """The colour that a PNG of 2, 4 or 16 bits a sample holds for transparent, on the scale of the
    pixels that Pillow gives; None where it is that already, or there is none.

    Args:
        image: not loaded yet.
    """
    key = image.info.get("transparency")
    form = _form(image) if image.format == "PNG" else ""
    if isinstance(key, int) and form in _GRAYS:
        return key * _GRAYS[form]
    if isinstance(key, tuple) and form == "RGB;16B":
        return tuple(value >> 8 for value in key)
    return None


def to_gray(image: Image.Image, samples: Samples) -> np.ndarray:
    """(H, W) uint8 of integers of 16 and 32 bits and floats; Pillow would clip them at 255."""
    pixels = np.asarray(image)
    if samples.sensor and not samples.signed and image.mode == "I":
        pixels = pixels.view(np.uint32)  # Pillow's own has a sign
    values = np.nan_to_num(pixels.astype(np.float64), posinf=0.0)
    largest = float(values.max(initial=0))
    if image.mode == "F" or samples.signed:
        full = max(1.0, largest)
    elif largest > 65535:
        full = largest
    elif samples.sensor:
        full = _sensor_scale(largest)
    else:
        full = 65535.0
    if samples.negative and image.mode != "F":
        values = full - values
    gray: np.ndarray = (values / full * 255).round().clip(0, 255).astype(np.uint8)
    return gray


def from_sensor(image: Image.Image, stream: IO[bytes]) -> Image.Image:
    """The colours of a TIFF of 16 bits a sample; where nothing over 10, 12 or 14 bits occurs in
    them their high bytes alone would be nearly black.

    Args:
        image: loaded, read from ``stream``.
    """
    high = np.asarray(image)
    if high.max() > _SENSOR_SCALES[-2] >> 8:
        return image
    stream.seek(0)
    low = TiffImagePlugin.TiffImageFile(stream, "")
    low.seek(image.tell())
    form = _BYTES_EXCHANGED[_form(low)]
    low.tile = [tile._replace(args=(form, *_arguments(tile.args)[1:])) for tile in low.tile]
    low.load()
    values = high.astype(np.uint16) << 8 | np.asarray(low)
    full = _sensor_scale(float(values.max()))
    return Image.fromarray((values * (255 / full)).round().astype(np.uint8))


def _sensor_scale(largest: float) -> float:
    return float(next(scale for scale in _SENSOR_SCALES if largest <= scale))
