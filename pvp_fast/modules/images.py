"""How a learned image is written down: by its frequencies, or pixel by pixel.

Moving a pixel moves all frequencies alike, while what an encoder sees of an image lies in its
coarse half, where natural images have their power: it falls with the square of the frequency
(Field, JOSA A 4(12), 1987). Coefficients of cosines, each weighted by 1 over its frequency, start
as natural images are and learn the coarse first; feature visualisation learns its images so too
(Olah et al., Distill 2017). Half of the frequencies of each axis is a quarter of the numbers.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvp_fast.errors import InputError

SPREAD = 0.5  # of an image's pixels, in normalised pixel space
FAINT = 0.3  # of it is what frequencies start with: the first steps need not undo a strong image


def image_space(size: int | tuple[int, ...], frequencies: float) -> ImageSpace:
    """The lowest share of ``frequencies`` of each axis, above 0 and up to 1; or, of 0, pixels.

    Args:
        size: (H, W), or one number of both.
    """
    if not 0 <= frequencies <= 1:
        raise InputError(
            f"frequencies={frequencies}: give the share that is learned, up to 1, or 0 for pixels"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return Frequencies(height, width, frequencies) if frequencies else Pixels(height, width)


class ImageSpace(nn.Module):
    """What is learned of an image, and how it becomes one.

    Attributes:
        shape: of what is learned of one image, (3, h, w).
        spread: of the pixels that images start with.
    """

    shape: tuple[int, int, int]
    spread: float

    @abstractmethod
    def forward(self, learned: Tensor) -> Tensor:
        """Pixels (..., 3, H, W) of what was learned (..., 3, h, w)."""

    @abstractmethod
    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 3, h, w), whose pixels have a root mean square of ``spread``."""

    def starts(self, categories: int, per_category: int, seed: int) -> Iterator[Tensor]:
        """What each category's images begin as, (P, 3, h, w); further ones change none before."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(categories):
            yield self.noise(per_category, generator)


class Pixels(ImageSpace):
    """Images as they are."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.shape, self.spread = (3, height, width), SPREAD

    def forward(self, learned: Tensor) -> Tensor:
        return learned

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Half fine, half in coarse patches: fine noise alone is close to grey for an encoder."""
        _, height, width = self.shape
        fine = torch.randn(count, *self.shape, generator=generator)
        cells = (max(height // 16, 2), max(width // 16, 2))
        coarse = torch.randn(count, 3, *cells, generator=generator)
        coarse = F.interpolate(coarse, (height, width), mode="nearest")
        return (fine + coarse) * (0.5**0.5 * self.spread)


class Frequencies(ImageSpace):
    """Coefficients of a discrete cosine transform (DCT-II), weighted by 1 over their frequency.

    Coefficients of unit variance give pixels of a root mean square of ``SPREAD``.
    """

    rows: Tensor
    columns: Tensor
    weight: Tensor

    def __init__(self, height: int, width: int, share: float) -> None:
        super().__init__()
        h, w = (max(1, round(share * side)) for side in (height, width))
        self.shape, self.spread = (3, h, w), FAINT * SPREAD
        down = torch.arange(h, dtype=torch.float64) / (2 * height)  # cycles a pixel
        across = torch.arange(w, dtype=torch.float64) / (2 * width)
        # What turns less than once across the image counts as once.
        frequency = torch.hypot(down[:, None], across).clamp(min=1 / max(height, width))
        weight = 1 / frequency
        weight *= SPREAD * (height * width / weight.square().sum()) ** 0.5
        tables = {"rows": _cosines(h, height), "columns": _cosines(w, width), "weight": weight}
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    def forward(self, learned: Tensor) -> Tensor:
        return self.rows.T @ (learned * self.weight) @ self.columns

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Of natural images' power over the frequencies."""
        return torch.randn(count, *self.shape, generator=generator) * FAINT


def _cosines(count: int, size: int) -> Tensor:
    """The ``count`` slowest rows (count, size) of the orthonormal DCT-II, float64."""
    k = torch.arange(count, dtype=torch.float64)[:, None]
    at = torch.arange(size, dtype=torch.float64) + 0.5
    table = torch.cos(math.pi / size * k * at) * (2 / size) ** 0.5
    table[0] *= 0.5**0.5
    return table
