"""Read any image a user points at, or say in a few words why it cannot be read."""

from __future__ import annotations

import glob
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from pvp_fast.errors import ImageError, InputError

# Pillow's own bound against decompression bombs: 1 GiB of RGB at three bytes and a quarter.
MAX_PIXELS = 89_478_485
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".mpo"}
)


def open_image(
    source: Any, *, max_pixels: int = MAX_PIXELS, exif_transpose: bool = False
) -> Image.Image:
    """An image as PIL RGB.

    Files are decoded fully, so a truncated one is found here. As open_clip does, transparency is
    dropped and EXIF rotation is not applied; animations give their first frame; 16-bit images are
    scaled to 8 bits.

    Args:
        source: path, encoded bytes, PIL image, uint8 array (H, W, 3) or (H, W), or tensor
            (3, H, W), uint8 or float in [0, 1].
        max_pixels: larger images are refused from their header, before decoding.
        exif_transpose: turn photos upright.

    Raises:
        ImageError: with ``.reason``; nothing else is raised for a bad image.
    """
    if isinstance(source, Image.Image):
        return _rgb(source, max_pixels, exif_transpose, "image")
    if isinstance(source, torch.Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise ImageError("empty: zero bytes")
        return _decode(io.BytesIO(bytes(source)), max_pixels, exif_transpose, "")
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        try:
            with open(name, "rb") as stream:
                if not os.fstat(stream.fileno()).st_size:
                    raise ImageError("empty: zero bytes", name)
                return _decode(stream, max_pixels, exif_transpose, name)
        except FileNotFoundError:
            raise ImageError("no such file", name) from None
        except IsADirectoryError:
            raise ImageError("a folder, not a file", name) from None
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror or error}", name) from error
    raise ImageError(f"{type(source).__name__} is no image: give a path, bytes, PIL, array, tensor")


def _decode(stream: Any, max_pixels: int, upright: bool, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow only warns from its limit to twice that; the check below is ours and exact.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(stream, formats=FORMATS) as image:
                return _rgb(image, max_pixels, upright, name)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"too large: over {max_pixels} pixels", name) from None
    except UnidentifiedImageError:
        raise ImageError(f"not an image of a known kind ({', '.join(FORMATS)})", name) from None
    # Pillow's decoders raise many kinds of error for damaged bodies.
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError) as error:
        raise ImageError(f"damaged: {error}", name) from error


def _rgb(image: Image.Image, max_pixels: int, upright: bool, name: str) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"too large: {width}x{height} is over {max_pixels} pixels", name)
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ImageError(f"damaged: {error}", name) from error
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips wide integers at 255 instead of scaling them.
        values = np.asarray(image).astype(np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(1.0, float(values.max(initial=0)))
        return _from_array((values / top * 255).round().clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise ImageError(f"array of {array.dtype} {array.shape}: give uint8 (H, W, 3) or (H, W)")
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        raise ImageError(f"array of shape {array.shape}: the last axis is 3 or 4 channels")
    return Image.fromarray(array).convert("RGB")


def _from_tensor(tensor: torch.Tensor) -> Image.Image:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3) or 0 in tensor.shape:
        raise ImageError(f"tensor of shape {tuple(tensor.shape)}: give (3, H, W)")
    values = tensor.detach().cpu()
    if values.is_floating_point():
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ImageError("float tensor outside [0, 1]: give pixels before normalisation")
        values = (values.float() * 255).round().to(torch.uint8)
    elif values.dtype != torch.uint8:
        raise ImageError(f"tensor of {values.dtype}: give uint8 or float in [0, 1]")
    return _from_array(values.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def find_images(sources: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Files named by paths, globs and folders, in order; folders are walked in sorted order.

    Links inside a folder are not followed. A named file is given whatever its ending, so that a
    bad one is reported and not passed over.

    Raises:
        InputError: a path or glob that matches nothing.
    """
    for source in sources:
        path = Path(source)
        if path.is_dir():
            yield from _walk(path)
        elif path.exists():
            yield path
        else:
            matches = sorted(glob.glob(os.fspath(source), recursive=True))
            if not matches:
                raise InputError(f"images: {os.fspath(source)!r} is no file, folder or glob match")
            yield from (Path(m) for m in matches if os.path.isfile(m))


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(files):
            path = Path(root) / name
            if path.suffix.lower() in SUFFIXES and not path.is_symlink():
                yield path
