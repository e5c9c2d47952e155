"""From any of Pillow's modes to RGB: transparency laid on a colour, deep gray brought to 8 bits."""

from __future__ import annotations

import contextlib

import numpy as np
from PIL import Image

from pvp_fast.pictures.deep import PLAIN, Samples, to_gray


def to_rgb(
    image: Image.Image, fill: tuple[int, int, int] | None, samples: Samples = PLAIN
) -> Image.Image:
    """A loaded image as RGB.

    Args:
        fill: what shows through transparent pixels; None takes the colours hidden there.
        samples: what the file says of deep gray.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image, fill, samples)
    if fill is None or not _has_alpha(image):
        return image.convert("RGB")
    layer = image
    if image.mode in ("La", "RGBa"):
        layer = image.convert(image.mode.upper())
    if layer.mode != "RGBA":
        layer = layer.convert("RGBA")
    # Most files with alpha are opaque all over, and one corner tells most of the others.
    corner = layer.crop((0, 0, 1, 1)).tobytes()[3]
    if corner == 255 and layer.getchannel("A").getextrema() == (255, 255):
        return layer.convert("RGB")
    ground = Image.new("RGB", layer.size, fill)
    ground.paste(layer, mask=layer)
    return ground


def _has_alpha(image: Image.Image) -> bool:
    return (
        image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
        or "transparency" in image.info
        or (image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA")
    )


def _from_deep(
    image: Image.Image, fill: tuple[int, int, int] | None, samples: Samples
) -> Image.Image:
    found = Image.fromarray(to_gray(image, samples)).convert("RGB")
    key = image.info.get("transparency")
    if fill is not None and isinstance(key, int):  # PNG: one gray value is transparent
        with contextlib.suppress(ValueError):
            found.paste(
                fill, mask=Image.fromarray((np.asarray(image) == key).astype(np.uint8) * 255)
            )
    return found
