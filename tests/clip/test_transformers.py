"""Folders that transformers wrote: its own model's features, prompts and regions, no pickle."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.towers import save_transformers
from torch.nn import functional as F

from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import BackboneError
from pvp_fast.modules.prompts import TextPrompts

transformers = pytest.importorskip("transformers", minversion="5")
KINDS = ["clip", "metaclip_2", "siglip", "siglip2", "altclip", "chinese_clip"]
TEXTS = ["a dog", "two cats", "", "teddy bear"]


@pytest.fixture(scope="module", params=KINDS)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Any, Backbone]:
    folder = tmp_path_factory.mktemp(request.param)
    model = save_transformers(request.param, folder)
    return request.param, folder, model, Backbone.load(f"transformers:{folder}")


def photos(shared_data: Path) -> list[Image.Image]:
    paths = sorted(shared_data.rglob("*.jpg"))[:3]
    return [Image.open(path).convert("RGB") for path in paths]


def own_image_features(model: Any, inputs: Any) -> torch.Tensor:
    return F.normalize(model.get_image_features(**inputs).pooler_output, dim=-1)


def own_text_features(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    return F.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)


def test_pictures_and_features_are_its_own_processors(
    case: tuple[str, Path, Any, Backbone], shared_data: Path
) -> None:
    kind, folder, model, backbone = case
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    for photo in photos(shared_data):
        if kind == "siglip2":  # other shapes than squares keep their ratio there
            photo = photo.crop((0, 0, min(photo.size), min(photo.size)))
        if backbone.preprocess.resize_mode == "shortest":
            photo = photo.crop((0, 0, 420, 288))  # to 46 x 32: see the next test
        inputs = processor(images=photo, return_tensors="pt")
        ours = backbone.preprocess(photo)[None]
        if kind != "siglip2":
            torch.testing.assert_close(ours, inputs["pixel_values"], atol=1e-6, rtol=0)
        with torch.no_grad():
            expected = own_image_features(model, inputs)
        got = backbone.encode_image(ours)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_the_crop_of_an_odd_remainder_is_torchvisions(
    case: tuple[str, Path, Any, Backbone],
) -> None:
    """47 - 32 leaves 7.5: torchvision, open_clip and we round to 8, transformers takes 7."""
    kind, folder, _, backbone = case
    if kind not in ("clip", "metaclip_2", "altclip"):
        return
    noise = np.random.default_rng(0).integers(0, 256, (32, 47, 3), dtype=np.uint8)
    photo = Image.fromarray(noise)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    theirs = processor(images=photo, return_tensors="pt")["pixel_values"][0]
    ours = backbone.preprocess(photo)
    torch.testing.assert_close(ours[..., :-1], theirs[..., 1:], atol=1e-6, rtol=0)


def test_images_and_regions(case: tuple[str, Path, Any, Backbone]) -> None:
    kind, _, model, backbone = case
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    got = backbone.encode_image(x)
    if kind != "siglip2":
        expected = own_image_features(model, {"pixel_values": x})
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    regions = backbone.encode_regions(x)
    assert regions.shape == (2, 16, backbone.embed_dim)
    regions[..., 0].sum().backward()
    assert x.grad is not None
    assert bool((x.grad.abs().sum(dim=(1, 2, 3)) > 0).all())
    if kind.startswith("siglip"):  # attention without a query averages the values
        head = backbone.model.inner.vision_model.head
        before = [p.clone() for p in head.parameters()]
        with torch.no_grad():
            width = backbone.embed_dim
            head.attention.in_proj_weight[:width] = 0
            head.attention.in_proj_bias[:width] = 0
            for value in head.mlp.fc2.parameters():
                value.zero_()
            mean = F.normalize(backbone.model.visual.regions(x).mean(dim=1), dim=-1)
            torch.testing.assert_close(backbone.encode_image(x), mean, atol=1e-5, rtol=0)
            for value, kept in zip(head.parameters(), before, strict=True):
                value.copy_(kept)
    else:  # cut to itself, the last block reads the class token's neighbours no more
        vision = backbone.model.inner.vision_model
        with torch.no_grad():
            hidden = vision.pre_layrnorm(vision.embeddings(x))
            for layer in vision.encoder.layers[:-1]:
                hidden = layer(hidden, None)
            mask = torch.full((17, 17), float("-inf")).fill_diagonal_(0.0)[None, None]
            hidden = vision.encoder.layers[-1](hidden, mask)
            own = backbone.model.inner.visual_projection(vision.post_layernorm(hidden[:, 1:]))
        torch.testing.assert_close(regions, F.normalize(own, dim=-1), atol=1e-5, rtol=0)


def test_texts_and_prompts(case: tuple[str, Path, Any, Backbone]) -> None:
    kind, _, model, backbone = case
    ids = backbone.tokenize(TEXTS)
    mask = {}
    if kind in ("altclip", "chinese_clip"):
        mask = {"attention_mask": (ids != backbone._tokenizer.tokenizer.pad_token_id).long()}
    with torch.no_grad():
        expected = own_text_features(model, input_ids=ids, **mask)
    assert float(expected.std(dim=0).mean()) > 0.005
    torch.testing.assert_close(backbone.encode_text(TEXTS), expected, atol=1e-6, rtol=0)
    got = backbone.encode_embedded(backbone.embed_tokens(ids), backbone.text_end(ids), ids)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    features, real = backbone.encode_text_tokens(TEXTS)
    assert features.shape == (4, backbone.context_length, backbone.embed_dim)
    assert torch.equal(real.sum(dim=1) - 1, backbone.text_end(ids))
    prompts = TextPrompts(backbone, ["dog", "teddy_bear"], init="a big")
    words = prompts.ids
    if mask:
        pad = backbone._tokenizer.tokenizer.pad_token_id
        mask = {"attention_mask": (words != pad).long()}
    with torch.no_grad():
        expected = own_text_features(model, input_ids=words, **mask)
    learned = prompts(backbone)
    torch.testing.assert_close(learned.detach(), expected, atol=1e-6, rtol=0)
    learned[:, 0].sum().backward()
    assert prompts.ctx.grad is not None
    assert bool((prompts.ctx.grad.abs().sum(dim=-1) > 0).all())


def test_logits_of_the_model_itself(case: tuple[str, Path, Any, Backbone]) -> None:
    kind, _, model, backbone = case
    record = backbone.logit_record
    assert record.kind == ("sigmoid" if kind.startswith("siglip") else "softmax")
    assert record.scale == backbone.logit_scale
    if record.kind == "sigmoid":
        assert record.bias == pytest.approx(float(model.logit_bias.detach()))
    else:
        assert record.bias == 0.0
    assert record.scale == pytest.approx(float(model.logit_scale.detach().exp()))


def test_the_record_of_a_picture_and_a_second_load(case: tuple[str, Path, Any, Backbone]) -> None:
    _, folder, _, backbone = case
    assert "processor_config.json" in backbone.settings.source
    again = Backbone.load(f"transformers:{folder}", like=backbone.settings.to_dict())
    assert again.fingerprint == backbone.fingerprint
    assert again.preprocess == backbone.preprocess


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_transformers("siglip", tmp_path)
    return tmp_path


def test_no_network_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    monkeypatch.setattr(socket.socket, "connect", never)
    assert Backbone.load(f"transformers:{folder}").embed_dim == 32


def test_half_precision_files_are_read_as_float32(folder: Path) -> None:
    weights = folder / "model.safetensors"
    half = {name: value.half() for name, value in load_file(weights).items()}
    save_file(half, weights, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    backbone = Backbone.load(f"transformers:{folder}")
    assert backbone.dtype == torch.float32
    assert bool(backbone.encode_text(TEXTS).isfinite().all())


def test_what_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    name = f"transformers:{folder}"

    def copy() -> Path:
        return Path(shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "x"))

    with pytest.raises(BackboneError, match="brings its weights"):
        Backbone.load(name, "openai")
    with pytest.raises(BackboneError, match="brings its own settings"):
        Backbone.load(name, like="openai")
    with pytest.raises(BackboneError, match="no such folder"):
        Backbone.load("transformers:/nowhere/at/all")
    pickled = copy()
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"model\.safetensors.*only pytorch_model\.bin"):
        Backbone.load(f"transformers:{pickled}")
    cut = copy()
    (cut / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        Backbone.load(f"transformers:{cut}")
    # transformers fills what a file lacks with random numbers, and only warns.
    partial = copy()
    state = load_file(partial / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if not k.startswith("vision_model")},
        partial / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(BackboneError, match=r"lack \d+ of the model's tensors"):
        Backbone.load(f"transformers:{partial}")
    outside = copy()
    (outside / "model.safetensors").rename(outside.parent / "w.safetensors")
    index = {"metadata": {}, "weight_map": {"logit_scale": "../w.safetensors"}}
    (outside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BackboneError, match=r"names '\.\./w\.safetensors', which is not in"):
        Backbone.load(f"transformers:{outside}")
    other = copy()
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BackboneError, match="of type 'bert'; read are clip, metaclip_2, siglip"):
        Backbone.load(f"transformers:{other}")
    bare = copy()
    for file in [*bare.glob("*processor_config.json")]:
        file.unlink()
    with pytest.raises(BackboneError, match=r"has no preprocessor_config\.json"):
        Backbone.load(f"transformers:{bare}")


def test_an_older_library_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.57.1")
    with pytest.raises(BackboneError, match=r"needs transformers 5 or newer, and 4\.57\.1 is"):
        Backbone.load(f"transformers:{folder}")


def test_a_photo_of_another_shape(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    backbone = Backbone.load(f"transformers:{folder}")
    assert backbone.preprocess.resize_mode == "squash"
    assert backbone.preprocess(Image.fromarray(noise)).shape == (3, 32, 32)
