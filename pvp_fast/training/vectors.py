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

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvp_fast.errors import InputError, TrainingDiverged
from pvp_fast.losses import asl_loss_from_scores
from pvp_fast.metrics import average_precision
from pvp_fast.training.adapter import SPREAD, UNMENTIONED
from pvp_fast.training.features import Sentences, sample
from pvp_fast.training.gap import auto_sigma

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
class Vectors:
    """What was learned: ``w`` (C, D), unit rows, and the mAP on held-out sentences in percent of
    the names alone and of w, over at most 512 categories."""

    w: Tensor
    names_map: float
    learned_map: float


def learn_vectors(
    train: Sentences,
    held_out: Sentences,
    names: Tensor,
    config: VectorConfig | None = None,
    *,
    progress: Progress | None = None,
) -> Vectors:
    """Fit class vectors (C, D) to sentences, from those of the names.

    Args:
        train, held_out: sentences whose labels index ``names``; ``train.gap`` perturbs them.
        names: e (C, D), unit rows.
        progress: called with (steps done, steps).

    Raises:
        InputError: no sentence.
        TrainingDiverged: the loss is not finite.
    """
    config = config or VectorConfig()
    if not len(train):
        raise InputError("train: no sentence to learn from")
    generator = torch.Generator().manual_seed(config.seed)
    known = torch.unique(train.labels.indices)
    shift = nn.Embedding(len(names), names.shape[1], sparse=True)
    nn.init.zeros_(shift.weight)
    solver = torch.optim.SparseAdam(list(shift.parameters()), lr=config.lr)
    scale, bias = _logits(train, names, known, config, generator)
    steps = config.steps(len(train))
    for step in range(steps):
        for group in solver.param_groups:
            group["lr"] = config.lr * (1 - step / steps)
        picked = torch.randint(len(train), (config.batch_size,), generator=generator)
        part = train.draw(picked, generator, len(picked))
        chosen = sample(torch.unique(part.category), known, config.sampled, generator)
        y = part.among(chosen)
        with torch.enable_grad():
            w = F.normalize(names[chosen] + shift(chosen), dim=-1)
            loss = asl_loss_from_scores(part.x @ w.T * scale + bias, y, reduction="batchmean")
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


@torch.no_grad()
def _logits(
    train: Sentences,
    names: Tensor,
    known: Tensor,
    config: VectorConfig,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Scale and bias that put the starting scores where ASL learns, as for the dual adapter."""
    picked = torch.randint(len(train), (config.batch_size,), generator=generator)
    part = train.draw(picked, generator, len(picked))
    chosen = sample(torch.unique(part.category), known, config.sampled, generator)
    y = part.among(chosen)
    scores = (part.x @ names[chosen].T).double()
    low, high = scores[~y], float(scores[y].mean())
    apart = max(high - float(low.mean()), 3 * float(low.std()), 1e-3) if low.numel() else 1.0
    scale = SPREAD / apart
    return scale, UNMENTIONED - scale * (float(low.mean()) if low.numel() else 0.0)


@torch.no_grad()
def judged_map(data: Sentences, w: Tensor, seed: int = 0) -> float:
    """mAP in percent over a fixed sample of categories and sentences: (4096, 512) at most."""
    x, y, known = data.some(seed)
    precision = average_precision(x @ w[known].T, y)
    return 100 * float(precision[~precision.isnan()].mean())


@torch.no_grad()
def noise_length(data: Sentences, names: Tensor, seed: int = 0) -> float:
    """:func:`pvp_fast.training.gap.auto_sigma` over a sample of sentences and categories."""
    x, y, known = data.some(seed)
    return auto_sigma(x, y, names[known])
