"""Which file endings are pictures that can be read here."""

from __future__ import annotations

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".mpo"}
)
