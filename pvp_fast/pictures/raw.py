"""Camera raw: the full preview inside it, or its sensor's pixels; never the small first picture.

Needs rawpy (LibRaw), the extra ``raw``.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from typing import IO, Any, BinaryIO, NamedTuple, cast

import numpy as np
from PIL import Image

HINT = "pip install 'pvp_fast[raw]'"
_MARKS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\x00", b"\x00MRM", b"FOVb")
_FLIPS = {3: 3, 5: 8, 6: 6}  # LibRaw's turn -> EXIF's orientation
_FULL = 1000  # pixels of a preview's longer side that is as good as the photo
_SENSOR = (32803, 34892)  # photometric interpretation: colour filter array, linear raw
_DNG_VERSION, _SUBFILES = 50706, 330
_MAX_PAGES = 256


@functools.cache
def can_read() -> bool:
    """Whether rawpy is installed."""
    return find_spec("rawpy") is not None


def is_raw(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a camera's; those on TIFF are told later."""
    return head.startswith(_MARKS) or head[8:11] == b"CR\x02" or head[4:12] == b"ftypcrx "


class Page(NamedTuple):
    """One picture of a TIFF: its directory's number in the chain (-1: beside it), and size."""

    number: int
    width: int
    height: int
    is_reduced: bool
    is_sensor: bool


def pages(stream: IO[bytes]) -> list[Page]:
    """What a TIFF holds, from its directories alone; what of it can be read."""
    try:
        return list(_pages(stream))
    except (struct.error, OSError, ValueError, OverflowError):
        return []


def _pages(stream: IO[bytes]) -> Iterator[Page]:
    stream.seek(0)
    head = stream.read(8)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or struct.unpack(f"{order}H", head[2:4]) != (42,):
        return
    (at,) = struct.unpack(f"{order}I", head[4:8])
    seen: set[int] = set()
    chain = 0
    beside: list[int] = []
    while at and at not in seen and len(seen) < _MAX_PAGES:
        seen.add(at)
        tags, after = _directory(stream, at, order)
        is_raw = _DNG_VERSION in tags
        yield _page(chain, tags, is_raw)
        beside += tags.get(_SUBFILES, [])
        chain, at = chain + 1, after
    for place in beside[:_MAX_PAGES]:
        if place not in seen:
            seen.add(place)
            yield _page(-1, _directory(stream, place, order)[0], False)


def _page(number: int, tags: dict[int, list[int]], is_raw: bool) -> Page:
    def one(tag: int) -> int:
        return next(iter(tags.get(tag, [0])), 0)

    return Page(number, one(256), one(257), bool(one(254) & 1), is_raw or one(262) in _SENSOR)


def _directory(stream: IO[bytes], at: int, order: str) -> tuple[dict[int, list[int]], int]:
    stream.seek(at)
    (count,) = struct.unpack(f"{order}H", stream.read(2))
    entries = stream.read(12 * count + 4)
    tags: dict[int, list[int]] = {}
    for entry in range(0, 12 * count, 12):
        tag, kind, number = struct.unpack_from(f"{order}HHI", entries, entry)
        form = {1: "B", 3: "H", 4: "I", 13: "I"}.get(kind)
        if form is None or number > _MAX_PAGES or tag not in (254, 256, 257, 262, 330, 50706):
            continue
        form = f"{order}{number}{form}"
        if struct.calcsize(form) <= 4:
            tags[tag] = list(struct.unpack_from(form, entries, entry + 8))
        else:
            (place,) = struct.unpack_from(f"{order}I", entries, entry + 8)
            stream.seek(place)
            tags[tag] = list(struct.unpack(form, stream.read(struct.calcsize(form))))
    (after,) = struct.unpack_from(f"{order}I", entries, 12 * count)
    return tags, after


class Developed(NamedTuple):
    """A preview (an encoded JPEG or pixels) or the developed photo, as stored; EXIF's number of
    the turn that it needs; and the photo's own size."""

    picture: bytes | Image.Image
    orientation: int
    width: int
    height: int


def develop(stream: IO[bytes], max_pixels: int) -> Developed | tuple[int, int]:
    """The picture of a camera raw; its size alone where it is over ``max_pixels``.

    Raises:
        ValueError: LibRaw cannot read it.
    """
    import rawpy

    stream.seek(0)
    try:
        with rawpy.imread(cast("BinaryIO", stream)) as photo:
            sizes = photo.sizes
            if sizes.width * sizes.height > max_pixels:
                return sizes.width, sizes.height
            turn = _FLIPS.get(sizes.flip, 1)
            found = _preview(rawpy, photo, max(sizes.width, sizes.height))
            if found is None:
                pixels = photo.postprocess(half_size=True, use_camera_wb=True, user_flip=0)
                found = Image.fromarray(pixels)
            return Developed(found, turn, sizes.width, sizes.height)
    except rawpy.LibRawError as error:
        raise ValueError(f"LibRaw: {error}") from error


def _preview(rawpy: Any, photo: Any, longer: int) -> bytes | Image.Image | None:
    """The preview, unless it is none or small."""
    try:
        found = photo.extract_thumb()
    except rawpy.LibRawError:
        return None
    if found.format == rawpy.ThumbFormat.JPEG:
        data = bytes(found.data)
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            size = max(image.size)
        picture: bytes | Image.Image = data
    else:
        picture = Image.fromarray(np.asarray(found.data))
        size = max(picture.size)
    return picture if size >= min(_FULL, longer / 2) else None
