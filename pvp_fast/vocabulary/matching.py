"""Finding category names in a sentence: tokens, noun lemmas, longest compound first.

METHOD section 2. A phrase is matched as a sequence of tokens; a token is compared by its surface
form and by its noun lemma, so "two hot dogs" matches "hot dog", and "glasses" still tells itself
from "glass" when both are categories.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product

# Words (an apostrophe may stand inside) or one mark that no phrase may reach across.
_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[.,;:!?()\[\]\"/|]")
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'", "\u00b4": "'", "`": "'"})
_POSSESSIVE = re.compile(r"\s?'s\b")

# Plurals the lemmatiser takes for verbs, adjectives or other nouns.
_NOUN_LEMMAS = {
    "leaves": "leaf", "calves": "calf", "halves": "half", "hooves": "hoof", "scarves": "scarf",
    "wharves": "wharf", "dwarves": "dwarf", "dice": "die", "ties": "tie", "pies": "pie",
    "lies": "lie", "dies": "die", "axes": "axe", "buses": "bus", "busses": "bus",
    "busmen": "busman", "taxis": "taxi", "kiwis": "kiwi", "bikinis": "bikini", "tvs": "tv",
    "bass": "bass", "glass": "glass", "tennis": "tennis", "bus": "bus", "gas": "gas",
    "canvas": "canvas", "lens": "lens", "lenses": "lens", "series": "series", "does": "does",
    "has": "has", "was": "was", "is": "is", "us": "us", "its": "its", "as": "as", "goes": "goes",
    "people": "people", "police": "police", "cattle": "cattle", "data": "data",
}  # fmt: skip
# Plurals whose meaning is not "more than one of the singular": as a category name they stay whole.
_OWN_MEANING = frozenset({
    "glasses", "eyeglasses", "sunglasses", "spectacles", "shorts", "jeans", "arms", "woods",
    "goods", "tights", "trunks", "slacks", "stairs", "waters", "news", "greens", "grounds",
    "fries", "blues",
})  # fmt: skip
# Compounds that are not a kind of their last word, or not about their first: they hide a category
# named after one part, unless they are a category's name or synonym themselves.
OPAQUE_COMPOUNDS = (
    *("hot dog", "corn dog", "chili dog", "prairie dog", "teddy bear", "gummy bear", "sea horse"),
    *("saw horse", "pit bull", "guinea pig", "sea lion", "jelly fish", "star fish", "pine apple"),
    *("pan cake", "egg plant", "power plant", "fire place", "fire fighter", "fire escape"),
    *("horse radish", "space ship", "lady bug", "dragon fly", "butter fly", "cat walk"),
    *("mouse pad", "key board", "book store", "tiger lily"),
)
_IRREGULAR_PLURAL = re.compile(r"(men|ice|eese|eet|eeth|oxen|ren|cacti|fungi|octopi|larvae|ae)$")


def tokenize(text: str) -> list[str]:
    """Case-folded tokens of ``text``; hyphens and underscores separate, possessives are dropped.

    Marks that end a phrase (comma, full stop, bracket ...) come out as tokens of their own.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _TOKEN.findall(_POSSESSIVE.sub("", folded.translate(_APOSTROPHES)))


@lru_cache(maxsize=1 << 16)
def noun_lemma(token: str) -> str:
    """Singular of a case-folded noun; anything that is not a plural noun comes back unchanged.

    Only plural endings are lemmatised: verb forms such as "sinking" must not become "sink".
    """
    if token in _NOUN_LEMMAS:
        return _NOUN_LEMMAS[token]
    if len(token) < 3 or not (token.endswith("s") or _IRREGULAR_PLURAL.search(token)):
        return token
    from simplemma import is_known, lemmatize

    lemma = str(lemmatize(token, lang="en")).casefold()
    if lemma != token or is_known(token, lang="en") or token.endswith(("ss", "us", "is")):
        return lemma
    return _plain_singular(token)


def _plain_singular(token: str) -> str:
    """The regular spelling rule, for words in no dictionary ("quokkas" -> "quokka")."""
    if token.endswith("ies") and len(token) > 4:
        return token[:-3] + "y"
    if token.endswith(("ses", "xes", "zes", "ches", "shes")):
        return token[:-2]
    return token[:-1] if token.endswith("s") else token


@lru_cache(maxsize=1 << 16)
def _forms(token: str) -> tuple[str, ...]:
    lemma = noun_lemma(token)
    return (token,) if lemma == token else (token, lemma)


class _Node:
    """One step of the phrase tree."""

    __slots__ = ("children", "ends", "ignored", "labels")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.labels: tuple[int, ...] = ()
        self.ends = False  # a phrase ends here, with or without labels
        self.ignored: tuple[int, ...] = ()


class PhraseMatcher:
    """Labels sentences with the categories whose phrases they contain.

    Args:
        phrases: for each category, its name and synonyms.
        ignored: for each category, phrases in which its own words mean something else
            ("orange shirt" for the fruit); they silence that category only.

    A phrase listed for several categories labels all of them ("surfer": person and surfboard).
    """

    def __init__(
        self, phrases: Sequence[Iterable[str]], ignored: Sequence[Iterable[str]] = ()
    ) -> None:
        self._root = _Node()
        for category, group in enumerate(phrases):
            for phrase in group:
                for node in self._nodes(phrase):
                    if category not in node.labels:
                        node.labels = (*node.labels, category)
                    node.ends = True
        for category, group in enumerate(ignored):
            for phrase in group:
                for node in self._nodes(phrase):
                    if category not in node.ignored:
                        node.ignored = (*node.ignored, category)
        for phrase in OPAQUE_COMPOUNDS:
            for node in self._nodes(phrase):
                node.ends = True

    def _nodes(self, phrase: str) -> list[_Node]:
        tokens = tokenize(phrase)
        choices = [(t,) if t in _OWN_MEANING else _forms(t) for t in tokens]
        nodes = []
        for path in product(*choices):
            node = self._root
            for token in path:
                node = node.children.setdefault(token, _Node())
            nodes.append(node)
        return nodes

    def label(self, sentence: str) -> tuple[int, ...]:
        """Sorted indices of the categories that ``sentence`` mentions."""
        forms = [_forms(token) for token in tokenize(sentence)]
        found: list[tuple[int, int, tuple[int, ...]]] = []  # (-length, start, categories)
        silenced: list[tuple[int, int, tuple[int, ...]]] = []  # (start, end, categories)
        first = self._root.children
        for start in range(len(forms)):
            # Breadth-first over surface form and lemma. At equal length the surface form, tried
            # first, wins: "glasses" the category beats "glass" the lemma.
            level = [first[f] for f in forms[start] if f in first]
            end = start
            while level:
                end += 1
                ended = next((n for n in level if n.ends), None)
                if ended is not None:
                    found.append((start - end, start, ended.labels))
                for node in level:
                    if node.ignored:
                        silenced.append((start, end, node.ignored))
                if end == len(forms):
                    break
                level = [n.children[f] for n in level for f in forms[end] if f in n.children]
        if not found:
            return ()
        found.sort()
        taken: set[int] = set()
        result: set[int] = set()
        for minus_length, start, categories in found:
            span = range(start, start - minus_length)
            if not taken.isdisjoint(span):
                continue
            taken.update(span)
            result.update(
                c
                for c in categories
                if not any(a <= start and span.stop <= b and c in off for a, b, off in silenced)
            )
        return tuple(sorted(result))
