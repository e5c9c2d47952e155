"""The cached sentences a stage learns from and is judged by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pvp_fast import losses
from pvp_fast.errors import InputError
from pvp_fast.losses.problem import CSRLabels
from pvp_fast.training.distributed import Ranks
from pvp_fast.training.gap import CLEAN, Draw, Perturbation, Whole, blurred, unit_

# name -> (loss of scores, labels as the loss takes them)
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "ranking": losses.ranking_loss,
    "asl": losses.asl_loss,
    "bce": losses.bce_loss,
    "focal": losses.focal_loss,
    "siglip": losses.siglip_loss,
}
CPU = torch.device("cpu")
JUDGE_SEED = 0  # of the fixed draw that judges
WHOLE = 1 << 22  # scores of many categories that are held at once; where they are more, judge
JUDGED_ROWS = 4096  # sentences and
JUDGED_CATEGORIES = 512  # categories
EVERY = 512  # categories up to which every one is in every step
SAMPLED = 2048  # categories that a step's loss meets where they are more
_SUMMED = ("asl", "bce", "focal", "siglip")


def check_loss(name: str) -> None:
    """Raise InputError for a loss name that no stage knows."""
    if name not in _LOSSES:
        raise InputError(f"loss={name!r}: use one of {', '.join(sorted(_LOSSES))}")


def classification_loss(
    name: str,
    x: Tensor,
    w: Tensor,
    y: Tensor,
    scale: float,
    *,
    bias: float = 0.0,
    normalize: bool = True,
) -> Tensor:
    """The loss ``name`` of scale · cosine(x, w) + bias: sum over categories, mean over rows.

    ``normalize=False`` takes inner products in place of cosines. A ranking sees no bias.
    """
    options: dict[str, Any] = {"scale": scale, "normalize": normalize}
    if name in _SUMMED:
        options |= {"reduction": "batchmean"}
        if bias:
            options |= {"bias": bias}
    return _LOSSES[name](x, w, y, **options)


def column_ranking(x: Tensor, w: Tensor, y: Tensor, scale: float, batch_size: int) -> Tensor:
    """The ranking hinge the other way: a category's sentences above all that do not mention it.

    A ranking of the categories of one sentence does not see what raises all of them alike; mean
    average precision, over the sentences of one category, does. Processes share the categories.

    Args:
        x: this process's rows (b, D) of a batch of ``batch_size``, y: their labels (b, C) bool.
        w: (C, P, D), unit rows, whose similarities are pooled by log-sum-exp.

    Returns:
        Sum over all pairs · C / B², so that it weighs as much as the other way.
    """
    ranks, whole = Ranks(), Whole.of(len(x), batch_size)
    part = len(x) / whole.size  # what this process's loss counts for
    x = ranks.collect(x, *whole)
    y = ranks.collect(y.to(torch.uint8), *whole).bool()
    own = ranks.share(len(w))
    labels, rows = y[:, own].T.contiguous(), w[own]
    if w.shape[1] == 1:
        mean = losses.ranking_loss(rows[:, 0], x, labels, scale=scale)
    else:
        scores = torch.einsum("bd,cpd->cbp", x, rows) * scale
        mean = losses.ranking_loss_from_scores(scores.logsumexp(2), labels)
    return mean * (len(rows) * len(w) / whole.size**2 / part)


def loss_from_scores(name: str, scores: Tensor, y: Tensor) -> Tensor:
    """The loss ``name`` of scores (B, C), already scaled; as :func:`classification_loss`."""
    options = {"reduction": "batchmean"} if name in _SUMMED else {}
    loss: Callable[..., Tensor] = getattr(losses, f"{name}_loss_from_scores")
    return loss(scores, y, **options)


def sample(mentioned: Tensor, known: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The categories of a step, (S,), ascending.

    All that are mentioned are there; the rest, up to ``count``, is drawn evenly from ``known``.

    Args:
        mentioned, known: category numbers, ascending, each once.
    """
    missing = min(count, len(known)) - len(mentioned)
    if missing <= 0:
        return mentioned
    drawn = torch.randint(len(known), (2 * missing,), generator=generator)
    chosen = torch.unique(torch.cat([mentioned, known[drawn]]))
    if len(chosen) > count:  # too many were new: keep the mentioned ones, drop some others
        keep = torch.isin(chosen, mentioned)
        others = (~keep).nonzero()[:, 0]
        order = torch.randperm(len(others), generator=generator)
        keep[others[order[: count - len(mentioned)]]] = True
        chosen = chosen[keep]
    return chosen


