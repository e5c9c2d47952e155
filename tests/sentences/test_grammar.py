"""Template sentences: exactly the categories asked for, varied, repeatable."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvp_fast.errors import InputError
from pvp_fast.sentences import Grammar, grammar_sentences, sentence_for
from pvp_fast.sentences.nouns import article, is_mass, is_plain_noun, is_plural, pluralize
from pvp_fast.vocabulary.categories import Category, Vocabulary

POCKET = Vocabulary.builtin("pocket70")


@settings(deadline=None)
@given(st.sets(st.integers(0, 69), min_size=1, max_size=5), st.integers(0, 1 << 30))
def test_a_sentence_mentions_exactly_what_was_asked(chosen: set[int], seed: int) -> None:
    sentence = sentence_for(POCKET, sorted(chosen), random.Random(seed))
    assert POCKET.label(sentence) == tuple(sorted(chosen))


@pytest.mark.parametrize("name", ["voc2007", "coco80", "nuswide81", "pocket70"])
def test_a_corpus_is_varied_labelled_and_repeatable(name: str) -> None:
    vocabulary = Vocabulary.builtin(name)
    sentences = grammar_sentences(vocabulary, 600, seed=1)
    assert len(sentences) == 600
    assert sentences == grammar_sentences(vocabulary, 600, seed=1)
    assert sentences[:50] == grammar_sentences(vocabulary, 50, seed=1)
    assert sentences != grammar_sentences(vocabulary, 600, seed=2)
    assert len(set(sentences)) > 550
    counts = Counter(label for s in sentences for label in vocabulary.label(s))
    assert set(counts) == set(range(len(vocabulary)))
    sizes = Counter(len(vocabulary.label(s)) for s in sentences)
    assert sizes[0] == 0
    assert min(sizes[1], sizes[2], sizes[3]) > 20


def test_fillers_do_not_mention_other_categories() -> None:
    everything = ["dog", "picture", "photo", "park", "room", "ground", "background", "group"]
    vocabulary = Vocabulary([*everything, "field", "middle", "wall", "street", "drawing"])
    for seed in range(50):
        for index in range(len(vocabulary)):
            text = sentence_for(vocabulary, [index], random.Random(seed))
            assert vocabulary.label(text) == (index,)


def test_global_random_state_is_untouched() -> None:
    before = random.getstate()
    grammar_sentences(POCKET, 20)
    assert random.getstate() == before


def test_no_colours_when_describing_a_picture() -> None:
    rng = random.Random(0)
    words = " ".join(sentence_for(POCKET, [i % 70], rng) for i in range(700)).lower().split()
    assert not {"purple", "yellow", "striped"} & set(words)
    coloured = " ".join(grammar_sentences(POCKET, 700)).lower().split()
    assert {"purple", "yellow", "striped"} <= set(coloured)


def test_names_that_imply_each_other() -> None:
    vocabulary = Vocabulary([Category("animal", ("dog",)), "dog"])
    with pytest.raises(InputError, match=r"exactly \['dog'\]"):
        sentence_for(vocabulary, [1], random.Random(0))
    implied = Grammar(vocabulary).sentence([1], random.Random(0), exact=False)
    assert vocabulary.label(implied) == (0, 1)
    assert len(grammar_sentences(vocabulary, 10)) == 10


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="at least one"):
        sentence_for(POCKET, [], random.Random(0))
    with pytest.raises(InputError, match="70 categories"):
        sentence_for(POCKET, [70], random.Random(0))
    with pytest.raises(InputError, match="negative"):
        grammar_sentences(POCKET, -1)
    assert grammar_sentences(POCKET, 0) == []


@pytest.mark.parametrize(
    ("singular", "plural"),
    [
        ("dog", "dogs"), ("bus", "buses"), ("wine glass", "wine glasses"), ("knife", "knives"),
        ("person", "people"), ("policeman", "policemen"), ("human", "humans"), ("bench", "benches"),
        ("lady", "ladies"), ("donkey", "donkeys"), ("sheep", "sheep"), ("mouse", "mice"),
        ("glass of wine", "glasses of wine"), ("scissors", "scissors"),
    ],
)  # fmt: skip
def test_plurals(singular: str, plural: str) -> None:
    assert pluralize(singular) == plural


def test_articles_and_kinds_of_nouns() -> None:
    assert [article(w) for w in ("apple", "dog", "unicycle", "hour", "umbrella", "SUV")] == [
        "an", "a", "a", "an", "an", "an",
    ]  # fmt: skip
    assert is_plural("birds")
    assert is_plural("mice")
    assert is_plural("skis")
    assert not is_plural("bus")
    assert is_mass("some fresh broccoli")
    assert is_mass("dancing")
    assert not is_mass("building")
    assert is_plain_noun("polar bear")
    assert not is_plain_noun("brushing her teeth")
    assert not is_plain_noun("brocolli")
