"""Calibrate on images without labels: where the scores of absent categories end, tags begin.

Of N images and C categories nearly all N · C logits belong to categories that are absent. On images
their upper half falls off as

    S0(t) = ½ exp(-((t - m) / w)^k),   t ≥ m,

whatever the drawing style: m and w follow from two quantiles of all the scores, k = :data:`TAIL`
was measured on labelled scenes of nine styles of the pocket model, with what the present
categories hidden under the curve add to w. What lies above that curve is
present (an empirical null, Efron, "Large-scale simultaneous hypothesis testing", 2004). The
surplus is put into the form an artifact keeps, one affine map of the logits for all categories:

    expected number at t = n0(t) · (1 + exp(a t + b))   =>   P(present | t) = sigmoid(a t + b),

fitted by Poisson likelihood. The order of the scores and what sentences told about each category
stay; how sure a score is comes from the images.

The interval holds two doubts: which images these are (resampled in groups), and the exponent, for
which each of :data:`TAILS` and the one that the bulk of these scores has is tried.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.artifact import Artifact
from pvp_fast.errors import InputError
from pvp_fast.metrics import check_scores
from pvp_fast.training.thresholds import Target

TAIL = 1.06  # k: how fast the scores of absent categories fall off; 1 is exponential
TAILS = (1.03, TAIL, 1.09)  # what the interval allows for
LEAST_IMAGES = 100
LEAST_FOUND = 30  # scores that are more likely present than not
MOST_PRESENT = 0.12  # share of scores above the curve: the quantiles below must be the absent's
NOTHING = (
    "unlabelled: only about {found:.0f} scores stand out from those of absent categories; give "
    "more images, and such as show the vocabulary's categories"
)
_HALF = 0.5  # of the absent lie above m
_UPPER = 0.2  # of them above the second quantile
_BULK = (0.35, 0.3, 0.25, 0.2, 0.15, 0.1)  # shares above which the bulk's own exponent is read
_BENDS = 0.955  # the tail's exponent over the bulk's, measured on the same scenes
_FROM = 0.1  # the surplus is fitted above the score that so many of the absent pass
_FINE, _COARSE, _GROUPS, _RESAMPLES = 4096, 39, 100, 20
_ROUNDS = 15  # of a fixed point that halves its error each time
_STEPS, _HALVINGS = 30, 12


@dataclass(frozen=True)
class UnlabelledCalibration:
    """An artifact calibrated on images without labels, and what can be expected of it.

    Attributes:
        target: the precision asked for. images: how many were looked at.
        precision: expected of the tags at the new thresholds; ``interval`` (low, high) covers which
            images were given and how fast the scores of absent categories fall off.
        kept: tags an image. kept_before: with the thresholds the artifact came with.
        precision_before: expected of those.
        scale, shift: the map of the logits, new = scale · old + shift.
        bulk: exponent of the middle of the scores. It was 1.1 on the scenes that the method was
            measured on; normally distributed scores have 1.24.
        histogram: (bins, 3) of old logits: centre, entries, entries expected of absent categories.
    """

    artifact: Artifact
    target: Target
    images: int
    precision: float
    interval: tuple[float, float]
    kept: float
    kept_before: float
    precision_before: float
    scale: float
    shift: float
    bulk: float
    histogram: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None where nothing was kept."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("artifact", "target", "histogram", "interval")
        }
        clean = {k: None if v != v else round(v, 6) for k, v in values.items()}
        return {
            "target": str(self.target),
            **clean,
            "interval": [None if v != v else round(v, 6) for v in self.interval],
            "threshold": float(self.artifact.head.thresholds[0]),
        }

    def table(self) -> str:
        """What is expected, in words for the command line."""
        low, high = (100 * v for v in self.interval)
        lines = [
            f"{'':12}{'tags an image':>15}{'expected precision':>21}",
            f"{'before':12}{self.kept_before:15.2f}{_percent(self.precision_before):>21}",
            f"{'after':12}{self.kept:15.2f}{_percent(self.precision):>21}"
            f"   between {low:.0f} and {high:.0f} %",
        ]
        return "\n".join(lines)


def _percent(value: float) -> str:
    return "nothing kept" if value != value else f"{100 * value:.1f} %"


def calibrate_unlabelled(
    artifact: Artifact, scores: Tensor, target: Target, *, seed: int = 0
) -> UnlabelledCalibration:
    """A new artifact whose thresholds meet a precision on images like these.

    Args:
        scores: (N, C) final cosines of N images, see :func:`pvp_fast.evaluation.final_scores`.
        target: a precision; what is missed cannot be seen without labels.
        seed: of the resampling for the interval.

    Raises:
        InputError: another kind of target, fewer than 100 images, scores with NaN, or scores that
            do not show absent and present categories.
    """
    if target.kind != "precision" or target.value is None:
        raise InputError(
            f"target {target}: images without labels tell how much of what is kept is right, not "
            "what is missed; give precision=0.8, or labelled images"
        )
    if len(scores) < LEAST_IMAGES:
        raise InputError(
            f"unlabelled: {len(scores)} images are too few to see where their scores lie; give at "
            f"least {LEAST_IMAGES}, better 500"
        )
    check_scores(scores, artifact.vocabulary.names)
    head = artifact.head
    logits = scores.double().cpu() * head.platt[:, 0].double() + head.platt[:, 1].double()
    groups = _Groups.of(logits)
    fit = _fit(groups.edges, groups.counts.sum(0), TAIL)
    cut = _cut(fit, groups, target.value)
    bulk = _bulk_exponent(groups.edges, groups.counts.sum(0))
    threshold = 1 / (1 + math.exp(-(fit.scale * cut + fit.shift)))
    platt = torch.stack(
        [fit.scale * head.platt[:, 0].double(), fit.scale * head.platt[:, 1].double() + fit.shift],
        1,
    ).float()
    kept = head.accepted(scores.cpu())
    chance = torch.sigmoid(fit.scale * logits + fit.shift)
    new = dataclasses.replace(
        artifact, head=head.calibrated(platt, torch.full_like(head.thresholds, threshold))
    )
    result = UnlabelledCalibration(
        artifact=new,
        target=target,
        images=len(scores),
        precision=_expected(groups.edges, groups.counts.sum(0), fit, cut),
        interval=_interval(groups, cut, bulk, seed),
        kept=float(new.head.accepted(scores.cpu()).sum() / len(scores)),
        kept_before=float(kept.sum() / len(scores)),
        precision_before=float(chance[kept].mean()),
        scale=fit.scale,
        shift=fit.shift,
        bulk=bulk,
        histogram=_histogram(groups, fit),
    )
    metrics = {**artifact.metrics, "calibration": {"unlabelled": True, **result.to_dict()}}
    return dataclasses.replace(result, artifact=dataclasses.replace(new, metrics=metrics))


class _Groups(NamedTuple):
    """Logits as counts: ``edges`` (F + 1,), ``counts`` (G, F) of G groups of images."""

    edges: Tensor
    counts: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> _Groups:
        low, high = float(logits.min()), float(logits.max())
        if not low < high:
            raise InputError("unlabelled: all scores are equal; give other images")
        edges = torch.linspace(low, high, _FINE + 1, dtype=torch.double)
        index = ((logits - low) * (_FINE / (high - low))).long().clamp(max=_FINE - 1)
        parts = index.tensor_split(min(_GROUPS, len(logits)))
        counts = [torch.bincount(part.flatten(), minlength=_FINE) for part in parts]
        return cls(edges, torch.stack(counts).double())


@dataclass(frozen=True)
class _Fit:
    """The absent's curve (m, w, k), their number, and the affine map of the logits."""

    middle: float
    width: float
    tail: float
    absent: float
    scale: float
    shift: float

    def above(self, t: Tensor) -> Tensor:
        """Expected number of absent entries above each of t ≥ m."""
        return self.absent * _HALF * torch.exp(-(((t - self.middle) / self.width) ** self.tail))


