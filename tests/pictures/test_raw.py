"""Camera raw and TIFFs whose first page is a thumbnail: the photo itself, or a word, never the
thumbnail."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_files import encoded, scene, stored
from support.raw_files import dng

from pvp_fast.errors import ImageError
from pvp_fast.pictures import OPEN_CLIP, PictureSettings, open_image, raw

PHOTO = scene(640, 480)


def off(found: Image.Image, expected: Image.Image) -> float:
    small = [np.asarray(i.resize((32, 24)), int) for i in (found, expected)]
    return float(np.abs(small[0] - small[1]).mean())


@pytest.mark.parametrize("ending", ["dng", "NEF", "tif", "jpg"])
@pytest.mark.parametrize("preview", [True, False])
def test_without_the_library_it_is_refused_with_the_remedy(
    ending: str, preview: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "can_read", lambda: False)
    path = tmp_path / f"photo.{ending}"
    path.write_bytes(dng(PHOTO, preview=PHOTO if preview else None))
    for source in (path, path.read_bytes()):
        with pytest.raises(ImageError, match=r"camera raw needs rawpy: pip install"):
            open_image(source)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("size", [(640, 480), (160, 120), None])
def test_the_full_preview_or_the_sensor(size: tuple[int, int] | None, orientation: int) -> None:
    pytest.importorskip("rawpy", reason="needs rawpy: pip install 'pvp_fast[raw]'")
    lying = stored(PHOTO, orientation)
    preview = None if size is None else Image.new("RGB", size, "blue")
    if size == (640, 480):
        preview = lying
    data = dng(lying, preview=preview, orientation=orientation)
    found = open_image(data)
    wide = max(found.size)
    assert wide == (640 if size == (640, 480) else 320)
    assert (found.width > found.height) == (PHOTO.width > PHOTO.height)
    red, _, blue = np.asarray(found.resize((1, 1)))[0, 0]
    assert not (red > 200 and blue < 50)  # neither the thumbnail nor the small preview
    if size == (640, 480):
        assert off(found, PHOTO) < 6
        assert off(open_image(data, OPEN_CLIP), lying) < 6
    else:  # developed: other tones, the same picture
        gray = [np.asarray(i.convert("L").resize((32, 24)), float) for i in (found, PHOTO)]
        assert np.corrcoef(gray[0].ravel(), gray[1].ravel())[0, 1] > 0.8
    with pytest.raises(ImageError, match=r"--max-megapixels 0\.1"):
        open_image(data, PictureSettings(max_megapixels=0.1))


@pytest.mark.parametrize("name", ["a.cr2", "a.NEF", "a.arw", "a.raf"])
def test_a_raw_ending_on_something_else_has_a_reason(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"no picture at all" * 50)
    with pytest.raises(ImageError, match=r"LibRaw|needs rawpy"):
        open_image(path)


def pages(*sizes: tuple[int, int], flag: int | None = None) -> bytes:
    frames = [scene(*size, seed=n) for n, size in enumerate(sizes)]
    stream = io.BytesIO()
    options = {} if flag is None else {"tiffinfo": {254: flag}}
    frames[0].save(stream, "TIFF", save_all=True, append_images=frames[1:], **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("sizes", "flag", "chosen"),
    [
        (((160, 120), (640, 480)), None, 1),
        (((640, 480), (160, 120)), None, 0),  # a pyramid
        (((300, 200), (300, 200), (310, 200)), None, 0),  # scans of one kind
        (((20, 20), (90, 90), (400, 300), (50, 50)), None, 2),
        (((300, 200), (310, 210)), 1, 1),  # says itself that it is a reduced picture
        (((64, 48),), 1, 0),
    ],
)
def test_pages_of_a_tiff(sizes: tuple, flag: int | None, chosen: int) -> None:
    found = open_image(pages(*sizes, flag=flag))
    assert found.size == sizes[chosen]
    assert np.array_equal(np.asarray(found), np.asarray(scene(*sizes[chosen], seed=chosen)))


def test_broken_directories_end(tmp_path: Path) -> None:
    whole = pages((30, 20), (90, 80))
    assert [page.width for page in raw.pages(io.BytesIO(whole))] == [30, 90]
    first = int.from_bytes(whole[4:8], "little")
    count = int.from_bytes(whole[first : first + 2], "little")
    after = first + 2 + 12 * count
    for place in (first, 8, 2**31):  # a loop, nonsense, beyond the end
        looped = whole[:after] + place.to_bytes(4, "little") + whole[after + 4 :]
        assert len(raw.pages(io.BytesIO(looped))) <= 2
        with contextlib.suppress(ImageError):
            open_image(looped)
    assert raw.pages(io.BytesIO(encoded(PHOTO))) == []
