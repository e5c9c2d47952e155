"""Binary cross-entropy over every category."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from pvp_fast.losses.fused import entrywise, fused_loss, reference, register
from pvp_fast.losses.problem import Labels


class BCESettings(NamedTuple):
    """It has none."""


def _entries(settings: BCESettings, s: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(s, y, reduction="none")


BCE = register(entrywise("bce", BCESettings, _entries))


def bce_loss_from_scores(
    scores: Tensor, y: Labels, *, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Binary cross-entropy of logits (B, C), evaluated in at least float32."""
    return BCE.of_scores(BCESettings(), scores, y, weight, reduction)


def bce_loss_ref(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """:func:`bce_loss` by its definition in ordinary PyTorch, with (B, C) scores in memory."""
    return reference(BCE, BCESettings(), x, w, y, scale, bias, normalize, weight, reduction)


def bce_loss(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    regime: str = "auto",
) -> Tensor:
    """Binary cross-entropy of the scores scale · ⟨x, w⟩ + bias.

    x (B, D), w (C, D); the rest as in :func:`pvp_fast.losses.asl_loss`.
    """
    return fused_loss(
        BCE, BCESettings(), x, w, y, scale, bias, normalize, weight, reduction, backend, regime
    )


class BCELoss(nn.Module):
    """:func:`bce_loss` with its reduction kept."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, x: Tensor, w: Tensor, y: Labels, *, scale: float | Tensor = 1.0) -> Tensor:
        return bce_loss(x, w, y, scale=scale, reduction=self.reduction)
