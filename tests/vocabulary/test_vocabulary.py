"""Vocabulary files, built-in vocabularies, and labelling by mention."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvp_fast.errors import InputError
from pvp_fast.sentences.nouns import is_mass, is_plural, pluralize
from pvp_fast.vocabulary.categories import BUILTIN, Category, Vocabulary
from pvp_fast.vocabulary.matching import noun_lemma, tokenize

COCO = Vocabulary.builtin("coco80")
WORD = st.text("abcdefghijklmnopqrstuvwxyzäéøñ", min_size=2, max_size=8)
PHRASE = st.lists(WORD, min_size=1, max_size=3).map(" ".join)


def names(sentence: str, vocabulary: Vocabulary = COCO) -> set[str]:
    return {vocabulary.names[i] for i in vocabulary.label(sentence)}


@pytest.mark.parametrize(
    ("name", "size"), [("voc2007", 20), ("coco80", 80), ("nuswide81", 81), ("pocket70", 70)]
)
def test_builtin_vocabularies(name: str, size: int) -> None:
    vocabulary = Vocabulary.builtin(name)
    assert len(vocabulary) == size
    for index, category in enumerate(vocabulary):
        assert index in vocabulary.label(f"A photo of a {category.name}.")
        assert vocabulary.index(category.name.upper()) == index
        for synonym in category.synonyms:
            labels = vocabulary.label(synonym)
            assert index in labels, (category.name, synonym)


def test_builtin_categories_with_one_meaning_label_themselves_only() -> None:
    for name in ("voc2007", "coco80", "pocket70"):
        vocabulary = Vocabulary.builtin(name)
        for index, category in enumerate(vocabulary):
            assert vocabulary.label(category.name) == (index,)


def test_pocket_categories_are_those_of_the_pictograms(shared_data: Path) -> None:
    pictograms = json.loads((shared_data / "pictograms" / "noto.json").read_text("utf-8"))
    assert list(Vocabulary.builtin("pocket70").names) == list(pictograms["categories"])


def test_coco_categories_are_those_of_the_photos(shared_data: Path) -> None:
    photos = json.loads((shared_data / "photos" / "labels.json").read_text("utf-8"))
    assert list(COCO.names) == photos["categories"]


def test_unknown_builtin_lists_the_known() -> None:
    with pytest.raises(InputError, match="voc2007, coco80, nuswide81, pocket70"):
        Vocabulary.builtin("imagenet")
    assert BUILTIN == ("voc2007", "coco80", "nuswide81", "pocket70")


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("A teddy bear and two hot dogs", {"teddy bear", "hot dog"}),
        ("teddy bears, bears", {"teddy bear", "bear"}),
        ("a polar bear", {"bear"}),
        ("Baseball bats near wine glasses", {"baseball bat", "wine glass"}),
        ("The TRAFFIC-LIGHT is green", {"traffic light"}),
        ("two men and three women", {"person"}),
        ("the man's scissors", {"person", "scissors"}),
        ("the children\u2019s toothbrushes", {"person", "toothbrush"}),
        ("Knives, mice, geese and calves", {"knife", "mouse", "bird", "cow"}),
        ("a fire, hydrant-like", {"fire hydrant"}),  # the lone word is a synonym too
        ("it was hot. Dog days", {"dog"}),
        ("hot, dog", {"dog"}),
        ("the ship is sinking", {"boat"}),
        ("an orange cat", {"cat"}),
        ("an orange and a fork", {"orange", "fork"}),
        ("a bowl with oranges", {"bowl", "orange"}),
        ("an orange and white bus", {"bus"}),
        ("a surfer", {"person", "surfboard"}),
        ("a school bus on the street", {"bus"}),
        ("a pizza box near a toilet paper roll", set()),
        ("two skis", {"skis"}),
        ("the tennis racquet", {"tennis racket"}),
        ("", set()),
        ("?!", set()),
    ],
)
def test_labels(sentence: str, expected: set[str]) -> None:
    assert names(sentence) == expected


def test_labels_are_sorted_unique_indices() -> None:
    labels = COCO.label("dogs, a dog, a person, another dog and a person with a toothbrush")
    assert labels == (COCO.index("person"), COCO.index("dog"), COCO.index("toothbrush"))


def test_a_plural_with_its_own_meaning_stays_whole() -> None:
    vocabulary = Vocabulary([Category("glasses", ("eyeglasses",)), Category("cup", ("glass",))])
    assert names("a man with glasses", vocabulary) == {"glasses"}
    assert names("a glass", vocabulary) == {"cup"}


def test_longer_phrases_win_wherever_they_start() -> None:
    vocabulary = Vocabulary(["b c d", "a b", "d"])
    assert names("a b c d", vocabulary) == {"b c d"}
    assert names("a b d", vocabulary) == {"a b", "d"}


def test_opaque_compounds_hide_their_parts() -> None:
    vocabulary = Vocabulary(["dog", "bear", "fire", Category("snack", ("corn dog",))])
    assert (
        names("a hot dog and a teddy bear near the fireplace and the fire place", vocabulary)
        == set()
    )
    assert names("hot dogs by a dog, a corn dog, a polar bear", vocabulary) == {
        "dog", "snack", "bear",
    }  # fmt: skip


def test_ignored_phrases_silence_their_category_only() -> None:
    vocabulary = Vocabulary([Category("orange", ignore=("orange cat",)), "cat"])
    assert names("an orange cat", vocabulary) == {"cat"}
    assert names("an orange cat eats an orange", vocabulary) == {"orange", "cat"}


@settings(deadline=None)
@given(st.sampled_from(list(COCO)), st.sampled_from(["{}.", "({})", "A {}!", "see: {}", '"{}"']))
def test_case_and_punctuation_do_not_matter(category: Category, frame: str) -> None:
    want = (COCO.index(category.name),)
    for text in (category.name, category.name.upper(), category.name.title()):
        assert COCO.label(frame.format(text)) == want
        assert COCO.label(frame.format(text.replace(" ", "-"))) == want


@settings(deadline=None)
@given(st.sampled_from([c for c in COCO if not is_plural(c.name) and not is_mass(c.name)]))
def test_plurals_do_not_matter(category: Category) -> None:
    assert COCO.label(f"two {pluralize(category.name)}") == (COCO.index(category.name),)


@settings(deadline=None)
@given(st.lists(st.sampled_from(COCO.names), min_size=1, max_size=6, unique=True))
def test_order_does_not_matter(chosen: list[str]) -> None:
    want = tuple(sorted(COCO.index(name) for name in chosen))
    assert COCO.label(", ".join(chosen)) == want
    assert COCO.label("; ".join(reversed(chosen))) == want


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_can_be_labelled(text: str) -> None:
    labels = COCO.label(text)
    assert list(labels) == sorted(set(labels))
    assert COCO.label(text.lower()) == labels or not text.isascii()


@settings(deadline=None)
@given(WORD, WORD)
def test_a_compound_hides_its_last_word(first: str, last: str) -> None:
    vocabulary = Vocabulary(dict.fromkeys([f"{first} {last}", last]))
    assert vocabulary.label(f"{first} {last}") == (0,)
    assert vocabulary.label(f"xx {last}") == ((1,) if first != "xx" else (0,))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(PHRASE, st.lists(PHRASE, max_size=3)), min_size=1, max_size=5),
    st.sampled_from([".yaml", ".json", ".yml"]),
)
def test_save_and_load_round_trip(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[str, list[str]]], ending: str
) -> None:
    unique = {" ".join(tokenize(name)): (name, synonyms) for name, synonyms in items}
    vocabulary = Vocabulary([Category(n, tuple(s), tuple(s[:1])) for n, s in unique.values()])
    path = tmp_path_factory.mktemp("vocabulary") / f"v{ending}"
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert hash(Vocabulary.load(path)) == hash(vocabulary)
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.yaml", "- dog\n- {name: cat, synonyms: [kitty]}\n"),
        ("mapping.yml", "dog:\ncat: [kitty]\n"),
        ("one.yaml", "dog: []\ncat: kitty\n"),
        ("full.json", '{"categories": ["dog", {"name": "cat", "synonyms": ["kitty"]}]}'),
        ("mapping.json", '{"dog": [], "cat": {"synonyms": ["kitty"]}}'),
        ("plain.txt", "# animals\ndog\n\ncat, kitty  # the other one\n"),
        ("plain", "\ufeffdog\r\ncat,kitty\r\n"),
    ],
)
def test_file_formats(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert Vocabulary.load(path) == Vocabulary(["dog", Category("cat", ("kitty",))])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.yaml", b"dog: [unclosed", "not valid YAML"),
        ("a.json", b'["dog"', "not valid JSON"),
        ("a.txt", b"caf\xe9", "not UTF-8"),
        ("a.txt", b"", "empty"),
        ("a.yaml", b"42", "expected a list of names"),
        ("a.yaml", b"- no\n- dog", "quotes"),
        ("a.yaml", b"dog: [3]", "not a string"),
        ("a.yaml", b"- {name: dog, colour: red}", "unknown field 'colour'"),
        ("a.json", b'["dog", " ! "]', "at least one letter"),
        ("a.txt", b"C\ncat\nC#", "two categories are called 'C' and 'C#'"),
        ("a.txt", b"dog\n,cat", "empty"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        Vocabulary.load(path)
    assert name in str(caught.value)


def test_missing_file_and_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.yaml"):
        Vocabulary.load(tmp_path / "nothing.yaml")
    with pytest.raises(InputError, match=r"use \.yaml or \.json"):
        COCO.save(tmp_path / "v.txt")
    with pytest.raises(InputError, match="give a list of names"):
        Vocabulary("coco80")
    with pytest.raises(InputError, match="at least one"):
        Vocabulary([])
    with pytest.raises(InputError, match="list of strings"):
        Category("dog", "puppy")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean dog"):
        COCO.index("dgo")
    with pytest.raises(InputError, match="one string"):
        COCO.label(["a dog"])  # type: ignore[arg-type]


def test_extended_keeps_existing_indices() -> None:
    more = COCO.extended("quokka", Category("axolotl", ("mexican salamander",)))
    assert more.names[:80] == COCO.names
    assert len(COCO) == 80
    assert more.label("two quokkas and a Mexican salamander") == (80, 81)
    with pytest.raises(InputError, match="two categories"):
        COCO.extended("Dog")


def test_names_in_other_scripts() -> None:
    vocabulary = Vocabulary(["Käse", "собака", "犬", "café au lait"])
    assert vocabulary.label("KÄSE!") == (0,)
    assert vocabulary.label("Это Собака.") == (1,)
    assert vocabulary.label("犬 ?") == (2,)
    assert vocabulary.label("one cafe\u0301 au lait") == (3,)  # decomposed accent


@pytest.mark.parametrize(
    ("word", "lemma"),
    [
        ("dogs", "dog"), ("buses", "bus"), ("bus", "bus"), ("tennis", "tennis"), ("men", "man"),
        ("leaves", "leaf"), ("knives", "knife"), ("sinking", "sinking"), ("parked", "parked"),
        ("scissors", "scissors"), ("this", "this"), ("has", "has"), ("quokkas", "quokka"),
        ("children", "child"), ("left", "left"), ("saw", "saw"), ("dice", "die"), ("rice", "rice"),
        ("tvs", "tv"), ("benches", "bench"), ("ladies", "lady"),
    ],
)  # fmt: skip
def test_noun_lemmas(word: str, lemma: str) -> None:
    assert noun_lemma(word) == lemma


def test_most_captions_of_photos_have_a_label(shared_data: Path) -> None:
    lines = (shared_data / "captions" / "Flickr8k.token.txt").read_text("utf-8").splitlines()
    labelled = sum(bool(COCO.label(line.split("\t")[1])) for line in lines)
    assert labelled > 0.9 * len(lines)


def test_labels_agree_with_people_on_photos(shared_data: Path) -> None:
    photos = json.loads((shared_data / "photos" / "labels.json").read_text("utf-8"))["photos"]
    right = wrong = 0
    for photo in photos.values():
        for caption in photo.get("captions") or []:
            found = names(caption)
            right += len(found & set(photo["labels"]))
            wrong += len(found - set(photo["labels"]))
    assert right > 500
    assert right / (right + wrong) > 0.92
