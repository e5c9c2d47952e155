"""How pictures are opened: one record for every command, backend and service."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from PIL import ImageColor

from pvp_fast.errors import ImageError, InputError


@dataclass(frozen=True)
class PictureSettings:
    """What is done to a picture between its file and the RGB pixels that CLIP gets.

    The defaults show a picture as its owner sees it. ``OPEN_CLIP`` has what open_clip's own
    transform does: photos stay as their sensor lay and transparency is dropped.

    Attributes:
        upright: turn photos as their metadata (EXIF, else XMP) ask.
        background: what transparent pixels are laid on: a colour as CSS writes it ("white",
            "#808080"), or None to drop the transparency and take the colours hidden under it.
        max_megapixels: larger pictures are refused from their header, in millions of pixels;
            a larger JPEG is decoded at a fraction of its size instead.

    Raises:
        InputError: a value that cannot be used.
    """

    upright: bool = True
    background: str | None = "white"
    max_megapixels: float = 100.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_megapixels) and self.max_megapixels > 0):
            raise InputError(f"max_megapixels is {self.max_megapixels}; give more than 0")
        if self.background is not None:
            try:
                ImageColor.getrgb(self.background)
            except (ValueError, AttributeError, TypeError) as error:
                raise InputError(
                    f"background={self.background!r}: give a colour ('white', '#808080'), or None"
                ) from error

    @property
    def max_pixels(self) -> int:
        """Width times height of the largest picture."""
        return int(self.max_megapixels * 1e6)

    @property
    def fill(self) -> tuple[int, int, int] | None:
        """The background as RGB."""
        return None if self.background is None else ImageColor.getrgb(self.background)[:3]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as artifacts and embeddings keep them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> PictureSettings:
        """What :meth:`to_dict` gave; what is not in it has its default.

        Raises:
            InputError: it is of another form.
        """
        try:
            return cls(**kept)
        except TypeError as error:
            raise InputError(f"pictures: {kept!r} are no picture settings: {error}") from error


def pictures_of(config: Mapping[str, Any]) -> PictureSettings:
    """The settings that an artifact's ``config`` keeps, or the defaults."""
    return PictureSettings.from_dict(config.get("pictures", {}))


def too_large(width: int, height: int, settings: PictureSettings, name: str = "") -> ImageError:
    """The reason of a picture over the limit; it names the option."""
    return ImageError(
        f"too large: {width}x{height} is {width * height / 1e6:.4g} megapixels, over "
        f"--max-megapixels {settings.max_megapixels:g}",
        name,
    )


OPEN_CLIP = PictureSettings(upright=False, background=None)
