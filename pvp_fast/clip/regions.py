"""Region features: what each patch of an image says, in the space of the text features.

MaskCLIP (Zhou et al., ECCV 2022, section 3.2): in the last attention every position attends to
itself only, so its value goes through the output projection unmixed.

- Vision transformer: the last block keeps its residual and its MLP and its attention matrix is
  the identity, ``h = x + out_proj(v_proj(ln_1 x)); h = h + mlp(ln_2 h)``, as in MaskCLIP's code;
  then the head that the class token takes, ``ln_post`` and the projection.
- The same with attentional pooling (CoCa): the blocks as they are, and the pool's value path.
- ModifiedResNet: ``c_proj(v_proj(map))`` on the last feature map; no position embedding.
- timm's towers: see ``timm_regions``; transformers': see ``transformers_model``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from pvp_fast.clip.timm_regions import timm_region_features, timm_region_support
from pvp_fast.clip.transformers_model import TransformersVision
from pvp_fast.errors import BackboneError


def region_support(visual: Any) -> str | None:
    """None when ``visual`` has region features, else one sentence saying why not."""
    kind = type(visual).__name__
    if kind in ("ModifiedResNet", "TransformersVision"):
        return None
    if kind == "TimmModel":
        return timm_region_support(visual)
    if kind != "VisionTransformer":
        return f"image tower {kind} has no region features (a ViT or a ModifiedResNet has)"
    if getattr(visual, "attn_pool_contrastive", None) is not None:
        return "an image tower with two attentional pools has no region features"
    if getattr(visual, "proj", None) is None:
        return "an image tower without a projection has no region features"
    return None


def require_regions(model: Any, why: str) -> None:
    """Raise BackboneError, starting with ``why``, unless an open_clip model has region features."""
    reason = region_support(model.visual)
    if reason is not None:
        raise BackboneError(f"{why}, but {reason}")


def region_features(visual: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, L, D), row by row over the patch grid, not normalised.

    Raises:
        BackboneError: this tower has no region features.
    """
    reason = region_support(visual)
    if reason is not None:
        raise BackboneError(reason)
    if type(visual).__name__ == "ModifiedResNet":
        return _resnet_regions(visual, pixels)
    if isinstance(visual, TransformersVision):
        return visual.regions(pixels)
    if type(visual).__name__ == "TimmModel":
        return timm_region_features(visual, pixels)
    return _vit_regions(visual, pixels)


def _resnet_regions(visual: Any, pixels: torch.Tensor) -> torch.Tensor:
    x = visual.stem(pixels)
    x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(x))))
    x = x.flatten(2).transpose(1, 2)  # (B, H*W, C)
    regions: torch.Tensor = visual.attnpool.c_proj(visual.attnpool.v_proj(x))
    return regions


def _vit_regions(visual: Any, pixels: torch.Tensor) -> torch.Tensor:
    transformer = visual.transformer
    x = visual._embeds(pixels)  # (B, 1 + L, W)
    if not transformer.batch_first:
        x = x.transpose(0, 1)
    pool = getattr(visual, "attn_pool", None)
    for block in transformer.resblocks[:-1] if pool is None else transformer.resblocks:
        x = block(x)
    if not transformer.batch_first:
        x = x.transpose(0, 1)
    if pool is None:
        x = _identity_attention(transformer.resblocks[-1], x[:, 1:])
    else:
        x = _attentional_pool(pool, x[:, 1:])
    regions: torch.Tensor = visual.ln_post(x) @ visual.proj
    return regions


def _attentional_pool(pool: Any, x: torch.Tensor) -> torch.Tensor:
    """The pool's output for each token alone, (B, L, W) -> (B, L, D): the same for every query."""
    keys = pool.ln_k(x).flatten(0, 1)[:, None]
    query = pool.ln_q(pool.query[:1]).expand(len(keys), 1, -1)
    out: torch.Tensor = pool.attn(query, keys, keys, need_weights=False)[0]
    return out.view(*x.shape[:2], -1)


def _identity_attention(block: Any, x: torch.Tensor) -> torch.Tensor:
    """The block with its attention matrix replaced by the identity; per token, (B, L, W)."""
    attention = block.attn
    width = x.shape[-1]
    bias = attention.in_proj_bias
    value = F.linear(
        block.ln_1(x),
        attention.in_proj_weight[2 * width :],
        None if bias is None else bias[2 * width :],
    )
    scale = getattr(attention, "head_scale", None)  # NormFormer: one factor a head
    if scale is not None:
        value = value * scale.flatten().repeat_interleave(width // attention.num_heads)
    if hasattr(attention, "ln_inner"):
        value = attention.ln_inner(value)
    attended = attention.out_proj(value)
    if hasattr(block, "ln_attn"):
        attended = block.ln_attn(attended)
    x = x + block.ls_1(attended)
    out: torch.Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return out
