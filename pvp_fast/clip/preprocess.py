"""From a photo to the numbers a CLIP image tower reads, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from pvp_fast.errors import InputError
from pvp_fast.pictures import PictureSettings, open_image

if TYPE_CHECKING:
    from PIL import Image

# OpenAI's CLIP statistics, the default of open_clip as well.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

RESIZE_MODES = ("shortest", "longest", "squash")

# A 1 x 10000 photo would be blown up to 224 x 2240000 only to keep its centre: beyond this
# ratio of sides the far ends, which the crop throws away in any case, are cut off first.
_MAX_RATIO = 32


class Plan(NamedTuple):
    """From an image to the network's input: cut ``trim`` (left, top, right, bottom) out where it is
    given, resize to ``resized`` (width, height), take the input's size at ``left``, ``top``. They
    are 0 or below where bars are to be added; an odd one goes to the right or the bottom."""

    trim: tuple[int, int, int, int] | None
    resized: tuple[int, int]
    left: int
    top: int

    def has_bars(self, rows: int, columns: int) -> bool:
        """Whether the resized image leaves some of an input of that size uncovered."""
        return self.resized[0] < columns or self.resized[1] < rows


@dataclass(frozen=True)
class Preprocess:
    """open_clip's evaluation transform, bit for bit, without torchvision.

    Resize, centre crop, RGB, scale to [0, 1], normalise.

    Attributes:
        size: side of the square in pixels, or (height, width).
        mean, std: per channel, in [0, 1] units.
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest" (CLIP: the input is filled, what hangs over is cut off), "squash"
            (SigLIP: both sides as the input's) or "longest" (all of the image, with bars).
        fill: of the bars, 0 to 255.
    """

    size: int | tuple[int, int]
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.size, int):
            sides = tuple(self.size)
            if len(sides) != 2:
                raise InputError(f"size={self.size!r}: give one side, or (height, width)")
            # A square has one way to be written: settings are compared.
            object.__setattr__(self, "size", sides[0] if sides[0] == sides[1] else sides)
        if min(self.sides) < 1:
            raise InputError(f"size={self.size}: the side of the input must be at least 1 pixel")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise InputError(f"interpolation={self.interpolation!r}: use 'bicubic' or 'bilinear'")
        if self.resize_mode not in RESIZE_MODES:
            raise InputError(
                f"resize_mode={self.resize_mode!r}: use one of {', '.join(RESIZE_MODES)}"
            )
        if not 0 <= self.fill <= 255:
            raise InputError(f"fill={self.fill}: the bars' grey is 0 to 255")
        for name, value in (("mean", self.mean), ("std", self.std)):
            if len(value) != 3 or not all(math.isfinite(v) for v in value):
                raise InputError(f"{name}={value!r}: give three finite numbers, one a channel")
        if min(self.std) <= 0:
            raise InputError(f"std={self.std!r}: every channel's spread must be above 0")

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) of the input."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def __call__(self, image: Image.Image, pictures: PictureSettings | None = None) -> torch.Tensor:
        """One PIL image of any mode -> (3, height, width) float32, normalised.

        Args:
            pictures: how it is opened, as for :class:`~pvp_fast.loaders.ImageStream`.

        Raises:
            ImageError: it is damaged or too large.
        """
        rgb = open_image(image, pictures or PictureSettings())
        pixels = np.array(self.crop(rgb), dtype=np.uint8, copy=True)  # (H, W, 3)
        x = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
        return x.sub_(self._channel(self.mean, x)).div_(self._channel(self.std, x))

    def crop(self, image: Image.Image) -> Image.Image:
        """What the network will see of an RGB image."""
        from PIL import Image

        method = {
            "bicubic": Image.Resampling.BICUBIC,
            "bilinear": Image.Resampling.BILINEAR,
        }[self.interpolation]
        plan = self.plan(*image.size)
        if plan.trim is not None:
            image = image.crop(plan.trim)
        if image.size != plan.resized:
            image = image.resize(plan.resized, method)
        height, width = self.sides
        if plan.has_bars(height, width):
            whole = Image.new("RGB", (width, height), (self.fill,) * 3)
            whole.paste(image, (-plan.left, -plan.top))
            return whole
        if plan.resized != (width, height):
            image = image.crop((plan.left, plan.top, plan.left + width, plan.top + height))
        return image

    def plan(self, width: int, height: int) -> Plan:
        """How an image of this size becomes the input; every loader follows it."""
        rows, columns = self.sides
        if self.resize_mode == "squash":
            return Plan(None, (columns, rows), 0, 0)
        if self.resize_mode == "longest":
            ratio = max(height / rows, width / columns)
            resized = max(1, round(width / ratio)), max(1, round(height / ratio))
            return Plan(None, resized, -((columns - resized[0]) // 2), -((rows - resized[1]) // 2))
        trim = _trimmed(width, height, rows, columns)
        if trim is not None:
            width, height = trim[2] - trim[0], trim[3] - trim[1]
        if rows != columns:
            ratio = min(height / rows, width / columns)
            resized = round(width / ratio), round(height / ratio)
        elif width <= height:
            resized = (columns, int(rows * height / width))
        else:
            resized = (int(columns * width / height), rows)
        left = round((resized[0] - columns) / 2.0)  # to even, as torchvision's CenterCrop
        top = round((resized[1] - rows) / 2.0)
        return Plan(trim, resized, left, top)

    def denormalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """(..., 3, H, W) normalised -> the same shape in [0, 1], clipped."""
        if pixels.ndim < 3 or pixels.shape[-3] != 3:
            raise InputError(f"pixels has shape {tuple(pixels.shape)}; give (..., 3, H, W)")
        scaled = pixels * self._channel(self.std, pixels) + self._channel(self.mean, pixels)
        return scaled.clamp(0, 1)

    @staticmethod
    def _channel(values: tuple[float, float, float], like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(3, 1, 1)


def _trimmed(width: int, height: int, rows: int, columns: int) -> tuple[int, int, int, int] | None:
    """The middle of an image that is very much longer than the input, else None."""
    widest = _MAX_RATIO * height * columns // rows
    highest = _MAX_RATIO * width * rows // columns
    if width > widest > 0:
        cut = (width - widest) // 2
        return cut, 0, width - cut, height
    if height > highest > 0:
        cut = (height - highest) // 2
        return 0, cut, width, height - cut
    return None
