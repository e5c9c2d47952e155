"""Some of a vision transformer's patches: the others are not seen, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.towers import open_clip_text, timm_tower

from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import BackboneError, InputError
from pvp_fast.sentences import Corpus
from pvp_fast.training.features import Sentences, label_lists
from pvp_fast.training.sampled import SampledVisualPrompts
from pvp_fast.training.visual import VisualPromptConfig, VisualPromptStage, drawn_patches

KINDS: dict[str, tuple[str | None, dict[str, Any], int]] = {
    "open_clip": (None, {}, 4),
    "class token": ("token", {}, 16),
    "registers": ("token", {"reg_tokens": 3}, 16),
    "SigLIP": ("map", {"class_token": False, "embed_dim": 16}, 16),
    "average": ("avg", {"class_token": False, "global_pool": "avg", "fc_norm": False}, 16),
}


@pytest.fixture(scope="module", params=KINDS)
def tower(request: pytest.FixtureRequest) -> Backbone:
    pool, options, count = KINDS[request.param]
    proj = None if pool == "token" else "none" if pool == "map" else "linear"
    made = open_clip_text() if pool is None else timm_tower("vit", pool, proj, **options)
    assert made.patches == count
    return made


def picture(backbone: Backbone) -> torch.Tensor:
    return torch.randn(2, 3, *backbone.image_size, generator=torch.Generator().manual_seed(0))


def test_all_patches_are_the_image(tower: Backbone) -> None:
    x = picture(tower)
    whole = tower.encode_image(x)
    every = tower.encode_image(x, patches=torch.arange(tower.patches))
    torch.testing.assert_close(every, whole, atol=1e-6, rtol=0)
    assert torch.equal(tower.encode_image(x), whole)  # the tower is as it was


def test_a_patch_left_out_has_no_say(tower: Backbone) -> None:
    x = picture(tower).requires_grad_()
    kept = torch.tensor([0, tower.patches - 1])
    z = tower.encode_image(x, patches=kept)
    (gradient,) = torch.autograd.grad(z[:, 0].sum(), x)
    side = round(tower.patches**0.5)
    size = tower.image_size[0] // side
    seen = gradient.abs().sum(1).unflatten(1, (side, size)).unflatten(3, (side, size)).sum((2, 4))
    looked = torch.zeros(tower.patches, dtype=torch.bool)
    looked[kept] = True
    assert torch.equal(seen.flatten(1) > 0, looked.expand(2, -1))


def test_the_tower_is_whole_again_after_an_error(tower: Backbone) -> None:
    x = picture(tower)
    whole = tower.encode_image(x)
    with pytest.raises((IndexError, RuntimeError)):
        tower.encode_image(x, patches=torch.tensor([tower.patches]))
    assert torch.equal(tower.encode_image(x), whole)


def test_other_towers_say_so(backbone: Backbone) -> None:
    convnext = timm_tower("convnext", "", "linear")
    assert convnext.patches == 0
    with pytest.raises(BackboneError, match="ConvNeXt cannot leave patches out"):
        convnext.encode_image(picture(convnext), patches=torch.arange(1))
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert drawn_patches(convnext, 0.5, generator) is None
    assert drawn_patches(open_clip_text(), 1.0, generator) is None
    assert torch.equal(generator.get_state(), state)  # runs without patches draw what they drew


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_the_share_is_one(share: float) -> None:
    with pytest.raises(InputError, match=r"patches=.*: give a share"):
        VisualPromptConfig(patches=share)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_step_moves_what_it_looked_at(corpus: Corpus, tmp_path: Path, sampled: bool) -> None:
    tower = timm_tower("vit", "token", None)
    x = tower.encode_text(corpus.sentences).numpy()
    data = Sentences(x, label_lists(corpus.labels), len(corpus.vocabulary))
    some_categories = 2 if sampled else 0
    config = VisualPromptConfig(
        patches=0.25, shift=0, categories_per_step=some_categories, frequencies=0.0
    )
    moved = []
    if sampled:
        some = SampledVisualPrompts(tower, data, data, config, tmp_path / "rows")
        sum(some.losses(torch.arange(4), torch.Generator().manual_seed(1)).values()).backward()
        gradient = some.optimizer.active.grad
    else:
        stage = VisualPromptStage(tower, data, data, config)
        sum(stage.losses(torch.arange(4), torch.Generator().manual_seed(1)).values()).backward()
        gradient = stage.module.prompts.learned.grad
    assert gradient is not None
    for image in gradient.flatten(0, 1):
        blocks = image.abs().sum(0).unflatten(0, (4, 8)).unflatten(2, (4, 8)).sum((1, 3)) > 0
        moved.append(blocks.flatten())
    assert all(int(blocks.sum()) == 4 for blocks in moved)  # a quarter of 16
    assert all(torch.equal(blocks, moved[0]) for blocks in moved)
