"""All eight orientations in every format that can carry one, by every road into the package."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, features
from support.image_files import encoded, exif_block, photo_turned, scene, stored

from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.pictures import OPEN_CLIP, open_image
from pvp_fast.pictures.turn import AS_STORED, TURNS, jpeg_turn

PICTURE = scene(96, 64)
NUMBERS = range(1, 9)
NEEDS_AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
KINDS = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 95},
}
XMP = (
    b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-"
    b"syntax-ns#'><rdf:Description xmlns:tiff='http://ns.adobe.com/tiff/1.0/' tiff:Orientation=\""
    b'%d"/></rdf:RDF></x:xmpmeta>'
)


def off(found: Image.Image, expected: Image.Image) -> float:
    """Mean difference in levels, some 60 for a wrong turn; infinite for another shape."""
    if found.size != expected.size:
        return float("inf")
    return float(np.abs(np.asarray(found, int) - np.asarray(expected, int)).mean())


def turned(kind: str, number: int, order: str = "<") -> bytes:
    exif = exif_block(number, order)
    if kind == "TIFF":  # Pillow writes EXIF into a TIFF's own directory
        tags = Image.Exif()
        tags[0x0112] = number
        return encoded(stored(PICTURE, number), kind, exif=tags, **KINDS[kind])
    return encoded(stored(PICTURE, number), kind, exif=exif, **KINDS[kind])


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "TIFF", pytest.param("AVIF", marks=NEEDS_AVIF)]
)
def test_every_format_opens_upright(kind: str, number: int, tmp_path: Path) -> None:
    order = "<" if number % 2 else ">"
    data = turned(kind, number, order)
    path = tmp_path / f"photo.{kind.lower()}"
    path.write_bytes(data)
    for source in (data, path):
        assert off(open_image(source), PICTURE) < 10
    with Image.open(path) as lazy:  # as a user's own PIL image, not loaded yet
        assert off(open_image(lazy), PICTURE) < 10
    square = Preprocess(16)
    with Image.open(path) as lazy:
        gap = square(lazy) - square(PICTURE)
    assert gap.abs().mean() < 0.2
    if kind != "TIFF" and number > 1:  # Pillow itself turns a TIFF
        assert off(open_image(data, OPEN_CLIP), stored(PICTURE, number)) < 10


@pytest.mark.parametrize("number", NUMBERS)
def test_heic_opens_upright(number: int) -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif: pip install '.[heif]'")
    picture = stored(PICTURE, number)
    file = heif.from_pillow(picture)
    stream = io.BytesIO()
    file.save(stream, quality=95, exif=exif_block(number))
    assert off(open_image(stream.getvalue()), PICTURE) < 10


@pytest.mark.parametrize("number", NUMBERS)
def test_xmp_is_asked_where_exif_says_nothing(number: int) -> None:
    photo = stored(PICTURE, number)
    data = encoded(photo, quality=95, subsampling=0, xmp=XMP % number)
    assert jpeg_turn(data) == TURNS[number]
    assert off(open_image(data), PICTURE) < 10
    both = encoded(photo, quality=95, subsampling=0, xmp=XMP % 3, exif=exif_block(number))
    assert jpeg_turn(both) == TURNS[number]  # EXIF comes first


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("spelling", [b"='6'", b' = "6"', b">6</tiff:Orientation", b"> 6 </t"])
def test_xmp_in_every_spelling(kind: str, spelling: bytes) -> None:
    packet = XMP[: XMP.index(b'="')] + spelling + b"/></rdf:RDF></x:xmpmeta>"
    options = KINDS[kind] | {"xmp": packet}
    if kind == "TIFF":  # has a field of its own, and is turned once
        options["tiffinfo"] = {274: 6, 700: packet}
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", packet.decode())
    data = encoded(stored(PICTURE, 6), kind, **options)
    assert off(open_image(data), PICTURE) < 10
    if kind == "JPEG":
        assert jpeg_turn(data) == TURNS[6]


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])
def test_a_number_of_another_type_is_heeded_or_not_by_both_roads(kind: int) -> None:
    block = exif_block(6).replace(b"\x12\x01\x03\x00", b"\x12\x01" + bytes([kind, 0]))
    data = encoded(PICTURE, quality=95, subsampling=0, exif=block)
    square = jpeg_turn(data).array(np.asarray(PICTURE).transpose(2, 0, 1)).shape[1:]
    assert open_image(data).size == square[::-1]


@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_jpegs_header_is_read_as_pillow_reads_it(kind: int, order: str) -> None:
    for number in range(12):
        data = encoded(PICTURE, exif=exif_block(number, order, kind))
        assert jpeg_turn(data) == TURNS.get(number, AS_STORED)
        expected = Image.open(io.BytesIO(data)).getexif()[0x0112]
        assert expected == number


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "broken",
    [
        b"Exif\x00\x00",
        b"Exif\x00\x00II*\x00\xff\xff\xff\xff",
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01",
        b"Exif\x00\x00no directory at all",
        exif_block(0),
        exif_block(9),
        exif_block(6)[:-9],
    ],
)
def test_broken_metadata_cost_nothing(kind: str, broken: bytes) -> None:
    data = encoded(PICTURE, kind, exif=broken)
    assert open_image(data).size == PICTURE.size


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 40))
def test_no_header_can_break_the_reader(noise: bytes, at: int) -> None:
    data = photo_turned(PICTURE, 6)
    jpeg_turn(data[:at] + noise + data[at:])
    jpeg_turn(data[: at + 2])


def test_a_turn_and_its_box_agree() -> None:
    pixels = np.arange(5 * 7).reshape(1, 5, 7)
    for turn in TURNS.values():
        upright = turn.array(pixels)
        width, height = turn.size(7, 5)
        assert upright.shape == (1, height, width)
        left, top, right, bottom = turn.box((1, 2, 4, 5), width, height)
        part = turn.array(pixels[:, top:bottom, left:right])
        assert np.array_equal(part, upright[:, 2:5, 1:4])
        assert np.array_equal(turn.mirrored().array(pixels), upright[:, :, ::-1])
