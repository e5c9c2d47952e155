"""The final score, composed in one place: features -> cosines -> probabilities -> tags.

    s_c = (1 - μ_c) global_c + μ_c local_c      p_c = sigmoid(a_c s_c + b_c)      p_c >= threshold_c

``global`` is the dual adapter's mixed cosine (METHOD section 5), ``local`` the pooled regions'
(section 4); without a local branch s is the global one. a, b and the thresholds come from held-out
sentences (section 8).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import InputError
from pvp_fast.losses.pooling import spatial_softmax_pool
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.modules.tiles import check_tile, image_regions

LOCAL_TILE = 128


def probability(cosines: Tensor, platt: Tensor) -> Tensor:
    """Calibrated probabilities of final cosines (B, C): sigmoid(slope · s + intercept)."""
    return torch.sigmoid(cosines * platt[:, 0] + platt[:, 1])


def mixture(overall: Tensor, local: Tensor, weight: Tensor) -> Tensor:
    """Final cosines (B, C): (1 − μ_c) of the whole-image score plus μ_c of the local one.

    METHOD section 5, at its end; a score standardised over the categories, as others have it,
    would change with every category that is added.
    """
    return (1 - weight) * overall + weight * local


def local_scores(
    regions: Tensor, vectors: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Local cosines (B, C) of features (B, L, D) with g' (C, D): METHOD section 4, unscaled.

    Computed in tiles of one fixed number of categories. That bounds the memory by B·L·128, and
    keeps every bit of a category's score when others are added behind it: matrix products of
    another shape may round in another order.
    """
    count = len(vectors)
    if not count:
        return regions.new_zeros(len(regions), 0)
    missing = -count % LOCAL_TILE
    padded = torch.cat([vectors, vectors.new_zeros(missing, vectors.shape[1])])
    parts = [
        spatial_softmax_pool(regions, tile, mask, temperature=temperature)
        for tile in padded.split(LOCAL_TILE)
    ]
    return torch.cat(parts, 1)[:, :count]


