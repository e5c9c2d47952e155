"""Large photos are decoded at a fraction; what only claims to be large is refused."""

from __future__ import annotations

import struct
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_files import encoded, exif_block, jpeg_bomb, scene

from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.errors import ImageError
from pvp_fast.loaders import ImageStream
from pvp_fast.loaders import decode as decoding
from pvp_fast.pictures import PictureSettings, open_image
from pvp_fast.pictures.jpeg import reduction

PHOTO = scene(700, 500)
HAS_DALI = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
BACKENDS = [
    "torch",
    pytest.param("dali", marks=pytest.mark.skipif(not HAS_DALI, reason="needs nvidia-dali")),
]


def small(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((35, 25), Image.Resampling.BOX), int)


@pytest.mark.parametrize("limit", [0.34, 0.1, 0.025])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_over_the_limit_is_the_same_picture_smaller(
    limit: float, mode: str, progressive: bool, tmp_path: Path
) -> None:
    settings = PictureSettings(max_megapixels=limit)
    data = encoded(PHOTO.convert(mode), progressive=progressive, quality=95, exif=exif_block(6))
    if progressive and 2 * limit < 0.35:
        with pytest.raises(ImageError, match="max-megapixels"):
            open_image(data, settings)
        return
    path = tmp_path / "large.jpg"
    path.write_bytes(data)
    expected = small(open_image(data).transpose(Image.Transpose.ROTATE_90))
    for source in (data, path):
        found = open_image(source, settings)
        assert found.width * found.height <= limit * 1e6 / 4 + 1500
        assert found.width < found.height  # turned as well
        gap = np.abs(small(found.transpose(Image.Transpose.ROTATE_90)) - expected)
        assert gap.mean() < 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_stream_reads_it_as_the_rest_does(backend: str, monkeypatch) -> None:
    items = [(str(n), encoded(PHOTO, exif=exif_block(n), quality=95)) for n in range(1, 9)]
    items += [("small", encoded(scene(90, 70)))]
    settings = PictureSettings(max_megapixels=0.1)
    square = Preprocess(48)
    with ImageStream(items, square, 4, backend=backend, pictures=settings) as stream:
        pixels = torch.cat([batch.pixels for batch in stream])
    assert stream.failures == []
    reference = torch.stack([square(open_image(data, settings)) for _, data in items])
    gaps = (square.denormalize(pixels) - square.denormalize(reference)).abs() * 255
    assert gaps.mean() < 1
    monkeypatch.setattr(decoding, "simplejpeg", None)
    with ImageStream(items, square, 4, backend="torch", pictures=settings) as stream:
        plain = torch.cat([batch.pixels for batch in stream])
    gaps = (square.denormalize(plain) - square.denormalize(reference)).abs() * 255
    assert gaps.mean() < 1


@pytest.mark.skipif(decoding.simplejpeg is None, reason="simplejpeg")
@pytest.mark.parametrize("progressive", [True, False])
def test_large_progressive_jpegs_are_decoded_one_at_a_time(
    progressive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each needs its memory for all coefficients; others go on side by side."""
    data = encoded(PHOTO, progressive=progressive)
    decode, meeting = decoding.simplejpeg.decode_jpeg, threading.Barrier(2)
    met = []

    def decoded(*arguments: Any, **options: Any) -> np.ndarray:
        try:
            meeting.wait(1 if progressive else 60)
            met.append(True)
        except threading.BrokenBarrierError:  # nobody comes while one is in here
            met.append(False)
        return decode(*arguments, **options)

    monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", decoded)
    settings = PictureSettings(max_megapixels=0.3)
    items = [(str(n), data) for n in range(2)]
    options = {"backend": "torch", "workers": 2, "pictures": settings}
    with ImageStream(items, Preprocess(48), 2, **options) as stream:
        assert sum(len(batch.pixels) for batch in stream) == 2
    assert met == [not progressive] * 2


def test_what_cannot_be_decoded_smaller_is_refused_and_names_the_option() -> None:
    settings = PictureSettings(max_megapixels=0.2)
    for kind in ("PNG", "WEBP", "BMP", "TIFF", "JPEG2000"):
        with pytest.raises(ImageError, match=r"700x500 is 0\.35 megapixels, over --max-mega"):
            open_image(encoded(PHOTO, kind), settings)
    open_image(encoded(PHOTO, "PNG"), PictureSettings(max_megapixels=0.36))


def test_an_option_can_raise_every_limit() -> None:
    """Pillow's own ends at 179 megapixels."""
    head = struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54)
    bits = struct.pack("<IiiHHIIiiII", 40, 15000, 12000, 1, 24, 0, 0, 1, 1, 0, 0)
    with pytest.raises(ImageError, match="too large: 15000x12000 is 180 megapixels"):
        open_image(head + bits)
    with pytest.raises(ImageError, match="damaged"):  # it was tried
        open_image(head + bits, PictureSettings(max_megapixels=200))


def test_headers_that_lie_are_refused_before_anything_is_decoded() -> None:
    with pytest.raises(ImageError, match="too large"):
        open_image(jpeg_bomb())
    settings = PictureSettings()
    frame = b"\xff\xd8\xff\xc0\x00\x0b\x08"
    assert reduction(12000, 9000, settings, frame, 20_000_000) == 4
    assert reduction(9000, 9000, settings, frame, 1000) == 1
    assert reduction(40000, 30000, settings, frame, 90_000_000) == 8
    for case in ((12000, 9000, frame, 20_000), (65000, 65000, frame, 1 << 30)):
        with pytest.raises(ImageError, match="too large"):
            reduction(case[0], case[1], settings, case[2], case[3])
    progressive = frame.replace(b"\xc0", b"\xc2")
    assert reduction(12000, 9000, settings, progressive, 20_000_000) == 4
    with pytest.raises(ImageError, match="too large"):
        reduction(20000, 15000, settings, progressive, 90_000_000)
