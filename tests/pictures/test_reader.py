"""Reading images of every sort, and saying why one cannot be read."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from support.deep_files import tiff

from pvp_fast.errors import ImageError
from pvp_fast.pictures import open_image


def picture(mode: str = "RGB", size: tuple[int, int] = (12, 8)) -> Image.Image:
    generator = np.random.default_rng(0)
    array = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(array).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_of_every_mode_is_what_pil_gives(mode: str) -> None:
    data = encoded(picture(mode), "JPEG")
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(expected))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    wide = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    shown = np.asarray(open_image(encoded(Image.fromarray(wide), "PNG")))[..., 0]
    assert np.array_equal(shown, np.round(wide / 65535 * 255).astype(np.uint8))


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    red, _, blue = np.asarray(open_image(data))[4, 4]
    assert red > 200
    assert blue < 60


def bomb() -> bytes:
    """A PNG whose header claims 60000 x 60000 pixels and whose body is a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"no picture at all", "not an image"),
        (bomb(), "too large"),
        (encoded(picture(size=(200, 200)), "JPEG")[:3000], "damaged"),
        (encoded(picture(size=(200, 200)), "PNG")[:3000], "damaged"),
        (b"\xff\xd8\xff", "damaged, or a JPEG"),
        (b"\x89PNG\r\n\x1a\n", "damaged, or a PNG"),
        (tiff(np.zeros((4, 4))), "damaged, or a TIFF of a kind that is not read"),
        (b"\xff\x0a" + bytes(60), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60), "JPEG XL"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "git lfs pull"),
    ],
)
def test_bad_data_has_a_reason(data: bytes, reason: str, tmp_path: Path) -> None:
    limits = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(ImageError) as caught:
        open_image(data)
    assert reason in caught.value.reason
    path = tmp_path / "b\u00e4d \u2603.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=reason):
        open_image(path)
    assert limits == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_missing_files_and_folders_have_a_reason(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(ImageError):
            open_image(path)


def test_arrays_and_tensors() -> None:
    array = np.asarray(picture())
    chw = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for source in (array, chw, chw.float() / 255):
        assert np.array_equal(np.asarray(open_image(source)), array)
    for bad in (array.astype(np.float32), torch.full((3, 4, 4), 2.0), torch.zeros(5, 4, 4), 7):
        with pytest.raises(ImageError):
            open_image(bad)
