"""The losses on a CPU: matrix products by PyTorch, the rest in one pass by the extension.

The products take x and w as they come. Norms, scale, bias, labels and the loss meet a tile of
products in one pass, which leaves its gradient there (csrc/loss/loss.h); two more products make dx
and dw of it, and a last pass takes out what lies along x and w. Nothing is copied on the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pvp_fast import native
from pvp_fast.losses.problem import (
    EPS,
    CSRLabels,
    Gradients,
    Labels,
    Needs,
    Problem,
    add_product,
    blocks,
    check_values,
    multiplies,
    product,
)

_LEAST_EPS = 1.2e-38  # the extension's logarithm knows normal numbers only
# Tiles of the ranking loss hold all categories: at most 64 MiB, a sixth of dw at D = 768.
WIDEST_RANKING = 1 << 17
_LONGEST = 1e15  # of a row whose products cannot overflow


def why_not(
    kind: str,
    settings: Any,
    device: torch.device,
    n_categories: int,
    y: Labels,
    learns_weight: bool,
) -> str | None:
    """What of a problem the extension does not do, or None."""
    if device.type != "cpu":
        return f"it works on a CPU, not on {device}"
    if kind == "ranking" and n_categories > WIDEST_RANKING:
        return f"the ranking loss takes up to {WIDEST_RANKING} categories, not {n_categories}"
    if isinstance(y, Tensor) and y.is_floating_point():
        return f"labels are soft ({y.dtype}); it takes bool, uint8, int8 and CSRLabels"
    if learns_weight:
        return "weight needs a gradient"
    if kind == "asl" and settings.eps < _LEAST_EPS:
        return f"eps={settings.eps} is below {_LEAST_EPS}"
    return None


def rows_of_ranking(budget: int, n_categories: int) -> int:
    """Rows of a tile that holds all categories: fewer would read and write dw too often."""
    return max(128, budget // max(1, n_categories))


class _Labels:
    """Labels as the extension reads them."""

    def __init__(self, y: Labels, n_categories: int) -> None:
        self.dense = self.offsets = self.indices = None
        if isinstance(y, CSRLabels):
            self.offsets, self.indices = _ascending(y, n_categories)
            return
        check_values(y, n_categories)
        self.dense = y if y.stride(1) == 1 else y.contiguous()

    def arguments(self, rows: slice, cols: slice) -> dict[str, Any]:
        """Of one tile, ``cols`` of the rows."""
        if self.offsets is not None:
            offsets = self.offsets[rows.start : rows.stop + 1]
            return {"offsets": offsets, "indices": self.indices, "first": cols.start}
        assert self.dense is not None
        whole = (rows.stop - rows.start, cols.stop - cols.start) == self.dense.shape
        return {"labels": self.dense if whole else self.dense[rows, cols]}


def _ascending(y: CSRLabels, n_categories: int) -> tuple[Tensor, Tensor]:
    """Offsets and indices, each row ascending and without repetition, int64 and contiguous."""
    offsets, indices = y.offsets.long().contiguous(), y.indices.long().contiguous()
    if native.call("ascends", offsets=offsets, indices=indices, categories=n_categories):
        return offsets, indices
    # By NumPy, whose calls take a fraction of the time of torch's on a few lists.
    ends, found = offsets.numpy(), indices.numpy()
    if found.min() < 0 or found.max() >= n_categories:
        y.check(n_categories)  # raises
    row = np.repeat(np.arange(len(ends) - 1) * n_categories, ends[1:] - ends[:-1])
    key = np.sort(row + found)
    if (key[1:] == key[:-1]).any():
        key = np.unique(key)
        counts = np.bincount(key // n_categories, minlength=len(ends) - 1)
        offsets = torch.from_numpy(np.concatenate(([0], counts.cumsum())))
        row = key - key % n_categories
    return offsets, torch.from_numpy(key - row)


class Operand:
    """Rows of x or w as the products take them, and the inverse norms to make unit rows of them.

    ``norms`` (rows,) float32 is filled unless they are ``known``.
    """

    def __init__(
        self,
        t: Tensor,
        normalize: bool,
        half: bool,
        norms: Tensor | None = None,
        known: bool = False,
    ) -> None:
        self.rows = (t if half else t.float()).contiguous()
        self.inverse: Tensor | None = None
        self.undo: Tensor | None = None
        self.norms: Tensor | None = None
        if not normalize:
            return
        if norms is None:
            norms = torch.empty(t.shape[0], dtype=torch.float32, device="cpu")
        self.norms, self.inverse = norms, torch.empty_like(norms)
        if native.call(
            "norms",
            t=self.rows,
            norms=norms,
            inverse=self.inverse,
            least=EPS,
            most=_LONGEST,
            known=known,
            threads=torch.get_num_threads(),
        ):
            return
        strange = (norms > _LONGEST) | ((norms > 0) & (norms < EPS))
        if bool(strange.any()):
            # Products of such rows would overflow or vanish; those of their unit rows do not.
            self.undo = self.inverse
            self.rows = (t.float() * self.undo[:, None]).to(self.rows.dtype)
            self.inverse = torch.ones_like(norms)

    def project(self, gradients: Tensor, factor: float) -> None:
        """Gradients of products with these rows become those of the rows of x or w."""
        if self.inverse is not None or factor != 1:
            native.call(
                "project",
                gradients=gradients,
                t=self.rows,
                inverse_norm=self.inverse,
                factor=factor,
                threads=torch.get_num_threads(),
            )
        if self.undo is not None:
            gradients.mul_(self.undo[:, None])


def _part(t: Any, where: slice) -> Any:
    """t[where], without a view where that is all of it."""
    return t if t is None or where.stop - where.start == t.shape[0] else t[where]


def run(problem: Problem, needs: Needs, tile: tuple[int, int]) -> Gradients:
    """Loss and gradients, tile by tile; ``tile`` is the most rows and categories of one.

    dx and dw have the dtypes of x and w.
    """
    x, w = problem.x, problem.w
    (count, width), n_categories = x.shape, w.shape[0]
    half = multiplies(x.dtype, x.device)
    left = Operand(x, problem.normalize, half)
    right = Operand(w, problem.normalize, half)
    labels, settings = _Labels(problem.y, n_categories), problem.settings._asdict()
    scale, bias = problem.scale.item(), 0.0 if problem.bias is None else problem.bias.item()

    def gradients(rows: int, tiles: int) -> Tensor:
        """Each product writes where it would have added to zeros; one alone, in its own dtype."""
        make = torch.empty if tiles else torch.zeros
        dtype = left.rows.dtype if tiles == 1 else torch.float32
        return make(rows, width, dtype=dtype, device="cpu")

    dx = gradients(count if needs.x else 0, -(-n_categories // tile[1]))
    dw = gradients(n_categories if needs.w else 0, -(-count // tile[0]))
    total = dbias = dscale = 0.0
    buffer = torch.empty(
        min(count, tile[0]) * min(n_categories, tile[1]), dtype=torch.float32, device="cpu"
    )
    for rows in blocks(count, tile[0]):
        a = _part(left.rows, rows)
        for cols in blocks(n_categories, tile[1]):
            b = _part(right.rows, cols)
            products = buffer[: a.shape[0] * b.shape[0]].view(a.shape[0], b.shape[0])
            product(a, b.T, products)
            sums = native.call(
                "loss",
                products=products,
                kind=problem.kind,
                settings=settings,
                scale=scale,
                bias=bias,
                threads=torch.get_num_threads(),
                x_inverse_norm=_part(left.inverse, rows),
                w_inverse_norm=_part(right.inverse, cols),
                weight=_part(problem.weight, cols),
                **labels.arguments(rows, cols),
            )
            total, dbias, dscale = total + sums[0], dbias + sums[1], dscale + sums[2]
            grad = products.to(a.dtype) if needs.x or needs.w else products
            if needs.x:
                add_product(grad, b, dx[rows], not cols.start)
            if needs.w:
                add_product(grad.T, a, dw[cols], not rows.start)
    if needs.x:
        left.project(dx, problem.factor)
    if needs.w:
        right.project(dw, problem.factor)
    loss, along, slope = (
        torch.tensor(value * problem.factor, dtype=torch.float32, device="cpu")
        for value in (total, dscale, dbias if needs.bias else 0.0)
    )
    none = torch.empty(0, dtype=torch.float32, device="cpu")
    return Gradients(loss, dx.to(x.dtype), dw.to(w.dtype), along, slope, none)
