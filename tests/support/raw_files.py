"""A camera raw file (DNG) made by hand: small first picture, sensor, and a preview or none."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image
from support.image_files import encoded

_FORMS = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 10: "ii"}


def _directory(entries: list[tuple[int, int, list]], at: int, after: int = 0) -> bytes:
    """A little-endian TIFF directory that starts at byte ``at``, its long values behind it."""
    head = struct.pack("<H", len(entries))
    extra_at = at + 2 + 12 * len(entries) + 4
    extra = b""
    for tag, kind, values in sorted(entries, key=lambda entry: entry[0]):
        if kind == 2:
            packed, count = values[0].encode() + b"\0", len(values[0]) + 1
        elif kind in (5, 10):
            packed = b"".join(struct.pack("<" + _FORMS[kind], v, 10000) for v in values)
            count = len(values)
        else:
            packed = struct.pack(f"<{len(values)}{_FORMS[kind]}", *values)
            count = len(values)
        if len(packed) <= 4:
            head += struct.pack("<HHI", tag, kind, count) + packed.ljust(4, b"\0")
        else:
            head += struct.pack("<HHII", tag, kind, count, extra_at + len(extra))
            extra += packed + b"\0" * (len(packed) % 2)
    return head + struct.pack("<I", after) + extra


def dng(photo: Image.Image, *, preview: Image.Image | None, orientation: int = 1) -> bytes:
    """``photo`` as a sensor's mosaic, as stored; the first picture of the file is a red square."""
    rgb = np.asarray(photo, np.uint16) * 257
    mosaic = rgb[..., 1].copy()
    mosaic[::2, ::2], mosaic[1::2, 1::2] = rgb[::2, ::2, 0], rgb[1::2, 1::2, 2]
    thumbnail = np.full((120, 160, 3), (255, 0, 0), np.uint8).tobytes()
    shown = b"" if preview is None else encoded(preview, quality=95)
    blocks, places, at = [], [], 8
    for block in (thumbnail, mosaic.astype("<u2").tobytes(), shown):
        places.append(at)
        blocks.append(block + b"\0" * (len(block) % 2))
        at += len(blocks[-1])

    def strip(width: int, height: int, place: int, size: int) -> list[tuple[int, int, list]]:
        return [
            (256, 4, [width]),
            (257, 4, [height]),
            (273, 4, [place]),
            (278, 4, [height]),
            (279, 4, [size]),
        ]

    sensor = [
        *strip(*photo.size, places[1], len(blocks[1])),
        (254, 4, [0]),
        (258, 3, [16]),
        (259, 3, [1]),
        (262, 3, [32803]),
        (277, 3, [1]),
        (33421, 3, [2, 2]),
        (33422, 1, [0, 1, 1, 2]),
        (50714, 3, [0]),
        (50717, 4, [65535]),
    ]
    sensor_at = at
    directories = _directory(sensor, at)
    children = [sensor_at]
    if preview is not None:
        children.append(at + len(directories))
        directories += _directory(
            [
                *strip(*preview.size, places[2], len(shown)),
                (254, 4, [1]),
                (258, 3, [8, 8, 8]),
                (259, 3, [7]),
                (262, 3, [6]),
                (277, 3, [3]),
            ],
            children[1],
        )
    first_at = at + len(directories)
    first = [
        *strip(160, 120, places[0], len(thumbnail)),
        (254, 4, [1]),
        (258, 3, [8, 8, 8]),
        (259, 3, [1]),
        (262, 3, [2]),
        (271, 2, ["Maker"]),
        (272, 2, ["Camera"]),
        (274, 3, [orientation]),
        (277, 3, [3]),
        (330, 4, children),
        (50706, 1, [1, 4, 0, 0]),
        (50708, 2, ["Maker Camera"]),
        (50721, 10, [10000, 0, 0, 0, 10000, 0, 0, 0, 10000]),
        (50728, 5, [10000, 10000, 10000]),
        (50778, 3, [21]),
    ]
    directories += _directory(first, first_at)
    return struct.pack("<2sHI", b"II", 42, first_at) + b"".join(blocks) + directories
