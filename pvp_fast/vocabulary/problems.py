"""What real lists of names have that no sentence has, and what would work instead.

Lists come from data sets (``n04356056 sunglasses``), taggers (``crane_\\(bird\\)``) and other
programs' settings (``0: person``). Such a name matches nothing, and a run would end with a category
that learned nothing; so all of them are told at once, before anything runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pvp_fast.errors import InputError

SHOWN = 20
_WORDNET = re.compile(r"n\d{8}\b[\s:;,\t]*")
_NUMBERED = re.compile(r"\d+(?:[.):;]\s*|\s+|$)")
_FREEBASE = re.compile(r"/[mgt]/\w+[\s:;,\t]*")
_BULLET = re.compile(r"[-*+\u2022\u2023\u25aa\u00b7\u2013\u2014]\s+(?=\w)")
_QUOTED = re.compile(
    r"""["'\u201c\u201d\u201e\u00ab\u2018\u2019`](.*)["'\u201c\u201d\u00bb\u2018\u2019`],?"""
)
# Marks of direction, zero widths and controls; joiners belong to Hindi and Persian words.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)
_BRACKET = re.compile(r"\\?[(\[{]([^()\[\]{}\\]*)\\?[)\]}]")


def raise_problems(problems: Sequence[str]) -> None:
    """One InputError for all of them; nothing where there is none."""
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        # Numbered, as a terminal's one-line message has no lines to tell them apart.
        shown = "".join(f"\n  ({i}) {text}" for i, text in enumerate(problems[:SHOWN], start=1))
        rest = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InputError(f"{len(problems)} problems:{shown}{rest}")


def repeated_names(
    names: Sequence[str], key: Callable[[str], str], *, counted: bool = True
) -> list[str]:
    """Names that read the same in a sentence; a problem for each group.

    Args:
        counted: say at which positions they stand.
    """
    groups: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        groups.setdefault(key(name), []).append(position)
    problems = []
    for positions in groups.values():
        if len(positions) > 1:
            count = {2: "two"}.get(len(positions), str(len(positions)))
            called = " and ".join(repr(names[i]) for i in positions[:SHOWN])
            places = f" (positions {' and '.join(map(str, positions[:SHOWN]))})" if counted else ""
            problems.append(
                f"{count} categories are called {called}{places}; merge them with "
                "synonyms or rename one"
            )
    return problems


def id_column(names: Sequence[str], alone: Sequence[bool]) -> str | None:
    """The problem of names that begin with an id, when nearly all do.

    Args:
        alone: whether a name has no synonym; then a bare number is a name: digits are categories.
    """
    for pattern, what in (
        (_WORDNET, "a WordNet id"),
        (_FREEBASE, "a Freebase id"),
        (_NUMBERED, "a number"),
    ):
        with_id = [
            name
            for name, single in zip(names, alone, strict=True)
            if pattern.match(name) and not (single and name.isdecimal())
        ]
        if len(with_id) >= 2 and len(with_id) >= 0.8 * len(names):
            bare = [pattern.sub("", name, count=1).strip() for name in with_id]
            if len({name.casefold() for name in bare}) < len(bare) and all(bare):
                continue  # "1 euro coin", "2 euro coin"
            if not any(bare) and pattern is not _NUMBERED:
                return (
                    f"{with_id[0]!r} and {len(with_id) - 1} more are {what} each and no name; give "
                    "the list that has the words beside them"
                )
            better = f"{bare[0]!r}" if bare[0] else "the name alone"
            return (
                f"{len(with_id)} of {len(names)} names begin with {what}, such as "
                f"{with_id[0]!r}, and no sentence does; leave that column out: {better}"
            )
    return None


def keyed_by_number(data: Mapping[Any, Any]) -> str | None:
    """The problem of a mapping from class numbers to names, as detectors' settings have it."""
    if len(data) == 1 and "names" in data:
        return "it has the names under 'names'; give what stands there as a plain list of names"
    keys = [key for key in data if str(key).isdecimal()]
    if data and len(keys) == len(data) and all(isinstance(v, str) for v in data.values()):
        first = next(iter(data))
        return (
            f"it maps numbers to names ({first!r}: {data[first]!r}); give the names as a list, in "
            "the order of their numbers"
        )
    return None


def spelling(words: Sequence[str]) -> list[str]:
    """Problems of names and synonyms that have letters and are still never found in a sentence."""
    problems = []
    for word in words:
        bracket = _BRACKET.search(word)
        plain = _plain(_BRACKET.sub(" ", word))
        quoted, bullet = _QUOTED.fullmatch(word.strip()), _BULLET.match(word)
        if unseen := _UNSEEN.search(word):
            better = " ".join(_UNSEEN.sub("", word).split())
            problems.append(
                f"{word!a} holds a character that cannot be seen (U+{ord(unseen[0]):04X}); write "
                f"{better!r}"
            )
        elif quoted and quoted[1].strip():
            problems.append(f"{word!r} stands in quotes; write {quoted[1].strip()!r}")
        elif bullet:
            problems.append(f"{word!r} begins with a bullet; write {word[bullet.end() :]!r}")
        elif bracket and plain:
            full = f"{plain} {_plain(bracket[1])}".strip()
            problems.append(
                f"{word!r}: sentences have no explanation in brackets; write {plain!r}, or where "
                f"that has several meanings {{name: {full}, synonyms: [...]}} with the words that "
                "sentences use"
            )
        elif "\\" in word:
            problems.append(f"{word!r} has a backslash; write {_plain(word)!r}")
        elif re.search(r"\w\s*[,;:|\t]\s*\w", word):
            parts = [part.strip() for part in re.split(r"[,;:|\t]", word) if part.strip()]
            problems.append(
                f"{word!r}: no sentence has these marks inside a name; write {parts[0]!r} with the "
                f"synonyms {parts[1:]!r}, or a category each"
            )
    joined = [w for w in words if "_" in w and "\\" not in w and not _BRACKET.search(w)]
    if joined:
        number = f"{len(joined)} names have" if len(joined) > 1 else "a name has"
        problems.append(
            f"{number} underscores, such as {joined[0]!r}, where sentences and models have spaces; "
            f"write {_plain(joined[0])!r}"
        )
    return problems


def _plain(word: str) -> str:
    return " ".join(word.replace("_", " ").replace("\\", "").split())
