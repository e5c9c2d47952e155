"""Tiles of scores to their gradients by the Triton kernels; see :mod:`pvp_fast.losses.tiles`."""

from __future__ import annotations

import torch
from torch import Tensor

from pvp_fast.kernels.entrywise import category_sums, elementwise_loss_
from pvp_fast.kernels.entrywise_small import small_c_loss
from pvp_fast.kernels.ranking import ranking_category_sums, ranking_loss_
from pvp_fast.losses.labels import CSRLabels
from pvp_fast.losses.tiles import Gradients, Needs, Problem, Step, Sums, Tile

KernelLabels = Tensor | tuple[Tensor, Tensor]


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
    """One launch a tile; one more where the weights learn."""
    y, kind, options = problem.y, problem.kind, problem.settings._asdict()
    if isinstance(y, CSRLabels):
        if y.indices.device.type == "cpu":
            y.check(len(problem.w))
        if kind == "ranking":
            y = _once(y, len(problem.w))
        y = CSRLabels(y.offsets.contiguous(), y.indices.contiguous())

    def labels_of(tile: Tile) -> KernelLabels:
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
                sums.by_category[tile.cols] += ranking_category_sums(s, labels, **options)
            sums.loss += ranking_loss_(s, labels, weight=weight, **options).sum()
            return
        if sums.needs.weight:
            sums.by_category[tile.cols] += category_sums(s, labels, kind, **options)
        sums.loss += elementwise_loss_(s, labels, kind, weight=weight, **options).sum()
        if sums.needs.bias:
            sums.dbias += s.sum()

    return step


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
        scale=problem.scale,
        bias=torch.zeros_like(problem.scale) if problem.bias is None else problem.bias,
        normalize=problem.normalize,
        weight=problem.weight,
        grads=any(needs),
        grad_scale=problem.factor,
        **problem.settings._asdict(),
    )
    new, factor = problem.x.new_empty, problem.factor
    nothing = new((0, problem.x.shape[1]), dtype=torch.float32)
    return Gradients(
        found.loss.sum() * factor,
        found.dx if needs.x else nothing,
        found.dw if needs.w else nothing.clone(),
        found.dscale.sum() * factor,
        found.dbias.sum() * factor,
        found.by_category * factor if needs.weight else new(0, dtype=torch.float32),
    )
