"""Precisions: weights cast once, features near float32's, never chosen where slower."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from pvp_fast.cli.app import run
from pvp_fast.clip import precision, usual
from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import InputError
from pvp_fast.loaders import FileSource, ImageStream


@pytest.fixture(scope="module")
def both() -> tuple[Backbone, Backbone]:
    return Backbone.load(precision="float32"), Backbone.load(precision="bfloat16")


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(usual.VARIABLE, raising=False)
    yield
    usual.set_precision(None)


def test_weights_are_cast_once_and_what_leaves_is_float32(both: tuple[Backbone, Backbone]) -> None:
    whole, half = both
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half.fingerprint == whole.fingerprint
    assert half.logit_scale == whole.logit_scale
    assert half.record()["precision"] == "bfloat16"
    texts = ["a dog", "two red cups on a table", ""]
    ids = half.tokenize(texts)
    features = half.encode_text(texts)
    learned = half.embed_tokens(ids)
    assert features.dtype == learned.dtype == torch.float32
    again = half.encode_embedded(learned, half.text_end(ids), ids)
    assert torch.equal(features, again)
    assert F.cosine_similarity(features, whole.encode_text(texts)).min() > 0.999


def test_gradients_reach_pixels_and_words(both: tuple[Backbone, Backbone]) -> None:
    gradients = []
    for backbone in both:
        size = backbone.image_size[0]
        pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        pixels.requires_grad_(True)
        target = torch.ones(2, backbone.embed_dim)
        (backbone.encode_image(pixels) * target).sum().backward()
        assert pixels.grad is not None
        gradients.append(pixels.grad.flatten())
    assert F.cosine_similarity(*gradients, dim=0) > 0.95


def test_real_photos_keep_their_features_and_tags(
    both: tuple[Backbone, Backbone], shared_data: Path
) -> None:
    files = sorted((shared_data / "photos").rglob("*.jpg"))[:96]
    names = [f"a photo of a {n}" for n in ("dog", "cat", "car", "bus", "train", "cup", "ball")]
    features, tops = [], []
    for backbone in both:
        stream = ImageStream(FileSource(files), backbone.preprocess, 32)
        with stream, torch.no_grad():
            z = torch.cat([backbone.encode_image(b.pixels) for b in stream])
        features.append(z)
        tops.append((z @ both[0].encode_text(names).T).argmax(1))
    assert F.cosine_similarity(*features).min() > 0.995
    assert (tops[0] == tops[1]).float().mean() >= 0.95


def test_auto_is_float32_for_a_small_model_and_wherever_halves_are_no_faster(
    both: tuple[Backbone, Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = both[0].model
    assert precision.resolve("auto", model) == "float32"
    monkeypatch.setattr(precision, "_SMALL", 1)
    for able, gain, chosen in (
        (True, 4.0, "bfloat16"),
        (True, 0.5, "float32"),
        (False, 4.0, "float32"),
    ):
        monkeypatch.setattr(precision, "_has_bfloat16", lambda able=able: able)
        monkeypatch.setattr(precision, "bfloat16_gain", lambda gain=gain: gain)
        assert precision.resolve("auto", model) == chosen
    assert precision.resolve("auto", copy.deepcopy(model).double()) == "float32"


def test_the_measured_gain_is_one_number_and_leaves_threads_alone() -> None:
    before = torch.get_num_threads()
    gain = precision.bfloat16_gain()
    assert gain > 0
    assert precision.bfloat16_gain() == gain
    assert torch.get_num_threads() == before


def test_who_says_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert usual.usual_precision() == "float32"
    monkeypatch.setenv(usual.VARIABLE, "bfloat16")
    assert usual.usual_precision() == "bfloat16"
    assert Backbone.load().precision == "bfloat16"
    usual.set_precision("float32")
    assert Backbone.load().precision == "float32"
    assert run(["--precision", "half", "info"]) == 1
    assert "use one of auto, float32, bfloat16, float16, int8" in capsys.readouterr().err
    with pytest.raises(InputError, match="for GPUs"):
        Backbone.load(precision="float16")
    monkeypatch.setenv(usual.VARIABLE, "int3")
    usual.set_precision(None)
    with pytest.raises(InputError, match="precision='int3'"):
        Backbone.load()
