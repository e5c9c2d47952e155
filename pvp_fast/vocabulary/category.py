"""One category: its name, other words for it, and what its tags say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pvp_fast.errors import InputError
from pvp_fast.vocabulary.matching import tokenize


@dataclass(frozen=True)
class Category:
    """One thing to recognise.

    Attributes:
        name: what the text prompt says ("teddy bear").
        synonyms: other words for it in sentences; singular is enough, plurals are found.
        ignore: phrases that contain the name or a synonym but mean something else, for instance
            "orange shirt" for the fruit. They silence this category only.
        label: what tags say in place of the name, in any language.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    label: str | None = None

    def __post_init__(self) -> None:
        for field in ("synonyms", "ignore"):
            value = getattr(self, field)
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise InputError(
                    f"{field} of category {self.name!r} is {value!r}; give a list of strings"
                )
            object.__setattr__(self, field, tuple(value))
        for word in (self.name, *self.synonyms, *self.ignore):
            if not isinstance(word, str):
                raise InputError(
                    f"category {self.name!r}: {word!r} is {type(word).__name__}, not a string; "
                    "in YAML put quotes around words such as yes, no, on, off and numbers"
                )
            plain = word.isascii() and word.replace(" ", "").isalnum()
            if not plain and not any(map(str.isalnum, "".join(tokenize(word)))):
                what = "name" if word == self.name else "synonym"
                raise InputError(
                    f"category {what} {word!r} is empty; it needs at least one letter or digit"
                )
        if self.label is not None and (not isinstance(self.label, str) or not self.label.strip()):
            raise InputError(f"label of category {self.name!r} is {self.label!r}; give a text")
