"""TIFF and PNG files with samples of any depth, made by hand: Pillow writes few of them."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_SAMPLE_FORMATS = {"u": 1, "i": 2, "f": 3}


def tiff(pixels: np.ndarray, *, negative: bool = False, packed: bool = False) -> bytes:
    """A TIFF of (H, W) grays or (H, W, 3) colours in the array's own type and byte order.

    Args:
        negative: the smallest gray is white. packed: deflated.
    """
    kind = pixels.dtype
    order = ">" if kind.str.startswith(">") else "<"
    height, width = pixels.shape[:2]
    bands = pixels.shape[2] if pixels.ndim == 3 else 1
    data = zlib.compress(pixels.tobytes()) if packed else pixels.tobytes()
    data += b"\0" * (len(data) % 2)
    depth = [kind.itemsize * 8] * bands
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", depth),
        259: ("H", [8 if packed else 1]),
        262: ("H", [2 if bands == 3 else 0 if negative else 1]),
        273: ("I", [8]),
        277: ("H", [bands]),
        278: ("I", [height]),
        279: ("I", [len(data)]),
        339: ("H", [_SAMPLE_FORMATS[kind.kind]] * bands),
    }
    at = 8 + len(data)
    far_at, far = at + 2 + 12 * len(tags) + 4, b""
    directory = struct.pack(f"{order}H", len(tags))
    for tag, (form, values) in sorted(tags.items()):
        value = struct.pack(f"{order}{len(values)}{form}", *values)
        if len(value) > 4:
            value, far = struct.pack(f"{order}I", far_at + len(far)), far + value + b"\0\0"
        head = struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[form], len(values))
        directory += head + value.ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(f"{order}HI", 42, at) + data + directory + bytes(4) + far


def png_of_one_colour(depth: int, colour: tuple[int, ...], key: tuple[int, ...]) -> bytes:
    """A PNG of 8 x 8 gray or RGB pixels of ``depth`` bits a sample; ``key`` is transparent."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    bits = "".join(f"{sample:0{depth}b}" for sample in colour) * 8
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = struct.pack(">IIBBBBB", 8, 8, depth, 0 if len(colour) == 1 else 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", struct.pack(f">{len(key)}H", *key))]
    chunks += [(b"IDAT", zlib.compress(row * 8)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)
