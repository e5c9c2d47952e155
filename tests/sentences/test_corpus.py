"""Caption files of every format, good and bad, and the labelled corpus made of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvp_fast.cli.common import gather_sentences
from pvp_fast.errors import CorpusError, InputError
from pvp_fast.sentences import Corpus, build_corpus, grammar_sentences, read_captions
from pvp_fast.vocabulary.categories import Category, Vocabulary

ANIMALS = Vocabulary(["dog", "cat", "teddy bear", "bear"])
COCO_JSON = json.dumps(
    {"images": [], "annotations": [{"id": 1, "caption": "A dog. "}, {"caption": "Zwei Bären"}]},
    ensure_ascii=False,
)


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "sentences"),
    [
        ("captions.json", COCO_JSON, ["A dog.", "Zwei Bären"]),
        ("captions", COCO_JSON, ["A dog.", "Zwei Bären"]),
        ("pretty.json", json.dumps(json.loads(COCO_JSON), indent=1), ["A dog.", "Zwei Bären"]),
        ("token.txt", "a.jpg#0\tA dog .\r\nb c.jpg#1\tA cat .\r\n", ["A dog .", "A cat ."]),
        ("x.jsonl", '{"caption": "A dog"}\n\n{"text": "A cat"}\n', ["A dog", "A cat"]),
        ("x.ndjson", '{"image_id": "7", "caption": "A dog", "timed_caption": []}', ["A dog"]),
        ("x.txt", '{"sentence": "A dog"}\n{"sentence": "A cat"}\n', ["A dog", "A cat"]),
        ("x.jsonl", '{"sentences": ["A dog", "A cat"]}\n"A bear"\n', ["A dog", "A cat", "A bear"]),
        ("list.json", '["A dog", "A cat"]', ["A dog", "A cat"]),
        ("objects.json", '[{"text": "A dog"}, {"captions": ["A cat"]}]', ["A dog", "A cat"]),
        ("tags.json", '[{"dog": ["A dog"]}, {"cat": ["A cat"]}]', ["A dog", "A cat"]),
        ("lines.txt", "\ufeffA dog\n\n  A cat  \n", ["A dog", "A cat"]),
        ("lines.txt", "[Two men] sit\nA dog\tin a hat", ["[Two men] sit", "A dog\tin a hat"]),
    ],
)  # fmt: skip
def test_formats_are_told_apart(tmp_path: Path, name: str, data: str, sentences: list[str]) -> None:
    assert list(read_captions(write(tmp_path / name, data))) == sentences


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.txt", b"", "is empty"),
        ("empty.json", b"", "is empty"),
        ("blank.txt", b"\n \n", "holds no sentence"),
        ("cut.json", COCO_JSON[:40].encode(), "cut off or not valid JSON"),
        ("none.json", b'{"annotations": []}', "holds no sentence"),
        ("prose.json", b"A dog on a mat", "is not JSON"),
        ("boxes.json", b'{"annotations": [{"bbox": [0, 0, 1, 1]}]}', "instances file"),
        ("dict.json", b'{"annotations": 3}', "not a list"),
        ("other.json", b'[{"a": 1}]', "item 0"),
        ("number.json", b"[7]", "item 0 is 7"),
        ("bytes.json", b'["caf\xe9"]', "not UTF-8"),
        ("cut.jsonl", b'{"text": "A dog"}\n{"text": "A c', "line 2 is cut off or not JSON"),
        ("field.jsonl", b'{"title": "A dog"}\n', "line 1: no text in any field"),
        ("list.jsonl", b"[1]\n", "line 1 is"),
        ("latin.txt", b"A dog\nA caf\xe9\n", "line 2 is not UTF-8"),
        ("utf16.txt", "A dog".encode("utf-16"), "UTF-16"),
        ("picture.jpg", b"\xff\xd8\xff\xe0\0\0JFIF", "binary"),
        ("cut.token.txt", b"a.jpg#0\tA dog\na.jpg#1", "line 2 is not 'image#number<tab>caption'"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(CorpusError, match=message) as caught:
        list(read_captions(write(tmp_path / name, data)))
    assert name in str(caught.value)


def test_missing_file_folder_and_format(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"gone\.txt"):
        read_captions(tmp_path / "gone.txt")
    with pytest.raises(CorpusError, match="cannot read"):
        read_captions(tmp_path)
    with pytest.raises(InputError, match="coco, flickr8k"):
        read_captions(tmp_path, format="csv")
    with pytest.raises(CorpusError, match="no 'annotations'"):
        read_captions(write(tmp_path / "list.json", "[]"), format="coco")
    tabbed = write(tmp_path / "a.txt", "a.jpg#0\tA dog")
    assert list(read_captions(tabbed, format="text")) == ["a.jpg#0\tA dog"]


def test_a_bad_line_comes_up_when_it_is_reached(tmp_path: Path) -> None:
    sentences = read_captions(write(tmp_path / "a.jsonl", '{"text": "A dog"}\n{"te'))
    assert next(sentences) == "A dog"
    with pytest.raises(CorpusError, match="line 2"):
        next(sentences)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)
        .map(lambda text: f"A {text} dog"),
        min_size=1, max_size=6,
    ),
    st.sampled_from(["text", "jsonl", "json", "coco", "flickr8k"]),
)  # fmt: skip
def test_written_captions_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, sentences: list[str], kind: str
) -> None:
    path = tmp_path_factory.mktemp("captions") / {"json": "a.json", "coco": "a.json"}.get(kind, "a")
    data = {
        "text": "\n".join(sentences),
        "jsonl": "\n".join(json.dumps({"text": s}) for s in sentences),
        "json": json.dumps(sentences),
        "coco": json.dumps({"annotations": [{"caption": s} for s in sentences]}),
        "flickr8k": "\n".join(f"i{n}.jpg#{n}\t{s}" for n, s in enumerate(sentences)),
    }[kind]
    assert list(read_captions(write(path, data))) == sentences
    assert list(read_captions(path, format=kind)) == sentences


def test_real_files(shared_data: Path) -> None:
    coco = list(read_captions(shared_data / "captions" / "captions_val2017.json"))
    flickr = list(read_captions(shared_data / "captions" / "Flickr8k.token.txt"))
    assert len(coco) == 25014
    assert len(flickr) == 40460
    assert flickr[1] == "A girl going into a wooden building ."
    written = shared_data / "sentences" / "openimages_rare_200_llm_tag_descriptions.json"
    assert len(list(read_captions(written))) == 10200


def test_a_corpus_is_labelled_without_repeats_and_strangers() -> None:
    given_sentences = ["A dog  and a cat.", "a DOG and a cat.", "Nothing here", "Teddy bears"]
    corpus = build_corpus(given_sentences, ANIMALS, templates=False, source="test")
    assert corpus.sentences == ("A dog and a cat.", "Teddy bears")
    assert corpus.labels == ((0, 1), (2,))
    assert len(corpus) == 2
    assert corpus.multi_hot().dtype == torch.bool
    assert corpus.multi_hot().tolist() == [[True, True, False, False], [False, False, True, False]]
    assert corpus.counts().tolist() == [1, 1, 1, 0]


def test_templates_have_one_label() -> None:
    corpus = build_corpus(["a dog"], ANIMALS, templates=["a photo of a {}.", "one toy {}"])
    assert corpus.sentences[1:5] == tuple(f"a photo of a {name}." for name in ANIMALS.names)
    assert corpus.labels[1:] == ((0,), (1,), (2,), (3,)) * 2
    with pytest.raises(InputError, match=r"has no \{\}"):
        build_corpus([], ANIMALS, templates=["a photo"])


def test_templates_mean_what_the_name_means() -> None:
    vocabulary = Vocabulary(
        [Category("animal", ("dog",)), "dog", "bear", Category("teddy bear", ("toy bear",))]
    )
    corpus = build_corpus([], vocabulary, templates=["a toy {}", "one {}"])
    found = dict(zip(corpus.sentences, corpus.labels, strict=True))
    assert found["one dog"] == (0, 1)
    assert found["one bear"] == (2,)
    assert "a toy bear" not in found
    assert found["a toy teddy bear"] == (3,)


def test_the_clip_templates_are_the_default() -> None:
    corpus = build_corpus([], ANIMALS)
    assert "a photo of a teddy bear." in corpus.sentences
    assert (corpus.counts() == corpus.counts()[0]).all()


def test_bad_corpora() -> None:
    with pytest.raises(CorpusError, match="none of the 2 sentences"):
        build_corpus(["a", "b"], ANIMALS, templates=False)
    with pytest.raises(CorpusError, match="sentence 1 is int"):
        build_corpus(["a dog", 3], ANIMALS)  # type: ignore[list-item]
    with pytest.raises(InputError, match="one string"):
        build_corpus("a dog", ANIMALS)
    with pytest.raises(CorpusError, match="1 sentences but 2 labels"):
        Corpus(("a dog",), ((0,), (1,)), ANIMALS)
    with pytest.raises(CorpusError, match=r"labels\[0\] is \(4,\)"):
        Corpus(("a dog",), ((4,),), ANIMALS)


def test_fingerprints() -> None:
    corpus = build_corpus(["a dog", "a cat"], ANIMALS, templates=False, source="one")
    same = build_corpus(["a dog", "a cat"], ANIMALS, templates=False, source="two")
    assert corpus.fingerprint == same.fingerprint
    assert len(corpus.fingerprint) == 64
    relabelled = Corpus(corpus.sentences, ((1,), (1,)), ANIMALS)
    assert relabelled.fingerprint != corpus.fingerprint
    assert relabelled.sentences_fingerprint == corpus.sentences_fingerprint
    reordered = corpus.subset([1, 0])
    assert reordered.sentences_fingerprint != corpus.sentences_fingerprint


@pytest.mark.parametrize("held_out", [0.0, 0.1, 0.5])
def test_split_is_a_partition_that_keeps_every_category(held_out: float) -> None:
    vocabulary = Vocabulary.builtin("coco80")
    corpus = build_corpus(grammar_sentences(vocabulary, 800, seed=3), vocabulary, templates=False)
    state = random.getstate()
    train, held = corpus.split(held_out, seed=1)
    assert random.getstate() == state
    assert sorted(train.sentences + held.sentences) == sorted(corpus.sentences)
    assert abs(len(held) - held_out * len(corpus)) <= max(5, 0.1 * held_out * len(corpus))
    assert (train.counts() > 0).all()
    if held_out:
        assert (held.counts() > 0).all()
        assert corpus.split(held_out, seed=2)[1].sentences != held.sentences
    assert corpus.split(held_out, seed=1)[1].sentences == held.sentences


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=12), st.integers(0, 9))
def test_split_never_empties_training(rows: list[set[int]], seed: int) -> None:
    labels = tuple(tuple(sorted(row)) for row in rows)
    corpus = Corpus(tuple(str(n) for n in range(len(rows))), labels, ANIMALS)
    train, held = corpus.split(0.5, seed)
    assert len(train) + len(held) == len(corpus)
    assert ((train.counts() > 0) == (corpus.counts() > 0)).all()


def test_split_rejects_a_fraction_of_one() -> None:
    corpus = build_corpus(["a dog"], ANIMALS, templates=False)
    with pytest.raises(InputError, match=r"held_out is 1\.0"):
        corpus.split(1.0)
    train, held = corpus.split(0.9)
    assert (len(train), len(held)) == (1, 0)
    assert held.multi_hot().shape == (0, 4)


def test_a_corpus_says_what_counted_and_what_is_missing() -> None:
    corpus = build_corpus(["A dog", "A dog", "Nothing"], ANIMALS, source="x.txt")
    assert (corpus.read, corpus.mentioning) == (3, 2)
    assert corpus.unmentioned == ("cat", "teddy bear", "bear")
    first, second, third = corpus.summary()
    assert first == f"{len(corpus)} labelled sentences for 4 categories"
    assert second == "2 of the 3 sentences of x.txt mention a category"
    assert third.startswith("no sentence mentions cat, teddy bear, bear: prompt templates are all")
    assert len(build_corpus(["dog cat, teddy bear, bear"], ANIMALS).summary()) == 2
    assert corpus.split(0.5)[0].summary()[1:] == [second, third]


@pytest.mark.parametrize("source", ["原因.txt", ""])
def test_templates_alone_are_no_corpus_from_a_file(source: str) -> None:
    with pytest.raises(CorpusError, match="none of the 2 sentences"):
        build_corpus(["ein Hund", "une chatte"], ANIMALS, source=source)
    assert len(build_corpus([], ANIMALS)) > 0  # asked for


def test_a_file_that_gives_nothing_is_not_hidden_by_others(tmp_path: Path) -> None:
    good = write(tmp_path / "good.txt", "A dog\nA cat\n")
    foreign = write(tmp_path / "foreign.txt", "Ein Hund\nEine Katze\nNichts\n")
    texts, source, _ = gather_sentences(ANIMALS, [good], 2, 0)
    assert (len(texts), source) == (4, "good.txt, grammar 2")
    mixed = write(tmp_path / "mixed.txt", "Ein Hund\nA dog\nA cat\nNothing\n")
    texts, source, parts = gather_sentences(ANIMALS, [good, mixed], 2, 0)
    corpus = build_corpus(texts, ANIMALS, source=source, parts=parts)
    assert corpus.parts == (("good.txt", 2, 2), ("mixed.txt", 4, 2), ("grammar", 2, 2))
    assert corpus.summary()[1:5] == [
        "6 of the 8 sentences of good.txt, mixed.txt, grammar 2 mention a category",
        "  good.txt: 2 of 2",
        "  mixed.txt: 2 of 4",
        "  grammar: 2 of 2",
    ]
    assert corpus.split(0.5)[0].parts == corpus.parts
    with pytest.raises(CorpusError, match=r"foreign\.txt: none of the 3 sentences"):
        gather_sentences(ANIMALS, [good, foreign], 2, 0)
