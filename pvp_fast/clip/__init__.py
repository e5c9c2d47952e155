"""CLIP models: loading them, their pictures, their text towers, their regions, and the pocket model."""

from pvp_fast.clip.backbone import Backbone
from pvp_fast.clip.preprocess import Preprocess

__all__ = ["Backbone", "Preprocess"]
