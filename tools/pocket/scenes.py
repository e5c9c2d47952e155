"""Scenes: a few pictograms on a varied background, rendered in batches.

Each scene draws its categories' pictograms at random positions (the least overlapping of six
random layouts), sizes, rotations and colours over a background of colour noise and clutter
shapes; later ones occlude earlier ones. One affine texture look-up a layer covers the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pocket.sprites import ATLAS_WIDTH, LEVELS, SIZE, Sprites

GRAY = (0.30, 0.59, 0.11)
LAYOUTS_TRIED = 6


class SceneRenderer:
    """Renders scenes of given category sets.

    Args:
        sprites: the pictograms to draw with.
    """

    def __init__(self, sprites: Sprites) -> None:
        self.sprites = sprites
        self.categories = [c for c, rows in enumerate(sprites.of_category) if rows]

    def render(
        self,
        sets: Sequence[Sequence[int]],
        generator: torch.Generator,
        *,
        size: int = SIZE,
        easy: float = 0.0,
        jitter: float = 1.0,
    ) -> Tensor:
        """Scenes that show exactly the given categories.

        Args:
            sets: B non-empty sets of category indices.
            generator: the source of all randomness.
            size: side of the images in pixels.
            easy: 0–1, enlarges the objects (a curriculum starts at 1).
            jitter: strength of the geometric and colour variation, 1 = as in training.

        Returns:
            (B, 3, size, size) float32 in [0, 1].
        """
        batch, layers = len(sets), max(len(s) for s in sets)
        draw = _Uniform(generator)
        rows, shown = self._choose(sets, layers, draw)
        count = shown.sum(1, keepdim=True).float()

        half = (0.86 / count.sqrt()).clamp(max=0.80)
        half = (half * (0.75 + 0.45 * draw(batch, layers)) * (1 + 0.25 * easy)).clamp(max=0.92)
        position = _spread(half, shown, draw)
        angle = (draw(batch, layers) * 2 - 1) * 0.45 * jitter
        mirror = torch.where(draw(batch, layers) < 0.5, -1.0, 1.0)
        aspect = 1 + (draw(batch, layers) - 0.5) * 0.3 * jitter

        canvas = _background(batch, size, draw)
        y, x = _grid(size)
        # The mip level whose texels are nearest to the pixels, against aliasing.
        pixels = half * size
        level = torch.where(pixels >= 48, 0, torch.where(pixels >= 24, 1, 2))
        places = torch.tensor(LEVELS)
        for k in range(layers):
            # Layer k of the scenes that have one: most have few objects.
            b = shown[:, k].nonzero().flatten()
            cos, sin = angle[b, k].cos()[:, None, None], angle[b, k].sin()[:, None, None]
            dx = x - position[b, k, 0, None, None]
            dy = y - position[b, k, 1, None, None]
            extent = half[b, k, None, None]
            ratio = aspect[b, k, None, None]
            u = (dx * cos + dy * sin) / extent * mirror[b, k, None, None] / ratio
            v = (dy * cos - dx * sin) / extent * ratio
            inside = (u.abs() < 1) & (v.abs() < 1)
            centre_x, centre_y, reach = places[level[b, k]][:, :, None, None].unbind(1)
            u = torch.where(inside, (centre_x + u * reach) / ATLAS_WIDTH * 2 - 1, -3.0)
            v = (centre_y + v * reach) / SIZE * 2 - 1
            sprite = F.grid_sample(
                self.sprites.atlas[rows[b, k]].float(),
                torch.stack([u, v], -1),
                padding_mode="zeros",
                align_corners=False,
            )
            alpha = sprite[:, 3:]
            canvas[b] = canvas[b] * (1 - alpha) + _recolour(sprite[:, :3], alpha, jitter, draw)
        return _photograph(canvas, jitter, draw)

    def _choose(
        self, sets: Sequence[Sequence[int]], layers: int, draw: _Uniform
    ) -> tuple[Tensor, Tensor]:
        """Atlas rows (B, layers) in random drawing order, and which layers are used."""
        rows = torch.zeros(len(sets), layers, dtype=torch.long)
        shown = torch.zeros(len(sets), layers, dtype=torch.bool)
        choice = draw(len(sets), layers)
        for b, categories in enumerate(sets):
            order = torch.randperm(len(categories), generator=draw.generator).tolist()
            for k, j in enumerate(order):
                options = self.sprites.of_category[categories[j]]
                rows[b, k] = options[int(choice[b, k] * len(options))]
                shown[b, k] = True
        return rows, shown


class _Uniform:
    """Uniform numbers in [0, 1) from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)


