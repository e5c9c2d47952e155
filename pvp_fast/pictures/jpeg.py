"""JPEGs over the limit are decoded at a fraction of their size, which libjpeg does on the way."""

from __future__ import annotations

from pvp_fast.errors import ImageError
from pvp_fast.pictures.settings import PictureSettings, too_large

_MOST = 16  # times the limit; sequential JPEGs need memory for some rows only
_MOST_PROGRESSIVE = 2  # these need it for every coefficient
_LEAST_BYTES = 256  # pixels that a byte of a sequential JPEG can stand for, generously
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def reduction(
    width: int, height: int, settings: PictureSettings, data: bytes, size: int, name: str = ""
) -> int:
    """1 for a JPEG within the limit, else 2, 4 or 8: it is decoded to that fraction of its sides.

    A picture over the limit goes down to a quarter of it at least: its memory is then that of a
    small one.

    Args:
        data: the file's beginning, up to its frame header at least. size: bytes of the file.

    Raises:
        ImageError: far over the limit, or a header that the file is too short for.
    """
    pixels = width * height
    if pixels <= settings.max_pixels:
        return 1
    progressive = is_progressive(data)
    most = settings.max_pixels * (_MOST_PROGRESSIVE if progressive else _MOST)
    if pixels > most or (not progressive and pixels > size * _LEAST_BYTES):
        raise too_large(width, height, settings, name)
    return next((k for k in (2, 4) if pixels <= settings.max_pixels * k * k / 4), 8)


def reduced(width: int, height: int, by: int) -> tuple[int, int]:
    """The size that libjpeg gives."""
    return -(-width // by), -(-height // by)


def is_progressive(data: bytes) -> bool:
    """Whether a decoder needs all coefficients at once.

    Args:
        data: the file's beginning, up to its frame header at least.

    Raises:
        ImageError: there is no frame header.
    """
    return _frame(data) not in (0xC0, 0xC1)


def _frame(data: bytes) -> int:
    """The marker of the frame header."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            return marker
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ImageError("damaged: no frame header")
