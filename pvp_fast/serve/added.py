"""Categories that a running service is told of, by their names alone.

The tagger's own categories keep every bit of their scores. The added ones are a second tagger, made
from names on the same CLIP, whose tags are merged in. They live in this process and end with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pvp_fast.errors import InputError
from pvp_fast.tagging.tagger import Tag, Tagger

LONGEST = 100  # characters of a name


class WithAdded:
    """A tagger with some categories more; it is never changed, growing gives another.

    Args:
        tagger: what tags with the categories of its artifact.
        added: names of the others.

    Attributes:
        version: that of the artifact, and of what was added.
    """

    def __init__(self, tagger: Tagger, added: Sequence[str] = ()) -> None:
        self.tagger, self.added = tagger, tuple(added)
        self._more = Tagger.from_names(self.added, backbone=tagger.backbone) if self.added else None
        more = self._more and self._more.artifact.version
        self.version = tagger.artifact.version + (f"+{more}" if more else "")

    def grown(self, name: str) -> WithAdded:
        """One with this category too.

        Raises:
            InputError: no name, or one that is there.
        """
        name = " ".join(name.split())
        if not name or len(name) > LONGEST or not name.isprintable():
            raise InputError(f"name: give 1 to {LONGEST} printable characters")
        words = self.tagger.artifact.vocabulary
        there = {n.casefold() for n in (*words.names, *words.labels, *self.added)}
        if name.casefold() in there:
            raise InputError(f"name: {name!r} is there already")
        return WithAdded(self.tagger, (*self.added, name))

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features as the tagger's."""
        return self.tagger.encode(pixels)

    def tag_features(
        self, z: Tensor, regions: Tensor | None, *, top_k: int, threshold: float | None
    ) -> list[tuple[Tag, ...]]:
        """Tags of both, best first; of equal scores the tagger's own."""
        options: dict[str, Any] = {"top_k": top_k, "threshold": threshold}
        found = self.tagger.tag_features(z, regions, **options)
        if self._more is None:
            return found
        more = self._more.tag_features(z, **options)
        merged = (
            sorted((*a, *b), key=lambda t: -t.score) for a, b in zip(found, more, strict=True)
        )
        return [tuple(tags[:top_k]) for tags in merged]
