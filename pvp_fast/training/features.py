"""The cached sentences a stage learns from and is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pvp_fast import losses
from pvp_fast.errors import InputError

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
    """Text features (N, D) as a float16 memory map, and labels (N, C) bool."""

    features: np.ndarray
    labels: Tensor
    device: torch.device

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) float32 and labels (B, C) bool of some rows, on the device."""
        features = torch.from_numpy(self.features[rows.numpy()]).float()
        return features.to(self.device), self.labels[rows].to(self.device)

    def all(self) -> tuple[Tensor, Tensor]:
        """Every feature and label; for the held-out part, which is small."""
        return self.batch(torch.arange(len(self)))


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