def _grid(size: int) -> tuple[Tensor, Tensor]:
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return y, x


def _spread(half: Tensor, shown: Tensor, draw: _Uniform) -> Tensor:
    """Positions (B, layers, 2): of six random layouts the one that overlaps least."""
    batch, layers = half.shape
    reach = (1.02 - half * 0.8).clamp(min=0.02)
    layouts = (draw(LAYOUTS_TRIED, batch, layers, 2) * 2 - 1) * reach[None, :, :, None]
    apart = (layouts[:, :, :, None] - layouts[:, :, None]).norm(dim=-1) + 10 * torch.eye(layers)
    needed = (half[:, :, None] + half[:, None]) * 0.8
    both = shown[:, :, None] & shown[:, None]
    overlap = ((needed - apart).clamp(min=0) * both).sum((-1, -2))
    return layouts[overlap.argmin(0), torch.arange(batch)]


def _recolour(rgb: Tensor, alpha: Tensor, jitter: float, draw: _Uniform) -> Tensor:
    """Random channel mixing, greying, channel order, gain, offset and inversion."""
    batch = rgb.shape[0]
    mix = torch.eye(3) + draw.normal(batch, 3, 3) * 0.13 * jitter
    grey = (draw(batch, 1, 1) < 0.12 * jitter).float() * draw(batch, 1, 1)
    mix = mix * (1 - grey) + torch.tensor(GRAY).expand(3, 3) * grey
    order = torch.eye(3)[draw(batch, 3).argsort(1)]
    reorder = draw(batch, 1, 1) < 0.10 * jitter
    mix = torch.where(reorder, order @ mix, mix)
    offset = (draw(batch, 3, 1, 1) - 0.5) * 0.25 * jitter
    gain = 1 + (draw(batch, 1, 1, 1) - 0.5) * 0.6 * jitter
    out = torch.einsum("bij,bjhw->bihw", mix, rgb) * gain + offset * alpha
    inverted = draw(batch, 1, 1, 1) < 0.04 * jitter
    return torch.minimum(torch.where(inverted, alpha - out, out).clamp(min=0), alpha)


def _background(batch: int, size: int, draw: _Uniform) -> Tensor:
    """Colour noise from flat to fine, with up to three soft boxes and ellipses on it."""
    colour = draw(batch, 3, 1, 1)
    grain = (draw(batch) * 5).long()
    out = torch.empty(batch, 3, size, size)
    for index, cells in enumerate((1, 2, 3, 5, 9)):
        chosen = grain == index
        if chosen.any():
            noise = draw.normal(int(chosen.sum()), 3, cells, cells) * 0.22
            out[chosen] = F.interpolate(colour[chosen] + noise, size=(size, size), mode="bilinear")
    y, x = _grid(size)
    for _ in range(3):
        centre_x, centre_y = (draw(2, batch, 1, 1) * 2 - 1) * 1.1
        turn = draw(batch, 1, 1) * math.pi
        width, height = 0.05 + draw(2, batch, 1, 1) * 0.5
        u = ((x - centre_x) * turn.cos() + (y - centre_y) * turn.sin()) / width
        v = ((y - centre_y) * turn.cos() - (x - centre_x) * turn.sin()) / height
        box, ellipse = torch.maximum(u.abs(), v.abs()), (u * u + v * v).sqrt()
        distance = torch.where(draw(batch, 1, 1) < 0.5, box, ellipse)
        cover = ((1 - distance) * 8).clamp(0, 1) * (0.3 + 0.7 * draw(batch, 1, 1))
        cover = (cover * (draw(batch, 1, 1) < 0.55))[:, None]
        out = out * (1 - cover) + draw(batch, 3, 1, 1) * cover
    return out.clamp(0, 1)


def _photograph(canvas: Tensor, jitter: float, draw: _Uniform) -> Tensor:
    """Contrast, brightness, a little blur and sensor noise over the finished scene."""
    batch = canvas.shape[0]
    contrast = 1 + (draw(batch, 1, 1, 1) - 0.5) * 0.5 * jitter
    brightness = (draw(batch, 1, 1, 1) - 0.5) * 0.25 * jitter
    canvas = (canvas - 0.5) * contrast + 0.5 + brightness
    blurred = F.avg_pool2d(F.pad(canvas, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = (draw(batch, 1, 1, 1) * 1.4 - 0.6).clamp(0, 1) * 0.8
    canvas = canvas * (1 - amount) + blurred * amount
    noise = draw.normal(*canvas.shape) * (draw(batch, 1, 1, 1) * 0.04)
    return (canvas + noise).clamp(0, 1)
