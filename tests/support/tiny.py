"""The tiny CLIP, made when this is imported: processes forked afterwards have it for nothing."""

from __future__ import annotations

from support.training import tiny_clip

CLIP = tiny_clip()