class _Quantiles:
    """Quantiles of counts and the share above a value, linear within a bin."""

    def __init__(self, edges: Tensor, counts: Tensor) -> None:
        below = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self._edges, self._below = edges.numpy(), (below / below[-1]).numpy()

    def at(self, above: float) -> float:
        """The value that a share ``above`` of the entries passes."""
        return float(np.interp(1 - above, self._below, self._edges))

    def above(self, value: float) -> float:
        return float(1 - np.interp(value, self._edges, self._below))


def _absent(quantiles: _Quantiles, tail: float) -> tuple[float, float, float]:
    """m and w of the absent's curve and the share of entries above it, as a fixed point."""
    present = 0.0
    for _ in range(_ROUNDS):

        def at(share: float, present: float = present) -> float:
            return quantiles.at(share * (1 - present) + present)

        middle = at(_HALF)
        width = (at(_UPPER) - middle) / math.log(_HALF / _UPPER) ** (1 / tail)
        # The share present is read where a twentieth of the absent are left.
        value = middle + width * math.log(_HALF / 0.05) ** (1 / tail)
        present = max(0.0, quantiles.above(value) - (1 - present) * 0.05)
        if present > MOST_PRESENT:
            raise InputError(
                f"unlabelled: {100 * present:.0f} % of the scores stand out; where so many "
                "categories are present at once, calibrate on labelled images (--images)"
            )
    if not width > 0:
        raise InputError("unlabelled: the scores hardly differ; give other images")
    return middle, width, present


def _bulk_exponent(edges: Tensor, counts: Tensor) -> float:
    quantiles = _Quantiles(edges, counts)
    tail = TAIL
    for _ in range(10):
        middle, _, present = _absent(quantiles, tail)
        x = torch.tensor(
            [math.log(quantiles.at(s * (1 - present) + present) - middle) for s in _BULK],
            dtype=torch.double,
        )
        y = torch.tensor([math.log(math.log(_HALF / s)) for s in _BULK], dtype=torch.double)
        x, y = x - x.mean(), y - y.mean()
        tail = min(max(float((x * y).sum() / (x * x).sum()), 0.5), 4.0)
    return tail


