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

# A 1 x 10000 photo would be blown up to 224 x 2240000 only to keep its centre: beyond this
# ratio of sides the far ends, which the crop throws away in any case, are cut off first.
_MAX_RATIO = 32


class Plan(NamedTuple):
    """From an image to the square: cut ``trim`` (left, top, right, bottom) out where it is given,
    resize to ``resized`` (width, height), take the square at ``left``, ``top``."""

    trim: tuple[int, int, int, int] | None
    resized: tuple[int, int]
    left: int
    top: int


@dataclass(frozen=True)
class Preprocess:
    """open_clip's evaluation transform for a square input, bit for bit, without torchvision.

    Resize (shorter side to ``size``, or both sides with ``resize_mode="squash"``), centre crop,
    RGB, scale to [0, 1], normalise.

    Attributes:
        size: side of the square in pixels.
        mean, std: per channel, in [0, 1] units.
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest" (CLIP) or "squash" (SigLIP).
    """

    size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"size={self.size}: the side of the input must be at least 1 pixel")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise InputError(f"interpolation={self.interpolation!r}: use 'bicubic' or 'bilinear'")
        if self.resize_mode not in ("shortest", "squash"):
            raise InputError(f"resize_mode={self.resize_mode!r}: use 'shortest' or 'squash'")
        for name, value in (("mean", self.mean), ("std", self.std)):
            if len(value) != 3 or not all(math.isfinite(v) for v in value):
                raise InputError(f"{name}={value!r}: give three finite numbers, one a channel")
        if min(self.std) <= 0:
            raise InputError(f"std={self.std!r}: every channel's spread must be above 0")

    def __call__(self, image: Image.Image, pictures: PictureSettings | None = None) -> torch.Tensor:
        """One PIL image of any mode -> (3, size, size) float32, normalised.

        Args:
            pictures: how it is opened, as for :class:`~pvp_fast.loaders.ImageStream`.

        Raises:
            ImageError: it is damaged or too large.
        """
        rgb = open_image(image, pictures or PictureSettings())
        pixels = np.array(self.crop(rgb), dtype=np.uint8, copy=True)  # (S, S, 3)
        x = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
        return x.sub_(self._channel(self.mean, x)).div_(self._channel(self.std, x))

    def crop(self, image: Image.Image) -> Image.Image:
        """The square of side ``size`` that the network will see, of an RGB image."""
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
        if plan.resized != (self.size, self.size):
            right, bottom = plan.left + self.size, plan.top + self.size
            image = image.crop((plan.left, plan.top, right, bottom))
        return image

    def plan(self, width: int, height: int) -> Plan:
        """How an image of this size becomes the square; every loader follows it."""
        size = self.size
        if self.resize_mode == "squash":
            return Plan(None, (size, size), 0, 0)
        trim = _trimmed(width, height)
        if trim is not None:
            width, height = trim[2] - trim[0], trim[3] - trim[1]
        if width <= height:
            resized = (size, int(size * height / width))
        else:
            resized = (int(size * width / height), size)
        left = round((resized[0] - size) / 2.0)  # to even, as torchvision's CenterCrop
        top = round((resized[1] - size) / 2.0)
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


def _trimmed(width: int, height: int) -> tuple[int, int, int, int] | None:
    if width > _MAX_RATIO * height:
        cut = (width - _MAX_RATIO * height) // 2
        return cut, 0, width - cut, height
    if height > _MAX_RATIO * width:
        cut = (height - _MAX_RATIO * width) // 2
        return 0, cut, width, height - cut
    return None
