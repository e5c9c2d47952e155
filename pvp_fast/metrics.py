"""How well scores rank and select categories: mAP, CF1 and OF1, as the field reports them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pvp_fast.errors import InputError

DIFFICULT = ("ignore", "negative", "positive")


def _split(scores: Tensor, labels: Tensor, difficult: str) -> tuple[Tensor, Tensor]:
    """Positives and counted entries, both (N, C) bool.

    Bool and uint8 labels are 0/1. Signed integer labels are VOC's −1/0/1, where 0 is difficult:
    left out ("ignore"), or counted as absent or present.
    """
    if scores.shape != labels.shape or scores.ndim != 2:
        raise InputError(
            f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must both be (N, C)"
        )
    if difficult not in DIFFICULT:
        raise InputError(f"difficult={difficult!r}: use one of {', '.join(DIFFICULT)}")
    if labels.dtype in (torch.bool, torch.uint8):
        return labels.bool(), torch.ones_like(labels, dtype=torch.bool)
    positive = labels > 0
    if difficult == "positive":
        positive = labels >= 0
    counted = labels != 0 if difficult == "ignore" else torch.ones_like(positive)
    return positive, counted


def average_precision(scores: Tensor, labels: Tensor, *, difficult: str = "ignore") -> Tensor:
    """Average precision over all points for each category.

    Ties are ordered by the sample's position, so the value is deterministic.

    Args:
        scores: (N, C). labels: (N, C) bool, or −1/0/1 with 0 = difficult.
        difficult: "ignore" (VOC's own rule), "negative" or "positive".

    Returns:
        (C,) float64 in [0, 1]; NaN for a category without positives.
    """
    positive, counted = _split(scores, labels, difficult)
    # Entries that do not count sink to the end, where they are no positives.
    ranked = scores.double().masked_fill(~counted, -torch.inf)
    order = ranked.argsort(dim=0, descending=True, stable=True)
    hits = (positive & counted).gather(0, order).double()
    rank = torch.arange(1, len(scores) + 1, dtype=torch.double, device=scores.device)[:, None]
    precision = hits.cumsum(0) / rank
    return (precision * hits).sum(0) / hits.sum(0)


def mean_average_precision(scores: Tensor, labels: Tensor, *, difficult: str = "ignore") -> float:
    """Mean of :func:`average_precision` over categories with positives, in [0, 1]."""
    per_category = average_precision(scores, labels, difficult=difficult)
    return float(per_category[~per_category.isnan()].mean())


@dataclass(frozen=True)
class F1:
    """Mean per-category (``cf1``) and overall (``of1``) F1, in [0, 1]."""

    cf1: float
    of1: float


def _f1(chosen: Tensor, positive: Tensor, counted: Tensor) -> F1:
    chosen, positive = chosen & counted, positive & counted
    hits = (chosen & positive).sum(0).double()
    picked, present = chosen.sum(0).double(), positive.sum(0).double()
    has = present > 0
    precision = (hits / picked.clamp(min=1))[has].mean()
    recall = (hits / present.clamp(min=1))[has].mean()
    cf1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    of1 = 2 * hits.sum() / (picked.sum() + present.sum()).clamp(min=1)
    return F1(float(cf1.nan_to_num()), float(of1))


def f1_at_threshold(
    scores: Tensor, labels: Tensor, threshold: float | Tensor, *, difficult: str = "ignore"
) -> F1:
    """CF1 and OF1 of the entries with score ≥ ``threshold`` (a number or (C,))."""
    return _f1(scores >= threshold, *_split(scores, labels, difficult))


def f1_at_topk(scores: Tensor, labels: Tensor, k: int = 3, *, difficult: str = "ignore") -> F1:
    """CF1 and OF1 of the k best categories of every sample."""
    if k < 1:
        raise InputError(f"k is {k}; give at least 1")
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)
    return _f1(chosen, *_split(scores, labels, difficult))
