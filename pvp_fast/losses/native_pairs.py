"""InfoNCE on a CPU: panels of rows of the scores (N, N), as in :mod:`pvp_fast.losses.native_steps`.

A product makes a panel; one pass leaves the maxima and sums of its rows and columns. In backward
one pass makes the panel its gradient, and two products carry that to x and w. A panel has all
columns, so that rows are complete in it, and rows enough for dw to be read and written seldom.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pvp_fast import native
from pvp_fast.losses import exact
from pvp_fast.losses.native_steps import Operand
from pvp_fast.losses.problem import add_product, blocks, multiplies

_PANEL = 1 << 20  # scores of a panel: 4 MiB
_ROWS = 128  # the fewest of a panel
# Scores that are kept for backward instead of made again: 16 MiB, 2048 pairs.
_KEPT = 1 << 22


def keeps(n: int) -> bool:
    return n * n <= _KEPT


def is_one_panel(n: int) -> bool:
    """Whether gradients can be made with the loss, so that nothing is kept or made twice."""
    return n <= _rows(n, False)


def _rows(n: int, lean: bool) -> int:
    return max(_ROWS, (_PANEL // 4 if lean else _PANEL) // max(1, n))


class _Panels:
    def __init__(
        self,
        x: Tensor,
        w: Tensor,
        y: Tensor | None,
        scale: Tensor,
        normalize: bool,
        lean: bool,
        norms: Tensor,
        known: bool,
    ) -> None:
        half = x.dtype == w.dtype and multiplies(x.dtype, x.device)
        self.left = Operand(x, normalize, half, norms[0], known)
        self.right = Operand(w, normalize, half, norms[1], known)
        self.all_w = exact.operand(self.right.rows)
        self.y, self.scale = y, scale.item()
        self.row_share = self.column_share = None
        if y is not None:
            self.row_share = y.sum(1, dtype=torch.float32).reciprocal_()
            self.column_share = y.sum(0, dtype=torch.float32).reciprocal_()
        rows = _rows(len(x), lean)
        self.slices = list(blocks(len(x), rows))
        self.scratch = torch.empty(min(rows, len(x)), len(x), dtype=torch.float32, device="cpu")

    def products(self, rows: slice, kept: Tensor) -> Tensor:
        """(rows, N), made in ``kept`` (N, N) where that is not empty."""
        out = kept[rows] if kept.numel() else self.scratch[: rows.stop - rows.start]
        return exact.product(exact.operand(self.left.rows[rows]), self.all_w, out)

    def call(self, name: str, rows: slice, **arguments: Any) -> Any:
        inverse = self.left.inverse
        return native.call(
            name,
            scale=self.scale,
            first=rows.start,
            threads=torch.get_num_threads(),
            x_inverse_norm=None if inverse is None else inverse[rows],
            w_inverse_norm=self.right.inverse,
            targets=None if self.y is None else self.y[rows].float().contiguous(),
            row_share=None if self.row_share is None else self.row_share[rows],
            column_share=self.column_share,
            **arguments,
        )


def _sums(panels: _Panels, stats: Tensor, kept: Tensor) -> Tensor:
    aimed = stats.new_empty(stats.shape[2])
    for rows in panels.slices:
        panels.call(
            "infonce",
            rows,
            products=panels.products(rows, kept),
            row_top=stats[0, 0, rows],
            row_total=stats[0, 1, rows],
            column_top=stats[1, 0],
            column_total=stats[1, 1],
            aimed=aimed[rows],
        )
    return aimed


def sums(
    x: Tensor,
    w: Tensor,
    y: Tensor | None,
    scale: Tensor,
    normalize: bool,
    lean: bool,
    stats: Tensor,
    kept: Tensor,
) -> Tensor:
    """Σ target · score of every row (N,).

    Fills stats (2, 3, N): maximum and sum of rows, of columns, and the norms of x, w beside each.
    And kept where it is not empty.
    """
    return _sums(_Panels(x, w, y, scale, normalize, lean, stats[:, 2], False), stats, kept)


def _gradients(
    panels: _Panels,
    factor: float,
    x: Tensor,
    w: Tensor,
    stats: Tensor,
    kept: Tensor,
    needs_x: bool,
    needs_w: bool,
) -> tuple[Tensor, Tensor, float]:
    left, right = panels.left, panels.right
    half, one = right.rows.dtype, len(panels.slices) == 1
    dx = x.new_empty(x.shape if needs_x else 0, dtype=half)
    dw = w.new_empty(w.shape if needs_w else 0, dtype=half if one else torch.float32)
    inverse = stats[:, 1].reciprocal()
    dscale = 0.0
    for rows in panels.slices:
        grad = panels.scratch[: rows.stop - rows.start]
        dscale += panels.call(
            "infonce_gradient",
            rows,
            products=kept[rows] if kept.numel() else panels.products(rows, kept),
            row_top=stats[0, 0, rows],
            row_inverse=inverse[0, rows],
            column_top=stats[1, 0],
            column_inverse=inverse[1],
            gradients=grad,
        )
        grad = grad.to(half)
        if needs_x:
            add_product(grad, right.rows, dx[rows], True)
        if needs_w:
            add_product(grad.T, left.rows[rows], dw, not rows.start)
    if needs_x:
        left.project(dx, factor)
    if needs_w:
        right.project(dw, factor)
    return dx.to(x.dtype), dw.to(w.dtype), factor * dscale


def gradients(
    factor: Tensor,
    x: Tensor,
    w: Tensor,
    y: Tensor | None,
    scale: Tensor,
    normalize: bool,
    lean: bool,
    stats: Tensor,
    kept: Tensor,
    needs_x: bool,
    needs_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """factor · the gradients of x, w (empty if not needed) and the scale."""
    panels = _Panels(x, w, y, scale, normalize, lean, stats[:, 2], True)
    dx, dw, dscale = _gradients(panels, factor.item(), x, w, stats, kept, needs_x, needs_w)
    return dx, dw, torch.full((), dscale, dtype=torch.float32, device="cpu")


def at_once(
    x: Tensor,
    w: Tensor,
    y: Tensor | None,
    scale: Tensor,
    normalize: bool,
    needs_x: bool,
    needs_w: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss of one panel; its gradients by x, w (empty if not needed) and the scale."""
    n = x.shape[0]
    stats = empty_stats(n)
    panels = _Panels(x, w, y, scale, normalize, False, stats[:, 2], False)
    products = panels.scratch  # one panel, which the gradients overwrite
    value = mean_of(stats, _sums(panels, stats, products))
    dx, dw, dscale = _gradients(panels, 0.5 / n, x, w, stats, products, needs_x, needs_w)
    return value, dx, dw, torch.full((), dscale, dtype=torch.float32, device="cpu")


def empty_stats(n: int, kinds: int = 3, device: torch.device | str = "cpu") -> Tensor:
    """(2, kinds, N): maximum and sum of rows and of columns so far, and room for norms."""
    stats = torch.zeros(2, kinds, n, dtype=torch.float32, device=device)
    stats[:, 0] = float("-inf")
    return stats


def mean_of(stats: Tensor, aimed: Tensor) -> Tensor:
    """The loss of what :func:`sums` left, (): small differences, not one of large sums."""
    each = (stats[:, 0] - aimed / 2) + stats[:, 1].log()
    return each.sum() / (2 * max(1, stats.shape[2]))
