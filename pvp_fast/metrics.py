"""How well scores rank, select and are calibrated: mAP, CF1, OF1, precision at a threshold, ECE.

Labels (N, C) come in one of two conventions, told apart by their dtype:

- bool and unsigned integers: 1 present, 0 absent.
- signed integers and floats: VOC's 1 present, −1 absent, 0 difficult. ``difficult`` says how 0
  counts: "ignore" leaves the entry out (VOC's own rule), "negative" and "positive" count it as
  absent or present.

A signed tensor with zeros but not one −1 is most likely plain 0/1 in the wrong dtype; read as VOC's
it would lose every absent entry. It is refused unless ``difficult`` is given.

Equal scores are one threshold: no order among them can be told, and none is made up. A NaN has no
rank at all and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pvp_fast.errors import InputError

DIFFICULT = ("ignore", "negative", "positive")


def check_scores(scores: Tensor, names: Sequence[str] | None = None) -> None:
    """Refuse scores (N, C) that hold a NaN, which no sort and no threshold can place.

    Args:
        names: C category names, for the message; without them it gives the column.

    Raises:
        InputError: naming the row and the category of the first NaN, both counted from 0.
    """
    missing = scores.isnan()
    if not bool(missing.any()):
        return
    row, column = missing.nonzero()[0].tolist()
    category = repr(names[column]) if names is not None else str(column)
    raise InputError(
        f"scores: row {row}, category {category} is NaN ({int(missing.sum())} of "
        f"{scores.numel()} are); give finite scores, or leave those rows out"
    )


def _split(scores: Tensor, labels: Tensor, difficult: str | None) -> tuple[Tensor, Tensor]:
    """Positives and counted entries, both (N, C) bool, by the rules at the top of this file."""
    for name, given in (("scores", scores), ("labels", labels)):
        if not isinstance(given, Tensor):
            raise InputError(f"{name} is a {type(given).__name__}; give a torch tensor")
    if scores.shape != labels.shape or scores.ndim != 2:
        raise InputError(
            f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must both be (N, C)"
        )
    check_scores(scores)
    if difficult is not None and difficult not in DIFFICULT:
        raise InputError(f"difficult={difficult!r}: use one of {', '.join(DIFFICULT)}")
    if not labels.dtype.is_signed:
        if bool((labels.to(torch.int64) > 1).any()):
            raise InputError(f"labels ({labels.dtype}) may hold 0 and 1 only")
        return labels.bool(), torch.ones_like(labels, dtype=torch.bool)
    zero = labels == 0
    if bool((~zero & (labels.abs() != 1)).any()):
        raise InputError(f"labels ({labels.dtype}) may hold −1, 0 and 1 only")
    if difficult is None and bool(zero.any()) and not bool((labels < 0).any()):
        raise InputError(
            f"labels are {labels.dtype} with 0 and no −1: if 0 means absent, pass labels.bool(); "
            "if it is VOC's difficult, pass difficult='ignore', 'negative' or 'positive'"
        )
    positive = labels >= 0 if difficult == "positive" else labels > 0
    counted = ~zero if difficult in (None, "ignore") else torch.ones_like(zero)
    return positive, counted


def average_precision(scores: Tensor, labels: Tensor, *, difficult: str | None = None) -> Tensor:
    """Average precision over all points for each category.

    The sum over thresholds of (recall gained) · (precision there), where equal scores are one
    threshold, as in scikit-learn: the order of the samples cannot matter, and a category whose
    scores are all equal gets its prevalence.

    Args:
        scores: (N, C). labels: (N, C) bool or uint8 0/1, or signed −1/0/1 with 0 = difficult.
        difficult: "ignore" (VOC's own rule, and the default), "negative" or "positive".

    Returns:
        (C,) float64 in [0, 1]; NaN for a category without positives.

    Raises:
        InputError: shapes that differ, a NaN score, other label values, or signed labels with
            zeros and no −1 while ``difficult`` is not given.
    """
    positive, counted = _split(scores, labels, difficult)
    if not scores.numel():
        return torch.full((scores.shape[1],), torch.nan, dtype=torch.double, device=scores.device)
    hits = (positive & counted).T.contiguous()
    count, total = hits.sum(1, keepdim=True), counted.sum(0)[:, None]
    values = scores.detach().double().T.contiguous()  # (C, N)
    every = _ascending(values.masked_fill(~counted.T.contiguous(), -torch.inf))
    found = _ascending(values.masked_fill(~hits, torch.inf))[:, : max(1, int(count.max()))]
    found = found.contiguous()  # the positives of each category, and behind them what is none
    # The precision at a positive: of what scores as much or more, how much is positive.
    rank = torch.minimum(len(scores) - torch.searchsorted(every, found), total)
    above = count - torch.searchsorted(found, found)
    real = torch.arange(found.shape[1], device=found.device) < count
    precision = (above.double() / rank).masked_fill(~real, 0)
    return precision.sum(1) / count[:, 0]


def _ascending(values: Tensor) -> Tensor:
    """Each row in order, by NumPy on a CPU: with AVX-512 in a seventh of torch's time."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(dim=1).values


def mean_average_precision(
    scores: Tensor, labels: Tensor, *, difficult: str | None = None
) -> float:
    """Mean of :func:`average_precision` over categories with positives, in [0, 1].

    NaN where no category has a positive.
    """
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
    scores: Tensor, labels: Tensor, threshold: float | Tensor, *, difficult: str | None = None
) -> F1:
    """CF1 and OF1 of the entries with score ≥ ``threshold`` (a number or (C,))."""
    split = _split(scores, labels, difficult)
    return _f1(scores >= _threshold(threshold), *split)


