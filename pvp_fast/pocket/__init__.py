"""The pocket model: a small, real CLIP that ships with the package, and scenes to try it on."""

from __future__ import annotations

from pathlib import Path

from pvp_fast.pocket.model import load_model

__all__ = ["demo_set", "load_model"]


def demo_set() -> Path:
    """Folder of demo scenes with ``labels.json``, drawn in a style the model never saw."""
    return Path(__file__).parent / "demo"
