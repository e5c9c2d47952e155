"""Weights from a file get the picture and the activation that they were trained with."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory
from open_clip import pretrained as published
from PIL import Image
from safetensors.torch import load_file, save_file
from support.image_files import exif_block, scene
from support.towers import TEXT, VIT

from pvp_fast.clip import hub
from pvp_fast.clip.backbone import Backbone
from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.clip.settings import WeightSettings, settings_for_file, settings_of_tag
from pvp_fast.errors import BackboneError

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize_mode": "squash"}
ZERO = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkpoint of the architecture "tiny", whose published weights a test may choose."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", CONFIG)
    model = open_clip.create_model("tiny")
    path = tmp_path / "weights" / "tiny.safetensors"
    path.parent.mkdir()
    save_file(model.state_dict(), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield path


def publish(monkeypatch: pytest.MonkeyPatch, name: str = "tiny", **tags: dict[str, Any]) -> None:
    entries = {
        tag: {"url": "https://nowhere.invalid/x.pt", **values} for tag, values in tags.items()
    }
    monkeypatch.setitem(published._PRETRAINED, name, entries)


def test_a_file_gets_what_published_weights_share(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, a=HALF, b=HALF)
    backbone = Backbone.load("tiny", str(weights))
    assert backbone.preprocess == Preprocess(32, (0.5,) * 3, (0.5,) * 3, "bicubic", "squash")
    assert "2 of 2 published weights of tiny" in backbone.settings.source
    assert Backbone.load("tiny", "random").preprocess == backbone.preprocess
    # What a wide photo becomes is squashed and centred at 0.5, as open_clip's own transform does.
    photo = Image.effect_noise((90, 40), 80).convert("RGB")
    expected = open_clip.image_transform(
        32, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash"
    )(photo)
    assert torch.equal(backbone.preprocess(photo), expected)


def test_where_published_weights_differ_the_file_has_to_say(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, a=HALF, b=ZERO, c=HALF)
    with pytest.raises(BackboneError, match=r"like= \(--like\).*a, c \(mean 0.5/.*squash.*; b \("):
        Backbone.load("tiny", str(weights))
    found = Backbone.load("tiny", str(weights), like="b")
    assert found.preprocess == Preprocess(32, (0.0,) * 3, (1.0,) * 3, "bilinear", "shortest")
    assert found.settings.source == "as tiny, b"
    with pytest.raises(BackboneError, match="like='z' is no tag of 'tiny'; there are a, b, c"):
        Backbone.load("tiny", str(weights), like="z")
    # Untrained weights have no right picture: the most common one.
    assert Backbone.load("tiny", "random").preprocess.resize_mode == "squash"
    # The record in an artifact settles it as well.
    again = Backbone.load("tiny", str(weights), like=found.settings.to_dict())
    assert again.preprocess == found.preprocess
    assert again.settings == found.settings
    assert again.fingerprint == found.fingerprint


def test_nothing_published_is_clips_default_and_says_so(weights: Path) -> None:
    found = Backbone.load("tiny", str(weights))
    assert found.preprocess == Preprocess(32)
    assert "no weights of tiny are published" in found.settings.source


SIGLIP_JSON = {
    "image_processor_type": "SiglipImageProcessor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "size": {"height": 224, "width": 224},
}
CLIP_JSON = {
    "image_mean": [0.4, 0.4, 0.4],
    "image_std": [0.2, 0.2, 0.2],
    "resample": 3,
    "do_center_crop": True,
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
}


@pytest.mark.parametrize(
    ("file", "data", "expected"),
    [
        (
            "open_clip_config.json",
            {"model_cfg": CONFIG, "preprocess_cfg": {**HALF, "interpolation": "bilinear"}},
            Preprocess(32, (0.5,) * 3, (0.5,) * 3, "bilinear", "squash"),
        ),
        ("open_clip_config.json", {"model_cfg": CONFIG}, Preprocess(32)),
        (
            "preprocessor_config.json",
            SIGLIP_JSON,
            Preprocess(32, (0.5,) * 3, (0.5,) * 3, "bilinear", "squash"),
        ),
        (
            "preprocessor_config.json",
            CLIP_JSON,
            Preprocess(32, (0.4,) * 3, (0.2,) * 3, "bicubic", "shortest"),
        ),
        (
            "preprocessor_config.json",
            {**SIGLIP_JSON, "do_normalize": False, "size": 224},
            Preprocess(32, (0.0,) * 3, (1.0,) * 3, "bilinear", "shortest"),
        ),
        (
            "preprocessor_config.json",
            {**CLIP_JSON, "size": {"height": 224, "width": 224}},  # as in Chinese-CLIP
            Preprocess(32, (0.4,) * 3, (0.2,) * 3, "bicubic", "squash"),
        ),
        # Pixels from 0 to 2, and unscaled ones.
        (
            "preprocessor_config.json",
            {**SIGLIP_JSON, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3},
            Preprocess(32, (0.5,) * 3, (0.25,) * 3, "bilinear", "squash"),
        ),
        (
            "preprocessor_config.json",
            {**SIGLIP_JSON, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51] * 3},
            Preprocess(32, (0.5,) * 3, (0.2,) * 3, "bilinear", "squash"),
        ),
        (
            "preprocessor_config.json",
            {**SIGLIP_JSON, "do_rescale": False, "do_normalize": False},
            Preprocess(32, (0.0,) * 3, (1 / 255,) * 3, "bilinear", "squash"),
        ),
        (
            "preprocessor_config.json",
            {**SIGLIP_JSON, "rescale_factor": 0.00392156862745098},
            Preprocess(32, (0.5,) * 3, (0.5,) * 3, "bilinear", "squash"),
        ),
        (
            "processor_config.json",
            {"processor_class": "SiglipProcessor", "feature_extractor": SIGLIP_JSON},
            Preprocess(32, (0.5,) * 3, (0.5,) * 3, "bilinear", "squash"),
        ),
    ],
)
def test_a_configuration_beside_the_weights_decides(
    weights: Path, monkeypatch: pytest.MonkeyPatch, file: str, data: Any, expected: Preprocess
) -> None:
    publish(monkeypatch, a=HALF, b=ZERO)  # they differ, and need not be asked
    (weights.parent / file).write_text(json.dumps(data), encoding="utf-8")
    found = Backbone.load("tiny", str(weights))
    assert found.preprocess == expected
    assert file in found.settings.source
    # The caller knows best.
    assert Backbone.load("tiny", str(weights), like="b").preprocess.interpolation == "bilinear"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({**CLIP_JSON, "size": {"shortest_edge": 256}}),
        json.dumps({**SIGLIP_JSON, "size": {"height": 224, "width": 448}}),
        "",
        "[]",
        '{"image_mean": [0.5], "image_std": [1, 1, 1]}',
        '{"resample": 0}',
        json.dumps({**CLIP_JSON, "size": {"longest_edge": 224}}),
        json.dumps({**SIGLIP_JSON, "image_mean": None}),
        json.dumps({**SIGLIP_JSON, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}),
        json.dumps({**SIGLIP_JSON, "image_std": [0, 0, 0]}),
        json.dumps({**SIGLIP_JSON, "image_mean": [float("nan")] * 3}),
        "{}",
        "\\x",
    ],
)
def test_a_broken_configuration_is_named(weights: Path, text: str) -> None:
    (weights.parent / "preprocessor_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(BackboneError, match=r"preprocessor_config\.json"):
        Backbone.load("tiny", str(weights))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_configuration_that_an_editor_saved_is_read(weights: Path, encoding: str) -> None:
    file = weights.parent / "preprocessor_config.json"
    file.write_text(json.dumps(SIGLIP_JSON), encoding=encoding)
    assert Backbone.load("tiny", str(weights)).preprocess.resize_mode == "squash"


@pytest.mark.parametrize("change", [{"embed_dim": 512}, {"vision_cfg": {"layers": 12}}])
def test_a_configuration_of_another_architecture_in_the_folder_is_passed_over(
    weights: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where weights of several lie beside each other."""
    publish(monkeypatch, a=ZERO)
    data = {"model_cfg": {**CONFIG, **change}, "preprocess_cfg": HALF}
    (weights.parent / "open_clip_config.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.warns(UserWarning, match="another architecture than tiny"):
        found = Backbone.load("tiny", str(weights))
    assert found.preprocess == Preprocess(32, (0.0,) * 3, (1.0,) * 3, "bilinear", "shortest")


def test_a_processor_file_without_the_image_processor_says_nothing(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, a=ZERO)
    (weights.parent / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert "1 of 1 published" in Backbone.load("tiny", str(weights)).settings.source


def test_a_configuration_is_that_of_the_folder_where_weights_were_named(
    weights: Path, tmp_path: Path
) -> None:
    """A hub's cache links from the folder with the names to one with the contents."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    weights.rename(tmp_path / "blobs" / "0123abcd")
    link = tmp_path / "snapshot" / "open_clip_model.safetensors"
    link.symlink_to("../blobs/0123abcd")
    data = {"model_cfg": CONFIG, "preprocess_cfg": HALF}
    (link.parent / "open_clip_config.json").write_text(json.dumps(data), encoding="utf-8")
    assert Backbone.load("tiny", str(link)).preprocess.resize_mode == "squash"


def prefixed(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("file", "make", "told"),
    [
        (
            "w.pt",
            lambda t: prefixed(t, "_orig_mod."),
            r"begin with '_orig_mod\.': save \{name\.rpa",
        ),
        ("w.pt", lambda t: prefixed(t, "module._orig_mod."), "begin with '_orig_mod"),
        ("w.ckpt", lambda t: {"state_dict": prefixed(t, "net.clip.")}, r"begin with 'net\.clip\.'"),
        ("w.pt", lambda t: {"model_state_dict": t, "epoch": 3}, r"save file\['model_state_dict'\]"),
        ("w.pt", lambda t: {**t, "head.weight": t["visual.proj"]}, r"besides 1 weights, head\.we"),
        ("w.pt", lambda t: {k: t[k] for k in list(t)[5:]}, "it lacks 5 weights, .* among them"),
        (
            "w.pt",
            lambda t: {**t, "visual.proj": torch.zeros(32, 9)},
            r"\(32, 9\) where it is \(32, 16",
        ),
        (
            "w.pt",
            lambda t: {**t, "visual.proj": t["visual.proj"] * torch.nan},
            "or NaN, visual.proj",
        ),
        ("w.pt", lambda t: {"state_dict": t, "args": Preprocess(32)}, "Python objects besides"),
        (
            "w.safetensors",
            lambda t: b"version https://git-lfs.github.com/spec/v1\n",
            "git lfs pull",
        ),
        (
            "w.pt",
            lambda t: b"version https://git-lfs.github.com/spec/v1\noid sha256:",
            "git lfs pull",
        ),
        ("w.bin", lambda t: b"\n<!DOCTYPE html><title>404</title>", "web page"),
        ("w.safetensors", lambda t: b"", "the file is empty"),
        ("w.safetensors", lambda t: t, r"torch file by its content: give it the ending \.pt"),
    ],
)
def test_what_ails_a_file_is_one_sentence(
    weights: Path, tmp_path: Path, file: str, make: Callable[[Any], Any], told: str
) -> None:
    made = make(load_file(weights))
    if isinstance(made, bytes):
        (tmp_path / file).write_bytes(made)
    else:
        torch.save(made, tmp_path / file)
    with pytest.raises(BackboneError, match=told) as caught:
        Backbone.load("tiny", str(tmp_path / file))
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_a_safetensors_file_of_another_ending_is_told(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"give it the ending \.safetensors"):
        Backbone.load("tiny", str(weights.rename(tmp_path / "w.bin")))


def test_pictures_that_are_not_supported_are_named(tmp_path: Path) -> None:
    config = {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT}
    model = open_clip.CLIP(**config)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    picture = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "widest"}
    data = {"model_cfg": config, "preprocess_cfg": picture}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BackboneError, match="'widest' is not supported; shortest, longest, squash"):
        Backbone.load(f"local-dir:{tmp_path}")


def test_every_architecture_gets_the_picture_its_tags_share(tmp_path: Path) -> None:
    file, asked, other = tmp_path / "x.safetensors", [], 0
    for name in open_clip.list_models():
        tags = open_clip.list_pretrained_tags_by_model(name)
        pictures = {settings_of_tag(name, tag).picture for tag in tags}
        if len(pictures) > 1:
            asked.append(name)
            with pytest.raises(BackboneError, match="like="):
                settings_for_file(name, file, None)
            for tag in tags:
                found = settings_for_file(name, file, tag)
                assert found.picture == settings_of_tag(name, tag).picture
        elif pictures:
            found = settings_for_file(name, file, None)
            assert {found.picture} == pictures
            assert settings_for_file(name, None, None).picture == found.picture
            other += found.picture != WeightSettings().picture
    assert "ViT-L-14" in asked
    assert other > 40


def test_a_file_with_a_quickgelu_twin_warns_and_like_settles_it(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, openai={"quick_gelu": True}, laion={})
    with pytest.warns(UserWarning, match=r"QuickGELU.*like='openai' \(--like openai\)"):
        plain = Backbone.load("tiny", str(weights))
    quick = Backbone.load("tiny", str(weights), like="openai")  # no warning: they are errors here
    other = Backbone.load("tiny", str(weights), like="laion")
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.encode_image(x), other.encode_image(x))
    assert not torch.equal(plain.encode_image(x), quick.encode_image(x))
    kinds = {type(m).__name__ for m in quick.model.modules()}
    assert "QuickGELU" in kinds
    # An artifact keeps it.
    again = Backbone.load("tiny", str(weights), like=quick.settings.to_dict())
    assert torch.equal(again.encode_image(x), quick.encode_image(x))
    assert quick.fingerprint == again.fingerprint != plain.fingerprint


def test_a_twin_without_tags_is_offered_by_name(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-quickgelu", {**CONFIG, "quick_gelu": True})
    with pytest.warns(UserWarning, match="the name 'tiny-quickgelu'"):
        Backbone.load("tiny", str(weights))
    quick = Backbone.load("tiny-quickgelu", str(weights))
    assert "QuickGELU" in {type(m).__name__ for m in quick.model.modules()}


def test_a_configuration_beside_the_weights_tells_the_activation(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, openai={"quick_gelu": True}, laion={})
    config = {"model_cfg": {**CONFIG, "quick_gelu": True}, "preprocess_cfg": {}}
    path = weights.parent / "open_clip_config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    assert Backbone.load("tiny", str(weights)).settings.quick_gelu is True
    path.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}), encoding="utf-8")
    assert Backbone.load("tiny", str(weights)).settings.quick_gelu is False


def test_like_is_for_files(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="one set of weights"):
        Backbone.load("pocket", like="openai")
    with pytest.raises(BackboneError, match="the tag 'openai' has its own settings"):
        Backbone.load("RN50", "openai", like="yfcc15m")
    with pytest.raises(BackboneError, match="brings its own settings"):
        Backbone.load(f"local-dir:{tmp_path}", like="openai")


def test_a_torchscript_archive_is_refused_with_advice_that_works(
    weights: Path, tmp_path: Path
) -> None:
    model = open_clip.create_model("tiny", pretrained=str(weights)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 24).long())
        traced = torch.jit.trace(model, example, check_trace=False)
        archive = tmp_path / "model.pt"
        traced.save(archive)
        with pytest.raises(BackboneError, match="TorchScript archive") as caught:
            Backbone.load("tiny", str(archive))
        advice = str(caught.value).split("what this writes: ")[1]
        script = advice.replace("FILE", "str(archive)").replace("'w.pt'", "str(tmp_path / 'w.pt')")
        exec(script, {"torch": torch, "archive": archive, "tmp_path": tmp_path})
    found = Backbone.load("tiny", str(tmp_path / "w.pt"))
    assert found.fingerprint == Backbone.load("tiny", str(weights)).fingerprint


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "roberta-ViT-B-32", "ViT-S-16-CLIPA"])
def test_a_tokenizer_out_of_reach_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    if name not in open_clip.list_models():
        name = next(n for n in open_clip.list_models() if "CLIPA" in n)
    asked: list[str] = []
    monkeypatch.setattr(hub, "_reachable", lambda address: asked.append(address) or False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    before = constants.HF_HUB_OFFLINE
    with pytest.raises(BackboneError, match=r"its tokenizer '.*' is not in the local cache"):
        Backbone.load(name, "random")
    assert before == constants.HF_HUB_OFFLINE
    assert asked or before


@pytest.mark.parametrize(
    ("name", "tag"), [("RN50", "openai"), ("ViT-B-32", "laion2b_s34b_b79k"), ("hf-hub:a/b", None)]
)
def test_weights_out_of_reach_are_one_sentence(
    name: str, tag: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(hub, "_reachable", lambda address: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match="is not in the local cache and its hub cannot be"):
        Backbone.load(name, tag)


def test_the_network_is_not_asked_where_nothing_comes_from_it(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(address: str) -> bool:
        raise AssertionError(address)

    monkeypatch.setattr(hub, "_reachable", never)
    Backbone.load("tiny", str(weights))
    Backbone.load("tiny", "random")
    config = {"model_cfg": CONFIG, "preprocess_cfg": HALF}
    (weights.parent / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    weights.rename(weights.parent / "open_clip_model.safetensors")
    found = Backbone.load(f"local-dir:{weights.parent}")
    assert found.preprocess.resize_mode == "squash"
    assert found.settings.source == f"the configuration of local-dir:{weights.parent}"


def test_a_server_that_does_not_answer_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SECONDS", 0.5)
    for variable in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    assert not hub._reachable("https://nowhere.invalid")
    assert not hub._reachable("http://127.0.0.1:1")


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGBA", (40, 30), (255, 0, 0, 0)),
        Image.new("LA", (40, 30), (10, 0)),
        Image.frombytes("I;16", (40, 30), bytes(range(240)) * 10),
        Image.new("P", (40, 30), 3),
    ],
    ids=["transparent", "gray with alpha", "16 bit", "palette"],
)
def test_preprocess_is_the_streams_picture(image: Image.Image, tmp_path: Path) -> None:
    from pvp_fast.loaders import ImageStream, ItemSource

    path = tmp_path / "x.png"
    image.save(path)
    preprocess = Preprocess(16)
    with ImageStream(ItemSource([("x", path)]), preprocess, 1, torch.device("cpu")) as stream:
        (batch,) = stream
    with Image.open(path) as opened:
        assert torch.equal(preprocess(opened), batch.pixels[0])


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("x.jpg", "CMYK", {}),
        ("x.jpg", "YCbCr", {"progressive": True}),
        ("x.tif", "LAB", {}),
        ("x.tif", "F", {}),
        ("x.png", "1", {}),
        ("x.png", "P", {"transparency": bytes(range(256))}),
        ("x.png", "RGB", {"transparency": (0, 0, 0)}),
        ("x.webp", "LA", {"lossless": True}),
        ("x.jpg", "RGB", {"exif": exif_block(6)}),
        ("x.png", "RGB", {"exif": exif_block(8)[6:]}),
        ("x.webp", "RGB", {"exif": exif_block(5)}),
    ],
)
def test_preprocess_is_the_streams_picture_in_every_mode(
    tmp_path: Path, name: str, mode: str, options: dict[str, Any]
) -> None:
    from pvp_fast.loaders import ImageStream, ItemSource

    path, preprocess = tmp_path / name, Preprocess(16)
    scene(90, 70).convert(mode).save(path, **options)
    with ImageStream(ItemSource([("x", path)]), preprocess, 1, torch.device("cpu")) as stream:
        (batch,) = stream
    with Image.open(path) as opened:
        found = preprocess.denormalize(preprocess(opened))
    gap = (found - preprocess.denormalize(batch.pixels[0])).abs().max() * 255
    assert gap < 1.01  # one level: the stream resizes in other arithmetic
