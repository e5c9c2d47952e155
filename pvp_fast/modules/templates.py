"""Sentences with a gap: a category's name in a few everyday frames."""

from __future__ import annotations

# Written for this package. Short on purpose: past a dozen frames their mean hardly moves.
CLIP_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture showing a {}.",
    "a close view of a {}.",
    "a {} seen from far away.",
    "a scene with a {} in it.",
    "there is a {} here.",
    "several things, among them a {}.",
    "a bright photo of a {}.",
    "a dim photo of a {}.",
    "part of a {}.",
    "a drawing of a {}.",
)
