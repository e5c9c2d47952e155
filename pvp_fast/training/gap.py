"""Training through the modality gap: sentences are perturbed so that they cover where images lie.

A sentence's feature stands in for an image's, but the two lie in different regions of the space.
Trained on clean sentence features every stage separates them and stops learning before it would
separate images. So each training sentence is drawn anew in every step (METHOD section 10):

    x' = normalise(x + σ · n / √D),   n ~ N(0, I)

so that the noise has length σ beside a feature of length 1 (CapDec, arXiv 2211.00575), and with
probability ``mix`` x is first the normalised mean of two sentences, whose labels are united: a
picture shows more than one sentence tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pvp_fast.errors import InputError
from pvp_fast.training.distributed import Ranks


@dataclass(frozen=True)
class GapConfig:
    """How training sentences are perturbed, in all three stages; the local branch's are not.

    ``sigma`` is the length of the noise on a unit feature; "auto" takes it from the sentences and
    the names (:func:`auto_sigma`). ``mix`` is the share of sentences that are averaged with another
    one, ``visual_mix`` that in stage 1. All 0 train on the sentences as they are.
    """

    sigma: float | str = "auto"
    mix: float = 1.0
    visual_mix: float = 0.0

    def __post_init__(self) -> None:
        if self.sigma != "auto" and not (
            isinstance(self.sigma, int | float) and 0 <= self.sigma < float("inf")
        ):
            raise InputError(f"GapConfig: sigma is 'auto' or 0 or more, not {self.sigma!r}")
        for name in ("mix", "visual_mix"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"GapConfig: {name} is a share, 0 to 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Perturbation:
    """What :class:`GapConfig` comes to in one stage: the noise's length and the share mixed."""

    sigma: float = 0.0
    mix: float = 0.0

    @property
    def active(self) -> bool:
        """Whether anything is perturbed at all."""
        return self.sigma > 0 or self.mix > 0


OFF = GapConfig(0.0, 0.0, 0.0)
CLEAN = Perturbation()
# Standard deviations of the noise between a category that is mentioned and one that is not.
DEVIATIONS = 3.0


def auto_sigma(x: Tensor, y: Tensor, names: Tensor) -> float:
    """The length of noise that leaves mentioned categories three deviations above the others.

    Noise of length σ moves the difference of two cosines by σ · √(2 / D) (for perpendicular class
    vectors). The difference itself is measured: between a mentioned category's cosine and the mean
    of those not mentioned in the same sentence, averaged over the sentences.

    Args:
        x: sentences (N, D), unit rows. y: their labels (N, C) bool.
        names: class vectors (C, D) of the names alone, unit rows.
    """
    scores = x @ names.T
    others = scores.masked_fill(y, 0).sum(1) / (~y).sum(1).clamp(min=1)
    usable = y & (~y).any(1, keepdim=True)
    if not bool(usable.any()):
        return 0.0
    margin = float((scores - others[:, None])[usable].double().mean())
    return max(0.0, margin) * (x.shape[1] / 2) ** 0.5 / DEVIATIONS


class Whole(NamedTuple):
    """Which rows of a batch of ``size`` are this process's."""

    own: slice
    size: int

    @classmethod
    def of(cls, rows: int, batch_size: int) -> Whole:
        """The batch of a step, of which this process has ``rows`` rows."""
        ranks = Ranks()
        size = rows if ranks.size == 1 else batch_size
        return cls(ranks.share(size), size)


@dataclass(frozen=True)
class Draw:
    """What is random about one step's batch, equal on all processes of a run.

    ``partners`` (B,) are the rows to average with, -1 for none; ``seed`` starts the noise, which
    is drawn on the device for all of the batch's rows, of which a process keeps its own.
    """

    partners: Tensor
    seed: int
    whole: Whole

    @classmethod
    def of(
        cls, rows: Tensor, whole: Whole, count: int, gap: Perturbation, generator: torch.Generator
    ) -> Draw:
        """Draw for ``rows``, the ``whole.own`` part of a batch, out of ``count`` sentences."""
        own, size = whole
        further = torch.randint(1, max(2, count), (size,), generator=generator)
        alone = torch.rand(size, generator=generator) >= gap.mix
        seed = int(torch.randint(2**62, (), generator=generator))
        partners = (rows + further[own]) % count  # never the sentence itself
        return cls(partners.masked_fill(alone[own], -1), seed, whole)

    def noise(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Standard normal (rows, *shape)."""
        generator = torch.Generator(device).manual_seed(self.seed)
        noise = torch.randn(self.whole.size, *shape, generator=generator, device=device)
        return noise[self.whole.own]


def unit_(x: Tensor) -> Tensor:
    """The rows of x (…, D) made unit rows, in place."""
    return x.div_(torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(1e-12))


def blurred(x: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Unit rows normalise(x + σ · noise / √D) of x (…, D); noise of a shape that broadcasts."""
    return unit_(torch.add(x, noise, alpha=sigma / x.shape[-1] ** 0.5))
