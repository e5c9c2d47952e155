"""Read any picture a user points at, or say in a few words why it cannot be read."""

from __future__ import annotations

import io
import os
import struct
import warnings
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from pvp_fast.errors import ImageError
from pvp_fast.pictures import heif, kinds, png, raw
from pvp_fast.pictures.deep import from_sensor, samples_of, transparent_key
from pvp_fast.pictures.flatten import to_rgb
from pvp_fast.pictures.jpeg import reduction
from pvp_fast.pictures.settings import PictureSettings, too_large
from pvp_fast.pictures.turn import AS_STORED, jpeg_turn, turned, upright

DEFAULT = PictureSettings()
# Pillow's decoders raise many kinds of error for damaged bodies.
DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    KeyError,
    IndexError,
    struct.error,
)

# What stands under the names of pictures, by its first bytes.
_NO_PICTURES = {
    b"\xff\x0a": "JPEG XL, which is not read",
    b"\0\0\0\x0cJXL ": "JPEG XL, which is not read",
    b"PK\x03\x04": "a ZIP archive, which is not read: unpack it",
    b"version https://git-lfs": "no image but a pointer to it: run git lfs pull",
}


def open_image(source: Any, settings: PictureSettings = DEFAULT) -> Image.Image:
    """A picture as PIL RGB, as ``settings`` ask for it.

    Files are decoded fully, so a truncated one is found here. Animations give their first frame;
    deep gray is brought to 8 bits.

    Args:
        source: path, encoded bytes, PIL image, uint8 array (H, W, 3), (H, W, 4) or (H, W), or
            tensor (3, H, W), uint8 or float in [0, 1].
        settings: turn, background and largest size.

    Raises:
        ImageError: with ``.reason``; nothing else is raised for a bad picture.
    """
    if isinstance(source, Image.Image):
        return _rgb(source, settings, "image")
    if isinstance(source, torch.Tensor):
        return _from_tensor(source, settings)
    if isinstance(source, np.ndarray):
        return _from_array(source, settings)
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise ImageError("empty: zero bytes")
        return _decode(io.BytesIO(bytes(source)), settings, "")
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        try:
            with open(name, "rb") as stream:
                if not os.fstat(stream.fileno()).st_size:
                    raise ImageError("empty: zero bytes", name)
                return _decode(stream, settings, name)
        except FileNotFoundError:
            raise ImageError("no such file", name) from None
        except IsADirectoryError:
            raise ImageError("a folder, not a file", name) from None
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror or error}", name) from error
        except ImageError:
            raise
        except ValueError as error:  # a name with a zero byte
            raise ImageError(f"cannot be read: {error}", name) from error
    raise ImageError(f"{type(source).__name__} is no image: give a path, bytes, PIL, array, tensor")


