"""Regions of an image: its patches, or tiles of it that the encoder sees as images of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.clip.backbone import Backbone
from pvp_fast.clip.regions import require_regions
from pvp_fast.errors import InputError

# Side of a tile as a share of the image's. Chosen on pocket scenes that are not the test scenes.
TILE = 0.75


def check_tile(where: str, tile: float) -> None:
    """Raise InputError unless ``tile`` is 0 (patches) or a side that covers half of an image's."""
    if tile != 0 and not 0.5 <= tile < 1:
        raise InputError(f"{where}: tile is 0 for patches, or a share of 0.5 to 1, not {tile}")


def require(backbone: Backbone, tile: float, why: str) -> None:
    """Raise BackboneError, starting with ``why``, where patches are asked of a tower without."""
    if not tile:
        require_regions(backbone.model, why)


def image_regions(backbone: Backbone, pixels: Tensor, tile: float) -> Tensor:
    """(B, 3, H, W) normalised pixels -> (B, L, D) unit rows, what a local branch looks at.

    Args:
        tile: 0 for the features of the patches (``backbone.encode_regions``). Else the side of four
            tiles, one in each corner, as a share of the image's: each is enlarged to the size of
            the image and encoded like one, two of them mirrored. Four times the work of an image.
    """
    check_tile("regions", tile)
    if not tile:
        return backbone.encode_regions(pixels)
    size = pixels.shape[-2:]
    height, width = (round(tile * side) for side in size)
    found = []
    for bottom in (False, True):
        for right in (False, True):
            part = pixels[..., -height:, :] if bottom else pixels[..., :height, :]
            part = part[..., -width:] if right else part[..., :width]
            if bottom != right:
                part = part.flip(-1)
            enlarged = F.interpolate(part, size=size, mode="bicubic", align_corners=False)
            found.append(backbone.encode_image(enlarged))
    return torch.stack(found, 1)
