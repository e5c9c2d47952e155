"""Names as lists have them, written as sentences and text towers do.

``hatsune_miku`` is read as "hatsune miku"; ``crane_(bird)`` as "crane bird", which tags still call
"crane (bird)" and which sentences may call "crane" where no other name does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from pvp_fast.vocabulary.category import Category

_BRACKET = re.compile(r"\\?[(\[{]([^()\[\]{}\\]*)\\?[)\]}]")
_MARKS = re.compile(r"[,;:|\t]+")
_SHOWN = 3


def as_sentences_write(
    items: Sequence[Category], *, loose: bool = False
) -> tuple[list[Category], list[str]]:
    """Categories with plain names, those that stand twice taken once; and what was done, in words.

    Args:
        loose: marks inside names are spaces too, as booru tags have them.
    """
    notes: list[str] = []
    plain = [_plain(item, loose) for item in items]
    spaced = [item for item in items if "_" in item.name]
    if spaced:
        notes.append(f"underscores read as spaces in {_counted([i.name for i in spaced])}")
    # The word before a bracket is another name where it says enough.
    short = [_before_bracket(item.name) for item in items]
    bases = Counter(filter(None, short))
    taken = {_key(word) for item in plain for word in (item.name, *item.synonyms)}
    bracketed = [item.name for item, base in zip(items, short, strict=True) if base]
    for i, base in enumerate(short):
        if base and bases[base] == 1 and base not in taken:
            synonyms = (*plain[i].synonyms, base)
            plain[i] = Category(plain[i].name, synonyms, plain[i].ignore, plain[i].label)
    if bracketed:
        notes.append(f"brackets read as part of {_counted(bracketed)}; tags keep them")
    return _once(plain, notes), notes


def _plain(item: Category, loose: bool) -> Category:
    name, label = _spaced(item.name), item.label
    if _BRACKET.search(name) or (loose and _MARKS.search(name)):
        label = label or name
        name = _MARKS.sub(" ", _unbracketed(name)) if loose else _unbracketed(name)
    synonyms = tuple(_unbracketed(_spaced(word)) for word in item.synonyms)
    if (name, synonyms, label) == (item.name, item.synonyms, item.label):
        return item
    name = " ".join(name.split())
    return Category(name, tuple(dict.fromkeys(synonyms)), item.ignore, label)


def _spaced(word: str) -> str:
    """With spaces for underscores, and without a backslash before brackets."""
    if word.isalpha():
        return word
    return " ".join(re.sub(r"\\(?=[()\[\]{}])", "", word).replace("_", " ").split())


def _unbracketed(word: str) -> str:
    return " ".join(_BRACKET.sub(lambda found: f" {found[1]} ", word).split())


def _before_bracket(name: str) -> str:
    """What stands beside a bracket, folded; empty without one."""
    spaced = _spaced(name)
    return _key(_BRACKET.sub(" ", spaced)) if _BRACKET.search(spaced) else ""


def _key(word: str) -> str:
    return re.sub(r"[\s_-]+", " ", word).strip().casefold()


def _once(items: Sequence[Category], notes: list[str]) -> list[Category]:
    """Categories of one name made one, where the first of them stands."""
    first: dict[str, Category] = {}
    twice: dict[str, None] = {}
    for item in items:
        old = first.setdefault(_key(item.name), item)
        if old is not item:
            twice[old.name] = None
            words = dict.fromkeys((*old.synonyms, *item.synonyms))
            first[_key(item.name)] = Category(
                old.name, tuple(words), (*old.ignore, *item.ignore), old.label or item.label
            )
    if twice:
        notes.append(f"standing twice and taken once: {_counted(list(twice))}")
    return list(first.values())


def _counted(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