def _fit(edges: Tensor, counts: Tensor, tail: float) -> _Fit:
    middle, width, present = _absent(_Quantiles(edges, counts), tail)
    absent = float(counts.sum()) * (1 - present)
    fit = _Fit(middle, width, tail, absent, 0.0, 0.0)
    start = middle + width * math.log(_HALF / _FROM) ** (1 / tail)
    first = int(torch.searchsorted(edges, start))
    if first >= len(counts) - _COARSE:
        raise InputError(NOTHING.format(found=0))
    bins = torch.linspace(first, len(counts), _COARSE + 1).round().long().unique()
    below = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    n = below[bins[1:]] - below[bins[:-1]]
    borders = edges[bins]
    n0 = (fit.above(borders[:-1]) - fit.above(borders[1:])).clamp(min=1e-12)
    span = float(borders[-1] - borders[0])
    x = ((borders[:-1] + borders[1:]) / 2 - borders[0]) / span
    scale, shift = _poisson(x, n, n0)
    chance = torch.sigmoid(scale * x + shift)
    found = float((n * chance)[chance > 0.5].sum())
    if scale <= 0 or found < LEAST_FOUND:
        raise InputError(NOTHING.format(found=found))
    scale /= span
    return dataclasses.replace(fit, scale=scale, shift=shift - scale * float(borders[0]))


def _poisson(x: Tensor, n: Tensor, n0: Tensor) -> tuple[float, float]:
    """a, b of n ~ Poisson(n0 (1 + exp(a x + b))), x in [0, 1], by Fisher scoring."""
    design = torch.stack([x, torch.ones_like(x)], 1)

    def loss(weights: Tensor) -> Tensor:
        log_ratio = F.softplus(design @ weights)
        return (n0 * log_ratio.exp() - n * log_ratio).sum()

    found = torch.tensor([5.0, -2.0], dtype=torch.double)
    least = loss(found)
    for _ in range(_STEPS):
        eta = design @ found
        share = eta.sigmoid()
        mean = n0 * (1 + eta.exp())
        information = design.T @ (design * (mean * share.square())[:, None])
        step = torch.linalg.solve(
            information + 1e-9 * torch.eye(2, dtype=torch.double), design.T @ (share * (n - mean))
        )
        for halvings in range(_HALVINGS):
            tried = found + step * 0.5**halvings
            value = loss(tried)
            if value < least:
                break
        else:
            break  # no step goes further down
        found, least = tried, value
    return float(found[0]), float(found[1])


def _expected(edges: Tensor, counts: Tensor, fit: _Fit, cut: float) -> float:
    """Mean probability of the entries in bins from ``cut`` on; NaN without any."""
    centres = (edges[1:] + edges[:-1]) / 2
    n = counts * (centres >= cut)
    p = torch.sigmoid(fit.scale * centres + fit.shift)
    return float((n * p).sum() / n.sum())


def _cut(fit: _Fit, groups: _Groups, value: float) -> float:
    """The least logit from which on the mean probability reaches ``value``."""
    edges, n = groups.edges, groups.counts.sum(0).flip(0)
    centres = ((edges[1:] + edges[:-1]) / 2).flip(0)
    hits = (n * torch.sigmoid(fit.scale * centres + fit.shift)).cumsum(0)
    enough = (hits >= value * n.cumsum(0)) & (n.cumsum(0) > 0)
    if not bool(enough.any()):  # an image as probable as that meets it alone
        return (math.log(value / (1 - value)) - fit.shift) / fit.scale
    return float(edges[:-1].flip(0)[int(enough.nonzero()[-1])])


def _interval(groups: _Groups, cut: float, bulk: float, seed: int) -> tuple[float, float]:
    """5 % and 95 % of the expected precision, resampled, over every exponent."""
    generator = torch.Generator().manual_seed(seed)
    size = len(groups.counts)
    ends: list[tuple[float, float]] = []
    for tail in (*TAILS, _BENDS * bulk):
        found = []
        for _ in range(_RESAMPLES):
            drawn = torch.randint(size, (size,), generator=generator)
            weight = torch.bincount(drawn, minlength=size).double()
            counts = weight @ groups.counts
            try:
                value = _expected(groups.edges, counts, _fit(groups.edges, counts, tail), cut)
            except InputError:  # nothing stands out in this resample: nothing kept is sure
                value = 0.0
            found.append(0.0 if value != value else value)
        ends.append(_middle_ninety(found))
    return min(low for low, _ in ends), max(high for _, high in ends)


def _middle_ninety(values: Sequence[float]) -> tuple[float, float]:
    ends = torch.tensor(values).quantile(torch.tensor([0.05, 0.95]))
    return float(ends[0]), float(ends[1])


def _histogram(groups: _Groups, fit: _Fit, bins: int = 64) -> Tensor:
    n = groups.counts.sum(0).reshape(bins, -1).sum(1)
    borders = groups.edges[:: _FINE // bins]
    above = torch.where(borders >= fit.middle, fit.above(borders.clamp(min=fit.middle)), torch.nan)
    return torch.stack([(borders[1:] + borders[:-1]) / 2, n, above[:-1] - above[1:]], 1)
