"""Regions that are tiles of an image, and the kinds of them that are told apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.artifacts import make

from pvp_fast import Artifact, Backbone
from pvp_fast.errors import BackboneError, InputError
from pvp_fast.modules.tiles import image_regions, require
from pvp_fast.training import LocalPromptConfig, TrainConfig


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.load("pocket")


def pixels(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_tile_is_an_enlarged_corner_encoded_like_an_image(backbone: Backbone) -> None:
    x = pixels(2)
    found = image_regions(backbone, x, 0.75)
    assert found.shape == (2, 4, backbone.embed_dim)
    corners = [
        x[..., :48, :48],
        x[..., :48, 16:].flip(-1),
        x[..., 16:, :48].flip(-1),
        x[..., 16:, 16:],
    ]
    for number, corner in enumerate(corners):
        enlarged = F.interpolate(corner, size=(64, 64), mode="bicubic", align_corners=False)
        torch.testing.assert_close(found[:, number], backbone.encode_image(enlarged))
    torch.testing.assert_close(image_regions(backbone, x, 0.0), backbone.encode_regions(x))
    # An image's tiles do not depend on the others of its batch.
    torch.testing.assert_close(image_regions(backbone, x[1:], 0.75), found[1:])


def test_sides_that_leave_the_middle_out_are_refused(backbone: Backbone) -> None:
    for tile in (0.4, 1.0, -0.5, float("nan")):
        with pytest.raises(InputError, match="tile"):
            image_regions(backbone, pixels(1), tile)
        with pytest.raises(InputError, match="tile"):
            LocalPromptConfig(tile=tile)


def test_only_patches_need_a_tower_that_has_them() -> None:
    class Bare:
        class model:  # noqa: N801
            class visual:  # noqa: N801
                pass

    require(Bare(), 0.75, "regions")  # type: ignore[arg-type]
    with pytest.raises(BackboneError, match="regions, but"):
        require(Bare(), 0.0, "regions")  # type: ignore[arg-type]


def test_artifacts_remember_what_their_regions_are(tmp_path: Path) -> None:
    old = make(local=True)
    assert old.head.local is not None
    old.save(tmp_path / "patches")
    loaded = Artifact.load(tmp_path / "patches").head.local
    assert loaded is not None
    assert loaded.tile == 0
    branch = dataclasses.replace(old.head.local, tile=0.7)
    new = dataclasses.replace(old, head=dataclasses.replace(old.head, local=branch))
    new.save(tmp_path / "tiles")
    kept = Artifact.load(tmp_path / "tiles").head.local
    assert kept is not None
    assert kept.tile == 0.7
    assert kept.take(torch.tensor([0])).tile == 0.7
    assert kept.extended(torch.eye(8)[:1], torch.tensor([0.2])).tile == 0.7
    assert new.version != old.version


def test_without_the_gap_the_regions_are_patches_again() -> None:
    assert TrainConfig().local_prompts.tile > 0
    assert TrainConfig().without_gap().local_prompts.tile == 0
