"""Class vectors learned from sentences directly, for vocabularies of any size.

Text prompts cost a pass of the text tower per category and step. Here nothing passes through one:

    w_c = normalise(e_c + δ_c),   L = ASL(scale · ⟨x', w_c⟩ + bias, y)

e are the centred names (C, D), x' sentences perturbed as in :mod:`pvp_fast.training.gap`, δ is
learned (TaskRes, arXiv 2211.10277, has such a residual for few-shot images). A step meets only the
categories that its sentences mention and as many others, drawn evenly, as make ``sampled``; labels
are lists. Nothing has the size (N, C), and the state is three times (C, D). What no sentence
mentions is never drawn: its vector stays the name's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvp_fast.errors import InputError, TrainingDiverged
from pvp_fast.losses import asl_loss_from_scores
from pvp_fast.metrics import average_precision
from pvp_fast.training.adapter import SPREAD, UNMENTIONED
from pvp_fast.training.gap import Draw, Perturbation, Whole, auto_sigma, blurred

JUDGED = 512  # categories that a score is averaged over
ROWS = 4096  # held-out sentences that judge

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class VectorConfig:
    """Settings; ``epochs`` is how often each sentence is drawn."""

    epochs: float = 6.0
    batch_size: int = 256
    lr: float = 3e-3
    sampled: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.epochs > 0 and self.lr > 0 and self.batch_size > 0 and self.sampled > 0):
            raise InputError(f"VectorConfig: everything but the seed is above 0, not {self}")

    def steps(self, sentences: int) -> int:
        """Steps of a run over so many sentences."""
        return max(1, round(self.epochs * sentences / self.batch_size))


@dataclass(frozen=True)
class Listed:
    """Sentences (N, D), unit rows, with labels as lists.

    Attributes:
        features: (N, D), a float16 memory map. offsets: (N + 1,) and indices: (nnz,), int64: the
            categories of sentence j are ``indices[offsets[j] : offsets[j + 1]]``.
    """

    features: np.ndarray
    offsets: Tensor
    indices: Tensor

    @classmethod
    def of(cls, features: np.ndarray, labels: Sequence[Sequence[int]]) -> Listed:
        """From the label lists of a corpus."""
        lengths = torch.tensor([0, *map(len, labels)])
        flat = torch.tensor([c for row in labels for c in row], dtype=torch.int64)
        return cls(features, lengths.cumsum(0), flat)

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, picked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, D) float32, and the pairs (row of the batch, category) of their labels."""
        starts, ends = self.offsets[picked], self.offsets[picked + 1]
        lengths = ends - starts
        row = torch.repeat_interleave(torch.arange(len(picked)), lengths)
        first = lengths.cumsum(0) - lengths
        place = torch.arange(len(row)) - first[row] + starts[row]
        x = torch.from_numpy(self.features[picked.numpy()]).float()
        return x, row, self.indices[place]

    def draw(
        self, picked: Tensor, gap: Perturbation, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`rows`, perturbed: noise, and a share averaged with another sentence."""
        x, row, category = self.rows(picked)
        drawn = Draw.of(picked, Whole(slice(None), len(picked)), len(self), gap, generator)
        mixed = (drawn.partners >= 0).nonzero()[:, 0]
        if len(mixed):
            other, more, further = self.rows(drawn.partners[mixed])
            x[mixed] = F.normalize(x[mixed] + other, dim=-1)
            row, category = torch.cat([row, mixed[more]]), torch.cat([category, further])
        if gap.sigma:
            x = blurred(x, drawn.noise(x.shape[1:], x.device), gap.sigma)
        return x, row, category


@dataclass(frozen=True)
class Vectors:
    """What was learned: ``w`` (C, D), unit rows, and the mAP on held-out sentences in percent of
    the names alone and of w, over at most 512 categories."""

    w: Tensor
    names_map: float
    learned_map: float


def learn_vectors(
    train: Listed,
    held_out: Listed,
    names: Tensor,
    gap: Perturbation,
    config: VectorConfig | None = None,
    *,
    progress: Progress | None = None,
) -> Vectors:
    """Fit class vectors (C, D) to sentences, from those of the names.

    Args:
        train, held_out: sentences whose labels index ``names``.
        names: e (C, D), unit rows.
        gap: how sentences are perturbed.
        progress: called with (steps done, steps).

    Raises:
        InputError: no sentence.
        TrainingDiverged: the loss is not finite.
    """
    config = config or VectorConfig()
    if not len(train):
        raise InputError("train: no sentence to learn from")
    generator = torch.Generator().manual_seed(config.seed)
    known = torch.unique(train.indices)
    shift = nn.Embedding(len(names), names.shape[1], sparse=True)
    nn.init.zeros_(shift.weight)
    solver = torch.optim.SparseAdam(list(shift.parameters()), lr=config.lr)
    scale, bias = _logits(train, names, known, gap, config, generator)
    steps = config.steps(len(train))
    for step in range(steps):
        for group in solver.param_groups:
            group["lr"] = config.lr * (1 - step / steps)
        picked = torch.randint(len(train), (config.batch_size,), generator=generator)
        x, row, category = train.draw(picked, gap, generator)
        chosen, y = sample(row, category, len(x), known, config.sampled, generator)
        with torch.enable_grad():
            w = F.normalize(names[chosen] + shift(chosen), dim=-1)
            loss = asl_loss_from_scores(x @ w.T * scale + bias, y, reduction="batchmean")
            if not bool(loss.isfinite()):
                raise TrainingDiverged(step, "asl", None)
            solver.zero_grad()
            loss.backward()
            solver.step()
        if progress:
            progress(step + 1, steps)
    with torch.no_grad():
        w = names.clone()
        w[known] = F.normalize(names[known] + shift.weight[known], dim=-1)
    return Vectors(
        w, judged_map(held_out, names, config.seed), judged_map(held_out, w, config.seed)
    )


def sample(
    row: Tensor,
    category: Tensor,
    batch: int,
    known: Tensor,
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The categories of a step, (S,) ascending, and the batch's labels among them, (B, S) bool.

    All that are mentioned are there; the rest, up to ``count``, is drawn evenly from ``known``.
    """
    mentioned = torch.unique(category)
    missing = min(count, len(known)) - len(mentioned)
    chosen = mentioned
    if missing > 0:
        drawn = torch.randint(len(known), (2 * missing,), generator=generator)
        chosen = torch.cat([mentioned, known[drawn]])
        chosen = torch.unique(chosen)
        if len(chosen) > count:  # too many were new: keep the mentioned ones, drop some others
            keep = torch.isin(chosen, mentioned)
            others = (~keep).nonzero()[:, 0]
            order = torch.randperm(len(others), generator=generator)
            keep[others[order[: count - len(mentioned)]]] = True
            chosen = chosen[keep]
    y = torch.zeros(batch, len(chosen), dtype=torch.bool)
    y[row, torch.searchsorted(chosen, category)] = True
    return chosen, y


@torch.no_grad()
def _logits(
    train: Listed,
    names: Tensor,
    known: Tensor,
    gap: Perturbation,
    config: VectorConfig,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Scale and bias that put the starting scores where ASL learns, as for the dual adapter."""
    picked = torch.randint(len(train), (config.batch_size,), generator=generator)
    x, row, category = train.draw(picked, gap, generator)
    chosen, y = sample(row, category, len(x), known, config.sampled, generator)
    scores = (x @ names[chosen].T).double()
    low, high = scores[~y], float(scores[y].mean())
    apart = max(high - float(low.mean()), 3 * float(low.std()), 1e-3) if low.numel() else 1.0
    scale = SPREAD / apart
    return scale, UNMENTIONED - scale * (float(low.mean()) if low.numel() else 0.0)


@torch.no_grad()
def judged_map(data: Listed, w: Tensor, seed: int = 0) -> float:
    """mAP in percent over a fixed sample of categories and sentences: (4096, 512) at most."""
    x, y, known = _some(data, seed)
    precision = average_precision(x @ w[known].T, y)
    return 100 * float(precision[~precision.isnan()].mean())


@torch.no_grad()
def noise_length(data: Listed, names: Tensor, seed: int = 0) -> float:
    """:func:`pvp_fast.training.gap.auto_sigma` over a sample of sentences and categories."""
    x, y, known = _some(data, seed)
    return auto_sigma(x, y, names[known])


def _some(data: Listed, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sentences (n, D), labels (n, S) bool and the categories (S,) that these stand for."""
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(data), generator=generator)[:ROWS].sort().values
    x, row, category = data.rows(picked)
    known = torch.unique(category)
    known = known[torch.randperm(len(known), generator=generator)[:JUDGED]].sort().values
    inside = torch.isin(category, known)
    y = torch.zeros(len(x), len(known), dtype=torch.bool)
    y[row[inside], torch.searchsorted(known, category[inside])] = True
    return x, y, known
