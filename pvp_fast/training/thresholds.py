"""Probabilities and thresholds from held-out sentences, without images (METHOD section 8).

A category has few held-out positives, so a threshold read off its own labels overfits. Those for a
target precision or recall are read off the calibrated probabilities instead: the mean probability
of what is kept is its expected precision. Only the intercept of a probability belongs to its
category; the slope is learned from all. Where the logistic curve does not fit, what is asked of
the expected value is shifted, by one number for all categories, until the labels agree.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.errors import InputError
from pvp_fast.modules.scoring import probability

# Pulls each category's intercept towards the common one: a few sentences decide little alone.
RIDGE = 1e-2
_AT_ONCE = 256  # categories
_NEWTON = 8
SHIFTS = 16  # halvings: 24 logits to a thousandth


KINDS = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Target:
    """What thresholds aim at: a precision or recall of ``value``, or the best f1."""

    kind: str
    value: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"target {self.kind!r}: use one of {', '.join(KINDS)}")
        if self.kind == "f1" and self.value is not None:
            raise InputError("target: f1 takes no value; it is made as large as possible")
        if self.kind != "f1" and not (self.value is not None and 0 < self.value < 1):
            raise InputError(
                f"target {self}: give a value between 0 and 1, such as {self.kind}=0.9"
            )

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read "precision=0.9", "recall=0.8" or "f1"."""
        found = re.fullmatch(r"(\w+)(?:=([0-9]*\.?[0-9]+))?", text.strip())
        if found is None:
            raise InputError(f"target {text!r}: give precision=0.9, recall=0.8 or f1")
        return cls(found[1], None if found[2] is None else float(found[2]))

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}={self.value:g}"


