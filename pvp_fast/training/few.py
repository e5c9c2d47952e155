"""Stage 3 with labelled images: a few of them move the new banks, no further than they pay for.

The score of a category is linear in the query [x, a] (:class:`DualAdapter`): one vector of the
original bank beside one of the new banks, h_c = (1 - β) g_c + β v_c. Labelled images learn h:

    min over h, biases:  loss(scale · ⟨q, [(1-α) ê, α h]⟩ + bias, y) + pull · mean_c ‖α (h - h⁰)_c‖²

over the known labels (−1 absent, +1 present, 0 unknown, no loss), from what text alone has learned,
h⁰, and pulled towards it. The pull is the one whose left-out images rank best; if none ranks them
better than text alone, nothing changes. The original and the text bank stay as they are: every h
within reach is (1 - β') g + β' v' of one new mixture β' and unit vector v', which takes the place
of the pseudo visual prompt.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.errors import InputError
from pvp_fast.losses import asl_loss_from_scores, bce_loss_from_scores
from pvp_fast.metrics import mean_average_precision
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.modules.scoring import Head
from pvp_fast.training.thresholds import Target, fit_platt, thresholds_for

LEAST_ROWS = 10
_BIAS = -4.0  # of all categories at the start: most are absent
_LOSSES = {"asl": asl_loss_from_scores, "bce": bce_loss_from_scores}


@dataclass(frozen=True)
class FewConfig:
    """How labelled images are learned from.

    ``pulls`` are tried on ``folds`` parts left out in turn; ``scale`` is the logits' over cosines;
    ``steps`` of L-BFGS at most; ``loss`` is "bce" or "asl".
    """

    pulls: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    folds: int = 5
    loss: str = "bce"
    scale: float = 8.0
    steps: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in _LOSSES:
            raise InputError(f"FewConfig: loss {self.loss!r}: use one of {', '.join(_LOSSES)}")
        if not self.pulls or min(self.pulls) <= 0 or self.folds < 2 or self.scale <= 0:
            raise InputError("FewConfig: give pulls and a scale above 0, and at least two folds")


@dataclass(frozen=True)
class Adapted:
    """A head after labelled images.

    Attributes:
        head: the new one, or the one given where images did not help.
        pull: the one taken, None where images did not help.
        before, after: mAP in percent on left-out images, of text alone and of the pull taken.
    """

    head: Head
    pull: float | None
    before: float
    after: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"pull": self.pull, "map_before": self.before, "map_after": self.after}


def adapt_head(
    head: Head,
    views: Tensor,
    labels: Tensor,
    *,
    local: Tensor | None = None,
    config: FewConfig | None = None,
) -> Adapted:
    """Learn from labelled images; never worse on left-out ones than ``head``.

    Args:
        views: (V, N, D) unit rows: N images as they are, and V - 1 augmented views of them, which
            are learned from too. Or (N, D).
        labels: (N, C) int8, −1 absent, +1 present, 0 unknown.
        local: (N, C) local cosines where the head has a local branch.

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
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    parts = order.chunk(min(config.folds, count))
    start = head.cosines(views[0], local=local)
    before = _map(start, labels)
    best, taken, held = before, None, start
    for pull in config.pulls:
        scores = torch.empty_like(start)
        for part in parts:
            rest = torch.ones(count, dtype=torch.bool)
            rest[part] = False
            fold = _fitted(head, views[:, rest], labels[rest], pull, config)
            near = None if local is None else local[part]
            scores[part] = fold.cosines(views[0, part], local=near)
        found = _map(scores, labels)
        if found > best:
            best, taken, held = found, pull, scores
    if taken is None:
        return Adapted(head, None, before, before)
    new = _fitted(head, views, labels, taken, config)
    positive, known = labels > 0, labels != 0
    platt = fit_platt(held, positive, known)
    cut = thresholds_for(Target("f1"), held, positive, platt, known, common=True)
    return Adapted(new.calibrated(platt, cut), taken, before, best)


def _map(scores: Tensor, labels: Tensor) -> float:
    return 100 * mean_average_precision(scores.cpu(), labels.cpu(), difficult="ignore")


def _fitted(head: Head, views: Tensor, labels: Tensor, pull: float, config: FewConfig) -> Head:
    width = head.width
    adapter = head.adapter
    alpha = adapter.alpha.detach()[:, None]
    first = head._vectors  # (C, 2D)
    queries = torch.cat([head.queries(view) for view in views])
    y = labels.repeat(len(views), 1).to(queries.device)
    base = queries[:, :width] @ first[:, :width].T
    x = queries[:, width:]
    new = first[:, width:].clone().requires_grad_()  # α h
    bias = torch.full((len(head),), _BIAS, device=new.device, requires_grad=True)
    loss = _LOSSES[config.loss]
    per_entry = 1 / max(1, int((y != 0).sum()))
    solver = torch.optim.LBFGS([new, bias], max_iter=config.steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        logits = config.scale * (base + x @ new.T) + bias
        term = loss(logits, y, reduction="sum") * per_entry
        away = (new - first[:, width:]).square().sum(1).mean()
        total = term + pull * away
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(closure)
    return dataclasses.replace(head, adapter=_with_new(adapter, new.detach(), alpha))


def _with_new(adapter: DualAdapter, new: Tensor, alpha: Tensor) -> DualAdapter:
    """The adapter whose share of the new banks is ``new`` = α h, up to a length a category.

    h must be shorter than 1 to be a mixture of two unit vectors; where it is not, both halves of
    the class vector shrink alike, which changes no order within the category.
    """
    length = (1 - alpha) + torch.maximum(alpha, 1.01 * new.norm(dim=1, keepdim=True))
    mixed = (1 - (1 - alpha) / length).clamp(1e-3, 1 - 1e-3)  # α', with (1 - α') length = 1 - α
    h = new / length / mixed
    text = adapter.text
    away = h - text
    beta = away.square().sum(1, keepdim=True) / (2 * (1 - (h * text).sum(1, keepdim=True)))
    beta = beta.clamp(1e-3, 1 - 1e-3)
    visual = F.normalize(h - (1 - beta) * text, dim=1)
    state = {name: value.detach().clone() for name, value in adapter.state_dict().items()}
    state["alpha_logit"] = torch.logit(mixed[:, 0])
    state["beta_logit"] = torch.logit(beta[:, 0])
    state["visual"] = visual[:, None].expand_as(state["visual"]).clone()
    return DualAdapter.from_state(state["original"], state["text"], state["visual"], state).eval()
