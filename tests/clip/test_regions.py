"""Region features against attention forced to the identity inside open_clip's own forward."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from torch.nn import functional as F

from pvp_fast.clip.backbone import Backbone, Preprocess
from pvp_fast.clip.regions import region_features, region_support
from pvp_fast.errors import BackboneError

VIT = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def make(vision: dict[str, Any]) -> Backbone:
    state = torch.get_rng_state()
    torch.manual_seed(5)
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=TEXT)
    torch.set_rng_state(state)
    tokenizer = open_clip.SimpleTokenizer(context_length=8)
    return Backbone(model, tokenizer, Preprocess(vision["image_size"]))


def pixels(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def with_identity_attention(visual: Any, x: torch.Tensor) -> torch.Tensor:
    """Every token's output when the last block may attend to the token itself only."""
    x = visual._embeds(x)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    only_self = torch.full((x.shape[1], x.shape[1]), float("-inf")).fill_diagonal_(0.0)
    x = visual.transformer.resblocks[-1](x, attn_mask=only_self)
    return visual.ln_post(x[:, 1:]) @ visual.proj


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"ls_init_value": 0.3},
        {"scale_attn_inner": True, "scale_attn": True, "scale_fc": True},
        {"no_ln_pre": True, "pool_type": "avg"},
        {"layers": 1},
    ],
)
def test_vit_regions_are_the_last_block_with_identity_attention(extra: dict[str, Any]) -> None:
    backbone = make({**VIT, **extra})
    expected = F.normalize(with_identity_attention(backbone.model.visual, pixels(32)), dim=-1)
    got = backbone.encode_regions(pixels(32))
    assert backbone.has_regions
    assert got.shape == (2, 16, 16)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_head_scale_enters_per_head() -> None:
    backbone = make({**VIT, "scale_heads": True})
    attention = backbone.model.visual.transformer.resblocks[-1].attn
    with torch.no_grad():
        attention.head_scale.copy_(torch.tensor([0.5, 2.0]).view(2, 1, 1))
    expected = F.normalize(with_identity_attention(backbone.model.visual, pixels(32)), dim=-1)
    got = backbone.encode_regions(pixels(32))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_resnet_regions_are_the_value_path_of_the_attention_pool() -> None:
    backbone = make(RESNET)
    visual = backbone.model.visual
    x = pixels(64)
    last = visual.forward_intermediates(x, indices=1, intermediates_only=True)
    (grid,) = last["image_intermediates"]
    got = backbone.encode_regions(x)
    assert backbone.has_regions
    assert got.shape == (2, 4, 16)
    for place, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        value = visual.attnpool.v_proj(grid[:, :, row, column])
        expected = F.normalize(visual.attnpool.c_proj(value), dim=-1)
        torch.testing.assert_close(got[:, place], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("vision", [VIT, RESNET])
def test_gradients_reach_the_pixels_and_no_weight(vision: dict[str, Any]) -> None:
    backbone = make(vision)
    x = pixels(vision["image_size"]).requires_grad_()
    backbone.encode_regions(x)[..., 0].sum().backward()
    assert x.grad is not None
    assert bool((x.grad.abs().sum(dim=(1, 2, 3)) > 0).all())
    assert all(p.grad is None for p in backbone.parameters())


def test_other_towers_say_so() -> None:
    backbone = make({**VIT, "attentional_pool": "parallel"})
    assert not backbone.has_regions
    with pytest.raises(BackboneError, match="two attentional pools"):
        backbone.encode_regions(pixels(32))
    with pytest.raises(BackboneError, match="Linear"):
        region_features(torch.nn.Linear(2, 2), pixels(32))
    assert "ModifiedResNet" in str(region_support(torch.nn.Linear(2, 2)))
