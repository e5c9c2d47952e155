"""The main job on the pocket model, and the scenes that it is shown on."""

from __future__ import annotations

from pathlib import Path

__all__ = ["demo_set"]


def demo_set() -> Path:
    """Folder of demo scenes with ``labels.json``, drawn in a style the model never saw."""
    return Path(__file__).parent / "scenes"
