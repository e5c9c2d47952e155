"""A PNG's pixels are read whatever else is in the file, and never more of that than a bound."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.image_files import encoded, exif_block, scene, stored

from pvp_fast.errors import ImageError
from pvp_fast.pictures import open_image

PHOTO = scene(60, 40)
NOISE = os.urandom(1 << 14)


def chunk(kind: bytes, body: bytes, damaged: bool = False) -> bytes:
    check = zlib.crc32(kind + body) ^ damaged
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def with_chunk(kind: bytes, body: bytes, *, damaged: bool = False, late: bool = False) -> bytes:
    data = encoded(PHOTO, "PNG")
    at = len(data) - 12 if late else 33
    return data[:at] + chunk(kind, body, damaged) + data[at:]


TWO_MIB = zlib.compress(bytes(2 << 20))
CASES = {
    "profile of 2 MiB": (b"iCCP", b"x\0\0" + TWO_MIB),
    "profile of 2 MiB of noise": (b"iCCP", b"x\0\0" + zlib.compress(NOISE * 128)),
    "profile that is none": (b"iCCP", b"x\0\0not compressed"),
    "profile without a name": (b"iCCP", b""),
    "text of 2 MiB": (b"tEXt", b"Comment\0" + b"a" * (2 << 20)),
    "compressed text of 2 MiB": (b"zTXt", b"Comment\0\0" + TWO_MIB),
    "international text of 2 MiB": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + TWO_MIB),
    "text bomb of 1 GiB": (b"zTXt", b"Comment\0\0" + zlib.compress(zlib.compress(bytes(1 << 26)))),
    "chunk that nobody knows": (b"prVt", NOISE),
    "empty physical size": (b"pHYs", b""),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("damaged", [False, True])
def test_ancillary_chunks_never_damage_a_picture(name: str, late: bool, damaged: bool) -> None:
    data = with_chunk(*CASES[name], damaged=damaged, late=late)
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(PHOTO))


def test_a_thousand_texts() -> None:
    texts = b"".join(chunk(b"tEXt", b"k%d\0" % n + b"a" * 90_000) for n in range(1000))
    data = encoded(PHOTO, "PNG")
    found = open_image(data[:33] + texts + data[33:])
    assert np.array_equal(np.asarray(found), np.asarray(PHOTO))


def test_what_matters_of_them_is_kept() -> None:
    large = chunk(b"zTXt", b"Comment\0\0" + TWO_MIB)
    for image, options in (
        (stored(PHOTO, 6), {"exif": exif_block(6)}),
        (Image.merge("RGBA", (*PHOTO.split(), Image.new("L", PHOTO.size, 0))).quantize(16), {}),
    ):
        data = encoded(image, "PNG", **options)
        found = open_image(data[:33] + large + data[33:])
        assert np.array_equal(np.asarray(found), np.asarray(open_image(data)))


def test_damaged_pixels_stay_damaged() -> None:
    data = bytearray(with_chunk(b"zTXt", b"Comment\0\0" + TWO_MIB))
    data[-200] ^= 0x10
    with pytest.raises(ImageError, match="damaged"):
        open_image(bytes(data))
    with pytest.raises(ImageError, match=r"damaged|not an image"):
        open_image(bytes(data[:60]))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("profile", [bytes(2 << 20), NOISE * 128, b"none"])
def test_profiles_of_other_formats(kind: str, profile: bytes) -> None:
    from PIL import features

    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    if kind == "AVIF" and profile == b"none":
        pytest.skip("libavif refuses to write it")
    assert open_image(encoded(PHOTO, kind, icc_profile=profile)).size == PHOTO.size
