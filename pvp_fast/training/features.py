"""The cached sentences a stage learns from and is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast import losses
from pvp_fast.errors import InputError
from pvp_fast.training.distributed import Ranks
from pvp_fast.training.gap import CLEAN, Draw, Perturbation, Whole, blurred

# name -> (loss of scores, labels as the loss takes them)
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "ranking": losses.ranking_loss,
    "asl": losses.asl_loss,
    "bce": losses.bce_loss,
    "focal": losses.focal_loss,
    "siglip": losses.siglip_loss,
}
JUDGE_SEED = 0  # of the fixed draw that judges
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


@dataclass(frozen=True)
class Sentences:
    """Text features (N, D) as a float16 memory map, and labels (N, C) bool.

    ``gap`` says how :meth:`draw` perturbs them.
    """

    features: np.ndarray
    labels: Tensor
    device: torch.device
    gap: Perturbation = CLEAN

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) float32 and labels (B, C) bool of some rows, on the device."""
        features = torch.from_numpy(self.features[rows.numpy()]).float()
        return features.to(self.device), self.labels[rows].to(self.device)

    def draw(
        self, rows: Tensor, generator: torch.Generator, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`batch`, perturbed as ``gap`` says; ``rows`` are a process's of a batch."""
        if not self.gap.active:
            return self.batch(rows)
        return self._drawn(rows, Whole.of(len(rows), batch_size), generator)

    def _drawn(
        self, rows: Tensor, whole: Whole, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        x, y = self.batch(rows)
        draw = Draw.of(rows, whole, len(self), self.gap, generator)
        mixed = draw.partners >= 0
        if bool(mixed.any()):
            other, labels = self.batch(draw.partners[mixed])
            where = mixed.nonzero()[:, 0].to(x.device)
            x[where] = F.normalize(x[where] + other, dim=-1)
            y[where] = y[where] | labels
        if self.gap.sigma:
            x = blurred(x, draw.noise(x.shape[1:], x.device), self.gap.sigma)
        return x, y

    def all(self) -> tuple[Tensor, Tensor]:
        """Every feature and label; for the held-out part, which is small."""
        return self.batch(torch.arange(len(self)))

    def perturbed(self) -> Sentences:
        """One fixed draw of every sentence: what a stage is judged by."""
        if not self.gap.active:
            return self
        every, generator = torch.arange(len(self)), torch.Generator().manual_seed(JUDGE_SEED)
        x, y = self._drawn(every, Whole(slice(None), len(self)), generator)
        return Sentences(x.cpu().numpy(), y.cpu(), self.device)


@dataclass(frozen=True)
class TokenSentences:
    """Token features (N, L, D) float16 and their mask (N, L) as memory maps; labels (N, C) bool."""

    tokens: np.ndarray
    mask: np.ndarray
    labels: Tensor
    device: torch.device

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
            self.labels[rows].to(self.device),
        )

    def chunks(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All rows in their order, ``size`` at a time; token features are too many for one go."""
        for rows in torch.arange(len(self)).split(size):
            yield self.batch(rows)
