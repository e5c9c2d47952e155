"""HEIC and its relatives, where pillow-heif is installed (the extra ``heif``).

Pillow's registry, which is the whole process's, is left alone.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import IO

from PIL import Image

SUFFIXES = frozenset({".heic", ".heif", ".hif", ".heics", ".heifs"})
HINT = "pip install 'pvp_fast[heif]'"
# Brands of HEVC-coded pictures; what iPhones, Canon and Sony cameras write. AVIF has its own.
_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


@functools.cache
def can_read() -> bool:
    """Whether pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def is_heif(head: bytes) -> bool:
    """Whether a file that starts with these (at least 32) bytes is HEIF and not AVIF."""
    if head[4:8] != b"ftyp":
        return False
    size = int.from_bytes(head[:4], "big")
    brands = {head[at : at + 4] for at in (8, *range(16, min(size, len(head)), 4))}
    return bool(brands & _BRANDS) and not brands & {b"avif", b"avis"}


def open_heif(stream: IO[bytes]) -> Image.Image:
    """The primary picture, not decoded yet; libheif turns it upright when it is loaded.

    Raises:
        SyntaxError: libheif cannot read it.
    """
    from pillow_heif import HeifImageFile

    stream.seek(0)
    image: Image.Image = HeifImageFile(stream)
    return image
