"""What a source saw and did not list, by kind, and how that is said."""

from __future__ import annotations

from collections import Counter

from pvp_fast.pictures import kinds

HIDDEN = "hidden"
REFUSE = "in thumbnail and recycle folders"
EXCLUDED = "excluded"
LINKS = "links to folders"
SPECIAL = "devices and pipes"
OTHER = "other files"
SCATTERED = "shards whose samples do not lie together: their texts were left out"
_ORDER = (HIDDEN, REFUSE, EXCLUDED, LINKS, SPECIAL, OTHER, SCATTERED)


class PassedOver:
    """Files that were seen and left out, counted by kind.

    A kind is an ending (``.svg``) of what looks like a picture and cannot be read, or one of this
    module's words.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, count: int = 1) -> None:
        """Count some more of a kind."""
        if count:
            self.counts[kind] += count

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        """For people: "12 .heic (pip install …), 3 .svg, 8 hidden, 14 other files"."""
        endings = sorted(
            (kind for kind in self.counts if kind.startswith(".")),
            key=lambda kind: (-self.counts[kind], kind),
        )
        parts = []
        for kind in (*endings, *(kind for kind in _ORDER if kind in self.counts)):
            remedy = kinds.remedy(kind)
            parts.append(f"{self.counts[kind]} {kind}" + (f" ({remedy})" if remedy else ""))
        return ", ".join(parts)
