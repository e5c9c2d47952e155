"""Tiles of scores to their gradients in plain PyTorch; see :mod:`pvp_fast.losses.tiles`.

A loss that has a closed form of its gradient is given the tile to overwrite; of any other, the
definition is evaluated on the tile and autograd goes back to the scores, no further.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pvp_fast.losses.labels import check_values, label_block
from pvp_fast.losses.tiles import Problem, Step, Sums, Tile


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
    """The step of any loss, by its closed form or its definition."""
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
