"""From any of Pillow's modes to RGB: transparency laid on a colour, deep gray brought to 8 bits."""

from __future__ import annotations

import contextlib

import numpy as np
from PIL import Image

# A TIFF of 16-bit samples may hold a sensor's 10, 12 or 14 bits, and nothing in it says so; other
# formats stretch to the full range by their own rules.
_SENSOR_SCALES = (1023, 4095, 16383, 65535)


def to_rgb(
    image: Image.Image, fill: tuple[int, int, int] | None, sensor_scale: bool = False
) -> Image.Image:
    """A loaded image as RGB.

    Args:
        fill: what shows through transparent pixels; None takes the colours hidden there.
        sensor_scale: deep gray that nothing over 10, 12 or 14 bits occurs in is of that depth.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image, fill, sensor_scale)
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
    image: Image.Image, fill: tuple[int, int, int] | None, sensor_scale: bool
) -> Image.Image:
    """Integers of 16 and 32 bits and floats; Pillow would clip them at 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0)
    largest = float(values.max(initial=0))
    if image.mode == "F":
        full = max(1.0, largest)
    elif largest > 65535:
        full = largest
    elif sensor_scale:
        full = float(next(scale for scale in _SENSOR_SCALES if largest <= scale))
    else:
        full = 65535.0
    gray = (values / full * 255).round().clip(0, 255).astype(np.uint8)
    found = Image.fromarray(gray).convert("RGB")
    key = image.info.get("transparency")
    if fill is not None and isinstance(key, int):  # PNG: one gray value is transparent
        with contextlib.suppress(ValueError):
            found.paste(fill, mask=Image.fromarray((values == key).astype(np.uint8) * 255))
    return found
