"""Pairwise ranking hinge: every positive above every negative by a margin (TaI-DPT, 2211.12739)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvp_fast.errors import InputError
from pvp_fast.losses.fused import fused_loss
from pvp_fast.losses.labels import Labels, dense_labels
from pvp_fast.losses.similarity import as_float, similarity


def ranking_loss_from_scores(
    scores: Tensor,
    y: Labels,
    *,
    margin: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """mean_b Σ_{p ∈ P_b} Σ_{n ∉ P_b} weight_n · max(0, margin − s_bp + s_bn).

    One pass over the categories per positive: memory O(B·C), never (B, C, C). A row with no
    positive or no negative contributes 0. Unknown categories (partial labels) take no part.

    Args:
        scores: (B, C) logits; half precision is evaluated in float32.
        y: labels; y > 0.5 is a positive.
        weight: (C,) factor of each negative category.
        reduction: "mean" and "batchmean" average over the B rows, "sum" adds them.
    """
    if reduction not in ("mean", "batchmean", "sum"):
        raise InputError(f"reduction={reduction!r}: use 'sum', 'mean' or 'batchmean'")
    scores = as_float(scores)
    target, known = dense_labels(y, scores)
    positive = target > 0.5
    negative = ~positive if known is None else ~positive & known
    share = negative.to(scores.dtype)
    if weight is not None:
        share = share * weight
    most = int(positive.sum(1).max()) if positive.numel() else 0
    total = scores.sum() * 0
    # Positives first in every row; row b has its j-th positive only while j < |P_b|.
    order = positive.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    for j in range(most):
        column = order[:, j : j + 1]
        exists = positive.gather(1, column).to(scores.dtype)
        hinge = F.relu(margin - scores.gather(1, column) + scores)
        total = total + (hinge * share * exists).sum()
    return total if reduction == "sum" else total / max(1, scores.shape[0])


def ranking_loss_ref(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    margin: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """:func:`ranking_loss` by its definition in ordinary PyTorch, with (B, C) scores in memory."""
    return ranking_loss_from_scores(
        similarity(x, w, scale=scale, bias=bias, normalize=normalize),
        y,
        weight=weight,
        margin=margin,
        reduction=reduction,
    )


def ranking_loss(
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    margin: float = 1.0,
    reduction: str = "mean",
    backend: str = "auto",
    regime: str = "auto",
) -> Tensor:
    """The ranking hinge of the scores scale · ⟨x, w⟩ + bias.

    x (B, D), w (C, D); the rest as in :func:`pvp_fast.losses.asl_loss`.
    The positives' scores come first, then the negatives a tile at a time. "mean" is "batchmean".
    The bias cancels and has gradient 0.
    """

    def reference() -> Tensor:
        return ranking_loss_ref(
            x,
            w,
            y,
            scale=scale,
            bias=bias,
            normalize=normalize,
            weight=weight,
            margin=margin,
            reduction=reduction,
        )

    if reduction == "mean":
        reduction = "batchmean"
    return fused_loss(
        "ranking",
        (margin,),
        reference,
        x,
        w,
        y,
        scale=scale,
        bias=bias,
        normalize=normalize,
        weight=weight,
        reduction=reduction,
        backend=backend,
        regime=regime,
    )


class RankingLoss(nn.Module):
    """:func:`ranking_loss` with its margin and reduction kept."""

    def __init__(self, *, margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        self.margin, self.reduction = margin, reduction

    def forward(self, x: Tensor, w: Tensor, y: Labels, *, scale: float | Tensor = 1.0) -> Tensor:
        return ranking_loss(x, w, y, scale=scale, margin=self.margin, reduction=self.reduction)
