"""Tagging with a small artifact on the pocket model: results, errors, threads, growth."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.artifacts import NAMES, every_tensor

from pvp_fast.artifact import Artifact
from pvp_fast.demo import demo_set
from pvp_fast.errors import ArtifactError, ImageError, InputError
from pvp_fast.loaders import ImageStream
from pvp_fast.tagging.tagger import Tagger, TagResult
from pvp_fast.topk import TagIndex


@pytest.fixture(scope="module")
def images() -> list[Path]:
    return sorted(demo_set().glob("*.jpg"))[:6]


def test_scores_are_the_calibrated_probabilities(tagger: Tagger, images: list[Path]) -> None:
    results = tagger.tag(images, top_k=None, threshold=0.0)
    backbone, artifact = tagger.backbone, tagger.artifact
    plain = torch.stack([backbone.preprocess(Image.open(p).convert("RGB")) for p in images])
    with ImageStream(images, backbone.preprocess) as stream:
        (batch,) = stream
    # Of the same pixels, and of those of the slower way to read an image.
    for pixels, tolerance in ((batch.pixels, 1e-5), (plain, 5e-3)):
        with torch.no_grad():
            z = backbone.encode_image(pixels)
            expected = artifact.head.probabilities(artifact.head.cosines(z))
        for result, row in zip(results, expected, strict=True):
            assert [t.index for t in result.tags] == row.argsort(descending=True).tolist()
            for tag in result.tags:
                assert tag.name == NAMES[tag.index]
                assert tag.score == pytest.approx(row[tag.index].item(), abs=tolerance)


def test_tags_are_the_heads_answer(tagger: Tagger) -> None:
    """Bit for bit what an index over its linear form gives, and its own answer to rounding."""
    generator = torch.Generator().manual_seed(3)
    z = torch.nn.functional.normalize(torch.randn(300, 256, generator=generator), dim=-1)
    head, count = tagger.artifact.head, len(NAMES)
    vectors, intercept, _ = head.linear()
    index = TagIndex(vectors, normalize=False)
    cosines = head.cosines(z)
    p = head.probabilities(cosines)
    for threshold in (None, 0.0, float(p.median())):
        cuts = head.cuts(threshold)
        best = index.topk(head.queries(z), count, cuts, intercept)
        rows = tagger.tag_features(z, top_k=None, threshold=threshold)
        for row, scores, indices, kept in zip(rows, *best, strict=True):
            logits = scores[:kept].tolist()
            assert [tag.index for tag in row] == indices[:kept].tolist()
            assert [tag.score for tag in row] == [1 / (1 + math.exp(-s)) for s in logits]
        given = torch.zeros(len(z), count, dtype=torch.bool)
        for number, row in enumerate(rows):
            for tag in row:
                given[number, tag.index] = True
                assert tag.score == pytest.approx(float(p[number, tag.index]), abs=2e-6)
        sure = (torch.logit(p) - cuts).abs() > 1e-4
        assert sure.float().mean() > 0.98
        assert torch.equal(given[sure], head.accepted(cosines, threshold)[sure])


def test_default_thresholds_are_the_artifacts(tagger: Tagger, images: list[Path]) -> None:
    least = tagger.artifact.head.thresholds
    everything = tagger.tag(images, top_k=None, threshold=0.0)
    for result, full in zip(tagger.tag(images, top_k=None), everything, strict=True):
        kept = [t.name for t in full.tags if t.score >= least[t.index] + 1e-5]
        assert set(kept) <= {t.name for t in result.tags}
        assert all(t.score >= least[t.index] - 1e-5 for t in result.tags)


def test_every_kind_of_source_gives_the_same_tags(tagger: Tagger, images: list[Path]) -> None:
    image = Image.open(images[0]).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    sources = [images[0], str(images[0]), images[0].read_bytes(), image, array, tensor]
    tags = [r.tags for s in sources for r in tagger.tag(s, threshold=0.0)]
    assert all(t == tags[0] for t in tags)


def test_bad_images_are_reported_in_place(tagger: Tagger, images: list[Path]) -> None:
    mixed = [images[0], "missing.jpg", b"", images[1]]
    results = tagger.tag(mixed, threshold=0.0, batch_size=2)
    assert [r.error is None for r in results] == [True, False, False, True]
    assert results[1].image == "missing.jpg"
    assert results[2].to_dict() == {"image": "2", "tags": [], "error": results[2].error}
    with pytest.raises(ImageError):
        tagger.tag(mixed, errors="raise")


def test_an_iterator_is_read_ahead_by_one_batch_only(tagger: Tagger, images: list[Path]) -> None:
    taken = []

    def source() -> object:
        for path in images:
            taken.append(path)
            yield path

    stream = tagger.tag(source(), batch_size=2)
    assert isinstance(next(stream), TagResult)
    assert len(taken) == 2


def test_threads_share_a_tagger(tagger: Tagger, images: list[Path]) -> None:
    expected = tagger.tag(images, threshold=0.0)
    found: dict[int, list[TagResult]] = {}

    def work(number: int) -> None:
        found[number] = tagger.tag(images, threshold=0.0)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[i] == expected for i in range(4))


def test_an_added_category_changes_nothing_else(tagger: Tagger, images: list[Path]) -> None:
    grown = tagger.add_category("castle", ["fortress"], ["An old castle on a hill."], steps=2)
    assert grown.artifact.vocabulary.names == (*NAMES, "castle")
    before, after = every_tensor(tagger.artifact), every_tensor(grown.artifact)
    for name, value in before.items():
        same = after[name][: len(value)] if after[name].shape != value.shape else after[name]
        assert torch.equal(same, value), name
    old = tagger.tag(images, top_k=None, threshold=0.0)
    new = grown.tag(images, top_k=None, threshold=0.0)
    for a, b in zip(old, new, strict=True):
        assert a.tags == tuple(t for t in b.tags if t.name != "castle")
        assert len(b.tags) == len(a.tags) + 1
    with pytest.raises(InputError):
        grown.add_category("castle")


def test_a_score_does_not_depend_on_the_number_of_categories(tagger: Tagger) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(7, 256, generator=generator), dim=-1)
    tags = tagger.tag_features(z, top_k=None, threshold=0.0)
    for k in (1, 2, 3):
        assert tagger.tag_features(z, top_k=k, threshold=0.0) == [row[:k] for row in tags]


def test_a_wrong_backbone_or_argument_is_refused(tagger: Tagger, images: list[Path]) -> None:
    artifact = tagger.artifact
    other = Artifact(
        artifact.vocabulary, {**artifact.backbone, "fingerprint": "0" * 64}, artifact.head
    )
    with pytest.raises(ArtifactError, match="pocket"):
        Tagger(other, tagger.backbone)
    for options in ({"top_k": 0}, {"threshold": 1.5}, {"batch_size": 0}, {"errors": "hide"}):
        with pytest.raises(InputError):
            tagger.tag(images, **options)
