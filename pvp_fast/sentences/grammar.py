"""Sentences about categories from templates: the offline default corpus (METHOD section 2).

Every sentence is checked with `Vocabulary.label`, so that no filler word mentions a category that
was not asked for: where "table" is a category, nothing is "on a table" by accident.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from pvp_fast.errors import InputError
from pvp_fast.sentences.nouns import article, is_mass, is_plain_noun, is_plural, pluralize
from pvp_fast.vocabulary.categories import Vocabulary

_PLAIN = (
    *("small", "large", "big", "old", "new", "little", "tiny", "huge", "nice", "beautiful"),
    *("pretty", "lovely", "simple", "single", "typical", "strange", "cute", "fancy", "dark"),
)
_COLOURS = (
    *("red", "blue", "green", "yellow", "white", "black", "brown", "grey", "pink", "purple"),
    *("colorful", "bright", "striped", "shiny", "dirty", "wooden"),
)
_AMOUNTS = ("two", "three", "several", "some", "many", "a few", "a couple of", "a group of", "four")
_PLACES = (
    *("in the picture", "in a park", "in a room", "outside", "on the ground", "in the background"),
    *("in front of a wall", "on a plain background", "in the middle", "on the left", "in a field"),
    *("on the right", "at the top", "in the corner", "on a sunny day", "near the edge", "indoors"),
    *("in the city", "by the water", "on the floor", "in the distance", "on display", "up close"),
    *("on the street", "under a blue sky", "in a kitchen", "on green grass", "at home", "in view"),
    *("on a white surface", "at night", "in the snow", "on a colorful background", "at the beach"),
)
_VERBS_ONE = ("is", "sits", "stands", "lies", "is shown", "can be seen", "is placed", "appears")
_VERBS_MANY = ("are", "sit", "stand", "lie", "are shown", "can be seen", "are placed", "appear")
_BETWEEN = (
    *("next to", "beside", "near", "and", "with", "behind", "in front of", "close to", "by"),
    *("on top of", "under", "above", "along with", "together with", "to the left of"),
    *("to the right of", "surrounded by", "not far from", "below", "over", "as well as"),
)
_OPENINGS = (
    *("a photo of {}", "a picture of {}", "an image of {}", "a drawing of {}", "a view of {}"),
    *("a close up of {}", "an illustration of {}", "a scene with {}", "a photo showing {}"),
    *("this is {}", "here we see {}", "you can see {}", "a snapshot of {}", "look at {}"),
    *("a good photo of {}", "a bright picture of {}", "a cropped photo of {}", "it shows {}"),
)
_ATTEMPTS = 40


class Grammar:
    """Writes sentences about chosen categories of one vocabulary.

    Args:
        vocabulary: where names and synonyms come from.
        colours: also use adjectives of colour and material. Leave them out when the sentence
            describes a given picture, whose colours the grammar cannot know.
    """

    def __init__(self, vocabulary: Vocabulary, *, colours: bool = True) -> None:
        self.vocabulary = vocabulary
        self._adjectives = _PLAIN + _COLOURS * 2 if colours else _PLAIN
        # The name, and those of the first synonyms that mean this category alone.
        self._words = [
            (c.name, *(s for s in c.synonyms[:10] if self._stands_for(s, i)))
            for i, c in enumerate(vocabulary)
        ]

    def _stands_for(self, word: str, category: int) -> bool:
        # Synonym lists also hold misspellings and verb phrases: they find sentences, they are not
        # to be written.
        return is_plain_noun(word) and all(
            self.vocabulary.label(phrase) == (category,) for phrase in (word, f"a photo of {word}")
        )

    def sentence(self, indices: Sequence[int], rng: random.Random, *, exact: bool = True) -> str:
        """One sentence that mentions the categories ``indices``.

        Args:
            indices: at least one label index; order does not matter, repeats count once.
            rng: the only source of randomness.
            exact: the sentence mentions these categories and no other. ``False`` lets names imply
                other categories ("dog" where "animal" lists it as a synonym).

        Raises:
            InputError: an index is out of range, or no such sentence was found because the names
                contain or imply each other.
        """
        wanted = set(indices)
        if not wanted or not all(0 <= i < len(self.vocabulary) for i in wanted):
            raise InputError(
                f"indices {list(indices)} must name at least one of the "
                f"{len(self.vocabulary)} categories, counted from 0"
            )
        best = ""
        for attempt in range(_ATTEMPTS):
            text = self._compose(sorted(wanted), rng, plain=attempt >= _ATTEMPTS // 2)
            labels = set(self.vocabulary.label(text))
            if labels == wanted:
                return text
            if wanted <= labels:
                best = best or text
        # Bare names with full stops between them: no filler, no compound across two names.
        bare = ". ".join(self.vocabulary[i].name for i in sorted(wanted)) + "."
        labels = set(self.vocabulary.label(bare))
        if labels == wanted or (not exact and wanted <= labels and not best):
            return bare
        if best and not exact:
            return best
        names = [self.vocabulary[i].name for i in sorted(wanted)]
        raise InputError(
            f"no sentence mentions exactly {names}: it reads as "
            f"{[self.vocabulary[i].name for i in sorted(labels)]}; give the categories synonyms "
            "that do not imply one another"
        )

    def _compose(self, indices: list[int], rng: random.Random, *, plain: bool) -> str:
        order = rng.sample(indices, len(indices))
        phrases = [self._noun_phrase(i, rng, plain=plain) for i in order]
        texts = [text for text, _ in phrases]
        if len(texts) == 1:
            core, many = phrases[0]
        elif len(texts) == 2:
            core, many = f"{texts[0]} {rng.choice(_BETWEEN)} {texts[1]}", phrases[0][1]
        else:
            core, many = _enumerate(texts, rng), True
        if plain:
            return _finish(core if len(texts) == 1 else " and ".join(texts), rng)
        place = rng.choice(_PLACES) if rng.random() < 0.5 else ""
        style = rng.random()
        if style < 0.35:
            text = f"{rng.choice(_OPENINGS).format(core)} {place}"
        elif style < 0.55:
            place = place or rng.choice(_PLACES)
            text = f"{core} {rng.choice(_VERBS_MANY if many else _VERBS_ONE)} {place}"
        elif style < 0.7:
            text = f"there {'are' if phrases[0][1] else 'is'} {core} {place}"
        elif style < 0.8 and place:
            text = f"{place} there {'are' if phrases[0][1] else 'is'} {core}"
        else:
            text = f"{core} {place}"
        return _finish(text, rng)

    def _noun_phrase(self, index: int, rng: random.Random, *, plain: bool) -> tuple[str, bool]:
        """A noun phrase and whether it takes a plural verb."""
        words = self._words[index]
        noun = words[0] if len(words) == 1 or rng.random() < 0.6 else rng.choice(words[1:])
        adjective = "" if plain or rng.random() < 0.65 else rng.choice(self._adjectives) + " "
        if is_mass(noun):
            return f"{rng.choice(('some ', 'a lot of ', ''))}{adjective}{noun}", False
        if is_plural(noun):
            amount = rng.choice(("some", "the", "", "a pair of") if noun[-1] == "s" else ("some",))
            return f"{amount} {adjective}{noun}".strip(), amount != "a pair of"
        if not plain and rng.random() < 0.25:
            amount = rng.choice(_AMOUNTS)
            return f"{amount} {adjective}{pluralize(noun)}", True
        described = adjective + noun
        determiner = rng.choice(("the", "one", "another")) if rng.random() < 0.15 else ""
        return f"{determiner or article(described)} {described}", False


def _enumerate(texts: list[str], rng: random.Random) -> str:
    if rng.random() < 0.4:
        return f"{' and '.join(texts[:2])} {rng.choice(_BETWEEN)} {_listed(texts[2:])}"
    if rng.random() < 0.3:
        return f"{texts[0]} {rng.choice(_BETWEEN)} {_listed(texts[1:])}"
    return _listed(texts)


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _finish(text: str, rng: random.Random) -> str:
    text = " ".join(text.split())
    if rng.random() < 0.7:
        text = text[0].upper() + text[1:]
    return text + ("." if rng.random() < 0.7 else "")


@lru_cache(maxsize=8)
def _grammar(vocabulary: Vocabulary, colours: bool) -> Grammar:
    return Grammar(vocabulary, colours=colours)


def sentence_for(
    vocabulary: Vocabulary,
    indices: Sequence[int],
    rng: random.Random,
    *,
    colours: bool = False,
) -> str:
    """One sentence that mentions exactly the categories ``indices``: its labels are their set.

    See `Grammar.sentence` for arguments and errors.
    """
    return _grammar(vocabulary, colours).sentence(indices, rng)


def grammar_sentences(vocabulary: Vocabulary, n: int, seed: int = 0) -> list[str]:
    """``n`` sentences about 1-3, sometimes up to 5, categories; the same for the same seed.

    Categories come in shuffled rounds, so each is the subject equally often.
    """
    if n < 0:
        raise InputError(f"n is {n}; the number of sentences cannot be negative")
    rng = random.Random(f"pvp_fast.grammar/{seed}")
    grammar = _grammar(vocabulary, True)
    everyone = range(len(vocabulary))
    sentences: list[str] = []
    subjects: list[int] = []
    while len(sentences) < n:
        if not subjects:
            subjects = rng.sample(everyone, len(everyone))
        size = min(len(everyone), rng.choices((1, 2, 3, 4, 5), (30, 35, 25, 6, 4))[0])
        chosen = [subjects.pop()]
        chosen += [i for i in rng.sample(everyone, size) if i not in chosen][: size - 1]
        try:
            sentences.append(grammar.sentence(chosen, rng, exact=False))
        except InputError:  # names that contain each other cannot always share a sentence
            sentences.append(grammar.sentence(chosen[:1], rng, exact=False))
    return sentences