def fit_platt(scores: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:
    """Slope and intercept (C, 2) from mixed cosines to probabilities (Platt, 1999).

    One slope for all categories, one intercept each, by regularised logistic regression.

    Args:
        scores: (N, C) mixed cosines. labels: (N, C) bool, or probabilities.
        counted: (N, C) bool, entries whose label is known; all by default. A category without any
            gets the common intercept.
    """
    known = torch.ones_like(labels, dtype=torch.bool) if counted is None else counted
    target = labels.double()
    weight = known.double() / known.sum().clamp(min=1)
    s = scores.detach().double()
    spread = s[known].std().nan_to_num().clamp(min=1e-6)
    centre = s[known].mean()
    unit = (s - centre) / spread
    slope = torch.ones((), dtype=torch.double, device=s.device, requires_grad=True)
    common = torch.zeros((), dtype=torch.double, device=s.device, requires_grad=True)
    own = torch.zeros(s.shape[1], dtype=torch.double, device=s.device, requires_grad=True)
    solver = torch.optim.LBFGS([slope, common, own], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        logits = unit * slope + common + own
        loss = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
        loss = loss + RIDGE * own.square().mean()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    # A negative slope would reverse the ranking; nothing was learned then.
    a = slope.detach().clamp(min=1e-3) / spread
    b = common.detach() + own.detach() - a * centre
    return torch.stack([a.expand_as(b), b], 1).float()


def thresholds_for(
    target: Target,
    scores: Tensor,
    labels: Tensor,
    platt: Tensor,
    counted: Tensor | None = None,
    *,
    common: bool = False,
) -> Tensor:
    """Probabilities (C,) from which on a category is kept.

    - precision: the lowest at which the mean probability of what is kept reaches the target. Where
      no cut reaches it, the target itself: one image as probable as that meets it alone.
    - recall: the highest at which the kept share of the expected positives reaches the target.
    - f1: the best on the labels; 0.5 for a category without positives.

    The threshold lies halfway, in cosines, between the last entry kept and the first one left out:
    sentences are often separated by a wide gap, and images score lower than sentences.

    Args:
        scores: (N, C) mixed cosines. labels: (N, C) bool. platt: (C, 2). counted: as
            :func:`fit_platt`.
        common: one threshold for all categories, read off all entries at once. For small sets:
            with a handful of entries near the cut, one a category keeps almost nothing.
    """
    known = torch.ones_like(labels) if counted is None else counted
    logits = scores.double() * platt[:, 0].double() + platt[:, 1].double()
    logits = logits.masked_fill(~known, -torch.inf)  # sorts behind all others, with probability 0
    labels = labels & known
    if common:
        cut = _cut(target, logits.reshape(-1, 1), labels.reshape(-1, 1))
        return cut.expand(scores.shape[1]).clone()
    if target.value is None or not bool(labels.any()):
        return _cut(target, logits, labels)
    low, high = -12.0, 12.0  # in logits of the value asked for
    for _ in range(SHIFTS):
        middle = (low + high) / 2
        asked = dataclasses.replace(target, value=1 / (1 + math.exp(-middle)))
        kept = logits.sigmoid().float() >= _cut(asked, logits, labels)
        whole = kept if target.kind == "precision" else labels
        if int((kept & labels).sum()) >= target.value * int(whole.sum()):
            high = middle
        else:
            low = middle
    return _cut(dataclasses.replace(target, value=1 / (1 + math.exp(-high))), logits, labels)


def _cut(target: Target, logits: Tensor, labels: Tensor) -> Tensor:
    order = logits.sort(stable=True, dim=0, descending=True)
    chance = order.values.sigmoid()
    kept = torch.arange(1, len(logits) + 1, dtype=torch.double, device=logits.device)[:, None]
    expected = chance.cumsum(0)
    real = order.values > -torch.inf
    rows = kept.long() - 1
    value = 0.0 if target.value is None else target.value  # f1 has none
    if target.kind == "f1":
        hits, positives = labels.gather(0, order.indices).double().cumsum(0), labels.sum(0)
        f1 = 2 * hits / (kept + positives)
        last = f1.masked_fill(~real, -1).argmax(0)
        usable, otherwise = positives > 0, 0.5
    elif target.kind == "precision":
        last = torch.where((expected / kept >= value) & real, rows, -1).amax(0)
        usable, otherwise = last >= 0, value
    else:
        enough = expected >= value * expected[-1]
        last = torch.where(enough, rows, len(logits) - 1).amin(0)
        usable, otherwise = real.any(0), 0.5
    inside = order.values.gather(0, last.clamp(min=0)[None])[0]
    outside = order.values.gather(0, (last + 1).clamp(0, len(logits) - 1)[None])[0]
    middle = torch.where(outside > -torch.inf, (inside + outside) / 2, inside).sigmoid()
    return torch.where(usable, middle, torch.full_like(middle, otherwise)).float()


def best_f1_thresholds(scores: Tensor, labels: Tensor, platt: Tensor) -> Tensor:
    """:func:`thresholds_for` the best F1, one for each category; what training stores."""
    return thresholds_for(Target("f1"), scores, labels, platt)


def calibrate_many(
    columns: Callable[[Tensor], tuple[Tensor, Tensor]], some: tuple[Tensor, Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """:func:`fit_platt` and :func:`best_f1_thresholds` of C categories, some at a time.

    The slope and the common intercept are fitted on a sample, then each category's own intercept to
    all of its labels.

    Args:
        columns: category numbers (n,) -> their scores (N, n) and labels (N, n) bool.
        some: scores and labels of the sample.
        count: C.

    Returns:
        platt (C, 2) and thresholds (C,).
    """
    fitted = fit_platt(*some).double()
    slope, common = fitted[0, 0], fitted[:, 1].mean()
    platt, thresholds = [], []
    for index in torch.arange(count).split(_AT_ONCE):
        scores, labels = columns(index)
        known, target = scores.double() * slope + common, labels.double()
        own = known.new_zeros(len(index))
        for _ in range(_NEWTON):  # convex, and the ridge bounds its curvature from below
            chance = (known + own).sigmoid()
            gradient = (chance - target).mean(0) + 2 * RIDGE * own
            own = own - gradient / ((chance * (1 - chance)).mean(0) + 2 * RIDGE)
        line = torch.stack([slope.expand(len(index)), common + own], 1).float()
        platt.append(line)
        thresholds.append(best_f1_thresholds(scores, labels, line))
    return torch.cat(platt), torch.cat(thresholds)


@dataclass(frozen=True)
class Held:
    """Out-of-fold result: nothing here was fitted on the row it stands in.

    Attributes:
        chances: (N, C) probabilities. thresholds: (N, C), those of the fold a row was left out of.
    """

    chances: Tensor
    thresholds: Tensor


def cross_fit(
    target: Target,
    scores: Tensor,
    labels: Tensor,
    counted: Tensor | None = None,
    *,
    common: bool = False,
    folds: int = 5,
    seed: int = 0,
) -> Held:
    """Calibrate on all folds but one and judge that one, for each fold in turn.

    Raises:
        InputError: fewer rows than folds, or fewer than two folds.
    """
    if not 2 <= folds <= len(scores):
        raise InputError(f"folds is {folds} for {len(scores)} rows; give 2 to {len(scores)}")
    known = torch.ones_like(labels) if counted is None else counted
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    chances, thresholds = torch.empty_like(scores), torch.empty_like(scores)
    for left_out in order.chunk(folds):
        fit = torch.ones(len(scores), dtype=torch.bool)
        fit[left_out] = False
        part = scores[fit], labels[fit]
        platt = fit_platt(*part, known[fit])
        chances[left_out] = probability(scores[left_out], platt)
        thresholds[left_out] = thresholds_for(target, *part, platt, known[fit], common=common)
    return Held(chances, thresholds)
