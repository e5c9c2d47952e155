"""Random resized crop and flip, the same for an image whatever worker or backend loads it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from pvp_fast.errors import InputError


@dataclass(frozen=True)
class View:
    """A part of an image, in its pixels, to resize to the square; mirrored when ``flip``."""

    left: int
    top: int
    width: int
    height: int
    flip: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom)."""
        return self.left, self.top, self.left + self.width, self.top + self.height


@dataclass(frozen=True)
class Augment:
    """Training augmentation; the defaults are open_clip's, plus the flip.

    Attributes:
        scale: least and largest share of the image's area.
        ratio: least and largest width over height.
        flip: chance of a mirror image.
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"scale={self.scale}: give two shares of the area, 0 < least <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise InputError(f"ratio={self.ratio}: give two sides' ratios, 0 < least <= largest")
        if not 0 <= self.flip <= 1:
            raise InputError(f"flip={self.flip}: give a chance, 0 to 1")

    def view(self, width: int, height: int, chance: random.Random) -> View:
        """One draw, as torchvision's RandomResizedCrop: ten tries, then the central crop."""
        flip = chance.random() < self.flip
        low, high = (math.log(r) for r in self.ratio)
        for _ in range(10):
            area = width * height * chance.uniform(*self.scale)
            shape = math.exp(chance.uniform(low, high))
            w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < w <= width and 0 < h <= height:
                left, top = chance.randint(0, width - w), chance.randint(0, height - h)
                return View(left, top, w, h, flip)
        shape = min(max(width / height, self.ratio[0]), self.ratio[1])
        w = min(width, max(1, round(height * shape)))
        h = min(height, max(1, round(width / shape)))
        return View((width - w) // 2, (height - h) // 2, w, h, flip)
