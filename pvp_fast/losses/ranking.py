"""Pairwise ranking hinge: every positive above every negative by a margin (TaI-DPT, 2211.12739)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvp_fast.errors import InputError
from pvp_fast.losses.fused import fused_loss, reference, register
from pvp_fast.losses.problem import Labels, Loss, as_float, dense_labels


class RankingSettings(NamedTuple):
    """By how much every positive is to lie above every negative."""

    margin: float = 1.0


def _of_scores(
    settings: RankingSettings, scores: Tensor, y: Labels, weight: Tensor | None, reduction: str
) -> Tensor:
    if reduction not in ("mean", "batchmean", "sum"):
        raise InputError(f"reduction={reduction!r}: use 'sum', 'mean' or 'batchmean'")
    scores = as_float(scores)
    target, known = dense_labels(y, scores)
    positive = target > 0.5
    negative = ~positive if known is None else ~positive & known
    by_negative = negative.to(scores.dtype)
    if weight is not None:
        by_negative = by_negative * weight
    most = int(positive.sum(1).max()) if positive.numel() else 0
    total = scores.sum() * 0
    # Positives first in every row; row b has its j-th positive only while j < |P_b|.
    order = positive.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    for j in range(most):
        column = order[:, j : j + 1]
        exists = positive.gather(1, column).to(scores.dtype)
        hinge = F.relu(settings.margin - scores.gather(1, column) + scores)
        total = total + (hinge * by_negative * exists).sum()
    return total if reduction == "sum" else total / max(1, scores.shape[0])


def _closed_form(
    settings: RankingSettings, s: Tensor, y: Tensor, weight: Tensor | None, grad: bool
) -> Tensor:
    """Every (row, positive) pair meets its row once, in blocks of the tile's size.

    A positive is pushed up as often as a negative came too near.
    """
    row, col = (y > 0.5).nonzero(as_tuple=True)
    apart = settings.margin - s[row, col]
    # Only negatives have a hinge: neither positives nor unknown ones (0 of −1, 0 and 1).
    s.masked_fill_(y >= 0 if y.dtype == torch.int8 else y > 0.5, float("-inf"))
    by_category, near, active = s.new_zeros(s.shape[1]), torch.zeros_like(apart), s.new_zeros(0)
    if grad:
        active = torch.zeros_like(s)
    scratch = torch.empty_like(s)
    for i in range(0, len(row), len(s)):
        pairs = slice(i, i + len(s))
        hinge = torch.index_select(s, 0, row[pairs], out=scratch[: len(row[pairs])])
        hinge.add_(apart[pairs, None]).clamp_(min=0.0)
        by_category += hinge.sum(0)
        if grad:
            hinge.sign_()
            near[pairs] = hinge.sum(1) if weight is None else hinge @ weight
            _add_at(active, row[pairs], hinge)
    if grad:
        s.copy_(active if weight is None else active.mul_(weight))
        s[row, col] = -near
    return by_category


def _add_at(out: Tensor, index: Tensor, values: Tensor) -> None:
    """out[index] += values, in one order: the CUDA index_add_ has none."""
    if out.is_cuda:
        out.index_put_((index,), values, accumulate=True)
    else:
        out.index_add_(0, index, values)


RANKING = register(Loss("ranking", RankingSettings, _of_scores, True, _closed_form))


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
    return _of_scores(RankingSettings(margin), scores, y, weight, reduction)


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
    settings = RankingSettings(margin)
    return reference(RANKING, settings, x, w, y, scale, bias, normalize, weight, reduction)


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
    "mean" is "batchmean". The bias cancels and has gradient 0.
    """
    settings = RankingSettings(margin)
    return fused_loss(
        RANKING, settings, x, w, y, scale, bias, normalize, weight, reduction, backend, regime
    )


class RankingLoss(nn.Module):
    """:func:`ranking_loss` with its margin and reduction kept."""

    def __init__(self, *, margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        self.margin, self.reduction = margin, reduction

    def forward(self, x: Tensor, w: Tensor, y: Labels, *, scale: float | Tensor = 1.0) -> Tensor:
        return ranking_loss(x, w, y, scale=scale, margin=self.margin, reduction=self.reduction)
