"""The image tower in 8-bit integers: near float32, each image for itself, made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from support.towers import open_clip_text, timm_tower
from torch import Tensor
from torch.nn import functional as F

from pvp_fast.clip import int8
from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import BackendError, InputError
from pvp_fast.files import CACHE, cache_folder
from pvp_fast.sentences import Corpus
from pvp_fast.training import train

pytest.importorskip("onnxruntime")


def in_int8(plain: Backbone) -> Backbone:
    return Backbone(plain.model, plain._tokenizer, plain.preprocess, precision="int8")


def pictures(count: int) -> Tensor:
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images[1:] *= 20  # a neighbour that would stretch a common scale
    return images


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, Backbone]:
    plain = open_clip_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
        integers = in_int8(plain)
        integers.encode_image(pictures(1))
    return plain, integers


def test_features_are_near_those_in_float32(both: tuple[Backbone, Backbone]) -> None:
    plain, integers = both
    x = pictures(6)
    whole, rounded = plain.encode_image(x), integers.encode_image(x)
    assert rounded.dtype == torch.float32
    assert not torch.equal(whole, rounded)
    assert F.cosine_similarity(whole, rounded).min() > 0.999
    assert integers.record()["precision"] == "int8"
    assert integers.fingerprint == plain.fingerprint


def test_an_image_does_not_depend_on_its_neighbours(both: tuple[Backbone, Backbone]) -> None:
    _, integers = both
    x = pictures(4)
    assert torch.equal(integers.encode_image(x)[:1], integers.encode_image(x[:1]))


def test_what_needs_a_gradient_and_texts_and_regions_are_float32(
    both: tuple[Backbone, Backbone],
) -> None:
    plain, integers = both
    x = pictures(2).requires_grad_()
    assert torch.equal(plain.encode_image(x), integers.encode_image(x))
    assert torch.equal(plain.encode_text(["a dog"]), integers.encode_text(["a dog"]))
    with torch.no_grad():
        assert torch.equal(plain.encode_regions(x), integers.encode_regions(x))


@pytest.mark.parametrize("vnni", [True, False])
def test_the_file_is_made_once_for_each_kind_of_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vnni: bool
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    monkeypatch.setattr(int8, "_has_vnni", lambda: vnni)
    plain, x = open_clip_text(), pictures(2)
    found = in_int8(plain).encode_image(x)
    (file,) = (cache_folder() / "int8").iterdir()
    assert file.name == f"{plain.fingerprint[:24]}.{8 if vnni else 7}.onnx"
    assert F.cosine_similarity(found, plain.encode_image(x)).min() > 0.999
    monkeypatch.setattr(int8, "_export", None)  # the second time there is nothing to make
    assert torch.equal(in_int8(plain).encode_image(x), found)


def test_what_cannot_be_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: Backbone, corpus: Corpus
) -> None:
    plain = open_clip_text()
    with pytest.raises(InputError, match="convolutional and would gain nothing"):
        Backbone.load("pocket", precision="int8")
    monkeypatch.setattr(int8, "_MOST", 10)
    with pytest.raises(InputError, match="do not fit one ONNX file"):
        in_int8(plain)
    monkeypatch.undo()
    with pytest.raises(InputError, match="precision='int8' is for tagging: train in 'float32'"):
        train(in_int8(plain), corpus, tmp_path / "run", progress=False)
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(CACHE, str(blocked))
    with pytest.raises(InputError, match="give another folder with PVP_FAST_CACHE"):
        in_int8(plain).encode_image(pictures(1))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install 'pvp_fast\[int8\]'"):
        in_int8(plain)


def test_timm_towers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    plain = timm_tower("vit", "map", "none", class_token=False, embed_dim=16)
    x = pictures(2)
    found = in_int8(plain).encode_image(x)
    assert F.cosine_similarity(found, plain.encode_image(x)).min() > 0.999
