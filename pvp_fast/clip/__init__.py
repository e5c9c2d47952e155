"""CLIP models: loading, pictures, text towers, regions, and the pocket model.

Its names are loaded when they are used: ``pvp-fast --help`` asks for ``clip.usual`` and needs no
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pvp_fast.clip.backbone import Backbone
    from pvp_fast.clip.preprocess import Preprocess

__all__ = ["Backbone", "Preprocess"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{name.lower()}"), name)
