"""The loop under the fused losses: tiles of scores that are made, turned into gradients and used.

For each chunk of rows and each block of categories: one matrix product writes the tile of scores,
the tile is overwritten by its gradient, and two products add it to dx and dw in float32. The scores
never leave the cache; memory is O(B·D + C·D) beside one tile. What turns a tile into its gradient
is plain PyTorch (:func:`torch_step`) or a Triton kernel (:func:`kernel_step`), in the same loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from pvp_fast.losses.problem import (
    CSRLabels,
    Gradients,
    Needs,
    Problem,
    add_product,
    blocks,
    check_values,
    inverse_norms,
    label_block,
    multiplies,
    product,
    through_norm,
)


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


@contextmanager
def _autograd() -> Iterator[None]:
    """Autograd inside an operator, where PyTorch switches it off by more than the grad mode.

    The guard has no public name. torch.func.vjp has, but it takes 0.2 ms longer a tile and no
    torch.autograd.Function without ``setup_context``, of which a loss may be made.
    """
    key = torch._C.DispatchKey.AutogradFunctionality
    with torch._C._SetExcludeDispatchKeyGuard(key, False), torch.enable_grad():
        yield


def torch_step(problem: Problem) -> Step:
    """The step of any loss in plain PyTorch.

    A closed form of its gradient is given the tile to overwrite; without one, the definition is
    evaluated on the tile and autograd goes back to the scores, no further.
    """
    loss, settings = problem.loss, problem.settings
    check_values(problem.y, len(problem.w))

    def step(tile: Tile, sums: Sums) -> None:
        s, y = tile.scores, label_block(problem.y, tile.rows, tile.cols)
        weight = None if problem.weight is None else problem.weight.detach()[tile.cols]
        by_category = None
        if loss.closed_form is not None:
            by_category = loss.closed_form(settings, s, y, weight, sums.grad)
        if by_category is not None:
            sums.loss += by_category.sum() if weight is None else torch.dot(by_category, weight)
        elif not sums.grad:
            sums.loss += loss.of_scores(settings, s, y, weight, "sum")
        else:
            with _autograd():
                leaves = [s.detach().requires_grad_()]
                if weight is not None and sums.needs.weight:
                    leaves.append(weight.requires_grad_())
                value = loss.of_scores(settings, leaves[0], y, weight, "sum")
                gradient, *rest = torch.autograd.grad(value, leaves)
            sums.loss += value.detach()
            s.copy_(gradient)
            by_category = rest[0] if rest else None
        if sums.needs.weight and by_category is not None:
            sums.by_category[tile.cols] += by_category
        if sums.needs.bias:
            sums.dbias += s.sum()

    return step


def _once(y: CSRLabels, n_categories: int) -> CSRLabels:
    """Each category once a row; what is repeated or does not exist becomes n_categories.

    No host synchronisation. The ranking kernel would count a repeated positive twice.
    """
    rows = torch.arange(len(y), device=y.indices.device)
    row = torch.repeat_interleave(rows, y.offsets.diff(), output_size=len(y.indices))
    col = y.indices.long()
    col = torch.where(col < 0, n_categories, col.clamp(max=n_categories))
    key, _ = (row * (n_categories + 1) + col).sort()
    col = key % (n_categories + 1)
    repeated = torch.zeros_like(key, dtype=torch.bool)
    repeated[1:] = key[1:] == key[:-1]
    return CSRLabels(y.offsets, col.masked_fill(repeated, n_categories))


def kernel_step(problem: Problem) -> Step:
    """The step by Triton: one launch a tile; one more where the weights learn."""
    from pvp_fast.kernels import entrywise, ranking

    y, kind, options = problem.y, problem.kind, problem.settings._asdict()
    if isinstance(y, CSRLabels):
        if y.indices.device.type == "cpu":
            y.check(len(problem.w))
        if kind == "ranking":
            y = _once(y, len(problem.w))
        y = CSRLabels(y.offsets.contiguous(), y.indices.contiguous())

    def labels_of(tile: Tile) -> Tensor | tuple[Tensor, Tensor]:
        if isinstance(y, CSRLabels):
            offsets = y.offsets[tile.rows.start : tile.rows.stop + 1]
            first = tile.cols.start
            return offsets, y.indices - first if first else y.indices
        return y[tile.rows, tile.cols]

    def step(tile: Tile, sums: Sums) -> None:
        s, labels = tile.scores, labels_of(tile)
        weight = None if problem.weight is None else problem.weight[tile.cols].contiguous()
        if kind == "ranking":
            if sums.needs.weight:
                sums.by_category[tile.cols] += ranking.ranking_category_sums(s, labels, **options)
            sums.loss += ranking.ranking_loss_(s, labels, weight=weight, **options).sum()
            return
        if sums.needs.weight:
            sums.by_category[tile.cols] += entrywise.category_sums(s, labels, kind, **options)
        sums.loss += entrywise.elementwise_loss_(s, labels, kind, weight=weight, **options).sum()
        if sums.needs.bias:
            sums.dbias += s.sum()

    return step


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
