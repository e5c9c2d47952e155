"""A picture opened one way: turned upright, transparency laid on a colour, its size bounded.

Loaders, backbones, reports and the service all open pictures here.
"""

from pvp_fast.pictures.reader import looks_like_picture, open_image
from pvp_fast.pictures.settings import OPEN_CLIP, PictureSettings

__all__ = ["OPEN_CLIP", "PictureSettings", "looks_like_picture", "open_image"]
