"""Images of every sort for the loader tests, and every sort of bad one."""

from __future__ import annotations

import io
import random
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes with some grain, which compress like a photo."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    grain = generator.normal(0, 6, (height, width, 3))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


# What turns the picture upright into the one stored: the inverse of what a viewer does.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def stored(picture: Image.Image, number: int) -> Image.Image:
    """The pixels that a file with this EXIF orientation holds of a picture that is upright."""
    return picture.transpose(STORED[number]) if number in STORED else picture


def exif_block(number: int, order: str = "<", kind: int = 3) -> bytes:
    """The least EXIF: one directory with the orientation, in either byte order."""
    value = struct.pack(order + {3: "Hxx", 4: "I"}[kind], number)
    directory = struct.pack(order + "HHHI", 1, 0x0112, kind, 1) + value + bytes(4)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return b"Exif\x00\x00" + head + directory


def photo_turned(picture: Image.Image, number: int, order: str = "<") -> bytes:
    """A JPEG that shows ``picture`` where EXIF is heeded."""
    return encoded(stored(picture, number), quality=95, exif=exif_block(number, order))


def unusual(picture: Image.Image) -> dict[str, bytes]:
    """The same picture in every format and mode, turned by EXIF, and in extreme shapes."""
    files = {
        "gray.jpg": encoded(picture.convert("L")),
        "cmyk.jpg": encoded(picture.convert("CMYK")),
        "progressive.jpg": encoded(picture, progressive=True),
        "444.jpg": encoded(picture, subsampling=0),
        "png.png": encoded(picture, "PNG"),
        "gray.png": encoded(picture.convert("L"), "PNG"),
        "alpha.png": encoded(picture.convert("RGBA"), "PNG"),
        "palette.png": encoded(picture.quantize(64), "PNG"),
        "webp.webp": encoded(picture, "WEBP"),
        "bmp.bmp": encoded(picture, "BMP"),
        "wide.jpg": encoded(picture.resize((1600, 40))),
        "tall.jpg": encoded(picture.resize((40, 1600))),
        "ribbon.jpg": encoded(picture.resize((2400, 8))),
        "tiny.jpg": encoded(picture.resize((5, 3))),
        "exact.jpg": encoded(picture.resize((224, 224))),
        "odd.jpg": encoded(picture.resize((333, 271))),
    }
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        files[f"exif{turn}.jpg"] = encoded(picture, exif=exif)
    return files


def bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def jpeg_bomb() -> bytes:
    """A JPEG whose header claims 65500 x 65500 pixels."""
    data = bytearray(encoded(scene(64, 48)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    return bytes(data)


def bad(good: bytes) -> dict[str, tuple[bytes, str]]:
    """Kinds of bad file made from a good JPEG, and what the reason must say."""
    zeroed = bytearray(good)
    middle = len(good) // 2
    zeroed[middle : middle + 400] = bytes(400)
    return {
        "cut": (good[:middle], "damaged"),
        "text": (b"this is no picture\n" * 20, "not an image"),
        "empty": (b"", "zero bytes"),
        "bomb": (bomb(), "too large"),
        "jpeg bomb": (jpeg_bomb(), "too large"),
        "cut and closed": (good[:middle] + b"\xff\xd9", "damaged"),
        "zeroed": (bytes(zeroed), "damaged"),
        "cut png": (encoded(scene(80, 60), "PNG")[:2000], "damaged"),
    }


def spoiled(count: int, seed: int = 0) -> list[tuple[str, bytes, str]]:
    """``count`` files of (name, bytes, expected reason or ""), a tenth bad, in random places."""
    chance = random.Random(seed)
    good = [encoded(scene(90 + 7 * n, 80 + 5 * n, n)) for n in range(8)]
    kinds = list(bad(good[3]).values())
    places = set(chance.sample(range(count), max(1, count // 10)))
    files = []
    for number in range(count):
        if number in places:
            data, reason = kinds[len(files) % len(kinds)]
            files.append((f"{number:04d}.jpg", data, reason))
        else:
            files.append((f"{number:04d}.jpg", good[number % len(good)], ""))
    return files


def write_shard(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
