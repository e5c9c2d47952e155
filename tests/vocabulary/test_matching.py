"""Which words count as a mention: plurals, verbs, ignored phrases, scripts without spaces."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pvp_fast.sentences import build_corpus, read_captions
from pvp_fast.vocabulary.categories import Category, Vocabulary
from pvp_fast.vocabulary.matching import noun_lemma

COCO = Vocabulary.builtin("coco80")
NUS = Vocabulary.builtin("nuswide81")


def names(sentence: str, vocabulary: Vocabulary = COCO) -> set[str]:
    return {vocabulary.names[i] for i in vocabulary.label(sentence)}


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("two horses in a field", {"horses", "animal"}),
        ("parked cars", {"cars", "vehicle"}),
        ("birds on a wire", {"birds", "animal"}),
        ("the whales", {"whales", "animal"}),
        ("cats and dogs", {"cat", "dog", "animal"}),
    ],
)
def test_a_listed_plural_hides_no_broader_category(sentence: str, expected: set[str]) -> None:
    assert names(sentence, NUS) == expected


def test_plurals_and_their_lemma_in_other_vocabularies() -> None:
    words = Vocabulary(
        ["trucks", Category("traffic", ("truck",)), "fire trucks", Category("red", ("fire truck",))]
    )
    assert names("two trucks", words) == {"trucks", "traffic"}
    assert names("two fire trucks", words) == {"fire trucks", "red"}
    assert names("snowboarders on a hill") == {"person", "snowboard"}
    # A plural of its own meaning is still not its singular's.
    apart = Vocabulary(
        ["glasses", Category("cup", ("glass",)), "shorts", Category("film", ("short",))]
    )
    assert names("glasses and shorts", apart) == {"glasses", "shorts"}


@pytest.mark.parametrize(
    ("plural", "lemma"),
    [
        ("skies", "sky"), ("skis", "ski"), ("spies", "spy"), ("collies", "collie"),
        ("cookies", "cookie"), ("taxis", "taxi"), ("shelves", "shelf"), ("loaves", "loaf"),
        ("thieves", "thief"), ("scarves", "scarf"), ("hooves", "hoof"), ("caves", "cave"),
        ("waves", "wave"), ("gloves", "glove"), ("wives", "wife"), ("sleeves", "sleeve"),
    ],
)  # fmt: skip
def test_lemmas_of_ies_and_ves(plural: str, lemma: str) -> None:
    assert noun_lemma(plural) == lemma


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("a plane in grey skies", {"airplane"}),
        ("a man steers a boat", {"person", "boat"}),
        ("The captain steers the ship", {"boat"}),
        ("she steers her boat", {"boat"}),
        ("two steers in a field", {"cow"}),
        ("the steers graze", {"cow"}),
        ("a man who books a flight", {"person"}),
        ("he wants to book a room", set()),
        ("you should book the hotel", set()),
        ("a cat next to book", {"cat", "book"}),
        ("a lamp close to book and cup", {"book", "cup"}),
        ("a man purses his lips", {"person"}),
        ("a black bear bears the cold", {"bear"}),
        ("a woman cups her hands", {"person"}),
        ("a boy who ducks the ball", {"person", "sports ball"}),
        # The verb of a category that lists its -ing form means the thing.
        ("a boy skateboards the ramp", {"person", "skateboard"}),
        ("a man bikes the trail", {"person", "bicycle"}),
        # A plural stays a plural.
        ("a table with forks", {"dining table", "fork"}),
        ("a few dogs the size of cats", {"dog", "cat"}),
        ("a pair of dogs their owner loves", {"dog"}),
    ],
)
def test_verbs_are_no_plurals(sentence: str, expected: set[str]) -> None:
    assert names(sentence) == expected


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("a sink in the bathroom", {"sink"}),
        ("a cat in the sink in the bathroom", {"cat", "sink"}),
        ("the man's book", {"person", "book"}),
        ("a man ties a knot", {"person"}),
        ("railroad ties", set()),
        ("the cub's hat", {"bear"}),  # "cubs hat" is a team's
        ("a cubs hat", set()),
        ("cup cakes", {"cake"}),  # a singular phrase silences its plural
    ],
)
def test_ignored_phrases_match_as_they_stand(sentence: str, expected: set[str]) -> None:
    assert names(sentence) == expected


def test_an_ignored_plural_silences_no_singular() -> None:
    words = Vocabulary(
        [Category("sink", ignore=("sinks under",)), Category("bull", ignore=("red bulls",))]
    )
    assert names("a sink under a window", words) == {"sink"}
    assert names("it sinks under", words) == set()
    assert names("a red bull", words) == {"bull"}
    assert names("chicago red bulls", words) == set()


@pytest.mark.parametrize(
    ("vocabulary", "sentence", "expected"),
    [
        # Marks join their letter: without them all of these would be one word.
        (["कुत्ता", "कत", "बिल्ली"], "एक बिल्ली और कुत्ता", {"कुत्ता", "बिल्ली"}),
        (["कल", "काल", "किला"], "यह किला है।", {"किला"}),
        (["নদী", "নদ"], "নদী বয়", {"নদী"}),
        (["பூ", "பை"], "ஒரு பை", {"பை"}),
        # Unspaced scripts are found inside a sentence, the longest first.
        (["猫", "自行车", "车"], "路上有一只猫和一辆自行车", {"猫", "自行车"}),
        (["自転車", "車", "犬"], "犬が自転車のそばにいる。", {"自転車", "犬"}),
        (["แมว", "หมา"], "แมวนอนบนโซฟา", {"แมว"}),
        (["ឆ្មា"], "មានឆ្មានៅទីនេះ", {"ឆ្មា"}),
        (["ແມວ"], "ມີແມວຢູ່ນີ້", {"ແມວ"}),
        # A loan word in katakana is the end of its run: no bus in a basket, no bread in a panda.
        (["バス", "パン"], "バスケットとパンダ", set()),
        (["バス", "パン"], "スクールバスとパンを見た", {"バス", "パン"}),
        (["バス"], "ﾊﾞｽ停", {"バス"}),
        # A full stop of any script ends a phrase.
        (["热狗"], "很热。狗在这里", set()),
        # Korean particles hang on their noun.
        (["고양이", "자전거"], "고양이가 자전거를 본다", {"고양이", "자전거"}),
        (["고양이"], "고양이들은 잔다", {"고양이"}),
        # Vowel points and joiners may be left out.
        (["كلب"], "هذا كَلْبٌ كبير", {"كلب"}),
        (["כלב"], "כֶּלֶב גדול", {"כלב"}),
        (["کتاب ها"], "کتاب\u200cها", set()),
        (["کتابها"], "کتاب\u200cها", {"کتابها"}),
        (["café"], "a cafe\u0301", {"café"}),
    ],
)
def test_scripts(vocabulary: list[str], sentence: str, expected: set[str]) -> None:
    assert names(sentence, Vocabulary(vocabulary)) == expected


def test_hindi_names_are_all_different() -> None:
    vocabulary = Vocabulary(["घर", "घोड़ा", "घड़ी", "गाय", "गाड़ी"])
    for index, name in enumerate(vocabulary.names):
        assert vocabulary.label(f"एक {name} है") == (index,)


def test_nuswide_plurals_on_real_captions(shared_data: Path) -> None:
    folder = shared_data / "captions"
    texts = [
        *read_captions(folder / "captions_val2017.json"),
        *read_captions(folder / "Flickr8k.token.txt"),
    ]
    for plural, broad in (("horses", "animal"), ("birds", "animal"), ("cars", "vehicle")):
        found = [names(t, NUS) for t in texts if re.search(rf"\b{plural}\b", t.lower())]
        assert len(found) > 100
        assert sum(broad in labels for labels in found) >= 0.96 * len(found)


def test_labels_of_photos_are_as_precise_as_before(shared_data: Path) -> None:
    import json

    photos = json.loads((shared_data / "photos" / "labels.json").read_text("utf-8"))["photos"]
    right = given = present = 0
    for photo in photos.values():
        if photo.get("captions"):
            found = set().union(*(names(caption) for caption in photo["captions"]))
            right += len(found & set(photo["labels"]))
            given += len(found)
            present += len(set(photo["labels"]))
    assert right / given >= 0.888
    assert right / present >= 0.542


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        # Part of a hyphenated word, and in front of the word it describes.
        ("Anti-aircraft guns and plant-based food.", set()),
        ("A bird's-eye view, a single-seat cockpit.", set()),
        ("An aircraft engine has human anatomy.", set()),
        ("A visual novel game.", set()),
        # Verbs without an object.
        ("They can range in size and typically range from small to large.", set()),
        ("Costumes range from old to new; it is used to monitor them.", set()),
        # A part of the category's own name is too wide.
        ("A billiard table with a rice ball and solar cells.", set()),
        ("It is two meters.", set()),
        # What is named is still found, the name and longer synonyms as well.
        ("An aircraft is a vehicle; birds, too.", {"airplane", "bird"}),
        ("A double-decker bus may carry passengers.", {"bus", "person"}),
        ("The cell phone is on the dining table.", {"cell phone", "dining table"}),
        ("Skiing can be hard for a rider who owns a horse.", {"skis", "person", "horse"}),
        ("A dog", {"dog"}),
    ],
)
def test_strict_counts_plain_mentions(sentence: str, expected: set[str]) -> None:
    assert {COCO.names[i] for i in COCO.label(sentence, strict=True)} == expected


def test_strict_labels_are_some_of_the_labels(shared_data: Path) -> None:
    written = shared_data / "sentences" / "openimages_rare_200_llm_tag_descriptions.json"
    usual = strict = 0
    for text in read_captions(written):
        found = COCO.label(text, strict=True)
        usual, strict = usual + len(COCO.label(text)), strict + len(found)
    assert 0.6 < strict / usual < 0.85
    corpus = build_corpus(["a range of dogs", "can range"], COCO, templates=False, strict=True)
    assert corpus.mentioning == 1


def test_strict_in_scripts_without_spaces_changes_nothing() -> None:
    words = Vocabulary(["猫", "自転車", "バス"])
    for sentence in ("猫と自転車に乗る人", "スクールバスが来た", "黒い猫"):
        assert words.label(sentence, strict=True) == words.label(sentence)