def open_header(stream: IO[bytes]) -> Image.Image:
    """An image for its metadata; no pixel is read, and so no size is too large.

    Raises:
        ImageError, or one of ``DAMAGE``: it cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd metadata: of no use to anybody here
        stream.seek(0)
        head = stream.read(64)
        if heif.is_heif(head):
            if not heif.can_read():
                raise ImageError(f"HEIC needs pillow-heif: {heif.HINT}")
            return heif.open_heif(stream)
        return _open(stream, head)


def looks_like_picture(head: bytes) -> bool:
    """Whether a file that starts with these (64) bytes is a picture, by its mark."""
    if heif.is_heif(head):
        return True
    Image.init()
    for name in kinds.formats():
        _, accept = Image.OPEN[name]
        if name != "TGA" and accept is not None and accept(head[:16]) is True:
            return True
    return False


def _formats(head: bytes) -> tuple[str, ...]:
    """The formats to try; TGA, which has no mark, only where its header makes sense."""
    found = kinds.formats()
    if len(head) >= 18:
        palette, kind, first, depth = head[1], head[2], head[3:5], head[16]
        plain = palette == 0 and first == b"\0\0" and kind in (2, 3, 10, 11)
        if (plain or (palette == 1 and kind in (1, 9))) and depth in (8, 15, 16, 24, 32):
            return found
    return tuple(name for name in found if name != "TGA")


def _decode(stream: IO[bytes], settings: PictureSettings, name: str) -> Image.Image:
    try:
        return _read(stream, settings, name)
    except ImageError:
        stream.seek(0)
        if stream.read(len(png.MAGIC)) != png.MAGIC:
            raise
        stream.seek(0)
        data = png.essential(stream.read())
        if data is None:
            raise
        return _read(io.BytesIO(data), settings, name)


def _read(stream: IO[bytes], settings: PictureSettings, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd metadata: of no use to anybody here
            stream.seek(0)
            head = stream.read(64)
            ending = os.path.splitext(name)[1].lower()
            if ending in kinds.RAW or raw.is_raw(head):
                return _from_raw(stream, settings, name)
            with open_header(stream) as image:
                if image.format == "TIFF":
                    found = raw.pages(stream)
                    if any(page.is_sensor for page in found):
                        return _from_raw(stream, settings, name)
                    image.seek(_best_page(found))
                return _rgb(image, settings, name, stream)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        limit = f"over --max-megapixels {settings.max_megapixels:g}"
        raise ImageError(f"too large: {limit} ({error})", name) from None
    except UnidentifiedImageError:
        known = ", ".join(kinds.formats())
        raise ImageError(f"not an image of a known kind ({known})", name) from None
    except DAMAGE as error:
        raise ImageError(f"damaged: {error}", name) from error


def _open(stream: IO[bytes], head: bytes) -> Image.Image:
    """As Image.open, without its own limit of 179 megapixels, which no option can raise."""
    Image.init()
    marked = ""
    for name in _formats(head):
        factory, accept = Image.OPEN[name]
        if accept is None or accept(head[:16]) is True:
            stream.seek(0)
            try:
                return factory(stream, "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                if accept is not None and not marked:
                    marked = f"damaged, or a {name} of a kind that is not read: {error}"
    if marked:
        raise ImageError(marked)
    for mark, reason in _NO_PICTURES.items():
        if head.startswith(mark):
            raise ImageError(reason)
    raise UnidentifiedImageError


def _best_page(found: list[raw.Page]) -> int:
    """The first page of a TIFF, unless it is a thumbnail of another."""
    chain = [page for page in found if page.number >= 0]
    if len(chain) < 2:
        return 0
    largest = max(chain, key=lambda page: page.width * page.height)
    small = 4 * chain[0].width * chain[0].height <= largest.width * largest.height
    return largest.number if small or chain[0].is_reduced else 0


def _from_raw(stream: IO[bytes], settings: PictureSettings, name: str) -> Image.Image:
    if not raw.can_read():
        raise ImageError(f"camera raw needs rawpy: {raw.HINT}", name)
    found = raw.develop(stream, settings.max_pixels)
    if not isinstance(found, raw.Developed):
        raise too_large(*found, settings, name)
    told = isinstance(found.picture, bytes) and jpeg_turn(found.picture) != AS_STORED
    image = open_image(found.picture, settings)
    if told or not settings.upright:
        return image
    return turned(image, found.orientation)


def _rgb(
    image: Image.Image, settings: PictureSettings, name: str, stream: IO[bytes] | None = None
) -> Image.Image:
    width, height = image.size
    if stream is not None and image.format in ("JPEG", "MPO"):
        _shrink(image, settings, name, stream)
    elif width * height > settings.max_pixels:
        raise too_large(width, height, settings, name)
    samples, key = samples_of(image), transparent_key(image)
    try:
        image.load()
    except DAMAGE as error:
        raise ImageError(f"damaged: {error}", name) from error
    if stream is not None and samples.colours:
        image = from_sensor(image, stream)
    if key is not None:
        image = image.copy()  # its owner's stays as it is
        image.info["transparency"] = key
    if settings.upright:
        image = upright(image)
    found = to_rgb(image, settings.fill, samples)
    found.info = {}  # or who opens it again would turn it again
    return found


def _shrink(image: Image.Image, settings: PictureSettings, name: str, stream: IO[bytes]) -> None:
    """Have a JPEG over the limit decoded at a fraction of its size."""
    width, height = image.size
    if width * height <= settings.max_pixels:
        return
    at = stream.tell()
    stream.seek(0)
    beginning = stream.read(1 << 20)
    size = stream.seek(0, os.SEEK_END)
    stream.seek(at)
    by = reduction(width, height, settings, beginning, size, name)
    image.draft(None, (width // by, height // by))


def _from_array(array: np.ndarray, settings: PictureSettings) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise ImageError(f"array of {array.dtype} {array.shape}: give uint8 (H, W, 3) or (H, W)")
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        raise ImageError(f"array of shape {array.shape}: the last axis is 3 or 4 channels")
    return to_rgb(Image.fromarray(array), settings.fill)


def _from_tensor(tensor: torch.Tensor, settings: PictureSettings) -> Image.Image:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3) or 0 in tensor.shape:
        raise ImageError(f"tensor of shape {tuple(tensor.shape)}: give (3, H, W)")
    values = tensor.detach().cpu()
    if values.is_floating_point():
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ImageError("float tensor outside [0, 1]: give pixels before normalisation")
        values = (values.float() * 255).round().to(torch.uint8)
    elif values.dtype != torch.uint8:
        raise ImageError(f"tensor of {values.dtype}: give uint8 or float in [0, 1]")
    return _from_array(values.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy(), settings)
