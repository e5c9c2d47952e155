"""Finding category names in a sentence: tokens, noun lemmas, longest compound first.

METHOD section 2. A phrase is matched as a sequence of tokens; a token is compared by its surface
form and by its noun lemma, so "two hot dogs" matches "hot dog", and "glasses" still tells itself
from "glass" when both are categories.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import product

import regex

from pvp_fast.vocabulary.prose import is_part, is_plain

# Scripts written without spaces: every letter is a token, so a phrase is found inside a sentence.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_KATAKANA = r"[\p{Katakana}\u30fc]"
_LETTER = rf"[[\p{{L}}\p{{N}}]--[{_UNSPACED}\p{{Katakana}}\u30fc]]\p{{M}}*"
# Words (marks join their letter, an apostrophe may stand inside), single letters of unspaced
# scripts, or one mark that no phrase may reach across.
_TOKEN = regex.compile(
    rf"(?V1)(?:{_LETTER})+(?:'(?:{_LETTER})+)*|{_KATAKANA}\p{{M}}*(?={_KATAKANA})|"
    rf"{_KATAKANA}\p{{M}}*|[{_UNSPACED}]\p{{M}}*|"
    r"[.,;:!?()\[\]\"/|\u3001\u3002\u0964\u060c\u061b]"
)
_INNER_KATAKANA = regex.compile(rf"{_KATAKANA}\p{{M}}*(?={_KATAKANA})")
_JOINED = "\u2060"  # on a katakana that does not end its run: a loan word is found at a run's end
# What may be left out of a word: joiners, soft hyphens, Arabic and Hebrew vowel points.
_OPTIONAL = regex.compile(
    r"[\u200c\u200d\u2060\ufeff\u00ad\u0640\u064b-\u0652\u0670"
    r"\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"
)
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'", "\u00b4": "'", "`": "'"})
_POSSESSIVE = regex.compile(r"\s?'s\b")
_HYPHENS = "-\u2010\u2011"

# Plurals the lemmatiser takes for verbs, adjectives or other nouns.
_NOUN_LEMMAS = {
    "leaves": "leaf", "wives": "wife", "dice": "die", "ties": "tie", "pies": "pie", "lies": "lie",
    "dies": "die", "axes": "axe", "buses": "bus", "busses": "bus", "busmen": "busman",
    "taxis": "taxi", "kiwis": "kiwi", "bikinis": "bikini", "tvs": "tv",
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
_IRREGULAR_PLURAL = regex.compile(r"(men|ice|eese|eet|eeth|oxen|ren|cacti|fungi|octopi|larvae|ae)$")


# What tells a verb from a plural or a noun: "a man steers a boat", "to book a flight".
_DETERMINERS = frozenset({
    "a", "an", "the", "his", "her", "its", "their", "my", "your", "our", "him", "them", "it",
    "this", "that", "these", "those", "another",
})  # fmt: skip
_ONE = frozenset(["a", "an", "another", "each", "every", "this", "one"])
_SUBJECTS = frozenset(["he", "she", "it", "who", "which", "that"])
_BEFORE_VERB = frozenset(
    ["to", "will", "would", "should", "could", "might", "must", "did", "does", "didn't", "doesn't"]
)
# "next to book" is a place: after these "to" is no infinitive's.
_PLACE_TO = frozenset({
    "next", "close", "near", "adjacent", "attached", "connected", "opposite", "parallel",
    "tied", "similar", "thanks", "due",
})  # fmt: skip
_NO_SUBJECT = frozenset({
    "few", "couple", "dozen", "lot", "pair", "group", "bunch", "of", "and", "or", "with", "in",
    "on", "at", "by", "for", "from", "to", "near", "some", "many", "several", "all", "both",
    "no", "hundred", "thousand", "million", "variety",
})  # fmt: skip
_HANGUL = regex.compile(r"^\p{Hangul}+$")
_PARTICLES = regex.compile(
    "(?<=.)(?:들)?(?:에서는|에서|에게|까지|부터|처럼|보다|하고|이랑|으로|은|는|이|가|을|를|의|에|와|과|도|로|만|랑|들)$"
)


def tokenize(text: str) -> list[str]:
    """Case-folded tokens of ``text``; hyphens and underscores separate, possessives are dropped.

    Marks that end a phrase (comma, full stop, bracket ...) come out as tokens of their own, and so
    does every letter of a script that puts no spaces between words.
    """
    folded = _folded(text)
    return _TOKEN.findall(folded) if folded.isascii() else [token for token, _ in _placed(folded)]


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = _POSSESSIVE.sub("", folded.translate(_APOSTROPHES))
    return folded if folded.isascii() else _OPTIONAL.sub("", folded)


def _placed(folded: str) -> Iterator[tuple[str, bool]]:
    """Tokens, and whether a hyphen ties each to the one before."""
    last = -2
    for m in _TOKEN.finditer(folded):
        inner = _INNER_KATAKANA.match(folded, m.start())
        glued = m.start() == last + 1 and folded[last] in _HYPHENS
        yield m[0] + _JOINED if inner else m[0], glued
        last = m.end()


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
    if token.endswith("ies") and lemma == token[:-2] and is_known(f"{token[:-3]}y", lang="en"):
        return f"{token[:-3]}y"  # skies: "sky", not "ski"
    if (
        token.endswith("ves") and lemma == token[:-1]
    ):  # shelves: "shelf", though "to shelve" is a verb
        singular = f"{token[:-3]}f"
        return singular if is_known(singular, lang="en") else lemma
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
    if lemma == token and not token.isascii() and _HANGUL.match(token):
        lemma = _PARTICLES.sub("", token)
    return (token,) if lemma == token else (token, lemma)


@lru_cache(maxsize=1 << 16)
def _verb_forms(token: str) -> tuple[str, ...]:
    """A verb is compared by its -ing form, which categories list where it means the thing, and by
    its form in -s, where that is listed."""
    base = noun_lemma(token)
    stems = [base, base[:-1]] if base.endswith("e") else [base, base + base[-1:]]
    gerunds = tuple(f"{stem}ing" for stem in stems)
    return gerunds if base == token else (token, *gerunds)


def _is_verb(tokens: Sequence[str], i: int, strict: bool) -> bool:
    """Whether ``tokens[i]``, by its place, is a verb in the present tense or after "to".

    ``strict`` needs no object, and takes a bare word behind "can", an adverb or a plural for one.
    """
    before = tokens[i - 1] if i else ""
    object_follows = i + 1 < len(tokens) and tokens[i + 1] in _DETERMINERS
    token = tokens[i]
    if not (token.endswith("s") and noun_lemma(token) != token):
        if strict and (
            before in ("can", "may")
            or before.endswith("ly")
            or (before.endswith("s") and noun_lemma(before) != before)
        ):
            return True  # "costumes range from": a thing would have its article
        if before not in _BEFORE_VERB or not (object_follows or strict):
            return False
        return not (before == "to" and _is_place(tokens, i - 1))
    if not object_follows or before in _SUBJECTS:
        return object_follows
    # "a man steers a": one thing and a word in -s right behind it, which is no noun phrase.
    for j in range(i - 1, max(i - 4, -1), -1):
        word = tokens[j]
        if word in _ONE or word == "the":
            return j < i - 1
        if word in _NO_SUBJECT or word.endswith("ing") or not word[0].isalnum():
            return False
        if noun_lemma(word) != word:
            return False
    return False


def _is_place(tokens: Sequence[str], to: int) -> bool:
    return to > 0 and tokens[to - 1] in _PLACE_TO


class _Node:
    """One step of the phrase tree."""

    __slots__ = ("children", "ends", "ignored", "labels", "loose")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.labels: tuple[int, ...] = ()
        self.ends = False  # a phrase ends here, with or without labels
        self.ignored: tuple[int, ...] = ()
        self.loose: tuple[int, ...] = ()  # of the labels, those with a longer name around this


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
            name: list[str] = []
            for phrase in group:
                tokens = tokenize(phrase)
                name = name or tokens
                for node in self._nodes(tokens):
                    if category not in node.labels:
                        node.labels = (*node.labels, category)
                        if is_part(tokens, name):
                            node.loose = (*node.loose, category)
                    node.ends = True
        for category, group in enumerate(ignored):
            for phrase in group:
                # As it stands: "sinks in the", a verb, does not silence "a sink in the bathroom".
                # A singular phrase silences its plural too, by the sentence's lemmas.
                node = self._node(tokenize(phrase))
                if category not in node.ignored:
                    node.ignored = (*node.ignored, category)
        for phrase in OPAQUE_COMPOUNDS:
            for node in self._nodes(tokenize(phrase)):
                node.ends = True

    def _nodes(self, tokens: Sequence[str]) -> list[_Node]:
        choices = [(t,) if t in _OWN_MEANING else _forms(t) for t in tokens]
        return [self._node(path) for path in product(*choices)]

    def _node(self, path: Iterable[str]) -> _Node:
        node = self._root
        for token in path:
            node = node.children.setdefault(token, _Node())
        return node

    def label(self, sentence: str, *, strict: bool = False) -> tuple[int, ...]:
        """Sorted indices of the categories that ``sentence`` mentions.

        Args:
            strict: count plain mentions alone, see :mod:`pvp_fast.vocabulary.prose`.
        """
        glued: list[bool] = []
        if strict:
            placed = list(_placed(_folded(sentence)))
            tokens, glued = [token for token, _ in placed], [tied for _, tied in placed]
        else:
            tokens = tokenize(sentence)
        forms = [_forms(token) for token in tokens]
        found: list[tuple[int, int, tuple[int, ...]]] = []  # (-length, start, categories)
        silenced: list[tuple[int, int, tuple[int, ...]]] = []  # (start, end, categories)
        first = self._root.children
        for i, token in enumerate(tokens):
            if any(form in first for form in forms[i]) and _is_verb(tokens, i, strict):
                forms[i] = _verb_forms(token)
        for start in range(len(forms)):
            # Breadth-first over surface form and lemma: "horses" is what lists it and what lists
            # "horse". Only a plural of another meaning stays whole: "glasses" is not "glass".
            level = [first[f] for f in forms[start] if f in first]
            end = start
            while level:
                end += 1
                ended = [node for node in level if node.ends]
                if tokens[end - 1] in _OWN_MEANING:
                    del ended[1:]
                if ended:
                    labels: tuple[int, ...] = ()
                    plain = not strict or is_plain(tokens, glued, start, end)
                    for node in ended if plain else ():
                        loose = node.loose if strict else ()
                        labels += tuple(c for c in node.labels if c not in (*labels, *loose))
                    found.append((start - end, start, labels))
                for node in level:
                    if node.ignored and not (tokens[start] == "to" and _is_place(tokens, start)):
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
