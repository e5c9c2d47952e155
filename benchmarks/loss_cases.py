"""What the loss benchmark computes: sizes, random inputs, the least work, and float64 truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast import losses, spatial_softmax_pool
from pvp_fast.losses import CSRLabels

LOSSES = ("asl", "bce", "focal", "siglip", "ranking", "clip", "pool", "pool+asl")
CATEGORIES = (20, 80, 1_000, 4_585, 20_000, 100_000)
MOST_POSITIVES = 5
# Multiply-adds of one matrix product beyond which a case takes longer than a second on two cores.
CPU_WORK = 5e9
# Bytes of a dense (B, C) bool label matrix that a contender may be given.
DENSE_LABELS = {"cpu": 1 << 28, "cuda": 8 << 30}


@dataclass(frozen=True)
class Case:
    """One loss at one size. ``siglip`` and ``clip`` are of B pairs; ``pool`` has L regions."""

    loss: str
    rows: int
    categories: int
    width: int
    dtype: torch.dtype
    device: torch.device
    regions: int = 1

    @property
    def pairs(self) -> bool:
        return self.loss in ("siglip", "clip")

    @property
    def pooled(self) -> bool:
        return self.loss.startswith("pool")

    @property
    def scale(self) -> float:
        return 10.0 if self.loss == "siglip" else 20.0

    @property
    def size(self) -> str:
        regions = f" L={self.regions}" if self.pooled else ""
        return f"B={self.rows}{regions} C={self.categories} D={self.width}"

    @property
    def work(self) -> float:
        """Multiply-adds of the forward matrix product."""
        return float(self.rows) * self.regions * self.categories * self.width

    @property
    def flops(self) -> float:
        """Operations nobody can do without: one matrix product forward, two backward."""
        return 6 * self.work

    @property
    def moved(self) -> float:
        """Bytes nobody can do without: each input read once, each gradient written once."""
        x, w = self.rows * self.regions * self.width, self.categories * self.width
        labels = 0 if self.pairs else 8 * self.rows * MOST_POSITIVES / 2
        return 2 * (x + w) * self.dtype.itemsize + labels

    @property
    def dense_labels_fit(self) -> bool:
        return self.rows * self.categories <= DENSE_LABELS[self.device.type]

    def inputs(self, seed: int) -> Inputs:
        """Random features and class vectors; up to five positives a row, or the pairs (i, i)."""
        generator = torch.Generator(self.device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            values = torch.randn(
                shape, generator=generator, device=self.device, dtype=torch.float32
            )
            return values.to(self.dtype).requires_grad_()

        regions = (self.regions,) if self.pooled else ()
        x, w = normal(self.rows, *regions, self.width), normal(self.categories, self.width)
        if self.pairs:
            counts = torch.ones(self.rows, dtype=torch.int64, device=self.device)
            indices = torch.arange(self.rows, device=self.device)
        else:
            most = min(MOST_POSITIVES, self.categories)
            counts = torch.randint(
                1, most + 1, (self.rows,), generator=generator, device=self.device
            )
            first = torch.randint(
                self.categories, (self.rows, 1), generator=generator, device=self.device
            )
            place = torch.arange(most, device=self.device)
            spread = (first + place * (self.categories // most)) % self.categories
            indices = spread[place < counts[:, None]]
        offsets = F.pad(counts.cumsum(0), (1, 0))

        def scalar(value: float) -> Tensor:
            return torch.tensor(value, device=self.device, requires_grad=True)

        return Inputs(
            case=self,
            x=x,
            w=w,
            scale=scalar(self.scale),
            bias=scalar(-10.0) if self.loss == "siglip" else None,
            lists=CSRLabels(offsets, indices),
            g=torch.randn(self.rows, self.categories, generator=generator, device=self.device)
            if self.loss == "pool"
            else None,
        )


@dataclass(frozen=True)
class Inputs:
    """One set of inputs; x, w, scale and bias are leaves."""

    case: Case
    x: Tensor  # (B, D), or (B, L, D) to be pooled
    w: Tensor  # (C, D)
    scale: Tensor  # () float32
    bias: Tensor | None  # () float32
    lists: CSRLabels
    g: Tensor | None  # (B, C) float32: the gradient of pooled scores without a loss

    @property
    def leaves(self) -> dict[str, Tensor]:
        leaves = {"dx": self.x, "dw": self.w, "dscale": self.scale}
        return leaves if self.bias is None else {**leaves, "dbias": self.bias}

    @cached_property
    def dense(self) -> Tensor:
        """(B, C) bool."""
        return self.lists.dense(self.case.categories)

    @cached_property
    def positives(self) -> tuple[Tensor, Tensor]:
        """Category numbers of the positives (B, P), and which of them are there (B, P) bool."""
        offsets, indices = self.lists.offsets, self.lists.indices
        counts = offsets.diff()
        there = torch.arange(int(counts.max()), device=offsets.device) < counts[:, None]
        padded = torch.zeros(there.shape, dtype=torch.int64, device=offsets.device)
        padded[there] = indices
        return padded, there

    def backward(self, forward: Callable[[Inputs], Tensor]) -> dict[str, Tensor | None]:
        """Value and gradients by name; None for a leaf that the forward function does not take."""
        value = forward(self)
        leaves = self.leaves
        grads = torch.autograd.grad(value, list(leaves.values()), self.g, allow_unused=True)
        return {"value": value.detach(), **dict(zip(leaves, grads, strict=True))}


def _blocks(case: Case) -> Iterator[slice]:
    """Rows whose float64 scores take 128 MiB."""
    step = max(1, (1 << 24) // (case.categories * case.regions))
    for first in range(0, case.rows, step):
        yield slice(first, min(case.rows, first + step))


def _part(inputs: Inputs, rows: slice, w: Tensor, scale: Tensor, bias: Tensor | None) -> Inputs:
    """The rows of one block in float64."""
    offsets, indices = inputs.lists.offsets[rows.start : rows.stop + 1], inputs.lists.indices
    own = indices[int(offsets[0]) : int(offsets[-1])]
    return replace(
        inputs,
        x=inputs.x[rows].detach().double().requires_grad_(),
        w=w,
        scale=scale,
        bias=bias,
        lists=CSRLabels(offsets - offsets[0], own),
        g=None if inputs.g is None else inputs.g[rows].double(),
    )


def _exact_sum(inputs: Inputs) -> Tensor:
    """The loss summed over some rows, or their pooled scores, by the definition."""
    name = inputs.case.loss
    if inputs.case.pooled:
        scores = spatial_softmax_pool(inputs.x, inputs.w, scale=inputs.scale, backend="torch")
        if name == "pool":
            return scores
        name = "asl"
    else:
        cosines = F.normalize(inputs.x, dim=-1) @ F.normalize(inputs.w, dim=-1).T
        scores = inputs.scale * cosines
        if inputs.bias is not None:
            scores = scores + inputs.bias
    loss = getattr(losses, f"{name}_loss_from_scores")
    return loss(scores, inputs.dense, reduction="sum")


def _truth_of_pairs(inputs: Inputs) -> dict[str, Tensor]:
    """Symmetric InfoNCE in float64 from its formula, blocks of rows at a time.

    ds = (softmax over the row + softmax over the column − 2 · identity) / 2B.
    """
    case = inputs.case
    x, w = inputs.x.detach().double(), inputs.w.detach().double()
    unit_x, unit_w = F.normalize(x, dim=1), F.normalize(w, dim=1)
    row_lse = x.new_empty(case.rows)
    col_lse = x.new_full((case.rows,), -math.inf)
    for rows in _blocks(case):
        scores = case.scale * (unit_x[rows] @ unit_w.T)
        row_lse[rows] = scores.logsumexp(1)
        col_lse = torch.logaddexp(col_lse, scores.logsumexp(0))
    matched = case.scale * (unit_x * unit_w).sum(1)
    value = (row_lse + col_lse - 2 * matched).sum() / (2 * case.rows)
    unit_dx, unit_dw = torch.empty_like(x), torch.zeros_like(w)
    dscale = x.new_zeros(())
    for rows in _blocks(case):
        cosines = unit_x[rows] @ unit_w.T
        scores = case.scale * cosines
        ds = (scores - row_lse[rows, None]).exp_() + (scores - col_lse).exp_()
        ds.diagonal(rows.start).sub_(2)
        ds /= 2 * case.rows
        unit_dx[rows] = case.scale * (ds @ unit_w)
        unit_dw += case.scale * (ds.T @ unit_x[rows])
        dscale += (ds * cosines).sum()

    def through_norm(grad: Tensor, unit: Tensor, raw: Tensor) -> Tensor:
        along = (grad * unit).sum(1, keepdim=True)
        return (grad - unit * along) / raw.norm(dim=1, keepdim=True)

    return {
        "value": value,
        "dx": through_norm(unit_dx, unit_x, x),
        "dw": through_norm(unit_dw, unit_w, w),
        "dscale": dscale,
    }


def truth(inputs: Inputs) -> dict[str, Tensor]:
    """Value and every gradient in float64, in blocks of rows, so that any size fits."""
    case = inputs.case
    if case.loss == "clip":
        return _truth_of_pairs(inputs)
    shared = {
        "dw": inputs.w.detach().double().requires_grad_(),
        "dscale": inputs.scale.detach().double().requires_grad_(),
    }
    if inputs.bias is not None:
        shared["dbias"] = inputs.bias.detach().double().requires_grad_()
    totals = {name: torch.zeros_like(leaf) for name, leaf in shared.items()}
    values, dx = [], []
    for rows in _blocks(case):
        part = _part(inputs, rows, shared["dw"], shared["dscale"], shared.get("dbias"))
        found = part.backward(_exact_sum)
        values.append(found["value"])
        dx.append(found["dx"])
        for name, total in totals.items():
            total += found[name]
    # What each loss divides its sum by: the defaults of the public functions.
    count = {"pool": 1, "ranking": case.rows, "siglip": case.rows}.get(
        case.loss, case.rows * case.categories
    )
    value = torch.cat(values) if case.loss == "pool" else torch.stack(values).sum()
    found = {"value": value, "dx": torch.cat(dx), **totals}
    return {name: tensor.detach() / count for name, tensor in found.items()}


def error(found: dict[str, Tensor | None], exact: dict[str, Tensor]) -> float:
    """The largest ‖found − exact‖ / ‖exact‖ of the value and the gradients of x and w.

    Scale and bias sum terms that cancel, so theirs count relative to 1/50 as well.
    """
    worst = 0.0
    for name, wanted in exact.items():
        got = found[name]
        if got is None:
            continue
        distance = (got.double().reshape(wanted.shape) - wanted).norm().item()
        size = wanted.norm().item()
        if name in ("dscale", "dbias"):
            distance, size = distance / 50, size + 1e-6
        share = distance / size if size else distance
        worst = max(worst, math.inf if math.isnan(share) else share)
    return worst


def cases(
    device: torch.device,
    dtype: torch.dtype,
    chosen: tuple[str, ...] = LOSSES,
    categories: tuple[int, ...] = CATEGORIES,
    batches: tuple[int, ...] = (),
    widths: tuple[int, ...] = (768,),
    *,
    quick: bool = False,
) -> list[Case]:
    """The sizes that fit this kind of device, in the order of the list of losses.

    Batches default to 512, 4096 and 65536 (pairs: 1024, 8192 and 65536; images to be pooled: 256
    and 2048 of 196 regions). On a CPU a batch is left out where one product passes CPU_WORK, and a
    loss keeps the largest power of two that does not.
    """
    if quick:
        categories, batches, widths = categories[:2], batches or (32,), widths[:1]

    def make(loss: str, rows: int, columns: int, width: int) -> Case:
        regions = (49 if quick else 196) if loss.startswith("pool") else 1
        pairs = loss in ("siglip", "clip")
        return Case(loss, rows, rows if pairs else columns, width, dtype, device, regions)

    def fits(case: Case) -> bool:
        return device.type != "cpu" or case.work <= CPU_WORK

    found: list[Case] = []
    for loss in chosen:
        pairs, pooled = loss in ("siglip", "clip"), loss.startswith("pool")
        usual = (1024, 8192, 65536) if pairs else (256, 2048) if pooled else (512, 4096, 65536)
        for width in widths:
            for columns in categories[:1] if pairs else categories:
                if pooled and columns > 20_000:
                    continue
                sizes = [make(loss, rows, columns, width) for rows in batches or usual]
                if not any(map(fits, sizes)):
                    powers = (make(loss, 1 << p, columns, width) for p in range(16, -1, -1))
                    sizes = [next(case for case in powers if fits(case))]
                found += filter(fits, sizes)
    return found
