"""Stage 3 with images: a few labelled ones, and as many without labels as there are.

What text says and what images say are added up, category by category:

    S_c = κ_c · (s_c - mean s_c) / std s_c  +  ⟨x - mean x, v_c⟩

s_c is the score that text alone taught, with the query adapter (:class:`DualAdapter`) at rest; x
the image's feature, v_c a ridge regression of the labels on x, in a metric where no direction
dominates (a root of the inverse covariance of all images). κ is small, so that text decides where
images say little; it falls with the root of a category's positives, and where text ranks them
badly.

Images without labels take part, and with them unknown labels, as pseudo-labels σ(γ (S_c - q_c))²
from the fit itself, a few rounds of them; above q_c lies about the expected share of positives. (A
few labelled images are too few to guess from: alone, their unknown labels have no say.) Labelled
images weigh together as much as the others do, and in each round the v are pushed apart where they
are alike. In the metric above that is a search for independent components (Hyvärinen and Oja,
"Independent component analysis", 2000), started from text and held by labels.

κ is chosen on left-out images; if no choice ranks those better than text alone, nothing changes.
The original and the text bank stay as they are: S is again a mixture of unit vectors, of another α
and β and with v_c in the place of the pseudo visual prompt.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.errors import InputError
from pvp_fast.metrics import mean_average_precision
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.modules.scoring import Head
from pvp_fast.training.thresholds import Target, fit_platt, thresholds_for

LEAST_ROWS = 10
# Chosen on scenes of two styles that are not the test scenes.
_FLOOR = 3e-3  # of an eigenvalue of the covariance over their mean
_POWER = 0.35  # of the inverse covariance; 0.5 would whiten
_RIDGE, _SELF_RIDGE = 3.0, 1.0  # labelled images alone; with pseudo-labels. Rows have length 1
_FIRST = 2.0  # positives at which half of the fit on labels alone is taken
_GAIN = 20.0  # γ, of scores that lie between 0 and 1
_CLEAR = 0.9  # of the expected share of positives
_APART_STEP = 0.2  # of what the v have in common, taken off in a round
_MOST_SHARE = 0.25
_APART = 2.5  # standard deviations that text sets positives apart where it is fully trusted
_LEAST_TRUST = 0.05
_EDGE = 1e-3


@dataclass(frozen=True)
class FewConfig:
    """How images are learned from.

    ``text_weights`` are κ's of a category with one positive. The first is taken unless another
    ranks left-out images better by ``margin`` points of mAP. ``folds`` parts are left out in turn;
    ``rounds`` of pseudo-labels.
    """

    text_weights: tuple[float, ...] = (0.15, 0.3, 0.6, 1.2)
    margin: float = 1.0
    folds: int = 10
    rounds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.text_weights or min(self.text_weights) <= 0:
            raise InputError(
                f"FewConfig: text_weights {self.text_weights}: give numbers above 0, one or more"
            )
        if self.folds < 2 or self.rounds < 1 or self.margin < 0:
            raise InputError(
                "FewConfig: give at least two folds and one round, and a margin of 0 or more"
            )


@dataclass(frozen=True)
class Adapted:
    """A head after images.

    Attributes:
        head: the new one, or the one given where images did not help.
        text_weight: κ, None where images did not help.
        before, after: mAP in percent on left-out images, of text alone and of what was taken.
    """

    head: Head
    text_weight: float | None
    before: float
    after: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "text_weight": self.text_weight,
            "map_before": self.before,
            "map_after": self.after,
        }


class Images(NamedTuple):
    """Features (N, D), unit rows, and local cosines (N, C) where the head has a local branch."""

    z: Tensor
    local: Tensor | None = None


def adapt_head(
    head: Head,
    views: Tensor,
    labels: Tensor,
    *,
    local: Tensor | None = None,
    unlabelled: Images | None = None,
    config: FewConfig | None = None,
) -> Adapted:
    """Learn from images; never worse on left-out ones than ``head``.

    Args:
        views: (V, N, D) unit rows: N images as they are, and V - 1 augmented views of them, which
            are learned from too. Or (N, D).
        labels: (N, C) int8, −1 absent, +1 present, 0 unknown.
        local: (N, C) local cosines where the head has a local branch.
        unlabelled: images of the same kind without labels.

    Raises:
        InputError: other shapes, fewer than ten images, or no known positive.
    """
    config = config or FewConfig()
    views = views.unsqueeze(0) if views.ndim == 2 else views
    if views.ndim != 3 or labels.shape != (views.shape[1], len(head)):
        raise InputError(
            f"images: features {tuple(views.shape)} and labels {tuple(labels.shape)}; give "
            f"(V, N, D) and (N, {len(head)})"
        )
    count = views.shape[1]
    if count < LEAST_ROWS or not bool((labels > 0).any()):
        raise InputError(
            f"images: {count} images with {int((labels > 0).sum())} positive labels are too few to "
            f"learn from; give at least {LEAST_ROWS}, some of them labelled"
        )
    resting = dataclasses.replace(head, adapter=_resting(head.adapter))
    rows = _Rows.of(resting, views, labels, local, unlabelled)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    parts = order.to(rows.y.device).chunk(min(config.folds, count))
    known, positive = rows.y != 0, rows.y > 0
    start = head.cosines(views[0], local=local)
    if unlabelled is not None and len(unlabelled.z):
        start = torch.cat([start, head.cosines(unlabelled.z, local=unlabelled.local)])
    before, _ = _held_out(rows, [start] * len(parts), parts)
    fits = [_Fit(rows, part) for part in parts]
    tried = {}
    for weight in config.text_weights:
        scores = [fit.scores(fit.learned(weight, config.rounds)) for fit in fits]
        tried[weight] = _held_out(rows, scores, parts)
    first = config.text_weights[0]
    best = max(tried, key=lambda weight: tried[weight][0])
    if tried[best][0] < tried[first][0] + config.margin and tried[first][0] > before:
        best = first
    after, held = tried[best]
    if after <= before:
        return Adapted(head, None, before, before)
    fit = _Fit(rows, rows.y.new_empty(0, dtype=torch.long))
    learned = fit.learned(best, config.rounds)
    platt = fit_platt(held, positive, known)
    cut = thresholds_for(Target("f1"), held, positive, platt, known, common=True)
    return Adapted(_composed(resting, rows, fit, learned, platt, cut), best, before, after)


@dataclass(frozen=True)
class _Rows:
    """All images: the labelled as they are, those without labels, further views of the labelled.

    Attributes:
        x: (M, D) features in the metric, (x - middle) @ metric, of mean length 1.
        text: (M, C) what text says, standardised over the first ``plain`` rows: (s - mean) / std.
        y: (N, C) labels of the labelled.
        owner: (M,) which labelled image a row is of, −1 without labels.
        plain: number of rows that are images as they are.
    """

    x: Tensor
    middle: Tensor
    metric: Tensor
    text: Tensor
    mean: Tensor
    std: Tensor
    y: Tensor
    owner: Tensor
    plain: int

    @classmethod
    def of(
        cls,
        head: Head,
        views: Tensor,
        labels: Tensor,
        local: Tensor | None,
        unlabelled: Images | None,
    ) -> _Rows:
        few = torch.arange(views.shape[1])
        parts, owners, near = [views[0]], [few], [local]
        if unlabelled is not None and len(unlabelled.z):
            parts.append(unlabelled.z)
            owners.append(torch.full((len(unlabelled.z),), -1))
            near.append(unlabelled.local)
        plain = sum(map(len, parts))
        for view in views[1:]:  # what the local branch sees of a view was not computed
            parts.append(view)
            owners.append(few)
            near.append(local)
        x = torch.cat(parts).to(head.platt.device).float()
        text = torch.cat([head.cosines(part, local=n) for part, n in zip(parts, near, strict=True)])
        middle = x[:plain].mean(0)
        x = x - middle
        # Of the views too: what only they show must not count as a direction without spread.
        values, vectors = torch.linalg.eigh((x.T @ x).double() / len(x))
        relative = (values / values.mean()).clamp(min=0) + _FLOOR
        metric = (vectors * relative**-_POWER).float()
        metric = metric / (x[:plain] @ metric).norm(dim=1).mean()
        mean = text[:plain].mean(0)
        std = text[:plain].std(0).clamp(min=1e-6)
        return cls(
            x @ metric,
            middle,
            metric,
            (text - mean) / std,
            mean,
            std,
            labels.to(text.device),
            torch.cat(owners).to(text.device),
            plain,
        )


class _Learned(NamedTuple):
    weight: Tensor  # κ (C,)
    w: Tensor  # v in the metric, (D, C)


class _Fit:
    """The regression on all images but ``left_out`` labelled ones."""

    def __init__(self, rows: _Rows, left_out: Tensor) -> None:
        self.rows = rows
        owned = rows.owner >= 0
        use = ~torch.isin(rows.owner, left_out) if len(left_out) else torch.ones_like(owned)
        self.x, self.text = rows.x[use], rows.text[use]
        owner = rows.owner[use]
        labelled = owner >= 0
        self.plain = int(use[: rows.plain].sum())
        y = rows.y.new_zeros(len(owner), rows.y.shape[1])
        y[labelled] = rows.y[owner[labelled]]
        self.known, self.positive = y != 0, (y > 0).float()
        some = self.known[: self.plain]
        counts = (self.positive[: self.plain].sum(0), some.sum(0).float())
        self.trust = self._trusted(*counts)
        shown = counts[0] > 0
        share = float(counts[0].sum() / counts[1][shown].sum().clamp(min=1))
        self.share = min(share, _MOST_SHARE) * _CLEAR
        lone = int((~labelled).sum())
        images = max(1, self.plain - lone)
        view = images / max(1, int(labelled.sum()))  # what a view weighs
        self.first = self._labelled(labelled, view)
        # Labelled images together weigh as much as the others.
        row_weight = torch.ones(len(owner), 1, device=self.x.device)
        row_weight[labelled] = view * max(1.0, lone / images)
        heavy = self.x * row_weight
        gram = self.x.T @ heavy
        gram.diagonal().add_(_SELF_RIDGE)
        self.solver, self.heavy = torch.linalg.cholesky(gram), heavy
        self.alone = not lone  # a guess from so few does harm

    def _trusted(self, positives: Tensor, known: Tensor) -> Tensor:
        """(C,) by how far text sets positives apart from negatives."""
        text, positive = self.text[: self.plain], self.positive[: self.plain]
        negative = self.known[: self.plain].float() - positive
        negatives = known - positives
        apart = (text * positive).sum(0) / positives.clamp(min=1)
        apart = apart - (text * negative).sum(0) / negatives.clamp(min=1)
        trust = (apart / _APART).clamp(_LEAST_TRUST, 1).sqrt()
        trust = torch.where((positives > 0) & (negatives > 0), trust, torch.ones_like(trust))
        return trust / positives.clamp(min=1).sqrt()

    def _labelled(self, labelled: Tensor, view: float) -> Tensor:
        """(D, C) from known labels alone."""
        x, known = self.x[labelled], self.known[labelled].float()
        positive = self.positive[labelled]
        share = positive.sum(0) / known.sum(0).clamp(min=1)
        gram = view * x.T @ x
        gram.diagonal().add_(_RIDGE)
        first = torch.linalg.solve(gram, view * x.T @ ((positive - share) * known))
        count = view * positive.sum(0)
        return first * count / (count + _FIRST)

    def learned(self, text_weight: float, rounds: int) -> _Learned:
        weight, w = text_weight * self.trust, self.first
        if self.alone:
            return _Learned(weight, w)
        base = self.text * weight
        above = max(1, round(self.share * self.plain))
        for _ in range(rounds):
            scores = base + self.x @ w
            cut = scores[: self.plain].T.topk(above, 1).values[:, -1]
            target = torch.sigmoid(_GAIN * (scores - cut)).square()
            guessed = target[: self.plain].mean(0)
            target = torch.where(self.known, self.positive, target) - guessed
            w = torch.cholesky_solve(self.heavy.T @ target, self.solver)
            unit = F.normalize(w, dim=0)
            w = w + _APART_STEP * (w - (w @ unit.T) @ unit)
        return _Learned(weight, w)

    def scores(self, learned: _Learned) -> Tensor:
        """S (M, C) of all images, those left out too."""
        return self.rows.text * learned.weight + self.rows.x @ learned.w


def _held_out(rows: _Rows, scores: list[Tensor], parts: tuple[Tensor, ...]) -> tuple[float, Tensor]:
    """mAP in percent, and the scores (N, C), of images each part of which another fit left out.

    A fit with one positive fewer gives a category lower scores; over the other images' mean and
    deviation those of different fits can be compared.
    """
    found = torch.empty(rows.y.shape, device=rows.x.device)
    for each, part in zip(scores, parts, strict=True):
        others = torch.ones(rows.plain, dtype=torch.bool, device=rows.x.device)
        others[part] = False
        apart = each[: rows.plain][others]
        found[part] = (each[part] - apart.mean(0)) / apart.std(0).clamp(min=1e-6)
    return 100 * mean_average_precision(found.cpu(), rows.y.cpu(), difficult="ignore"), found


def _composed(
    head: Head, rows: _Rows, fit: _Fit, learned: _Learned, platt: Tensor, cut: Tensor
) -> Head:
    """The head whose cosines are S over one number for all categories, up to their own shifts.

    ``platt`` is for S standardised over the images, as :func:`_held_out` has it.
    """
    width = head.width
    scores = fit.scores(learned)[: rows.plain]
    mean, std = scores.mean(0), scores.std(0).clamp(min=1e-6)
    v = (rows.metric @ learned.w).T  # (C, D): S = k · s + ⟨x, v⟩ + shift
    k = learned.weight / rows.std
    shift = -k * rows.mean - v @ rows.middle
    alpha = head.adapter.alpha.detach()
    local = head.local
    near = torch.zeros_like(k) if local is None else local.weight
    k, near, alpha = k[:, None], near[:, None], alpha[:, None]
    whole = k * (1 - near)
    new = whole * head._vectors[:, width:] + v
    # The least that leaves room for unit vectors in every category's mixture.
    size = (whole * (1 - alpha) + 1.01 * new.norm(dim=1, keepdim=True) + k * near).max()
    rest = 1 - k * near / size  # of the global score in the final one
    adapter = _with_new(head.adapter, whole / size / rest, new / size / rest)
    if local is not None:
        local = dataclasses.replace(local, weight=(k * near / size)[:, 0])
    slope = platt[:, 0] / std
    platt = torch.stack([slope * size, slope * (shift - mean) + platt[:, 1]], 1)
    return dataclasses.replace(head, adapter=adapter, local=local).calibrated(platt, cut)


def _resting(adapter: DualAdapter) -> DualAdapter:
    """The adapter with a query adapter that changes nothing."""
    state = {name: value.detach().clone() for name, value in adapter.state_dict().items()}
    state["query_adapter.up"].zero_()
    return DualAdapter.from_state(state["original"], state["text"], state["visual"], state).eval()


def _with_new(adapter: DualAdapter, kept: Tensor, new: Tensor) -> DualAdapter:
    """The adapter with class vectors [kept · (1 - α) ê, new], kept (C, 1) and new (C, D).

    Such a mixture exists where kept · (1 - α) + ‖new‖ < 1.
    """
    alpha = adapter.alpha.detach()[:, None]
    mixed = (1 - kept * (1 - alpha)).clamp(_EDGE, 1 - _EDGE)
    h, text = new / mixed, adapter.text
    away = (h - text).square().sum(1, keepdim=True)
    beta = away / (2 * (1 - (h * text).sum(1, keepdim=True))).clamp(min=1e-6)
    beta = beta.clamp(_EDGE, 1 - _EDGE)
    visual = F.normalize(h - (1 - beta) * text, dim=1)
    state = {name: value.detach().clone() for name, value in adapter.state_dict().items()}
    state["alpha_logit"] = torch.logit(mixed[:, 0])
    state["beta_logit"] = torch.logit(beta[:, 0])
    state["visual"] = visual[:, None].expand_as(state["visual"]).clone()
    return DualAdapter.from_state(state["original"], state["text"], state["visual"], state).eval()
