"""The loop under the fused losses: tiles of scores that are made, turned into gradients and used.

For each chunk of rows and each block of categories: one matrix product writes the tile of scores,
the tile is overwritten by its gradient, and two products add it to dx and dw in float32. The scores
never leave the cache; memory is O(B·D + C·D) beside one tile. What turns a tile into its gradient
is plain PyTorch (:mod:`pvp_fast.losses.torch_steps`) or a Triton kernel, in the same loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pvp_fast.losses.labels import Labels

_EPS = 1e-12  # of torch.nn.functional.normalize
_HALF = (torch.float16, torch.bfloat16)


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
class Problem:
    """factor · Σ loss of the scores scale · ⟨x̂, ŵ⟩ + bias.

    x and w have one dtype; scalars are 0-d float32.
    """

    kind: str
    settings: Sequence[float]
    x: Tensor
    w: Tensor
    y: Labels
    scale: Tensor
    bias: Tensor | None
    weight: Tensor | None
    normalize: bool
    factor: float = 1.0


class Tile(NamedTuple):
    """Scores (rows, cols) float32 to overwrite by ∂loss/∂scores, and scratch of its shape."""

    scores: Tensor
    scratch: Sequence[Tensor]
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


class Step(Protocol):
    """Turns a tile of scores into its gradient and adds to the sums."""

    def begin(self, rows: slice) -> None:
        """Called before the tiles of some rows."""

    def __call__(self, tile: Tile, sums: Sums) -> None: ...

    def end(self, rows: slice, grad: Tensor, dw: Tensor) -> None:
        """Adds what no tile holds to Σ ds · ŵ (R, D) and to dw (C, D); empty if not needed."""


def inverse_norms(t: Tensor, normalize: bool) -> Tensor | None:
    if not normalize:
        return None
    norms = torch.linalg.vector_norm(t, dim=-1, dtype=torch.float32)
    return norms.clamp_min_(_EPS).reciprocal_()


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this device multiplies matrices of this half precision natively."""
    if dtype not in _HALF:
        return False
    if device.type != "cpu":
        return True
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return dtype == torch.bfloat16 and supported is not None and bool(supported())


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


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a @ b into out, float32 or of their dtype."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return out.copy_(torch.mm(a, b))


def add_product(a: Tensor, b: Tensor, out: Tensor, first: bool) -> None:
    """out += a @ b with float32 accumulation; ``first``: out = a @ b."""
    if first:
        product(a, b, out)
    elif a.dtype == torch.float32:
        out.addmm_(a, b)
    elif a.is_cuda:
        out.add_(torch.mm(a, b, out_dtype=torch.float32))
    else:
        out.add_(torch.mm(a, b))


def _with(tile: Tensor, factor: Tensor | None, dtype: torch.dtype, scratch: Tensor) -> Tensor:
    """tile · factor in ``dtype``."""
    if factor is not None:
        tile = torch.mul(tile, factor, out=scratch)
    return tile.to(dtype)


def through_norm(grad: Tensor, unit: Tensor) -> Tensor:
    """In place: the part of a unit row's gradient that is orthogonal to the row."""
    return grad.addcmul_(unit, torch.linalg.vecdot(grad, unit)[:, None], value=-1.0)


def run(problem: Problem, needs: Needs, step: Step, tile: tuple[int, int], keep: bool) -> Gradients:
    """Loss and gradients, tile by tile.

    Args:
        tile: the most rows and categories of a tile.
        keep: hold the unit rows of w (C, D) instead of making them for every tile.
    """
    x, w, scale = problem.x, problem.w, problem.scale
    (count, width), n_categories = x.shape, len(w)
    half = multiplies(x.dtype, x.device)
    x_inverse = inverse_norms(x, problem.normalize)
    w_inverse = inverse_norms(w, problem.normalize)
    rows_factor = scale.expand(count) if x_inverse is None else x_inverse * scale
    left = _Operand(x, rows_factor, half, False)
    right = _Operand(w, w_inverse, half, keep)
    # Gradients are rounded to half precision for their products; dscale need not be. (The ranking
    # hinge holds its positives outside the tiles, so it has no other way.)
    exact_scale = half and needs.scale and problem.kind != "ranking"
    along_x = needs.x or (needs.scale and not exact_scale)
    sums = Sums(problem, needs)
    new = x.new_empty
    dx = new((count if needs.x else 0, width), dtype=torch.float32)
    dw = new((n_categories if needs.w else 0, width), dtype=torch.float32)
    if not count:
        dw.zero_()
    dscale = torch.zeros((), dtype=torch.float32, device=x.device)
    most_rows, most_cols = min(count, tile[0]), min(n_categories, tile[1])
    count_buffers = 5 if exact_scale else 4
    buffers = [new(most_rows * most_cols, dtype=torch.float32) for _ in range(count_buffers)]
    for rows in blocks(count, tile[0]):
        a, a_factor = left.rows(rows)
        grad = new((len(a) if along_x else 0, width), dtype=torch.float32)
        if not n_categories:
            grad.zero_()
        step.begin(rows)
        for cols in blocks(n_categories, tile[1]):
            b, b_factor = right.rows(cols)
            shape = (len(a), len(b))
            scores, *scratch = (f[: len(a) * len(b)].view(shape) for f in buffers)
            product(a, b.T, scores)
            if half and b_factor is not None:
                scores.mul_(b_factor)
            if exact_scale:
                if x_inverse is not None:
                    scores.mul_(x_inverse[rows, None])
                unscaled = scratch.pop().copy_(scores)
                scores.mul_(scale)
            elif half and a_factor is not None:
                scores.mul_(a_factor[:, None])
            if problem.bias is not None:
                scores.add_(problem.bias)
            step(Tile(scores, scratch, rows, cols), sums)
            if exact_scale:
                dscale += torch.dot(scores.view(-1), unscaled.view(-1))
            if along_x:
                add_product(_with(scores, b_factor, b.dtype, scratch[0]), b, grad, not cols.start)
            if needs.w:
                column = None if a_factor is None else a_factor[:, None]
                part = _with(scores, column, a.dtype, scratch[0])
                add_product(part.T, a, dw[cols], not rows.start)
        step.end(rows, grad, dw)
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
