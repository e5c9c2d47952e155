"""The cached sentences a stage learns from and is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast import losses
from pvp_fast.errors import InputError
from pvp_fast.training.gap import CLEAN, Draw, GapConfig, Whole, blurred

# name -> (loss of scores, labels as the loss takes them)
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "ranking": losses.ranking_loss,
    "asl": losses.asl_loss,
    "bce": losses.bce_loss,
    "focal": losses.focal_loss,
    "siglip": losses.siglip_loss,
}
_SUMMED = ("asl", "bce", "focal", "siglip")


def check_loss(name: str) -> None:
    """Raise InputError for a loss name that no stage knows."""
    if name not in _LOSSES:
        raise InputError(f"loss={name!r}: use one of {', '.join(sorted(_LOSSES))}")


def classification_loss(
    name: str, x: Tensor, w: Tensor, y: Tensor, scale: float, *, normalize: bool = True
) -> Tensor:
    """The loss ``name`` of scale · cosine(x, w), summed over categories, mean over the batch.

    ``normalize=False`` takes inner products in place of cosines.
    """
    options = {"reduction": "batchmean"} if name in _SUMMED else {}
    return _LOSSES[name](x, w, y, scale=scale, normalize=normalize, **options)


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
    gap: GapConfig = CLEAN

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

    def perturbed(self, seed: int) -> Sentences:
        """One fixed draw of every sentence: what a stage is judged by."""
        if not self.gap.active:
            return self
        every = torch.arange(len(self))
        x, y = self._drawn(
            every, Whole(slice(None), len(self)), torch.Generator().manual_seed(seed)
        )
        return Sentences(x.cpu().numpy(), y.cpu(), self.device)


@dataclass(frozen=True)
class TokenSentences:
    """Token features (N, L, D) float16 and their mask (N, L) as memory maps; labels (N, C) bool.

    ``gap`` says how :meth:`draw` perturbs them.
    """

    tokens: np.ndarray
    mask: np.ndarray
    labels: Tensor
    device: torch.device
    gap: GapConfig = CLEAN

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

    def draw(
        self, rows: Tensor, generator: torch.Generator, batch_size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`batch`, perturbed as ``gap`` says; ``rows`` are a process's of a batch.

        A sentence that is mixed has the other one's tokens behind its own, as a picture of both
        has the regions of both. Every token has noise of its own.
        """
        if not self.gap.active:
            return self.batch(rows)
        return self._drawn(rows, Whole.of(len(rows), batch_size), generator)

    def _drawn(
        self, rows: Tensor, whole: Whole, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, mask, y = self.batch(rows)
        draw = Draw.of(rows, whole, len(self), self.gap, generator)
        mixed = draw.partners >= 0
        if bool(mixed.any()):
            more, real, labels = self.batch(draw.partners[mixed])
            where = mixed.nonzero()[:, 0].to(tokens.device)
            own, added = mask.sum(1), real.sum(1)
            behind = int(torch.cat([own, own[where] + added]).max()) - tokens.shape[1]
            tokens = F.pad(tokens, (0, 0, 0, behind))
            row, place = real.nonzero(as_tuple=True)
            tokens[where[row], own[where[row]] + place] = more[real]
            mask = (
                torch.arange(tokens.shape[1], device=own.device)
                < own.index_add(0, where, added)[:, None]
            )
            y[where] = y[where] | labels
        if self.gap.sigma:
            # Drawn for the longest of all: a process's rows may be shorter than others'.
            longest = (2 if self.gap.mix else 1) * self.tokens.shape[1]
            noise = draw.noise((longest, self.tokens.shape[2]), tokens.device)
            tokens = blurred(tokens, noise[:, : tokens.shape[1]], self.gap.sigma)
        return tokens, mask, y

    def perturbed(self, seed: int) -> TokenSentences:
        """One fixed draw of every sentence: what a stage is judged by."""
        if not self.gap.active:
            return self
        every = torch.arange(len(self))
        tokens, mask, y = self._drawn(
            every, Whole(slice(None), len(self)), torch.Generator().manual_seed(seed)
        )
        return TokenSentences(tokens.cpu().half().numpy(), mask.cpu().numpy(), y.cpu(), self.device)

    def chunks(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All rows in their order, ``size`` at a time; token features are too many for one go."""
        for rows in torch.arange(len(self)).split(size):
            yield self.batch(rows)
