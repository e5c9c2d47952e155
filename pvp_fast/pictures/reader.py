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
from pvp_fast.pictures import heif, kinds
from pvp_fast.pictures.flatten import to_rgb
from pvp_fast.pictures.settings import PictureSettings
from pvp_fast.pictures.turn import upright

DEFAULT = PictureSettings()
# Pillow's decoders raise many kinds of error for damaged bodies.
_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    KeyError,
    IndexError,
    struct.error,
)


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


def _formats(stream: IO[bytes]) -> tuple[str, ...]:
    """The formats to try; TGA, which has no mark, only where its header makes sense."""
    stream.seek(0)
    head = stream.read(18)
    found = kinds.formats()
    if len(head) == 18:
        palette, kind, first, depth = head[1], head[2], head[3:5], head[16]
        plain = palette == 0 and first == b"\0\0" and kind in (2, 3, 10, 11)
        if (plain or (palette == 1 and kind in (1, 9))) and depth in (8, 15, 16, 24, 32):
            return found
    return tuple(name for name in found if name != "TGA")


def too_large(width: int, height: int, settings: PictureSettings, name: str = "") -> ImageError:
    """The reason of a picture over the limit; it names the option."""
    return ImageError(
        f"too large: {width}x{height} is {width * height / 1e6:.3g} megapixels, over "
        f"max_megapixels={settings.max_megapixels:g}",
        name,
    )


def _decode(stream: IO[bytes], settings: PictureSettings, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow only warns from its limit to twice that; our check is exact.
            # Its words on odd metadata are of no use to anybody here.
            warnings.simplefilter("ignore")
            with _opened(stream) as image:
                return _rgb(image, settings, name)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        limit = f"over max_megapixels={settings.max_megapixels:g}"
        raise ImageError(f"too large: {limit} ({error})", name) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"not an image of a known kind ({', '.join(kinds.formats())})", name
        ) from None
    except _DAMAGE as error:
        raise ImageError(f"damaged: {error}", name) from error


def _opened(stream: IO[bytes]) -> Image.Image:
    """The picture, its header read."""
    if heif.is_heif(stream.read(64)):
        if not heif.can_read():
            raise ImageError(f"HEIC needs pillow-heif: {heif.HINT}")
        return heif.open_heif(stream)
    return Image.open(stream, formats=_formats(stream))


def _rgb(image: Image.Image, settings: PictureSettings, name: str) -> Image.Image:
    width, height = image.size
    if width * height > settings.max_pixels:
        raise too_large(width, height, settings, name)
    kind = image.format
    try:
        image.load()
    except _DAMAGE as error:
        raise ImageError(f"damaged: {error}", name) from error
    if settings.upright:
        image = upright(image)
    return to_rgb(image, settings.fill, sensor_scale=kind == "TIFF")


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
