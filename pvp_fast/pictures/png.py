"""PNG files whose profile, text or checksums Pillow stumbles over though the pixels are whole."""

from __future__ import annotations

import zlib

MAGIC = b"\x89PNG\r\n\x1a\n"
_MAX_BYTES = 1 << 29
_MAX_TEXT = 1 << 16  # bytes of a text chunk that is kept, for what it says of the orientation
_KEPT = (b"tRNS", b"eXIf")


def essential(data: bytes) -> bytes | None:
    """The file without what its pixels do not need; None where it is no PNG or too long.

    Critical chunks stay as they are, damaged or not. Transparency, EXIF and short plain text stay
    if their checksum is right.
    """
    if not data.startswith(MAGIC) or len(data) > _MAX_BYTES:
        return None
    kept, at = [MAGIC], len(MAGIC)
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        end = at + 12 + length
        critical = not kind[:1].islower()
        if critical or (_is_wanted(kind, data, at, length) and _is_whole(data, at, end)):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _is_wanted(kind: bytes, data: bytes, at: int, length: int) -> bool:
    if kind in _KEPT:
        return True
    if length > _MAX_TEXT or kind not in (b"tEXt", b"iTXt"):
        return False
    text = data[at + 8 : at + 8 + length]
    return kind == b"tEXt" or text[text.find(b"\0") + 1 :][:1] == b"\0"  # iTXt, not compressed


def _is_whole(data: bytes, at: int, end: int) -> bool:
    return end <= len(data) and zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(
        data[end - 4 : end], "big"
    )