def _threshold(threshold: float | Tensor) -> float | Tensor:
    if bool(torch.as_tensor(threshold).isnan().any()):
        raise InputError("threshold: NaN is no threshold; give numbers, inf to keep nothing")
    return threshold


def f1_at_topk(scores: Tensor, labels: Tensor, k: int = 3, *, difficult: str | None = None) -> F1:
    """CF1 and OF1 of the k best categories of every sample; of equal scores the first win."""
    if k < 1:
        raise InputError(f"k is {k}; give at least 1")
    split = _split(scores, labels, difficult)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)
    return _f1(chosen, *split)


@dataclass(frozen=True)
class Counts:
    """What thresholds select, per category, (C,) int64: kept, kept and right, and present at all.

    Difficult entries that are ignored count nowhere.
    """

    kept: Tensor
    right: Tensor
    present: Tensor

    @property
    def precision(self) -> float:
        """Share of all kept tags that are right; NaN when none is kept."""
        return _share(self.right, self.kept)

    @property
    def recall(self) -> float:
        """Share of all labels that are kept; NaN when there is no label."""
        return _share(self.right, self.present)

    @property
    def macro_precision(self) -> float:
        """Mean precision of the categories that were kept at least once; NaN when none was."""
        some = self.kept > 0
        return float((self.right[some].double() / self.kept[some]).mean())


def counts_at_threshold(
    scores: Tensor, labels: Tensor, threshold: float | Tensor, *, difficult: str | None = None
) -> Counts:
    """Count what ``scores >= threshold`` keeps.

    Args:
        scores: (N, C). labels: (N, C), see the top of this file.
        threshold: a number, (C,) or (N, C).
    """
    positive, counted = _split(scores, labels, difficult)
    kept, present = (scores >= _threshold(threshold)) & counted, positive & counted
    return Counts(kept.sum(0), (kept & present).sum(0), present.sum(0))


def _share(part: Tensor, whole: Tensor) -> float:
    total = int(whole.sum())
    return int(part.sum()) / total if total else float("nan")


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: per bin of equal width, (bins,) float64 but ``count``.

    Attributes:
        count: entries in the bin, int64. chance: their mean probability. share: how many of them
            are positive. Both are NaN in an empty bin.
    """

    count: Tensor
    chance: Tensor
    share: Tensor

    @property
    def ece(self) -> float:
        """Expected calibration error: mean |chance − share| over all entries, in [0, 1].

        Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning" (2015).
        """
        gap = (self.chance - self.share).abs().nan_to_num()
        return float((gap * self.count).sum() / self.count.sum().clamp(min=1))


def reliability(
    probabilities: Tensor, labels: Tensor, *, bins: int = 15, difficult: str | None = None
) -> Reliability:
    """Compare probabilities (N, C) with how often they come true, all categories together.

    Raises:
        InputError: a probability outside [0, 1] or NaN, fewer than one bin, or labels as in
            :func:`average_precision`.
    """
    positive, counted = _split(probabilities, labels, difficult)
    if bins < 1:
        raise InputError(f"bins is {bins}; give at least 1")
    p = probabilities[counted].double()
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise InputError("probabilities: some are not between 0 and 1; give calibrated scores")
    y = positive[counted].double()
    index = (p * bins).long().clamp(max=bins - 1)
    zero = torch.zeros(bins, dtype=torch.double, device=p.device)
    count = torch.bincount(index, minlength=bins)
    return Reliability(
        count, zero.index_add(0, index, p) / count, zero.index_add(0, index, y) / count
    )


def expected_calibration_error(
    probabilities: Tensor, labels: Tensor, *, bins: int = 15, difficult: str | None = None
) -> float:
    """:attr:`Reliability.ece` of probabilities (N, C), in [0, 1]."""
    return reliability(probabilities, labels, bins=bins, difficult=difficult).ece
