"""Which way up a photo stands: what its metadata ask for, and doing it to pixels and boxes."""

from __future__ import annotations

import re
import struct
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image

_ORIENTATION = 0x0112
_IN_XMP = re.compile(rb"""tiff:Orientation(?:\s*=\s*["']|>)\s*([0-9])""")
_TOLD_BY_XMP = ("JPEG", "MPO", "PNG", "WEBP")  # the others are upright when they are loaded
_EXIF, _XMP = b"Exif\x00\x00", b"http://ns.adobe.com/xap/1.0/\x00"
_INTEGERS = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I"}  # kinds of a TIFF directory


class Turn(NamedTuple):
    """From a picture as stored to the picture upright: exchange the axes, then mirror them."""

    exchange: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the turn; also the way back."""
        return (height, width) if self.exchange else (width, height)

    def box(
        self, box: tuple[int, int, int, int], width: int, height: int
    ) -> tuple[int, int, int, int]:
        """Where a box (left, top, right, bottom) of the upright picture lies in the stored one.

        ``width`` and ``height`` are the upright picture's.
        """
        left, top, right, bottom = box
        if self.flip_columns:
            left, right = width - right, width - left
        if self.flip_rows:
            top, bottom = height - bottom, height - top
        return (top, left, bottom, right) if self.exchange else (left, top, right, bottom)

    def mirrored(self) -> Turn:
        """This turn, then left and right exchanged."""
        return self._replace(flip_columns=not self.flip_columns)

    def array(self, pixels: np.ndarray) -> np.ndarray:
        """(C, H, W) stored -> upright; a view."""
        if self.exchange:
            pixels = pixels.swapaxes(1, 2)
        rows = -1 if self.flip_rows else 1
        columns = -1 if self.flip_columns else 1
        return pixels[:, ::rows, ::columns]

    def tensor(self, pixels: torch.Tensor) -> torch.Tensor:
        """(C, H, W) stored -> upright."""
        if self.exchange:
            pixels = pixels.transpose(1, 2)
        axes = [axis for axis, flip in ((1, self.flip_rows), (2, self.flip_columns)) if flip]
        return pixels.flip(axes) if axes else pixels


AS_STORED = Turn()
# By EXIF's number; 0 and numbers above 8 mean nothing.
TURNS = {
    1: AS_STORED,
    2: Turn(False, False, True),
    3: Turn(False, True, True),
    4: Turn(False, True, False),
    5: Turn(True, False, False),
    6: Turn(True, False, True),
    7: Turn(True, True, True),
    8: Turn(True, True, False),
}
_METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """The image as its metadata ask for it; unreadable metadata ask for nothing."""
    try:
        asked = image.getexif().get(ExifTags.Base.Orientation)
    # A camera's private directories can be broken in any way; the pixels are not.
    except Exception:
        asked = None
    if asked is None and image.format in _TOLD_BY_XMP:
        asked = _asked_by_xmp(image.info.get("xmp"))
    method = _METHODS.get(asked) if isinstance(asked, int) else None
    return image if method is None else image.transpose(method)


def _asked_by_xmp(packet: Any) -> int | None:
    """Pillow finds it in one spelling alone."""
    found = _IN_XMP.search(packet) if isinstance(packet, bytes) else None
    return int(found.group(1)) if found is not None else None


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image upright that lies as EXIF's number says."""
    method = _METHODS.get(orientation)
    return image if method is None else image.transpose(method)


def jpeg_turn(data: bytes) -> Turn:
    """What a JPEG's own EXIF, or else its XMP, asks for: as Pillow reads it, without decoding."""
    xmp = None
    at, end = 2, len(data) - 4
    while at <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filler
            at += 1
            continue
        if marker == 0xDA or marker == 0xD9:  # the pixels, or the end
            break
        length = data[at + 2] << 8 | data[at + 3]
        if marker == 0xE1:
            if data.startswith(_EXIF, at + 4):
                asked = _exif_orientation(data[at + 10 : at + 2 + length])
                if asked is not None:
                    return TURNS.get(asked, AS_STORED)
            elif data.startswith(_XMP, at + 4):
                xmp = data[at + 4 : at + 2 + length]
        at += 2 + length
    return TURNS.get(_asked_by_xmp(xmp) or 1, AS_STORED)


def _exif_orientation(block: bytes) -> int | None:
    """The tag in the first directory of a TIFF block; None where there is none."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, entry)
            if tag == _ORIENTATION:
                form = _INTEGERS.get(kind)
                if form is None:
                    return None
                value: int = struct.unpack_from(order + form, block, entry + 8)[0]
                return value
    except struct.error:
        return None
    return None
