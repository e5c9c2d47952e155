"""Sigmoid focal loss (arXiv 1708.02002, equation 5), as torchvision computes it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvp_fast.losses.fused import entrywise, fused_loss, reference, register
from pvp_fast.losses.problem import Labels


class FocalSettings(NamedTuple):
    """The balance α of present against absent categories (below 0: none), and the focus γ."""

    alpha: float = 0.25
    gamma: float = 2.0


def _entries(settings: FocalSettings, s: Tensor, y: Tensor) -> Tensor:
    alpha, gamma = settings
    probability = torch.sigmoid(s)
    entropy = F.binary_cross_entropy_with_logits(s, y, reduction="none")
    right = probability * y + (1 - probability) * (1 - y)
    loss = entropy * (1 - right) ** gamma
    return loss * (alpha * y + (1 - alpha) * (1 - y)) if alpha >= 0 else loss


def _closed_form(
    settings: FocalSettings, s: Tensor, y: Tensor, weight: Tensor | None, grad: bool
) -> Tensor | None:
    """Of hard labels: log(1 + exp t) · σ(t)^γ · balance, t = s where absent, −s where present."""
    if y.is_floating_point():
        return None
    alpha, gamma = settings
    present = y == 1
    sign = torch.where(present, -1.0, 1.0)
    t = s.mul_(sign)
    if y.dtype == torch.int8:
        t.masked_fill_(y == 0, float("-inf"))  # no loss, no gradient
    entropy = F.softplus(t)
    sigma = t.sigmoid_()
    focus = sigma**gamma
    if alpha >= 0:
        focus.mul_(torch.where(present, alpha, 1 - alpha))
    if weight is not None:
        sign.mul_(weight)
    loss = entropy * focus
    if grad:
        # ∂/∂t = (σ + γ (1 − σ) log(1 + exp t)) · σ^γ · balance
        entropy.addcmul_(entropy, sigma, value=-1.0).mul_(gamma).add_(sigma)
        torch.mul(entropy.mul_(focus), sign, out=s)
    return loss.sum(0)


FOCAL = register(entrywise("focal", FocalSettings, _entries, _closed_form))


def focal_loss_from_scores(
    scores: Tensor,
    y: Labels,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Sigmoid focal loss of logits (B, C), as torchvision's; alpha < 0 leaves the balance out."""
    return FOCAL.of_scores(FocalSettings(alpha, gamma), scores, y, weight, reduction)


def focal_loss_ref(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
) -> Tensor:
    """:func:`focal_loss` by its definition in ordinary PyTorch, with (B, C) scores in memory."""
    settings = FocalSettings(alpha, gamma)
    return reference(FOCAL, settings, x, w, y, scale, bias, normalize, weight, reduction)


def focal_loss(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
    backend: str = "auto",
    regime: str = "auto",
) -> Tensor:
    """Focal loss of the scores scale · ⟨x, w⟩ + bias.

    x (B, D), w (C, D); the rest as in :func:`pvp_fast.losses.asl_loss`.
    """
    settings = FocalSettings(alpha, gamma)
    return fused_loss(
        FOCAL, settings, x, w, y, scale, bias, normalize, weight, reduction, backend, regime
    )


class FocalLoss(nn.Module):
    """:func:`focal_loss` with its settings kept."""

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__()
        self.settings, self.reduction = FocalSettings(alpha, gamma), reduction

    def forward(self, x: Tensor, w: Tensor, y: Labels, *, scale: float | Tensor = 1.0) -> Tensor:
        return focal_loss(x, w, y, scale=scale, reduction=self.reduction, **self.settings._asdict())
