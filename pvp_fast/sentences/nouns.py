"""Plurals, articles and mass nouns: the little English the template grammar needs."""

from __future__ import annotations

from pvp_fast.vocabulary.matching import noun_lemma

_IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice",
    "goose": "geese", "ox": "oxen", "foot": "feet", "tooth": "teeth", "knife": "knives",
    "leaf": "leaves", "calf": "calves", "wolf": "wolves", "shelf": "shelves", "loaf": "loaves",
    "scarf": "scarves", "thief": "thieves", "wife": "wives", "half": "halves", "life": "lives",
    "cactus": "cacti", "potato": "potatoes", "tomato": "tomatoes", "gentleman": "gentlemen",
    "hero": "heroes", "mosquito": "mosquitoes",
}  # fmt: skip
_UNCHANGED = frozenset(
    {"sheep", "fish", "deer", "elk", "moose", "aircraft", "salmon", "trout", "series", "bison"}
)
_PLURAL_ONLY = frozenset(
    {
        *("scissors", "skis", "people", "cattle", "shears", "clippers", "jeans", "shorts"),
        *("glasses", "sunglasses", "pants", "trousers", "tongs", "binoculars", "headphones"),
        *("police", "livestock", "twins"),
    }
)
_MASS = frozenset(
    {
        *("broccoli", "luggage", "baggage", "food", "frost", "fire", "grass", "military", "sand"),
        *("snow", "surf", "water", "coral", "sky", "nighttime", "ice", "bread", "rice", "cheese"),
        *("furniture", "traffic", "coffee", "soccer", "football", "sun", "moon", "ocean", "music"),
        *("wildlife", "vegetation", "sunlight", "sports", "equipment", "jewelry", "jewellery"),
    }
)
_PRONOUNS = frozenset({"his", "her", "their", "your", "my", "its", "the", "a", "an", "teeth"})
# Spelled with a vowel but spoken with a consonant, and the other way round.
_A_DESPITE_VOWEL = ("uni", "use", "usu", "eu", "one", "ute", "ukulele")
_AN_DESPITE_CONSONANT = ("hour", "honest", "heir", "suv", "x ray", "mp3", "lcd")


def is_plural(noun: str) -> bool:
    """Whether the noun is already a plural ("scissors", "birds")."""
    last = noun.split()[-1].casefold()
    return last in _PLURAL_ONLY or noun_lemma(last) != last


def is_plain_noun(phrase: str) -> bool:
    """Whether it is a singular, countable noun phrase of dictionary words (by its spelling)."""
    from simplemma import is_known

    words = phrase.casefold().split()
    return (
        not is_mass(phrase)
        and (not is_plural(phrase) or words[-1] in _PLURAL_ONLY)
        and not any(w in _PRONOUNS or w.endswith(("ing", "ies")) for w in words)
        and all(is_known(w, lang="en") or not w.isascii() for w in words)
    )


def is_mass(noun: str) -> bool:
    """Whether the noun takes no article and no plural ("broccoli", "dancing")."""
    last = noun.split()[-1].casefold()
    return last in _MASS or (last.endswith("ing") and len(last) > 5 and last != "building")


def pluralize(noun: str) -> str:
    """English plural of a singular noun; the last word of a compound changes."""
    words = noun.split()
    # "glass of wine": the word before "of" is the head.
    last = words.index("of") - 1 if "of" in words[1:] else len(words) - 1
    words[last] = _plural_word(words[last])
    return " ".join(words)


def _plural_word(word: str) -> str:
    lower = word.casefold()
    if lower in _UNCHANGED or lower in _PLURAL_ONLY:
        return word
    for singular, plural in _IRREGULAR.items():
        if lower == singular:
            return plural
    if lower.endswith("man") and len(lower) > 4 and lower not in ("human", "german", "caiman"):
        return word[:-2] + "en"
    if lower.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if lower.endswith("y") and len(word) > 1 and lower[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def article(phrase: str) -> str:
    """ "a" or "an" by the sound the phrase begins with."""
    lower = phrase.casefold()
    if lower.startswith(_AN_DESPITE_CONSONANT):
        return "an"
    return "an" if lower[:1] in "aeiou" and not lower.startswith(_A_DESPITE_VOWEL) else "a"
