"""The feature cache: once per sentence, resumable, and never a damaged file."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pvp_fast.errors import BackboneError, InputError
from pvp_fast.sentences import Corpus, FeatureCache, cache
from pvp_fast.vocabulary.categories import Vocabulary

VOCABULARY = Vocabulary(["dog"])


class Encoder:
    """Unit vectors that depend on the text only; counts what it is asked."""

    fingerprint = "f" * 64
    embed_dim = 6
    context_length = 5

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.stop_after: int | None = None

    def row(self, text: str, width: int) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        values = torch.randn(width, generator=torch.Generator().manual_seed(seed))
        return values / values.norm()

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        if self.stop_after is not None and len(self.asked) + len(texts) > self.stop_after:
            raise KeyboardInterrupt
        self.asked += texts
        return torch.stack([self.row(text, self.embed_dim) for text in texts])

    def encode_text_tokens(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked += texts
        features = torch.zeros(len(texts), 4, self.embed_dim)
        mask = torch.zeros(len(texts), 4, dtype=torch.bool)
        for n, text in enumerate(texts):
            for position in range(1 + len(text) % 4):
                features[n, position] = self.row(f"{text}/{position}", self.embed_dim)
                mask[n, position] = True
        return features, mask


def corpus_of(size: int) -> Corpus:
    sentences = tuple(f"{'a' * (n % 3)} dog number {n}" for n in range(size))
    return Corpus(sentences, ((0,),) * size, VOCABULARY)


def expected(corpus: Corpus) -> np.ndarray:
    return Encoder().encode_text(list(corpus.sentences)).to(torch.float16).numpy()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_BLOCK_BYTES", 1)  # a block is one batch


def test_each_sentence_is_encoded_once(tmp_path: Path) -> None:
    encoder, corpus, steps = Encoder(), corpus_of(23), []
    features = FeatureCache(tmp_path / "new").features(
        encoder, corpus, batch_size=4, progress=lambda done, total: steps.append((done, total))
    )
    assert features.dtype == np.float16
    assert isinstance(features, np.memmap)
    assert not features.flags.writeable
    np.testing.assert_array_equal(features, expected(corpus))
    assert sorted(encoder.asked) == sorted(corpus.sentences)
    assert steps == [(0, 23), (23, 23)]
    again = FeatureCache(tmp_path / "new").features(encoder, corpus)
    np.testing.assert_array_equal(again, features)
    assert len(encoder.asked) == 23
    leftovers = {p.suffix for p in (tmp_path / "new").iterdir()}
    assert leftovers == {".npy", ".json", ".lock"}


def test_other_labels_share_features_and_other_models_do_not(tmp_path: Path) -> None:
    store, encoder, corpus = FeatureCache(tmp_path), Encoder(), corpus_of(5)
    store.features(encoder, corpus)
    unlabelled = Corpus(corpus.sentences, ((),) * 5, VOCABULARY)
    store.features(encoder, unlabelled)
    assert len(encoder.asked) == 5
    other = Encoder()
    other.fingerprint = "e" * 64
    store.features(other, corpus)
    assert len(other.asked) == 5


def test_an_interrupted_run_goes_on_after_its_last_block(
    tmp_path: Path, small_blocks: None
) -> None:
    store, corpus, killed = FeatureCache(tmp_path), corpus_of(22), Encoder()
    killed.stop_after = 13
    with pytest.raises(KeyboardInterrupt):
        store.features(killed, corpus, batch_size=4)
    assert list(tmp_path.glob("*.partial"))
    second, steps = Encoder(), []
    features = store.features(
        second, corpus, batch_size=4, progress=lambda done, total: steps.append(done)
    )
    assert sorted(second.asked) == sorted(corpus.sentences[12:])
    assert steps[0] == 12
    np.testing.assert_array_equal(features, expected(corpus))
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("damage", ["record", "partial", "truncated", "header", "other"])
def test_an_unusable_partial_starts_again(tmp_path: Path, small_blocks: None, damage: str) -> None:
    store, corpus, killed = FeatureCache(tmp_path), corpus_of(10), Encoder()
    killed.stop_after = 8
    with pytest.raises(KeyboardInterrupt):
        store.features(killed, corpus, batch_size=4)
    (partial,) = tmp_path.glob("*.partial")
    (record,) = tmp_path.glob("*.progress.json")
    if damage == "record":
        record.write_text("{cut")
    elif damage == "partial":
        partial.unlink()
    elif damage == "truncated":
        partial.write_bytes(partial.read_bytes()[:-1])
    elif damage == "header":
        partial.write_bytes(b"X" + partial.read_bytes()[1:])
    else:
        record.write_text(json.dumps({**json.loads(record.read_text()), "backbone": "other"}))
    encoder = Encoder()
    features = store.features(encoder, corpus, batch_size=4)
    assert len(encoder.asked) == 10
    np.testing.assert_array_equal(features, expected(corpus))


@pytest.mark.parametrize("damage", ["cut", "longer", "zeros", "header", "gone", "meta", "pickle"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    store, corpus = FeatureCache(tmp_path), corpus_of(9)
    store.features(Encoder(), corpus)
    (path,) = tmp_path.glob("*.npy")
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-7])
    elif damage == "longer":
        path.write_bytes(data + b"\0")
    elif damage == "zeros":
        path.write_bytes(data[:-24] + bytes(24))
    elif damage == "header":
        path.write_bytes(bytes(64) + data[64:])
    elif damage == "gone":
        path.unlink()
    elif damage == "meta":
        next(tmp_path.glob("*.json")).write_text("[]")
    else:
        np.save(path, np.array([{"a": 1}] * 9, dtype=object), allow_pickle=True)
    encoder = Encoder()
    np.testing.assert_array_equal(store.features(encoder, corpus), expected(corpus))
    assert len(encoder.asked) == 9


def test_token_features(tmp_path: Path, small_blocks: None) -> None:
    store, encoder, corpus = FeatureCache(tmp_path), Encoder(), corpus_of(7)
    features, mask = store.token_features(encoder, corpus, batch_size=3)
    assert features.shape == (7, 5, 6)
    assert mask.shape == (7, 5)
    assert mask.dtype == np.bool_
    want, want_mask = Encoder().encode_text_tokens(list(corpus.sentences))
    np.testing.assert_array_equal(features[:, :4], want.to(torch.float16).numpy())
    np.testing.assert_array_equal(mask[:, :4], want_mask.numpy())
    assert not mask[:, 4].any()
    assert not features[:, 4].any()
    store.token_features(encoder, corpus)
    assert len(encoder.asked) == 7
    short, short_mask = store.token_features(encoder, corpus, max_tokens=2)
    np.testing.assert_array_equal(short, features[:, :2])
    np.testing.assert_array_equal(short_mask, mask[:, :2])


def test_an_empty_corpus_has_empty_features(tmp_path: Path) -> None:
    empty = Corpus((), (), VOCABULARY)
    assert FeatureCache(tmp_path).features(Encoder(), empty).shape == (0, 6)
    features, mask = FeatureCache(tmp_path).token_features(Encoder(), empty)
    assert features.shape == (0, 5, 6)
    assert mask.shape == (0, 5)


def test_a_broken_encoder_leaves_nothing_finished(tmp_path: Path) -> None:
    class Wrong(Encoder):
        def encode_text(self, texts: list[str]) -> torch.Tensor:
            return torch.ones(len(texts), 3)

    class Nan(Encoder):
        def encode_text(self, texts: list[str]) -> torch.Tensor:
            return torch.full((len(texts), 6), float("nan"))

    class Long(Encoder):
        def encode_text(self, texts: list[str]) -> torch.Tensor:
            return torch.ones(len(texts), 6)

    for kind, message in ((Wrong, "shape"), (Nan, "NaN"), (Long, "unit vectors")):
        with pytest.raises(BackboneError, match=message):
            FeatureCache(tmp_path).features(kind(), corpus_of(3))
    np.testing.assert_array_equal(
        FeatureCache(tmp_path).features(Encoder(), corpus_of(3)), expected(corpus_of(3))
    )
    with pytest.raises(InputError, match="batch_size is 0"):
        FeatureCache(tmp_path).features(Encoder(), corpus_of(3), batch_size=0)
    with pytest.raises(InputError, match="max_tokens is 0"):
        FeatureCache(tmp_path).token_features(Encoder(), corpus_of(3), max_tokens=0)


def test_two_at_once_do_the_work_once(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    encoder, corpus = Encoder(), corpus_of(40)
    results: list[np.ndarray] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(
                FeatureCache(tmp_path).features(encoder, corpus, batch_size=2)
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(encoder.asked) == 40
    for result in results:
        np.testing.assert_array_equal(result, expected(corpus))
