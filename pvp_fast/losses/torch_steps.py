"""Tiles of scores to their gradients in plain PyTorch; see :mod:`pvp_fast.losses.tiles`."""

from __future__ import annotations

import torch
from torch import Tensor

from pvp_fast.errors import InputError
from pvp_fast.losses.entries import absent_, entries, present
from pvp_fast.losses.labels import CSRLabels, Labels
from pvp_fast.losses.tiles import Problem, Sums, Tile, inverse_norms


class Marks:
    """Which entries of a tile are present or unknown, from labels of any kind."""

    def __init__(self, y: Labels, n_categories: int) -> None:
        self.y, self.n_categories = y, n_categories
        if isinstance(y, CSRLabels):
            self.offsets = y.offsets.tolist()
            self.rows = torch.repeat_interleave(
                torch.arange(len(y), device=y.indices.device), y.offsets.diff()
            )
            y.check(n_categories)
        elif y.dtype == torch.int8 and bool((y.abs() > 1).any()):
            raise InputError("y: int8 labels are partial and hold only -1, 0 and 1")

    def pairs(self, rows: slice, cols: slice) -> tuple[Tensor, Tensor]:
        """Row and category of every present label, counted from the tile's corner, each once."""
        if isinstance(self.y, CSRLabels):
            span = slice(self.offsets[rows.start], self.offsets[rows.stop])
            row, col = self.rows[span] - rows.start, self.y.indices[span].long()
            if cols != slice(0, self.n_categories):
                inside = (col >= cols.start) & (col < cols.stop)
                row, col = row[inside], col[inside] - cols.start
            width = cols.stop - cols.start
            flat = row * width + col
            if len(flat) > 1 and bool((flat.diff() <= 0).any()):
                flat = flat.unique()
                row, col = flat // width, flat % width
            return row, col
        part = self.y[rows, cols]
        if part.dtype == torch.int8:
            part = part == 1
        elif part.is_floating_point():
            part = part > 0.5
        found = part.nonzero()
        return found[:, 0], found[:, 1]

    def unknown(self, rows: slice, cols: slice) -> Tensor | None:
        if isinstance(self.y, Tensor) and self.y.dtype == torch.int8:
            return self.y[rows, cols] == 0
        return None


def add_at(out: Tensor, index: Tensor, values: Tensor) -> None:
    """out[index] += values, in one order: the CUDA index_add_ has none."""
    if out.is_cuda:
        out.index_put_((index,), values, accumulate=True)
    else:
        out.index_add_(0, index, values)


class EntrywiseStep:
    """The losses that are a sum over entries."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.marks = Marks(problem.y, len(problem.w))

    def begin(self, rows: slice) -> None:
        pass

    def end(self, rows: slice, grad: Tensor, dw: Tensor) -> None:
        pass

    def __call__(self, tile: Tile, sums: Sums) -> None:
        kind, settings, s = self.problem.kind, self.problem.settings, tile.scores
        share = None if self.problem.weight is None else self.problem.weight[tile.cols]
        y = self.problem.y
        if isinstance(y, Tensor) and y.is_floating_point():
            loss, grad = entries(kind, s, y[tile.rows, tile.cols].float(), settings)
            s.copy_(grad)
        else:
            flat = s.view(-1)
            row, col = self.marks.pairs(tile.rows, tile.cols)
            at = row * s.shape[1] + col
            found, slope = present(kind, flat[at], settings)
            flat.index_fill_(0, at, float("-inf"))
            unknown = self.marks.unknown(tile.rows, tile.cols)
            if unknown is not None:
                s.masked_fill_(unknown, float("-inf"))
            loss = absent_(kind, s, settings, tile.scratch, sums.grad)
            flat.index_copy_(0, at, slope)
            loss.view(-1).index_copy_(0, at, found)
        if share is None:
            sums.loss += loss.sum()
        else:
            by_category = loss.sum(0)
            sums.loss += torch.dot(by_category, share)
            if sums.needs.weight:
                sums.by_category[tile.cols] += by_category
            s.mul_(share)
        if sums.needs.bias:
            sums.dbias += s.sum()


class RankingStep:
    """Σ_p Σ_n weight_n · max(0, margin − s_p + s_n): the positives' scores first, then the tiles.

    Every (row, positive) pair meets the tile once: O(P · C) work, in blocks of the tile's size.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.marks = Marks(problem.y, len(problem.w))
        self.x_inverse = inverse_norms(problem.x, problem.normalize)
        self.w_inverse = inverse_norms(problem.w, problem.normalize)

    def _unit(self, t: Tensor, inverse: Tensor | None, at: Tensor) -> Tensor:
        part = t[at].float()
        return part if inverse is None else part * inverse[at, None]

    def begin(self, rows: slice) -> None:
        """The pairs of these rows, their scores, and how many negatives are too near."""
        problem = self.problem
        self.row, self.col = self.marks.pairs(rows, slice(0, len(problem.w)))
        self.near = torch.zeros(len(self.row), dtype=torch.float32, device=problem.x.device)
        self.scores = torch.empty_like(self.near)
        step = 1 << 10
        for i in range(0, len(self.row), step):
            a = self._unit(problem.x, self.x_inverse, self.row[i : i + step] + rows.start)
            b = self._unit(problem.w, self.w_inverse, self.col[i : i + step])
            self.scores[i : i + step] = torch.linalg.vecdot(a, b) * problem.scale

    def __call__(self, tile: Tile, sums: Sums) -> None:
        s, cols = tile.scores, tile.cols
        share = None if self.problem.weight is None else self.problem.weight[cols]
        inside = (self.col >= cols.start) & (self.col < cols.stop)
        at = (self.row * s.shape[1] + self.col - cols.start)[inside]
        s.view(-1).index_fill_(0, at, float("-inf"))
        unknown = self.marks.unknown(tile.rows, cols)
        if unknown is not None:
            s.masked_fill_(unknown, float("-inf"))
        active = tile.scratch[0].zero_()
        step = len(s)
        for i in range(0, len(self.row), step):
            row = self.row[i : i + step]
            hinge = torch.index_select(s, 0, row, out=tile.scratch[1][: len(row)])
            hinge.add_((self.problem.settings[0] - self.scores[i : i + step])[:, None])
            hinge.clamp_(min=0.0)
            by_category = hinge.sum(0)
            sums.loss += by_category.sum() if share is None else torch.dot(by_category, share)
            if sums.needs.weight:
                sums.by_category[cols] += by_category
            if sums.grad:
                hinge.sign_()
                self.near[i : i + step] += hinge.sum(1) if share is None else hinge @ share
                add_at(active, row, hinge)
        s.copy_(active)
        if share is not None:
            s.mul_(share)

    def end(self, rows: slice, grad: Tensor, dw: Tensor) -> None:
        """Each positive is pushed up as often as a negative came too near."""
        problem = self.problem
        step = 1 << 10
        for i in range(0, len(self.row), step):
            row, col = self.row[i : i + step], self.col[i : i + step]
            push = -self.near[i : i + step, None]
            if len(grad):
                add_at(grad, row, self._unit(problem.w, self.w_inverse, col).mul_(push))
            if len(dw):
                push = push * problem.scale
                add_at(dw, col, self._unit(problem.x, self.x_inverse, row + rows.start).mul_(push))
