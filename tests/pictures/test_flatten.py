"""Transparency laid on a colour in every mode that carries it; deep gray on every scale."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from support.deep_files import png_of_one_colour, tiff
from support.image_files import encoded, scene

from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.errors import InputError
from pvp_fast.pictures import OPEN_CLIP, PictureSettings, open_image

SIZE = (24, 16)


def cut_out(under: str) -> Image.Image:
    """A picture whose left half is transparent over the colour ``under``, its right half opaque."""
    picture = scene(*SIZE).convert("RGBA")
    picture.paste(Image.new("RGBA", (12, 16), under), (0, 0))
    alpha = Image.new("L", SIZE, 255)
    alpha.paste(0, (0, 0, 12, 16))
    picture.putalpha(alpha)
    return picture


def with_key(mode: str) -> bytes:
    """A PNG without alpha channel in which one colour counts as transparent."""
    picture = Image.new("RGB", SIZE, (7, 7, 7)).convert(mode)
    key = {"RGB": (7, 7, 7), "L": 7, "1": 0}[mode]
    return encoded(picture, "PNG", transparency=key)


CASES = {
    "RGBA png": lambda under: encoded(cut_out(under), "PNG"),
    "RGBA webp": lambda under: encoded(cut_out(under), "WEBP", lossless=True, exact=True),
    "RGBA tiff": lambda under: encoded(cut_out(under), "TIFF"),
    "RGBA tga": lambda under: cut_out(under),
    "LA png": lambda under: encoded(cut_out(under).convert("LA"), "PNG"),
    "P png": lambda under: encoded(cut_out(under).quantize(32), "PNG"),
    "P gif": lambda under: encoded(cut_out(under), "GIF"),
    "PA": lambda under: cut_out(under).convert("PA"),
    "RGBa": lambda under: cut_out(under).convert("RGBa"),
    "La": lambda under: cut_out(under).convert("LA").convert("La"),
}


@pytest.mark.parametrize("hole", [None, (0, 0), (23, 15), (12, 7)])
def test_one_transparent_pixel_is_enough(hole: tuple[int, int] | None) -> None:
    picture = scene(*SIZE).convert("RGBA")
    expected = scene(*SIZE)
    if hole is not None:
        picture.putpixel(hole, (255, 0, 0, 0))
        expected.putpixel(hole, (255, 255, 255))
    assert open_image(encoded(picture, "PNG")).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", CASES)
def test_what_lies_under_transparent_pixels_never_shows(name: str) -> None:
    shown = [np.asarray(open_image(CASES[name](under))) for under in ("red", "black", "white")]
    for pixels in shown:
        assert (pixels[:, :11] >= 254).all()
        assert np.abs(pixels.astype(int) - shown[0].astype(int))[:, 13:].max() <= 60  # palettes
    black = open_image(CASES[name]("red"), PictureSettings(background="#000000"))
    assert (np.asarray(black)[:, :11] <= 1).all()
    dropped = np.asarray(open_image(CASES["RGBA png"]("red"), OPEN_CLIP))
    assert tuple(dropped[4, 4]) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
def test_a_colour_that_stands_for_transparent(mode: str) -> None:
    assert (np.asarray(open_image(with_key(mode))) == 255).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("bands", [1, 3])
def test_a_transparent_colour_of_any_depth(depth: int, bands: int) -> None:
    if bands == 3 and depth < 8:
        return  # no such PNG
    colour = (
        tuple(range(1, bands + 1)) if depth < 16 else tuple(range(1000, 1000 + 999 * bands, 999))
    )
    red = PictureSettings(background="#ff0000")
    shown = np.asarray(open_image(png_of_one_colour(depth, colour, colour), red))
    assert (shown == (255, 0, 0)).all()
    other = tuple(sample ^ (1 << (depth - 1)) for sample in colour)
    shown = np.asarray(open_image(png_of_one_colour(depth, colour, other), red))
    assert not (shown == (255, 0, 0)).all(2).any()


def test_half_transparent_is_half_background() -> None:
    veil = Image.new("RGBA", SIZE, (200, 100, 0, 128))
    assert np.abs(np.asarray(open_image(veil))[0, 0].astype(int) - (227, 177, 127)).max() <= 1


def test_opaque_alpha_changes_nothing_and_the_input_stays_as_it_was() -> None:
    picture = scene(*SIZE)
    assert np.array_equal(np.asarray(open_image(picture.convert("RGBA"))), np.asarray(picture))
    image = cut_out("red")
    before = image.tobytes()
    open_image(image)
    assert image.tobytes() == before


def test_arrays_and_the_backbones_transform_share_the_road() -> None:
    image = cut_out("red")
    expected = open_image(image)
    assert np.array_equal(np.asarray(open_image(np.asarray(image))), np.asarray(expected))
    square = Preprocess(8)
    assert np.array_equal(square(image).numpy(), square(expected).numpy())


def deep(largest: int, kind: str) -> bytes:
    ramp = np.linspace(0, largest, 64).round().astype(np.uint16).reshape(8, 8)
    return encoded(Image.fromarray(ramp), kind)


@pytest.mark.parametrize("largest", [1023, 4095, 16383, 65535])
def test_a_sensors_scale_in_a_tiff(largest: int) -> None:
    shown = np.asarray(open_image(deep(largest, "TIFF")))[..., 0]
    assert np.abs(shown.ravel().astype(int) - np.linspace(0, 255, 64).round()).max() <= 1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("largest", [1023, 4095, 16383, 65535])
@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_a_sensors_scale_in_colours(largest: int, kind: str, packed: bool) -> None:
    ramp = np.linspace(0, largest, 192).round().reshape(8, 8, 3)
    shown = np.asarray(open_image(tiff(ramp.astype(kind), packed=packed)))
    assert np.abs(shown.ravel().astype(int) - np.linspace(0, 255, 192).round()).max() <= 1


@pytest.mark.parametrize(
    ("kind", "largest"),
    [
        ("<u2", 65535),
        (">u2", 65535),
        ("<i2", 32767),
        ("<u4", 2**32 - 1),
        ("<i4", 2**31 - 1),
        ("<f4", 1),
        ("<f4", 255),
    ],
)
def test_grays_of_every_type(kind: str, largest: int) -> None:
    ramp = np.linspace(0, largest, 64).reshape(8, 8).astype(kind)
    shown = np.asarray(open_image(tiff(ramp)))[..., 0]
    assert np.abs(shown.ravel().astype(int) - np.linspace(0, 255, 64).round()).max() <= 1


@pytest.mark.parametrize(("kind", "largest"), [("<u1", 255), ("<u2", 65535), ("<u2", 4095)])
def test_a_scan_whose_smallest_value_is_white(kind: str, largest: int) -> None:
    ramp = np.linspace(0, largest, 64).reshape(8, 8).astype(kind)
    shown = np.asarray(open_image(tiff(ramp, negative=True)))[..., 0]
    assert np.abs(shown.ravel().astype(int) - np.linspace(255, 0, 64).round()).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "PPM", "JPEG2000"])
def test_formats_that_stretch_have_the_full_scale(kind: str) -> None:
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    ramp = np.linspace(0, 4095, 64).round().astype(np.uint16).reshape(8, 8)
    data = encoded(Image.fromarray(ramp), kind, **options)
    shown = np.asarray(open_image(data))[..., 0]
    assert shown.max() == 16
    # A PGM that says its largest value is 4095 is stretched by Pillow.
    if kind == "PPM":
        told = b"P5 8 8 4095\n" + ramp.astype(">u2").tobytes()
        assert np.asarray(open_image(told)).max() == 255


def test_wide_integers_floats_and_a_transparent_gray() -> None:
    ramp = np.linspace(0, 1_000_000, 64).reshape(8, 8)
    for array in (ramp.astype(np.int32), ramp.astype(np.float32), (ramp / 1e6).astype(np.float32)):
        shown = np.asarray(open_image(Image.fromarray(array)))[..., 0]
        assert np.abs(shown.ravel().astype(int) - np.linspace(0, 255, 64).round()).max() <= 1
    holes = np.full((4, 4), np.nan, np.float32)
    assert np.asarray(open_image(Image.fromarray(holes))).max() == 0
    gray = Image.fromarray(np.full((4, 4), 500, np.uint16))
    stream = io.BytesIO()
    gray.save(stream, "PNG", transparency=500)
    assert (np.asarray(open_image(stream.getvalue())) == 255).all()


@pytest.mark.parametrize(
    "wrong", [{"background": "whitish"}, {"max_megapixels": 0}, {"max_megapixels": float("nan")}]
)
def test_settings_are_checked_and_kept(wrong: dict) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        PictureSettings(**wrong)
    kept = PictureSettings(upright=False, background="#102030", max_megapixels=12.5)
    assert PictureSettings.from_dict(kept.to_dict()) == kept
    with pytest.raises(InputError, match="pictures"):
        PictureSettings.from_dict({"sideways": True})