@dataclass(frozen=True, eq=False)
class LocalBranch:
    """The second grain: class vectors that are compared with regions.

    Attributes:
        vectors: g' (C, D), unit rows.
        weight: μ (C,), the local score's weight in the final one, 0 to 1.
        temperature: (1,) of the spatial softmax, above 0.
        tile: what it takes for regions (:func:`pvp_fast.modules.tiles.image_regions`).

    Raises:
        InputError: another shape or value.
    """

    vectors: Tensor
    weight: Tensor
    temperature: Tensor
    tile: float = 0.0

    def __post_init__(self) -> None:
        count = len(self.vectors)
        for name, shape in (("weight", (count,)), ("temperature", (1,))):
            given = tuple(getattr(self, name).shape)
            if given != shape:
                raise InputError(f"local {name} has shape {given}; give {shape}")
        if not bool(((self.weight >= 0) & (self.weight <= 1)).all()):
            raise InputError("local weight has values outside 0 to 1")
        if not bool(((self.temperature > 0) & self.temperature.isfinite()).all()):
            raise InputError("local temperature is not a number above 0")
        check_tile("local branch", self.tile)

    def cosines(self, regions: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C) of region or token features (B, L, D); mask (B, L) is False on padding."""
        return local_scores(regions, self.vectors, float(self.temperature), mask)

    def take(self, rows: Tensor) -> LocalBranch:
        """The branch of some categories."""
        return dataclasses.replace(self, vectors=self.vectors[rows], weight=self.weight[rows])

    def extended(self, vectors: Tensor, weight: Tensor) -> LocalBranch:
        """With further categories, (n, D) and (n,), behind the present ones."""
        return dataclasses.replace(
            self,
            vectors=torch.cat([self.vectors, vectors]),
            weight=torch.cat([self.weight, weight]),
        )


class LinearHead(NamedTuple):
    """A head as one inner product: logits = queries @ vectors.T + intercept [+ local · gain].

    Attributes:
        vectors: (C, 2D), for :meth:`Head.queries`; calibration and mixture are folded in.
        intercept: (C,).
        gain: (C,), what a local cosine adds to the logit; None without a local branch.
    """

    vectors: Tensor
    intercept: Tensor
    gain: Tensor | None


@dataclass(frozen=True, eq=False)
class Head:
    """What turns features into tags: adapter and banks, local branch, calibration, thresholds.

    Nothing here is trained or changed; methods run without gradients. Feature arguments are moved
    to the head's device, results stay there.

    Attributes:
        adapter: the dual adapter over the class banks of C categories.
        platt: (C, 2) slope and intercept from final cosine to probability.
        thresholds: (C,) probabilities from which on a category is a tag.
        local: the local branch, if there is one: then images need region features too.

    Raises:
        InputError: parts of different numbers of categories or of another width.
    """

    adapter: DualAdapter
    platt: Tensor
    thresholds: Tensor
    local: LocalBranch | None = None

    def __post_init__(self) -> None:
        count, width = self.adapter.original.shape
        shapes = {"platt": (count, 2), "thresholds": (count,)}
        for name, shape in shapes.items():
            given = tuple(getattr(self, name).shape)
            if given != shape:
                raise InputError(f"{name} has shape {given}; give {shape}")
        if self.local is not None and tuple(self.local.vectors.shape) != (count, width):
            given = tuple(self.local.vectors.shape)
            raise InputError(f"local vectors have shape {given}; give {(count, width)}")

    @classmethod
    def uncalibrated(cls, adapter: DualAdapter, local: LocalBranch | None = None) -> Head:
        """A head whose probabilities mean nothing yet: see :meth:`calibrated`. Parts are copied."""
        count = len(adapter.original)
        device = adapter.original.device
        platt = torch.tensor([1.0, 0.0], device=device).repeat(count, 1)
        return cls(adapter, platt, torch.full((count,), 0.5, device=device), local).to(device)

    def __len__(self) -> int:
        return len(self.adapter.original)

    @property
    def width(self) -> int:
        """D, of the features it takes."""
        return self.adapter.original.shape[1]

    def to(self, device: torch.device | str) -> Head:
        """A copy on a device; this one stays where it is."""
        local = self.local
        if local is not None:
            vectors, weight, heat = (
                _copy(part, device) for part in (local.vectors, local.weight, local.temperature)
            )
            local = LocalBranch(vectors, weight, heat, local.tile)
        adapter = copy.deepcopy(self.adapter).to(device).eval()
        return Head(adapter, _copy(self.platt, device), _copy(self.thresholds, device), local)

    def queries(self, z: Tensor) -> Tensor:
        """(B, D) unit rows -> (B, 2D), what :meth:`linear`'s vectors are multiplied with."""
        with torch.no_grad():
            return self.adapter.queries(z.to(self.platt.device)).float()

    @torch.no_grad()
    def global_cosines(self, z: Tensor) -> Tensor:
        """Mixed cosines (B, C) of whole images or sentences (B, D): the dual adapter alone."""
        return self.queries(z) @ self._vectors.T

    @torch.no_grad()
    def regions(self, backbone: Backbone, pixels: Tensor) -> Tensor | None:
        """(B, L, D) of normalised pixels (B, 3, H, W), None where there is no local branch."""
        return None if self.local is None else image_regions(backbone, pixels, self.local.tile)

    @torch.no_grad()
    def local_cosines(self, regions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Local cosines (B, C) of region or token features (B, L, D).

        Raises:
            InputError: there is no local branch.
        """
        if self.local is None:
            raise InputError("regions: this head has no local branch; train with local=True")
        device = self.platt.device
        masked = None if mask is None else mask.to(device)
        return self.local.cosines(regions.to(device), masked).float()

    @torch.no_grad()
    def cosines(
        self,
        z: Tensor,
        regions: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        local: Tensor | None = None,
    ) -> Tensor:
        """Final scores (B, C), before calibration.

        Args:
            z: (B, D) unit rows of images, or of sentences that stand in for them.
            regions: (B, L, D) of the same images; needed where there is a local branch, and not
                looked at otherwise.
            mask: (B, L), False on padding.
            local: (B, C) from :meth:`local_cosines`, instead of ``regions``.

        Raises:
            InputError: neither regions nor local though there is a local branch, or of another
                batch.
        """
        overall = self.global_cosines(z)
        if self.local is None:
            return overall
        if local is None:
            local = self.local_cosines(self.check_regions(regions, len(z)), mask)
        elif local.shape != overall.shape:
            raise InputError(f"local has shape {tuple(local.shape)}; give {tuple(overall.shape)}")
        return mixture(overall, local.to(overall), self.local.weight)

    def check_regions(self, regions: Tensor | None, batch: int) -> Tensor:
        """``regions``, if a local branch can use them with so many images.

        Raises:
            InputError: it cannot.
        """
        if regions is None or regions.ndim != 3 or len(regions) != batch:
            given = None if regions is None else tuple(regions.shape)
            raise InputError(
                f"regions: {given} for {batch} images; this artifact has a local branch, "
                "give head.regions(backbone, pixels) of the same images"
            )
        return regions

    def probabilities(self, cosines: Tensor) -> Tensor:
        """Calibrated probabilities of final scores (B, C)."""
        return probability(cosines.to(self.platt.device), self.platt)

    def accepted(self, cosines: Tensor, threshold: float | None = None) -> Tensor:
        """Which of the final scores (B, C) are tags, bool; see :meth:`cuts`."""
        logits = cosines.to(self.platt.device) * self.platt[:, 0] + self.platt[:, 1]
        return logits >= self.cuts(threshold)

    def cuts(self, threshold: float | None = None) -> Tensor:
        """(C,) least logits of a tag: of each category's own threshold, or of one for all."""
        least = self.thresholds if threshold is None else self.platt.new_tensor(float(threshold))
        return torch.logit(least.double()).float().expand(len(self)).contiguous()

    @torch.no_grad()
    def linear(self) -> LinearHead:
        """The head for an index or a graph; no bit of a category depends on the others'.

        The calibration is linear in the final cosine and that in the class vectors, so both fold
        into them: an index over the vectors ranks the logits of the probabilities.
        """
        slope = self.platt[:, 0]
        vectors = self.adapter.stable_class_vectors() * slope[:, None]
        gain = None
        if self.local is not None:
            vectors = vectors * (1 - self.local.weight)[:, None]
            gain = slope * self.local.weight
        return LinearHead(vectors, self.platt[:, 1].contiguous(), gain)

    def calibrated(self, platt: Tensor, thresholds: Tensor) -> Head:
        """The same scores with other probabilities and thresholds."""
        device = self.platt.device
        return dataclasses.replace(
            self, platt=_copy(platt, device), thresholds=_copy(thresholds, device)
        )

    def take(self, rows: Sequence[int] | Tensor) -> Head:
        """The head of some categories, in that order."""
        index = torch.as_tensor(rows, device=self.platt.device)
        local = None if self.local is None else self.local.take(index)
        return Head(self.adapter.take(index), self.platt[index], self.thresholds[index], local)

    @cached_property
    def _vectors(self) -> Tensor:
        return self.adapter.stable_class_vectors()


def _copy(tensor: Tensor, device: torch.device | str) -> Tensor:
    return tensor.detach().to(device, copy=True)
