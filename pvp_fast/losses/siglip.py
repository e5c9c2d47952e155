"""SigLIP's pairwise sigmoid loss (arXiv 2303.15343, algorithm 1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvp_fast.losses.fused import entrywise, fused_loss, reference, register
from pvp_fast.losses.problem import Labels


class SigLIPSettings(NamedTuple):
    """It has none."""


def _entries(settings: SigLIPSettings, s: Tensor, y: Tensor) -> Tensor:
    return F.softplus((1 - 2 * y) * s)


SIGLIP = register(entrywise("siglip", SigLIPSettings, _entries))


def siglip_loss_from_scores(
    scores: Tensor, y: Labels, *, weight: Tensor | None = None, reduction: str = "batchmean"
) -> Tensor:
    """−Σ log sigmoid(z · s) with z = ±1 for scores (B, C), evaluated in at least float32."""
    return SIGLIP.of_scores(SigLIPSettings(), scores, y, weight, reduction)


def siglip_loss_ref(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """:func:`siglip_loss` by its definition in ordinary PyTorch, with (B, C) scores in memory."""
    return reference(SIGLIP, SigLIPSettings(), x, w, y, scale, bias, normalize, weight, reduction)


def siglip_loss(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
    backend: str = "auto",
    regime: str = "auto",
) -> Tensor:
    """SigLIP's loss of the scores scale · ⟨x, w⟩ + bias.

    x (B, D), w (C, D); the rest as in :func:`pvp_fast.losses.asl_loss`.
    """
    settings = SigLIPSettings()
    return fused_loss(
        SIGLIP, settings, x, w, y, scale, bias, normalize, weight, reduction, backend, regime
    )


class SigLIPLoss(nn.Module):
    """:func:`siglip_loss` with a learnable scale (as its logarithm) and bias."""

    def __init__(self, *, scale: float = 10.0, bias: float = -10.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, x: Tensor, w: Tensor, y: Labels) -> Tensor:
        return siglip_loss(x, w, y, scale=self.log_scale.exp(), bias=self.bias)
