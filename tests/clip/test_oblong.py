"""Towers whose input is no square, and pictures with bars: from the photo to learned images."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.image_files import encoded, photo_turned, scene
from support.towers import TEXT, VIT, seeded, timm_entry, timm_tower

from pvp_fast.clip.backbone import Backbone
from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.loaders import Augment, ImageStream
from pvp_fast.modules.prompts import PseudoVisualPrompts
from pvp_fast.training.visual import Translation

SIDES = (32, 48)  # two rows of three patches
MODES = ("shortest", "longest", "squash")


def saved(folder: Path, resize_mode: str) -> str:
    """A CLIP for oblong pictures as open_clip pushes one: its name."""
    config = {"embed_dim": 16, "vision_cfg": {**VIT, "image_size": SIDES}, "text_cfg": TEXT}
    model = seeded(lambda: open_clip.CLIP(**config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    picture = {"mean": [0.4] * 3, "std": [0.3] * 3, "resize_mode": resize_mode, "fill_color": 90}
    data = {"model_cfg": config, "preprocess_cfg": picture}
    (folder / "open_clip_config.json").write_text(json.dumps(data), encoding="utf-8")
    return f"local-dir:{folder}"


@pytest.mark.parametrize("resize_mode", MODES)
def test_pictures_and_features_are_open_clips(tmp_path: Path, resize_mode: str) -> None:
    name = saved(tmp_path, resize_mode)
    model, _, transform = open_clip.create_model_and_transforms(name)
    backbone = Backbone.load(name)
    assert backbone.image_size == SIDES
    assert backbone.preprocess == Preprocess(
        SIDES, (0.4,) * 3, (0.3,) * 3, resize_mode=resize_mode, fill=90
    )
    for width, height in ((200, 90), (90, 200), (48, 32)):
        photo = Image.fromarray(np.asarray(scene(width, height)))
        pixels = backbone.preprocess(photo)
        assert pixels.shape == (3, *SIDES)
        assert torch.equal(pixels, transform(photo))
        with torch.no_grad():
            own = model.eval().encode_image(pixels[None], normalize=True)
        torch.testing.assert_close(backbone.encode_image(pixels[None]), own)
    record = backbone.settings.to_dict()
    assert Backbone.load(name, like=record).preprocess == backbone.preprocess


def test_regions_lie_row_by_row(tmp_path: Path) -> None:
    backbone = Backbone.load(saved(tmp_path, "squash"))
    pixels = torch.randn(1, 3, *SIDES, generator=torch.Generator().manual_seed(0))
    for row in range(2):
        for column in range(3):
            other = pixels.clone()
            other[..., 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 2
            moved = backbone.encode_regions(other) - backbone.encode_regions(pixels)
            assert moved.shape == (1, 6, 16)
            assert int(moved.norm(dim=-1).argmax()) == 3 * row + column


def test_a_convolutional_trunk_takes_any_size() -> None:
    backbone = timm_tower("convnext", "", "linear", size=(64, 96))
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    assert backbone.encode_regions(pixels).shape == (2, 6, 16)


def test_a_trunk_with_positions_keeps_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with timm_entry("vit", {"class_token": False, "global_pool": "avg", "img_size": SIDES}) as kind:
        config: dict[str, Any] = {
            "embed_dim": 16, "text_cfg": TEXT, "custom_text": True,
            "vision_cfg": {"timm_model_name": kind, "timm_pool": "avg", "image_size": 40},
        }  # fmt: skip
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "odd", config)
        with pytest.warns(UserWarning, match=r"says \(40, 40\) .* those of \(32, 48\)"):
            backbone = Backbone.load("odd", "random")
    assert backbone.image_size == SIDES
    assert backbone.encode_regions(torch.zeros(1, 3, *SIDES)).shape == (1, 24, 16)


@pytest.mark.parametrize("frequencies", [0.0, 0.5])
def test_learned_images_have_the_towers_shape(tmp_path: Path, frequencies: float) -> None:
    backbone = Backbone.load(saved(tmp_path, "squash"))
    prompts = PseudoVisualPrompts(2, backbone.image_size, frequencies=frequencies)
    prompts(backbone)[..., 0].sum().backward()
    assert prompts.learned.grad is not None
    sides = [round(side * (frequencies or 1)) for side in SIDES]
    assert prompts.learned.grad.shape == (2, 1, 3, *sides)
    moved = Translation(4, 2, -3)(prompts.pixels)
    assert torch.equal(moved[..., :30, 3:], prompts.pixels[..., 2:, :45])


@pytest.mark.parametrize("backend", ["torch", "dali"])
@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("resize_mode", MODES)
def test_the_loader_has_the_same_pixels(resize_mode: str, mode: str, backend: Any) -> None:
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    preprocess = Preprocess(SIDES, resize_mode=resize_mode, fill=90)
    photos = {"wide": scene(320, 200), "tall": scene(150, 330)}
    turned = [
        (f"{name} {number}", photo_turned(photo, number))
        for name, photo in photos.items()
        for number in (1, 3, 6)
    ]
    with ImageStream(turned, preprocess, 7, backend=backend, mode=mode) as stream:
        (batch,) = stream
    scale = 255 * torch.tensor(preprocess.std).view(3, 1, 1)
    for key, pixels in zip(batch.keys, batch.pixels, strict=True):
        expected = preprocess(photos[key.split()[0]])
        gap = ((pixels - expected) * scale).abs().mean()
        assert gap < (3 if mode == "exact" else 16), key


@pytest.mark.parametrize(("width", "height"), [(47, 64), (95, 64), (96, 62), (64, 42), (1, 33)])
def test_a_bar_of_one_pixel_has_its_grey(width: int, height: int) -> None:
    """Half of it is none at the left, and all of it is at the right."""
    preprocess = Preprocess(SIDES, resize_mode="longest", fill=90)
    data = encoded(scene(width, height))
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    with ImageStream([("photo", data)], preprocess, 1, backend="torch") as stream:
        (batch,) = stream
    theirs = open_clip.image_transform(
        SIDES, is_train=False, resize_mode="longest", fill_color=90,
        mean=preprocess.mean, std=preprocess.std,
    )  # fmt: skip
    assert torch.equal(preprocess(photo), theirs(photo))
    assert (batch.pixels[0] - preprocess(photo)).abs().mean() < 0.02


def test_views_fill_the_whole_input() -> None:
    upright, on_its_side = encoded(scene(320, 200)), photo_turned(scene(320, 200), 6)
    pixels = []
    for data in (upright, on_its_side):
        stream = ImageStream(
            [("a", data)], Preprocess(SIDES), augment=Augment(scale=(0.3, 0.5)), seed=1
        )
        pixels.append(next(iter(stream)).pixels[0])
    assert pixels[0].shape == (3, *SIDES)
    assert (pixels[0] - pixels[1]).abs().mean() < 0.05
