"""The cached sentences a stage learns from and is judged by."""

from __future__ import annotations

from collections.abc import Callable
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


def classification_loss(name: str, x: Tensor, w: Tensor, y: Tensor, scale: float) -> Tensor:
    """The loss ``name`` of scale · cosine(x, w), summed over categories, mean over the batch."""
    options = {"reduction": "batchmean"} if name in _SUMMED else {}
    return _LOSSES[name](x, w, y, scale=scale, **options)


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
