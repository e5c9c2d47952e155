"""Tiles of scores to their gradients by the Triton kernels; see :mod:`pvp_fast.losses.tiles`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pvp_fast.kernels.entrywise import category_sums, elementwise_loss_
from pvp_fast.kernels.entrywise_small import small_c_loss
from pvp_fast.kernels.ranking import ranking_category_sums, ranking_loss_
from pvp_fast.losses.labels import CSRLabels
from pvp_fast.losses.tiles import Gradients, Needs, Problem, Sums, Tile

KernelLabels = Tensor | tuple[Tensor, Tensor]


def _options(problem: Problem) -> dict[str, Any]:
    names: dict[str, tuple[str, ...]] = {
        "asl": ("gamma_pos", "gamma_neg", "clip", "eps", "detach_focal_weight"),
        "focal": ("alpha", "gamma"),
        "ranking": ("margin",),
    }
    options: dict[str, Any] = dict(zip(names.get(problem.kind, ()), problem.settings, strict=True))
    if problem.kind == "asl":
        options["detach_focal_weight"] = bool(options["detach_focal_weight"])
    return options


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


class KernelStep:
    """One launch a tile; one more where the weights learn."""

    def __init__(self, problem: Problem) -> None:
        y = problem.y
        self.problem, self.options = problem, _options(problem)
        if isinstance(y, CSRLabels):
            if y.indices.device.type == "cpu":
                y.check(len(problem.w))
            if problem.kind == "ranking":
                y = _once(y, len(problem.w))
            y = CSRLabels(y.offsets.contiguous(), y.indices.contiguous())
        self.y = y

    def begin(self, rows: slice) -> None:
        pass

    def end(self, rows: slice, grad: Tensor, dw: Tensor) -> None:
        pass

    def _labels(self, tile: Tile) -> KernelLabels:
        if isinstance(self.y, CSRLabels):
            offsets = self.y.offsets[tile.rows.start : tile.rows.stop + 1]
            shift = tile.cols.start
            return offsets, self.y.indices - shift if shift else self.y.indices
        return self.y[tile.rows, tile.cols]

    def __call__(self, tile: Tile, sums: Sums) -> None:
        s, labels, kind = tile.scores, self._labels(tile), self.problem.kind
        weight = self.problem.weight
        share = None if weight is None else weight[tile.cols].contiguous()
        if kind == "ranking":
            if sums.needs.weight:
                found = ranking_category_sums(s, labels, **self.options)
                sums.by_category[tile.cols] += found
            sums.loss += ranking_loss_(s, labels, weight=share, **self.options).loss.sum()
            return
        if sums.needs.weight:
            sums.by_category[tile.cols] += category_sums(s, labels, kind, **self.options)
        sums.loss += elementwise_loss_(s, labels, kind, weight=share, **self.options).loss.sum()
        if sums.needs.bias:
            sums.dbias += s.sum()


def small(problem: Problem, needs: Needs) -> Gradients:
    """All categories in one kernel, every gradient with the loss."""
    y = problem.y
    if isinstance(y, CSRLabels):
        y.check(len(problem.w))
        labels: KernelLabels = (y.offsets.contiguous(), y.indices.contiguous())
    else:
        labels = y
    found = small_c_loss(
        problem.x.contiguous(),
        problem.w.contiguous(),
        labels,
        problem.kind,
        scale=problem.scale.reshape(1),
        bias=torch.zeros_like(problem.scale).reshape(1)
        if problem.bias is None
        else problem.bias.reshape(1),
        normalize=problem.normalize,
        weight=problem.weight,
        grads=any(needs),
        grad_scale=problem.factor,
        **_options(problem),
    )
    sums, new = found.sums, problem.x.new_empty
    zero = torch.zeros((), dtype=torch.float32, device=problem.x.device)
    nothing = new((0, problem.x.shape[1]), dtype=torch.float32)
    factor = problem.factor
    return Gradients(
        sums.loss.sum() * factor,
        found.dx if needs.x else nothing,
        found.dw if needs.w else nothing.clone(),
        zero if sums.dscale is None else sums.dscale.sum() * factor,
        zero.clone() if sums.dbias is None else sums.dbias.sum() * factor,
        found.by_category * factor if needs.weight else new(0, dtype=torch.float32),
    )
