"""Pictograms: SVG sources in several drawing styles, rasterised once into a texture atlas.

A pictogram folder holds one JSON file a style: ``{"style", "artwork", "licence", "source",
"categories": {category: {icon name: SVG text}}}``. The icon sets are the npm packages
``@iconify-json/NAME``; the artwork is not part of this package.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pvp_fast.errors import InputError

SIZE = 64
ATLAS_WIDTH = 98
# A source longer than this is no pictogram; the bound keeps the rasteriser's work bounded.
MAX_SVG_BYTES = 200_000
# Where the three mip levels lie in the atlas: centre x, centre y, half size, in atlas pixels.
LEVELS = ((32.0, 32.0, 32.0), (81.0, 16.0, 16.0), (73.0, 42.0, 8.0))


@dataclass(frozen=True)
class Style:
    """One drawing style: its name, whose artwork it is, and category → SVG sources."""

    name: str
    artwork: str
    licence: str
    source: str
    icons: dict[str, tuple[str, ...]]


def read_styles(folder: str | Path) -> dict[str, Style]:
    """Every style in a pictogram folder, by name.

    Raises:
        InputError: the folder holds no style file, or one is malformed.
    """
    styles = {}
    for path in sorted(Path(folder).glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            icons = {c: tuple(svgs.values()) for c, svgs in data["categories"].items()}
            style = Style(data["style"], data["artwork"], data["licence"], data["source"], icons)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"pictograms: {path} is not a style file: {error!r}") from error
        styles[style.name] = style
    if not styles:
        raise InputError(f"pictograms: no *.json style files in {folder}")
    return styles


def rasterise(svg: str) -> Tensor:
    """One SVG as a premultiplied RGBA image (4, 64, 64) in [0, 1], with a clear one-pixel rim.

    Raises:
        InputError: the source is too long or cannot be drawn.
    """
    import resvg_py

    if len(svg) > MAX_SVG_BYTES:
        raise InputError(f"svg: {len(svg)} bytes given, at most {MAX_SVG_BYTES} are drawn")
    try:
        drawn = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
    except ValueError as error:
        raise InputError(f"svg: cannot be drawn: {error}") from error
    image = Image.open(io.BytesIO(drawn)).convert("RGBA").resize((SIZE - 2, SIZE - 2))
    rgba = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
    rgba[:3] *= rgba[3:]
    return F.pad(rgba, (1, 1, 1, 1))


@dataclass(frozen=True)
class Sprites:
    """All pictograms of some styles as one atlas.

    Attributes:
        atlas: (N, 4, 64, 98) float16, premultiplied RGBA at 64, 32 and 16 px side by side.
        of_category: for each category, the rows of its pictograms (empty when no style has it).
    """

    atlas: Tensor
    of_category: tuple[tuple[int, ...], ...]


def load_sprites(styles: list[Style], categories: list[str] | tuple[str, ...]) -> Sprites:
    """Rasterise the pictograms of ``categories`` in all ``styles``."""
    images: list[Tensor] = []
    rows: list[list[int]] = [[] for _ in categories]
    for style in styles:
        for index, category in enumerate(categories):
            for svg in style.icons.get(category, ()):
                rows[index].append(len(images))
                images.append(rasterise(svg))
    if not images:
        raise InputError(f"styles: {[s.name for s in styles]} draw none of the categories")
    full = torch.stack(images)
    atlas = torch.zeros(len(images), 4, SIZE, ATLAS_WIDTH)
    atlas[..., :64] = full
    atlas[:, :, :32, 65:97] = F.avg_pool2d(full, 2)
    atlas[:, :, 34:50, 65:81] = F.avg_pool2d(full, 4)
    return Sprites(atlas.half(), tuple(tuple(r) for r in rows))