def label_lists(rows: Sequence[Sequence[int]]) -> CSRLabels:
    """The label lists of a corpus."""
    lengths = torch.tensor([0, *map(len, rows)])
    return CSRLabels(
        lengths.cumsum(0), torch.tensor([c for row in rows for c in row], dtype=torch.int64)
    )


def picked_labels(labels: CSRLabels, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The labels of some rows as pairs: position in ``rows``, category."""
    starts, ends = labels.offsets[rows], labels.offsets[rows + 1]
    lengths = ends - starts
    row = torch.repeat_interleave(torch.arange(len(rows)), lengths)
    first = lengths.cumsum(0) - lengths
    place = torch.arange(len(row)) - first[row] + starts[row]
    return row, labels.indices[place]


class Labelled(NamedTuple):
    """Some sentences: ``x`` (B, D) float32, and their labels as pairs (row of x, category)."""

    x: Tensor
    row: Tensor
    category: Tensor

    def dense(self, categories: int) -> Tensor:
        """Labels (B, C) bool, on the device of x."""
        y = torch.zeros(len(self.x), categories, dtype=torch.bool)
        y[self.row, self.category] = True
        return y.to(self.x.device)

    def among(self, chosen: Tensor) -> Tensor:
        """Labels (B, S) bool, on the device of x, of some categories (S,), ascending."""
        inside = torch.isin(self.category, chosen)
        y = torch.zeros(len(self.x), len(chosen), dtype=torch.bool)
        y[self.row[inside], torch.searchsorted(chosen, self.category[inside])] = True
        return y.to(self.x.device)


@dataclass(frozen=True)
class Sentences:
    """N labelled sentences.

    Attributes:
        features: (N, D), unit rows, a float16 memory map. labels: N lists. categories: C.
        gap: how :meth:`draw` perturbs them.
    """

    features: np.ndarray
    labels: CSRLabels
    categories: int
    device: torch.device = CPU
    gap: Perturbation = CLEAN

    def __len__(self) -> int:
        return len(self.features)

    def middle(self) -> Tensor:
        """What the sentences have in common: the mean (D,) of their features, float64."""
        total = torch.zeros(self.features.shape[1], dtype=torch.float64)
        for start in range(0, len(self), JUDGED_ROWS):
            part = np.asarray(self.features[start : start + JUDGED_ROWS], np.float64)
            total += torch.from_numpy(part.sum(0))
        return total / max(1, len(self))

    def without(self, middle: Tensor) -> Sentences:
        """The same sentences as unit rows of their features less ``middle`` (D,), in memory."""
        features = np.empty(self.features.shape, np.float16)
        for start in range(0, len(self), JUDGED_ROWS):
            part = np.asarray(self.features[start : start + JUDGED_ROWS], np.float32)
            rows = unit_(torch.from_numpy(part - middle.numpy().astype(np.float32)))
            features[start : start + len(part)] = rows.numpy()
        return dataclasses.replace(self, features=features)

    def rows(self, picked: Tensor) -> Labelled:
        """Some rows, features on the device."""
        x = torch.from_numpy(self.features[picked.numpy()]).float().to(self.device)
        return Labelled(x, *picked_labels(self.labels, picked))

    def draw(self, rows: Tensor, generator: torch.Generator, batch_size: int) -> Labelled:
        """As :meth:`rows`, perturbed as ``gap`` says; ``rows`` are a process's of a batch."""
        if not self.gap.active:
            return self.rows(rows)
        return self._drawn(rows, Whole.of(len(rows), batch_size), generator)

    def _drawn(self, rows: Tensor, whole: Whole, generator: torch.Generator) -> Labelled:
        draw = Draw.of(rows, whole, len(self), self.gap, generator)
        mixed = (draw.partners >= 0).nonzero()[:, 0]
        # One look-up for the sentences and their partners.
        found, row, category = self.rows(torch.cat([rows, draw.partners[mixed]]))
        x, other = found.split([len(rows), len(mixed)])
        row = torch.cat([torch.arange(len(rows)), mixed])[row]
        if len(mixed) == len(rows):
            x = unit_(x.add_(other))
        elif len(mixed):
            where = mixed.to(x.device)
            x[where] = unit_(x[where].add_(other))
        if self.gap.sigma:
            x = blurred(x, draw.noise(x.shape[1:], x.device), self.gap.sigma)
        return Labelled(x, row, category)

    def all(self) -> tuple[Tensor, Tensor]:
        """Every feature, and labels (N, C) bool; of few sentences or few categories."""
        every = self.rows(torch.arange(len(self)))
        return every.x, every.dense(self.categories)

    @property
    def few(self) -> bool:
        """Whether scores of all sentences and categories can be held at once."""
        return self.categories <= EVERY or len(self) * self.categories <= WHOLE

    def some(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """A fixed sample that stands for many: features (n, D), labels (n, S) bool and the
        categories (S,) they are of, ascending; n is 4096 and S 512 at most."""
        generator = torch.Generator().manual_seed(seed)
        picked = torch.randperm(len(self), generator=generator)[:JUDGED_ROWS].sort().values
        part = self.rows(picked)
        known = torch.unique(part.category)
        chosen = torch.randperm(len(known), generator=generator)[:JUDGED_CATEGORIES]
        known = known[chosen].sort().values
        return part.x, part.among(known), known

    def judging(self) -> tuple[Tensor, Tensor, Tensor]:
        """What judges: as :meth:`some`, but all sentences and categories where they are few."""
        if self.few:
            return *self.all(), torch.arange(self.categories)
        return self.some()

    def perturbed(self) -> Sentences:
        """One fixed draw of every sentence: what a stage is judged by."""
        if not self.gap.active:
            return self
        every, generator = torch.arange(len(self)), torch.Generator().manual_seed(JUDGE_SEED)
        x, row, category = self._drawn(every, Whole(slice(None), len(self)), generator)
        order = row.argsort(stable=True)
        offsets = torch.cat([row.new_zeros(1), torch.bincount(row, minlength=len(self)).cumsum(0)])
        lists = CSRLabels(offsets, category[order])
        return Sentences(x.cpu().numpy(), lists, self.categories, self.device)


def mentioned(data: Sentences, part: Labelled) -> Tensor:
    """The categories that a step's sentences mention, on whichever process; ascending."""
    hits = torch.zeros(data.categories, device=data.device)
    hits[part.category.to(data.device)] = 1
    return Ranks().add(hits).nonzero()[:, 0].cpu()


@dataclass(frozen=True)
class TokenSentences:
    """Token features (N, L, D) float16 and their mask (N, L) as memory maps; N lists of labels."""

    tokens: np.ndarray
    mask: np.ndarray
    labels: CSRLabels
    categories: int
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, L, D) float32, mask (B, L) and labels (B, C) bool of some rows, on the device.

        L is that of the longest row: what is padding in all of them is left out.
        """
        picked = rows.numpy()
        mask = torch.from_numpy(self.mask[picked])
        length = max(1, int(mask.sum(1).max())) if len(mask) else mask.shape[1]
        tokens = torch.from_numpy(self.tokens[picked, :length]).float()
        return (
            tokens.to(self.device),
            mask[:, :length].to(self.device),
            Labelled(tokens, *picked_labels(self.labels, rows))
            .dense(self.categories)
            .to(self.device),
        )

    def chunks(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All rows in their order, ``size`` at a time; token features are too many for one go."""
        for rows in torch.arange(len(self)).split(size):
            yield self.batch(rows)
