"""Hill loss for labels that miss categories (arXiv 2112.07368, sections 3.2 and 3.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvp_fast.losses.fused import entrywise, fused_loss, reference, register
from pvp_fast.losses.problem import Labels


class HillSettings(NamedTuple):
    """λ, m and γ; see :func:`hill_loss_from_scores`."""

    lamb: float = 1.5
    margin: float = 1.0
    gamma: float = 2.0


def _entries(settings: HillSettings, s: Tensor, y: Tensor) -> Tensor:
    lamb, margin, gamma = settings
    absent = torch.sigmoid(s)
    apart = s - margin
    present = -F.logsigmoid(apart) * torch.sigmoid(-apart) ** gamma
    return y * present + (1 - y) * (lamb - absent) * absent.square()


HILL = register(entrywise("hill", HillSettings, _entries))


def hill_loss_from_scores(
    scores: Tensor,
    y: Labels,
    *,
    weight: Tensor | None = None,
    lamb: float = 1.5,
    margin: float = 1.0,
    gamma: float = 2.0,
    reduction: str = "mean",
) -> Tensor:
    """Hill loss of logits (B, C), evaluated in at least float32.

    With p = sigmoid(s) and p_m = sigmoid(s − m):
    −y · log(p_m) · (1 − p_m)^γ + (1 − y) · (λ − p) · p².

    An absent category that looks present is more likely a missing label than a mistake: with
    λ = 1.5 its gradient is largest at p = 0.5 and 0 at p = 1. The margin keeps positives that are
    half right in focus.
    """
    return HILL.of_scores(HillSettings(lamb, margin, gamma), scores, y, weight, reduction)


def hill_loss_ref(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    lamb: float = 1.5,
    margin: float = 1.0,
    gamma: float = 2.0,
    reduction: str = "mean",
) -> Tensor:
    """:func:`hill_loss` by its definition in ordinary PyTorch, with (B, C) scores in memory."""
    settings = HillSettings(lamb, margin, gamma)
    return reference(HILL, settings, x, w, y, scale, bias, normalize, weight, reduction)


def hill_loss(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    lamb: float = 1.5,
    margin: float = 1.0,
    gamma: float = 2.0,
    reduction: str = "mean",
    backend: str = "auto",
    regime: str = "auto",
) -> Tensor:
    """Hill loss of the scores scale · ⟨x, w⟩ + bias, in plain PyTorch: no other engine has it.

    x (B, D), w (C, D); the rest as in :func:`pvp_fast.losses.asl_loss`.
    """
    settings = HillSettings(lamb, margin, gamma)
    return fused_loss(
        HILL, settings, x, w, y, scale, bias, normalize, weight, reduction, backend, regime
    )


class HillLoss(nn.Module):
    """:func:`hill_loss` with its settings kept."""

    def __init__(
        self,
        *,
        lamb: float = 1.5,
        margin: float = 1.0,
        gamma: float = 2.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.settings, self.reduction = HillSettings(lamb, margin, gamma), reduction

    def forward(self, x: Tensor, w: Tensor, y: Labels, *, scale: float | Tensor = 1.0) -> Tensor:
        return hill_loss(x, w, y, scale=scale, reduction=self.reduction, **self.settings._asdict())
