"""CLIP models: loading, pictures, text towers, regions, and the pocket model."""

from pvp_fast.clip.backbone import Backbone
from pvp_fast.clip.preprocess import Preprocess

__all__ = ["Backbone", "Preprocess"]
