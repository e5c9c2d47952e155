"""Region features of timm towers agree with the global feature where the mathematics says so."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.towers import coca, timm_tower
from torch.nn import functional as F

from pvp_fast.clip.backbone import Backbone
from pvp_fast.clip.regions import region_features, region_support
from pvp_fast.errors import BackboneError

GAP = {"global_pool": "avg", "fc_norm": False}  # a norm behind the average is not linear
KINDS: dict[str, tuple[str, str, str | None, dict[str, Any], int]] = {
    # kind, pool, projection, options, regions
    "SigLIP": ("vit", "map", "none", {"class_token": False, "embed_dim": 16}, 16),
    "PE-Core with a class token": ("eva", "map", None, {"attn_pool_num_heads": 2}, 16),
    "DeiT": ("vit", "token", None, {}, 16),
    "registers": ("vit", "token", None, {"reg_tokens": 3}, 16),
    "EVA02": ("eva", "token", None, {"use_rot_pos_emb": True, "swiglu_mlp": True}, 16),
    "EVA02-E": ("eva", "token", None, {"use_post_norm": True}, 16),
    "average and registers": ("vit", "avg", "linear", {"reg_tokens": 2}, 16),
    "average alone": ("vit", "avg", "linear", {"class_token": False, **GAP}, 16),
    # Variable sizes ("NaFlex") are read at the one that the model is built for.
    "SigLIP 2 NaFlex": ("naflex", "map", "none", {"embed_dim": 16}, 16),
    "NaFlex by average": ("naflex", "avg", "linear", {"fc_norm": False}, 16),
    "ConvNeXt": ("convnext", "", "linear", {}, 1),
    "ConvNeXt, MLP": ("convnext", "", "mlp", {}, 1),
    "Swin": ("swin", "", "linear", {"img_size": 64}, 4),
    "FastViT": ("fastvit", "avg", None, {}, 4),
}
SIZES = {"FastViT": 64, "Swin": 64}
BY_CLASS_TOKEN = [name for name, kind in KINDS.items() if kind[1] == "token"]
BY_HEAD = [name for name in KINDS if name not in BY_CLASS_TOKEN]


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> tuple[str, Backbone]:
    kind, pool, proj, options, _ = KINDS[request.param]
    backbone = timm_tower(kind, pool, proj, size=SIZES.get(request.param, 32), **options)
    return request.param, backbone


def pixels(backbone: Backbone, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *backbone.image_size, generator=generator)


@pytest.mark.parametrize("case", KINDS, indirect=True)
def test_shape_units_gradient(case: tuple[str, Backbone]) -> None:
    name, backbone = case
    assert backbone.has_regions
    x = pixels(backbone).requires_grad_()
    got = backbone.encode_regions(x)
    assert got.shape == (2, KINDS[name][4], 16)
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(got.shape[:2]))
    got[..., 0].sum().backward()
    assert x.grad is not None
    assert bool((x.grad.abs().sum(dim=(1, 2, 3)) > 0).all())
    assert all(p.grad is None for p in backbone.parameters())
    with torch.no_grad():  # a picture's regions do not hang on its neighbours in the batch
        torch.testing.assert_close(backbone.encode_regions(x[:1]), got[:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", BY_HEAD, indirect=True)
def test_regions_give_the_global_feature_where_the_head_only_averages(
    case: tuple[str, Backbone],
) -> None:
    name, backbone = case
    visual: Any = copy.deepcopy(backbone.model.visual)
    x = pixels(backbone)
    with torch.no_grad():
        if KINDS[name][1] == "map":  # no query: attention is uniform; no MLP: nothing mixes after
            visual.trunk.attn_pool.q.weight.zero_()
            visual.trunk.attn_pool.q.bias.zero_()
            visual.trunk.attn_pool.mlp = None
        regions = region_features(visual, x)
        places = regions.shape[1]
        if visual.trunk.__class__.__name__ == "Eva":  # PE-Core's pool reads the class token too
            tokens = visual.trunk.forward_features(x)[:, :1]
            own = visual.head(visual.trunk.forward_head(tokens))
            expected = (regions.sum(dim=1) + own) / (places + 1)
        elif name == "ConvNeXt, MLP":
            assert places == 1  # behind an MLP only one region alone is the whole
            expected = regions[:, 0]
        else:
            expected = regions.mean(dim=1)
        torch.testing.assert_close(visual(x), expected, atol=2e-5, rtol=1e-5)
        if places > 1:
            assert float(F.normalize(regions, dim=-1).std(dim=1).mean()) > 1e-3


@pytest.mark.parametrize("case", BY_CLASS_TOKEN, indirect=True)
def test_class_token_towers_attend_to_themselves_in_the_last_block(
    case: tuple[str, Backbone],
) -> None:
    """The whole tower with the last attention of each token cut to that token."""
    visual: Any = case[1].model.visual
    x, last = pixels(case[1]), visual.trunk.blocks[-1]
    inside: list[torch.Tensor] = []

    def alone(module: torch.nn.Module, given: tuple[Any, ...], kwargs: Any, out: Any) -> Any:
        tokens = given[0]
        inside.append(tokens)
        mask = torch.full((tokens.shape[1],) * 2, float("-inf")).fill_diagonal_(0.0)
        kwargs = {**kwargs, "attn_mask": mask[None, None].to(tokens.dtype)}
        return type(module).forward(module, *given, **kwargs)

    hook = last.attn.register_forward_hook(alone, with_kwargs=True)
    try:
        with torch.no_grad():
            tokens = visual.trunk.forward_features(x)
    finally:
        hook.remove()
    assert len(inside) == 1
    prefix = visual.trunk.num_prefix_tokens
    with torch.no_grad():
        expected = visual.head(visual.trunk.head(visual.trunk.fc_norm(tokens[:, prefix:])))
        got = region_features(visual, x)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


def test_cocas_regions_average_to_its_feature_under_uniform_attention() -> None:
    backbone = coca()
    visual: Any = backbone.model.visual
    x = pixels(backbone)
    with torch.no_grad():
        one = region_features(visual, x)
        assert one.shape == (2, 4, 16)
        visual.attn_pool.ln_q.weight.zero_()
        visual.attn_pool.ln_q.bias.zero_()
        bias = visual.attn_pool.attn.in_proj_bias
        bias[: len(bias) // 3].zero_()
        # The regions do not hang on the queries, the global feature is now an average of values.
        assert torch.equal(region_features(visual, x), one)
        visual.ln_post = torch.nn.Identity()
        values = region_features(visual, x)
        pool = visual.attn_pool
        tokens = visual.transformer(visual._embeds(x))[:, :1]
        key = pool.ln_k(tokens)
        query = pool.query[:1].expand(2, 1, -1)
        own = pool.attn(query, key, key, need_weights=False)[0] @ visual.proj
        expected = (values.sum(dim=1) + own[:, 0]) / 5
        torch.testing.assert_close(visual(x)[0], expected, atol=1e-5, rtol=1e-5)


def test_towers_without_regions_say_why() -> None:
    backbone = timm_tower("vit", "token", None, depth=1)
    assert not backbone.has_regions
    with pytest.raises(BackboneError, match="nothing before its last block"):
        backbone.encode_regions(pixels(backbone))
    pooled = timm_tower("convnext", "rot_attn", "", dims=(8, 16, 32, 64))
    assert "open_clip's own attention pool" in str(region_support(pooled.model.visual))
    relative = timm_tower("relpos", "token", None)
    assert "fixed grid" in str(region_support(relative.model.visual))
