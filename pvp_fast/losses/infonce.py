"""The operators under :func:`pvp_fast.losses.clip_loss`: Triton kernels, the compiled extension
(:mod:`pvp_fast.losses.native_pairs`), or plain PyTorch.

``pvp_fast::clip_loss`` and its backward are torch.library operators with shapes for torch.compile
and a gradient for autograd. The (N, N) scores are walked in square blocks that stay in the cache:
a matrix product makes a block, one pass leaves the maxima and sums of its rows and columns; in
backward another makes it a gradient, and two matrix products carry that to x and w. Square, because
every block adds to a block of dx and one of dw. Where one block holds all N, it is kept for
backward instead of made again. The formulas are in kernels/infonce.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pvp_fast.dispatch import hands_out, is_plain, with_gradient
from pvp_fast.errors import BackendError
from pvp_fast.losses import native_pairs
from pvp_fast.losses.problem import EPS, HALF, combine_online, inverse_norms
from pvp_fast.losses.problem import blocks as slices_of

# Rows and columns of a block: 4 MiB of float32 on a CPU, 16 MiB of a GPU's L2 cache.
_SIDE = {"cpu": 1024}
_SIDE_ELSEWHERE = 2048
# Scores no larger are exponentiated as they are: no sum of them leaves float32.
_DIRECT = 60.0
# Gradients are at most 2 and mostly far below one: in float16 they are stored times 2^14.
_UNIT = 2.0**14


def _side(x: Tensor) -> int:
    return _SIDE.get(x.device.type, _SIDE_ELSEWHERE)


class _Blocks:
    """The scores scale · ⟨x̂_i, ŵ_j⟩ in blocks, what they add to the loss, and their gradient.

    Attributes:
        left, right: operands of the products that make scores. grad_left, grad_right: of those
            that carry gradients back.
        undo_x: factor by which gradient @ grad_right is short of ∂loss/∂(scale · x̂).
        undo_w: factor by which gradientᵀ @ grad_left is short of ∂loss/∂ŵ.
    """

    def __init__(
        self,
        x: Tensor,
        w: Tensor,
        y: Tensor | None,
        scale: Tensor,
        normalize: bool,
        backward: bool,
    ) -> None:
        self.y, self.scale = y, scale
        self.x_inverse, self.w_inverse = inverse_norms(x, normalize), inverse_norms(w, normalize)
        self.undo_x: float | Tensor = 1.0
        self.undo_w: float | Tensor = 1.0
        self.y_rows = self.y_cols = x.new_empty(0)
        if y is not None:
            self.y_rows = y.sum(1, dtype=torch.float32).reciprocal_()
            self.y_cols = y.sum(0, dtype=torch.float32).reciprocal_()
        self._prepare(x, w, normalize, backward)
        side = min(_side(x), len(x))
        self.slices = list(slices_of(len(x), side))
        self._scratch = [self.x_inverse.new_empty(side * side) for _ in range(2)]

    def _prepare(self, x: Tensor, w: Tensor, normalize: bool, backward: bool) -> None:
        self.left = self.grad_left = x * (self.x_inverse * self.scale)[:, None]
        self.right = self.grad_right = w * self.w_inverse[:, None]
        self._direct = False
        if x.device.type == "cpu":
            # |⟨x_i, w_j⟩| ≤ ‖x_i‖ ‖w_j‖. Elsewhere reading it would wait for the device.
            bound = [torch.linalg.vector_norm(t, dim=1).amax() for t in (self.left, self.right)]
            self._direct = float(bound[0] * bound[1]) <= _DIRECT

    def buffer(self, index: int, rows: slice, cols: slice) -> Tensor:
        """(rows, cols) float32 to overwrite."""
        shape = rows.stop - rows.start, cols.stop - cols.start
        return self._scratch[index][: shape[0] * shape[1]].view(shape)

    def scores(self, rows: slice, cols: slice, out: Tensor) -> Tensor:
        return torch.mm(self.left[rows], self.right[cols].T, out=out)

    def _small(self, s: Tensor) -> bool:
        return self._direct or (s.device.type == "cpu" and float(s.abs().amax()) <= _DIRECT)

    def sums(self, s: Tensor, rows: slice, cols: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Maximum and sum of the block's rows and columns, and Σ_j s · t of its rows; s is kept."""
        other = self.buffer(1, rows, cols)
        if self.y is None:
            aimed = s.new_zeros(len(s))
            if rows == cols:
                aimed += 2 * s.diagonal()
        else:
            torch.add(self.y_rows[rows, None], self.y_cols[cols], out=other)
            aimed = other.mul_(self.y[rows, cols]).mul_(s).sum(1)
        if self._small(s):
            torch.exp(s, out=other)
            rows_of, cols_of = (
                torch.stack((torch.zeros_like(t), t)) for t in (other.sum(1), other.sum(0))
            )
        else:
            rows_of, cols_of = (self._maxima(s, axis, other) for axis in (1, 0))
        return rows_of, cols_of, aimed

    @staticmethod
    def _maxima(s: Tensor, axis: int, other: Tensor) -> Tensor:
        top = s.amax(axis, keepdim=True)
        total = torch.sub(s, top, out=other).exp_().sum(axis)
        return torch.stack((top.flatten(), total))

    def gradient(
        self, s: Tensor, rows: slice, cols: slice, stats: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """g = exp(s − r) + exp(s − c) − t; Σ g · ∂s/∂scale, where ∂loss/∂x̂ is not exact enough.

        s is lost unless it is a tensor of the caller's.
        """
        row_top, row_total = stats[0, :, rows, None]
        col_top, col_total = stats[1, :, cols]
        part, out = self.buffer(0, rows, cols), self.buffer(1, rows, cols)
        if self._small(s):
            torch.exp(s, out=part)
            torch.mul(part, torch.exp(-col_top) / col_total, out=out)
            out.addcmul_(part, torch.exp(-row_top) / row_total)
        else:
            torch.sub(s, col_top, out=out).exp_().mul_(col_total.reciprocal())
            torch.sub(s, row_top, out=part).exp_()
            out.addcmul_(part, row_total.reciprocal())
        if self.y is not None:
            torch.add(self.y_rows[rows, None], self.y_cols[cols], out=part)
            out.sub_(part.mul_(self.y[rows, cols]))
        elif rows == cols:
            out.diagonal().sub_(2.0)
        return out, None

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


class _KernelBlocks(_Blocks):
    """The same by Triton kernels; half precision stays in half precision for the tensor cores.

    Scores are products of x and w as they come, exact in float32. Gradients and unit rows are
    multiplied in float16, which holds both to 11 bits, TF32's precision.
    """

    def _prepare(self, x: Tensor, w: Tensor, normalize: bool, backward: bool) -> None:
        from pvp_fast.kernels import infonce

        self._kernels = infonce
        self._norms = None
        self._half = x.dtype == w.dtype and x.dtype in HALF
        self.undo_w = self.scale
        if not self._half:
            self.left = self.grad_left = x * self.x_inverse[:, None]
            self.right = self.grad_right = w * self.w_inverse[:, None]
            return
        self.left, self.right = x, w
        self._norms = (self.x_inverse, self.w_inverse) if normalize else None
        if not backward:
            return
        if normalize:
            shrink = self.x_inverse[:, None], self.w_inverse[:, None]
            self.undo_x, self.undo_w = 1 / _UNIT, self.scale / _UNIT
        else:
            # Rows of any length, brought into float16's range by one factor.
            high = [t.abs().amax().float().clamp_min(EPS) for t in (x, w)]
            # Of two dimensions, so that the product is float32: a scalar would leave it rounded.
            shrink = high[0].reciprocal().reshape(1, 1), high[1].reciprocal().reshape(1, 1)
            self.undo_x, self.undo_w = high[1] / _UNIT, self.scale * high[0] / _UNIT
        self.grad_left = (x * shrink[0]).half()
        self.grad_right = (w * shrink[1]).half()

    def _arguments(self, rows: slice, cols: slice) -> tuple[Tensor, Any, Any]:
        """The scale, and the kernels' own Norms and Targets, for a block."""
        norms = targets = None
        if self._norms is not None:
            norms = self._kernels.Norms(self._norms[0][rows], self._norms[1][cols])
        if self.y is not None:
            targets = self._kernels.Targets(
                self.y[rows, cols], self.y_rows[rows], self.y_cols[cols]
            )
        return self.scale, norms, targets

    def scores(self, rows: slice, cols: slice, out: Tensor) -> Tensor:
        return _product32(self.left[rows], self.right[cols].T, out)

    def sums(self, s: Tensor, rows: slice, cols: slice) -> tuple[Tensor, Tensor, Tensor]:
        shift = cols.start - rows.start
        scale, norms, targets = self._arguments(rows, cols)
        return self._kernels.block_fwd(s, scale, norms, targets, shift=shift)

    def gradient(
        self, s: Tensor, rows: slice, cols: slice, stats: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        out = self.buffer(1, rows, cols)
        if self._half:
            out = self._scratch[1].view(torch.float16)[: s.numel()].view(s.shape)
        scale, norms, targets = self._arguments(rows, cols)
        along = self._kernels.block_bwd(
            s,
            scale,
            norms,
            targets,
            stats[0, :, rows],
            stats[1, :, cols],
            out,
            shift=cols.start - rows.start,
            unit=_UNIT if self._half else 1.0,
        )
        return out, along

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return _product32(a, b, None)


def _product32(a: Tensor, b: Tensor, out: Tensor | None) -> Tensor:
    """a @ b in float32; half precision is multiplied as it is and accumulated in float32."""
    if a.dtype == torch.float32:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)


def _keeps(x: Tensor, engine: str, recompute: bool) -> bool:
    if recompute:
        return False
    return native_pairs.keeps(len(x)) if engine == "native" else len(x) <= _side(x)


def _tile_arguments(  # type: ignore[no-untyped-def]
    x: Tensor, w: Tensor, y: Tensor | None, normalize: bool
):
    """The kernels, and x, w, their norms and targets as they take them."""
    from pvp_fast.kernels import infonce

    norms = infonce.Norms(inverse_norms(x, normalize), inverse_norms(w, normalize))
    targets = None
    if y is not None:
        sums = (y.sum(d, dtype=torch.float32).reciprocal_() for d in (1, 0))
        targets = infonce.Targets(y, *sums)
    return infonce, x.contiguous(), w.contiguous(), norms, targets


def _loss(
    x: Tensor,
    w: Tensor,
    y: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    normalize: bool,
    engine: str,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss () float32; maximum and sum of rows and columns (2, 2, N); the scores, or (0,).

    Of "native" (2, 3, N), norms of x and w among them, and products for scores.
    """
    n = len(x)
    stats = native_pairs.empty_stats(n, 3 if engine == "native" else 2, x.device)
    aimed = stats.new_zeros(n)
    kept = stats.new_empty((n, n) if _keeps(x, engine, recompute) else (0,))
    with torch.autocast(x.device.type, enabled=False):
        if n and engine == "native":
            aimed = native_pairs.sums(x, w, y, scale, normalize, recompute, stats, kept)
        elif n and engine == "triton" and recompute:
            kernels, *pairs, norms, targets = _tile_arguments(x, w, y, normalize)
            found = kernels.tile_fwd(*pairs, scale, norms, targets)
            stats, aimed = torch.stack((found.rows, found.cols)), found.target
        elif n:
            kind = _KernelBlocks if engine == "triton" else _Blocks
            blocks = kind(x, w, y, scale, normalize, False)
            for rows in blocks.slices:
                for cols in blocks.slices:
                    out = kept if kept.numel() else blocks.buffer(0, rows, cols)
                    row, col, part = blocks.sums(blocks.scores(rows, cols, out), rows, cols)
                    for mine, found in ((stats[0, :, rows], row), (stats[1, :, cols], col)):
                        mine.copy_(combine_online(torch.stack((mine, found), 1)))
                    aimed[rows] += part
        return native_pairs.mean_of(stats, aimed), stats, kept


loss = torch.library.custom_op("pvp_fast::clip_loss", _loss, mutates_args=())


@loss.register_fake
def _(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, engine, recompute = others
    n = x.shape[0]
    value = x.new_empty((), dtype=torch.float32)
    return (
        value,
        value.new_empty(2, 3 if engine == "native" else 2, n),
        value.new_empty((n, n) if _keeps(x, engine, recompute) else (0,)),
    )


def _through_norm(
    grad: Tensor, rows: Tensor, inverse: Tensor, factor: Tensor, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Gradient of rows from that of the unit rows, times factor, and Σ ⟨grad, unit rows⟩."""
    unit = rows * inverse[:, None]
    along = torch.linalg.vecdot(grad, unit)
    if normalize:
        grad.addcmul_(unit, along[:, None], value=-1)
    return grad.mul_((inverse * factor)[:, None]).to(rows.dtype), along.sum()


def _loss_backward(
    g: Tensor,
    x: Tensor,
    w: Tensor,
    y: Tensor | None,
    scale: Tensor,
    stats: Tensor,
    kept: Tensor,
    normalize: bool,
    engine: str,
    recompute: bool,
    needs_x: bool,
    needs_w: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx and dw (empty if not needed) in the dtypes of x and w; dscale () float32, with needs_x."""
    n = len(x)
    factor = g / (2 * max(1, n))
    if n and x.shape[1] and engine == "native":
        with torch.autocast(x.device.type, enabled=False):
            return native_pairs.gradients(
                factor, x, w, y, scale, normalize, recompute, stats, kept, needs_x, needs_w
            )
    dscale = g.new_zeros(())
    dx, dw = (
        torch.zeros(t.shape if need else (0,), dtype=t.dtype, device=t.device)
        for t, need in ((x, needs_x), (w, needs_w))
    )
    if not (n and x.shape[1]):
        return dx, dw, dscale
    with torch.autocast(x.device.type, enabled=False):
        if engine == "triton" and recompute:
            kernels, *pairs, norms, targets = _tile_arguments(x, w, y, normalize)
            if needs_x:
                dx, along = kernels.tile_bwd(
                    *pairs, scale, norms, targets, stats[0], stats[1], factor, normalize=normalize
                )
                dscale = along.sum() * factor
            if needs_w:
                dw, _ = kernels.tile_bwd(
                    *pairs[::-1], scale, kernels.Norms(*norms[::-1]), targets and targets.T,
                    stats[1], stats[0], factor, normalize=normalize,
                )  # fmt: skip
            return dx, dw, dscale
        blocks = (_KernelBlocks if engine == "triton" else _Blocks)(x, w, y, scale, normalize, True)
        grad_x, grad_w = (
            torch.zeros(t.shape if need else (0,), dtype=torch.float32, device=t.device)
            for t, need in ((x, needs_x), (w, needs_w))
        )
        for rows in blocks.slices:
            for cols in blocks.slices:
                s = (
                    kept
                    if kept.numel()
                    else blocks.scores(rows, cols, blocks.buffer(0, rows, cols))
                )
                part, along = blocks.gradient(s, rows, cols, stats)
                if along is not None:
                    dscale = dscale + along * factor
                if needs_x:
                    grad_x[rows] += blocks.product(part, blocks.grad_right[cols])
                if needs_w:
                    grad_w[cols] += blocks.product(part.T, blocks.grad_left[rows])
        if needs_x:
            factor_x = factor * blocks.undo_x
            dx, total = _through_norm(grad_x, x, blocks.x_inverse, factor_x * scale, normalize)
            if engine != "triton":
                dscale = total * factor_x
        if needs_w:
            factor_w = factor * blocks.undo_w
            dw, _ = _through_norm(grad_w, w, blocks.w_inverse, factor_w, normalize)
        return dx, dw, dscale


loss_backward = torch.library.custom_op(
    "pvp_fast::clip_loss_backward", _loss_backward, mutates_args=()
)


@loss_backward.register_fake
def _(g: Tensor, x: Tensor, w: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, needs_x, needs_w = others
    dx = x.new_empty(x.shape if needs_x else (0,))
    return dx, w.new_empty(w.shape if needs_w else (0,)), g.new_empty(())


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.set_materialize_grads(False)  # of what is kept, which nobody differentiates
    x, w, y, scale, bias, ctx.normalize, ctx.engine, ctx.recompute = inputs
    ctx.save_for_backward(x, w, y, scale, bias, *output[1:])


def _backward(ctx, g: Tensor, _stats: Tensor | None, _kept: Tensor | None):  # type: ignore[no-untyped-def]
    x, w, y, scale, bias, stats, kept = ctx.saved_tensors
    needs_x, needs_w, _, needs_scale, needs_bias, *_ = ctx.needs_input_grad
    dx, dw, dscale = _gradients(
        g, x, w, y, scale, stats, kept, ctx.normalize, ctx.engine, ctx.recompute,
        needs_x or needs_scale, needs_w,
    )  # fmt: skip
    return (
        dx if needs_x else None,
        dw if needs_w else None,
        None,
        dscale if needs_scale else None,
        torch.zeros_like(bias) if needs_bias else None,
        None,
        None,
        None,
    )


def _no_second(ctx, *grads: Tensor):  # type: ignore[no-untyped-def]
    raise BackendError(
        "clip_loss: the fused gradient has no gradient of its own; give float64 x and w, which "
        "take plain PyTorch, for second derivatives"
    )


_by_operator = with_gradient(loss, _loss, _backward, _setup)
_gradients = with_gradient(loss_backward, _loss_backward, _no_second)


class _AtOnce(torch.autograd.Function):
    """Of few pairs by "native": the gradients with the loss, so that backward only multiplies."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        y: Tensor | None,
        scale: Tensor,
        bias: Tensor,
        normalize: bool,
        needs_x: bool,
        needs_w: bool,
    ) -> tuple[Tensor, ...]:
        arguments = x, w, y, scale, normalize, needs_x, needs_w
        if torch.is_autocast_enabled("cpu"):  # a context takes longer than asking
            with torch.autocast("cpu", enabled=False):
                found = native_pairs.at_once(*arguments)
        else:
            found = native_pairs.at_once(*arguments)
        # Outputs, so that second derivatives raise instead of being left out.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*found[1:], bias)
        return found

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_unused: Tensor | None) -> tuple[Tensor | None, ...]:
        *found, bias = ctx.saved_tensors
        dx, dw, dscale = _times(g, *found)
        asked = ctx.needs_input_grad
        return (
            dx if asked[0] else None,
            dw if asked[1] else None,
            None,
            dscale if asked[3] else None,
            torch.zeros_like(bias) if asked[4] else None,
            *(None,) * 3,
        )


class _Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, *found: Tensor) -> tuple[Tensor, ...]:
        return tuple((t * g).to(t.dtype) for t in found)

    backward = staticmethod(_no_second)


def _times(g: Tensor, *found: Tensor) -> tuple[Tensor, ...]:
    if hands_out(g):
        return found
    return _Times.apply(g, *found)


def evaluated(
    x: Tensor,
    w: Tensor,
    y: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    normalize: bool,
    engine: str,
    recompute: bool,
) -> Tensor:
    """The loss () float32, with its gradient."""
    learns = [t.requires_grad for t in (x, w, scale)]
    if (
        engine == "native"
        and not recompute
        and x.numel()
        and native_pairs.is_one_panel(x.shape[0])
        and torch.is_grad_enabled()
        and any(learns)
        and is_plain(x, w, y, scale, bias)
    ):
        needs = learns[0] or learns[2], learns[1]
        value: Tensor = _AtOnce.apply(x, w, y, scale, bias, normalize, *needs)[0]
        return value
    value, _, _ = _by_operator(x, w, y, scale, bias, normalize, engine, recompute)
    return value
