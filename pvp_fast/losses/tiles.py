"""The loop under the fused losses: tiles of scores that are made, turned into gradients and used.

For each chunk of rows and each block of categories: one matrix product writes the tile of scores,
the tile is overwritten by its gradient, and two products add it to dx and dw in float32. The scores
never leave the cache; memory is O(B·D + C·D) beside one tile. What turns a tile into its gradient
is plain PyTorch (:mod:`pvp_fast.losses.torch_steps`) or a Triton kernel, in the same loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pvp_fast.losses.labels import Labels
from pvp_fast.losses.similarity import (
    add_product,
    inverse_norms,
    multiplies,
    product,
    through_norm,
)


class Needs(NamedTuple):
    """Which gradients are asked for."""

    x: bool
    w: bool
    scale: bool
    bias: bool
    weight: bool


class Gradients(NamedTuple):
    """The loss and its gradients, float32; what is not needed is empty."""

    loss: Tensor
    dx: Tensor
    dw: Tensor
    dscale: Tensor
    dbias: Tensor
    dweight: Tensor


@dataclass(frozen=True)
class Loss:
    """What the engines know of a loss.

    Attributes:
        name: by which the engines "native" and "triton" know it, if they do.
        settings: its NamedTuple of numbers; every field has a default.
        of_scores: its definition: settings, scores (B, C), labels, weight (C,) and reduction to a
            scalar. Differentiable.
        by_row: whether its rows are no sum over categories, so that blocks hold all categories.
        closed_form: None where autograd of ``of_scores`` is as fast. Settings, scores (R, C) to
            overwrite by ∂Σ weight · loss/∂scores, labels of that block, weight, and whether that
            gradient is wanted, to Σ over rows of the loss before its weight, (C,); or None, before
            anything is overwritten, where it does not apply.
    """

    name: str
    settings: type
    of_scores: Callable[[Any, Tensor, Labels, Tensor | None, str], Tensor]
    by_row: bool = False
    closed_form: Callable[[Any, Tensor, Tensor, Tensor | None, bool], Tensor | None] | None = None


@dataclass(frozen=True)
class Problem:
    """factor · Σ loss of the scores scale · ⟨x̂, ŵ⟩ + bias.

    x and w have one dtype; scalars are 0-d float32.
    """

    loss: Loss
    settings: Any  # a loss.settings
    x: Tensor
    w: Tensor
    y: Labels
    scale: Tensor
    bias: Tensor | None
    weight: Tensor | None
    normalize: bool
    factor: float = 1.0

    @property
    def kind(self) -> str:
        return self.loss.name


class Tile(NamedTuple):
    """Scores (rows, cols) float32 to overwrite by ∂loss/∂scores."""

    scores: Tensor
    rows: slice
    cols: slice


class Sums:
    """What is added up over the tiles."""

    def __init__(self, problem: Problem, needs: Needs) -> None:
        device = problem.x.device
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.dbias = torch.zeros((), dtype=torch.float32, device=device)
        # Σ_b loss of each category before its weight.
        size = len(problem.w) if needs.weight else 0
        self.by_category = torch.zeros(size, dtype=torch.float32, device=device)
        self.grad = any(needs)
        self.needs = needs


# Turns a tile of scores into its gradient and adds to the sums.
Step = Callable[[Tile, Sums], None]


def blocks(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


class _Operand:
    """Rows of x or w: as float32 times their factor, or in half precision beside it."""

    def __init__(self, t: Tensor, factor: Tensor | None, half: bool, keep: bool) -> None:
        self.t, self.factor, self.half = t, factor, half
        self.whole: Tensor | None = None
        if keep and not half:
            self.whole = self.unit(slice(0, len(t)))

    def unit(self, rows: slice) -> Tensor:
        """(n, D) float32, times their factor."""
        if self.whole is not None:
            return self.whole[rows]
        part = self.t[rows].float()
        return part if self.factor is None else part * self.factor[rows, None]

    def rows(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        """(n, D) to multiply by, and the factors (n,) that remain to be applied."""
        if not self.half:
            return self.unit(rows), None
        return self.t[rows], None if self.factor is None else self.factor[rows]


def _with(tile: Tensor, factor: Tensor | None, dtype: torch.dtype, scratch: Tensor) -> Tensor:
    """tile · factor in ``dtype``."""
    if factor is not None:
        tile = torch.mul(tile, factor, out=scratch)
    return tile.to(dtype)


def run(problem: Problem, needs: Needs, step: Step, tile: tuple[int, int], keep: bool) -> Gradients:
    """Loss and gradients, tile by tile.

    Args:
        tile: the most rows and categories of a tile.
        keep: hold the unit rows of w (C, D) instead of making them for every tile.
    """
    x, w, scale = problem.x, problem.w, problem.scale
    (count, width), n_categories = x.shape, len(w)
    half = multiplies(x.dtype, x.device)
    x_inverse, w_inverse = (inverse_norms(t) if problem.normalize else None for t in (x, w))
    rows_factor = scale.expand(count) if x_inverse is None else x_inverse * scale
    left = _Operand(x, rows_factor, half, False)
    right = _Operand(w, w_inverse, half, keep)
    # Gradients are rounded to half precision for their products; dscale need not be.
    exact_scale = half and needs.scale
    along_x = needs.x or (needs.scale and not exact_scale)
    sums = Sums(problem, needs)
    new = x.new_empty
    dx = new((count if needs.x else 0, width), dtype=torch.float32)
    dw = new((n_categories if needs.w else 0, width), dtype=torch.float32)
    if not count:
        dw.zero_()
    dscale = torch.zeros((), dtype=torch.float32, device=x.device)
    most_rows, most_cols = min(count, tile[0]), min(n_categories, tile[1])
    buffers = [new(most_rows * most_cols, dtype=torch.float32) for _ in range(2 + exact_scale)]
    for rows in blocks(count, tile[0]):
        a, a_factor = left.rows(rows)
        grad = new((len(a) if along_x else 0, width), dtype=torch.float32)
        if not n_categories:
            grad.zero_()
        for cols in blocks(n_categories, tile[1]):
            b, b_factor = right.rows(cols)
            shape = (len(a), len(b))
            scores, scratch, *spare = (f[: len(a) * len(b)].view(shape) for f in buffers)
            product(a, b.T, scores)
            if half and b_factor is not None:
                scores.mul_(b_factor)
            if exact_scale:
                if x_inverse is not None:
                    scores.mul_(x_inverse[rows, None])
                unscaled = spare[0].copy_(scores)
                scores.mul_(scale)
            elif half and a_factor is not None:
                scores.mul_(a_factor[:, None])
            if problem.bias is not None:
                scores.add_(problem.bias)
            step(Tile(scores, rows, cols), sums)
            if exact_scale:
                dscale += torch.dot(scores.view(-1), unscaled.view(-1))
            if along_x:
                add_product(_with(scores, b_factor, b.dtype, scratch), b, grad, not cols.start)
            if needs.w:
                column = None if a_factor is None else a_factor[:, None]
                part = _with(scores, column, a.dtype, scratch)
                add_product(part.T, a, dw[cols], not rows.start)
        if along_x:
            part = x[rows].float()
            unit = part if x_inverse is None else part * x_inverse[rows, None]
            if needs.scale and not exact_scale:
                dscale += torch.linalg.vecdot(grad, unit).sum()
            if needs.x:
                if x_inverse is not None:
                    grad = through_norm(grad, unit).mul_(x_inverse[rows, None])
                torch.mul(grad, scale * problem.factor, out=dx[rows])
    if needs.w and w_inverse is None and problem.factor != 1:
        dw.mul_(problem.factor)
    elif needs.w and w_inverse is not None:
        for cols in blocks(n_categories, max(1, buffers[0].numel() // max(1, width))):
            unit = right.unit(cols)
            through_norm(dw[cols], unit).mul_(w_inverse[cols, None] * problem.factor)
    few = (sums.loss.float(), dscale, sums.dbias, sums.by_category)
    loss, dscale, dbias, dweight = (value * problem.factor for value in few)
    return Gradients(loss, dx, dw, dscale, dbias, dweight)
