"""Region features of timm image towers: what the tower's own head says of each place alone.

An image whose every token were the one of region l has the feature z_l = head(pool([x_l ... x_l])):
any average or maximum of equal tokens is the token, and attention over them is its value path,
out_proj(v_proj x_l), whatever the weights of the attention. So each place goes through the tower's
own ``forward_head`` as an image of its own, and only the last mixing of places is left out:

- pooled by attention ("map": SigLIP, PE-Core): the pool's value and output projections.
- pooled by an average (ConvNeXt, Swin, FastViT, ViTamin): the place of the last feature map. Where
  the head is linear, the mean of the regions is the global feature.
- pooled at the class token (EVA02, DeiT, MobileCLIP-B): the last block's attention is the mixing,
  and every place goes through that block alone (MaskCLIP, Zhou et al., ECCV 2022).

Class and register tokens are no regions. Costs the last block's queries and keys beside its values.
"""

from __future__ import annotations

from typing import Any

import torch

from pvp_fast.errors import BackboneError


def timm_region_support(visual: Any) -> str | None:
    """None when open_clip's ``TimmModel`` has region features, else a sentence saying why not."""
    trunk = visual.trunk
    kind = type(trunk).__name__
    if hasattr(visual.head, "pool"):
        return (
            f"an image tower ({kind}) under open_clip's own attention pool has no region features"
        )
    if not hasattr(trunk, "forward_features") or not hasattr(trunk, "forward_head"):
        return f"image tower {kind} does not part into features and head: no region features"
    if getattr(getattr(trunk, "attn_pool", None), "pos_embed", None) is not None:
        return f"the attention pool of image tower {kind} has positions: no region features"
    if _by_class_token(trunk):
        if any(hasattr(block.attn, "rel_pos") for block in trunk.blocks[-1:]):
            return f"the attention of image tower {kind} has a fixed grid: no region features"
        if len(trunk.blocks) < 2 or not hasattr(trunk, "forward_intermediates"):
            return f"image tower {kind} shows nothing before its last block: no region features"
    return None


def timm_region_features(visual: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, L, D), row by row over the grid, not normalised.

    Raises:
        BackboneError: the trunk's features are neither a map nor tokens.
    """
    trunk = visual.trunk
    if not hasattr(trunk, "blocks") or not hasattr(trunk, "num_prefix_tokens"):
        features = visual.head(trunk.forward_head(_places(trunk, trunk.forward_features(pixels))))
        return features.view(len(pixels), -1, features.shape[-1])
    prefix = int(trunk.num_prefix_tokens)
    if _by_class_token(trunk):
        before = trunk.forward_intermediates(
            pixels,
            indices=[len(trunk.blocks) - 2],
            output_fmt="NLC",
            intermediates_only=True,
            stop_early=True,
        )[0]  # (B, L, W), without class and register tokens
        x = trunk.norm(trunk.blocks[-1](before.flatten(0, 1)[:, None]))  # each place alone
    else:
        x = trunk.forward_features(pixels)[:, prefix:].flatten(0, 1)[:, None]
    features = visual.head(trunk.forward_head(x.expand(-1, prefix + 1, -1)))
    return features.view(len(pixels), -1, features.shape[-1])


def _by_class_token(trunk: Any) -> bool:
    pooled = getattr(trunk, "attn_pool", None) is None and hasattr(trunk, "blocks")
    return pooled and getattr(trunk, "global_pool", None) == "token"


def _places(trunk: Any, features: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w), or (B, h, w, C) of a Swin -> one image of one pixel for each place."""
    if features.ndim != 4:
        raise BackboneError(
            f"image tower {type(trunk).__name__} ends in features of shape "
            f"{tuple(features.shape)}, not in a map: no region features"
        )
    if getattr(trunk, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(0, 2)[:, None, None]
    return features.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]
