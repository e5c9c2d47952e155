"""A loss of similarities: its definition, the choice of an engine and a regime, and the operator.

``pvp_fast::similarity_loss`` is a torch.library operator with shapes for torch.compile and a
gradient for autograd. One pass makes the loss and, where asked for, every gradient; backward only
multiplies by the incoming one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pvp_fast.dispatch import choose, fuses, hands_out, why_not_triton, with_gradient
from pvp_fast.errors import BackendError, InputError
from pvp_fast.losses import native_steps, tiles
from pvp_fast.losses.problem import (
    CSRLabels,
    Gradients,
    Labels,
    Loss,
    Needs,
    Problem,
    as_float,
    check_inputs,
    dense_labels,
    lists_as_checked,
    reduce,
    reduction_factor,
    scalar,
    similarity,
)

REGIMES = ("auto", "small", "chunked", "recompute")
# Scores of one tile: 1 MiB of float32 on a CPU, 24 MiB in a GPU's L2 (not yet measured).
_TILE = {"cpu": 1 << 18}
_TILE_ELSEWHERE = 6 << 20
# The extension passes over a tile once, so that few and large products gain more than the cache.
_NATIVE_TILES = 4
# Rows of a tile, which share one pass over w and dw.
_ROWS = {"cpu": 256}
_ROWS_ELSEWHERE = 1024
# Rows that hold all categories share it too, as long as their scores take no more than 8 MiB.
_WHOLE_ROWS, _WHOLE_TILE = 128, 1 << 21
# The widest vocabulary of the kernel that does all at once (MAX_C of kernels.entrywise_small).
_SMALL = {torch.float32: 64, torch.float16: 128, torch.bfloat16: 128}
# The losses that "native" and "triton" know; those in small vocabularies too.
_SMALL_KINDS = ("asl", "bce", "focal", "siglip")
_KINDS = (*_SMALL_KINDS, "ranking")

_LOSSES: dict[str, Loss] = {}


def register(loss: Loss) -> Loss:
    """Makes a loss known to the operator, which is given names and numbers."""
    _LOSSES[loss.name] = loss
    return loss


def entrywise(
    name: str,
    settings: type,
    entries: Callable[[Any, Tensor, Tensor], Tensor],
    closed_form: Callable[[Any, Tensor, Tensor, Tensor | None, bool], Tensor | None] | None = None,
) -> Loss:
    """A loss that sums ``entries(settings, scores, targets)``, (B, C) of (B, C)."""

    def of_scores(
        settings: Any, scores: Tensor, y: Labels, weight: Tensor | None, reduction: str
    ) -> Tensor:
        scores = as_float(scores)
        target, known = dense_labels(y, scores)
        loss = entries(settings, scores, target)
        if known is not None:
            loss = loss * known
        if weight is not None:
            loss = loss * weight
        return reduce(loss.sum(), loss.shape, reduction)

    return Loss(name, settings, of_scores, closed_form=closed_form)


def reference(
    loss: Loss,
    settings: Any,
    x: Tensor,
    w: Tensor,
    y: Labels,
    scale: float | Tensor,
    bias: float | Tensor | None,
    normalize: bool,
    weight: Tensor | None,
    reduction: str,
) -> Tensor:
    """The loss by its definition, with (B, C) scores in memory."""
    scores = similarity(x, w, scale=scale, bias=bias, normalize=normalize)
    return loss.of_scores(settings, scores, y, weight, reduction)


def regime_of(regime: str, kind: str, dtype: torch.dtype, n_categories: int, triton: bool) -> str:
    """The regime that "auto" stands for: the one rule of it.

    ``small`` where one Triton kernel holds all categories (C ≤ 64 in float32, 128 in half
    precision; its threshold is that of the kernel, not yet measured), else ``chunked``.
    ``recompute`` is taken only when asked for: it makes the scores twice.
    """
    if regime not in REGIMES:
        raise InputError(f"regime={regime!r}: use 'auto', 'small', 'chunked' or 'recompute'")
    fits = kind in _SMALL_KINDS and n_categories <= _SMALL[dtype]
    if regime == "small" and triton and not fits:
        raise InputError(
            f"regime='small': the Triton kernel takes C <= {_SMALL[dtype]} in {dtype} and every "
            f"loss but ranking, not {kind} with C = {n_categories}; use 'chunked'"
        )
    if regime != "auto":
        return regime
    return "small" if triton and fits else "chunked"


def tile_of(
    regime: str, device: torch.device, rows: int, n_categories: int, by_row: bool, tiles: int = 1
) -> tuple[int, int]:
    """Rows and categories of a tile as large as ``tiles``; all categories where ``by_row``."""
    if regime == "small":
        return max(1, rows), max(1, n_categories)
    budget = tiles * _TILE.get(device.type, _TILE_ELSEWHERE)
    height = _ROWS.get(device.type, _ROWS_ELSEWHERE)
    whole = min(_WHOLE_ROWS, _WHOLE_TILE // max(1, n_categories))
    if regime == "recompute":
        budget, height, whole = budget // 4, height // 2, whole // 4
    if by_row:
        return max(1, whole, budget // max(1, n_categories)), max(1, n_categories)
    tall = max(height, budget // max(1, n_categories))
    return tall, max(1, budget // max(1, min(tall, rows)))


def evaluate(problem: Problem, needs: Needs, engine: str, regime: str) -> Gradients:
    x, loss = problem.x, problem.loss
    tiles_in_one = _NATIVE_TILES if engine == "native" else 1
    tile = tile_of(regime, x.device, x.shape[0], problem.w.shape[0], loss.by_row, tiles_in_one)
    if engine == "native":
        if loss.by_row:
            tile = native_steps.rows_of_ranking(tile[0] * tile[1], tile[1]), tile[1]
        return native_steps.run(problem, needs, tile)
    if engine == "triton" and regime == "small":
        return small(problem, needs)
    step = tiles.kernel_step(problem) if engine == "triton" else tiles.torch_step(problem)
    return tiles.run(problem, needs, step, tile, keep=regime != "recompute")


def small(problem: Problem, needs: Needs) -> Gradients:
    """The regime of that name by Triton: all categories in one kernel, every gradient with it."""
    from pvp_fast.kernels.entrywise_small import small_c_loss

    y = problem.y
    if isinstance(y, CSRLabels):
        y.check(len(problem.w))
        labels: Tensor | tuple[Tensor, Tensor] = (y.offsets.contiguous(), y.indices.contiguous())
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


def _similarity_loss(
    x: Tensor,
    w: Tensor,
    y: Tensor | None,
    offsets: Tensor | None,
    indices: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    kind: str,
    settings: Sequence[float],
    normalize: bool,
    backend: str,
    regime: str,
    needs: Sequence[bool],
    factor: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """factor · Σ loss and the gradients of :class:`Gradients`; empty if not needed.

    All float32, but dx and dw of the "native" backend, which have the dtypes of x and w.
    """
    labels: Labels
    if y is not None:
        labels = y
    elif offsets is not None and indices is not None:
        labels = lists_as_checked(offsets, indices)
    else:
        raise InputError("y, or offsets and indices, must be given")
    asked = Needs(*needs)
    if kind == "ranking":
        bias, asked = None, asked._replace(bias=False)  # it cancels
    loss = _LOSSES[kind]
    named = loss.settings(*settings)
    problem = Problem(loss, named, x, w, labels, scale, bias, weight, normalize, factor)
    if not torch.is_autocast_enabled(x.device.type):  # a context takes longer than asking
        return tuple(evaluate(problem, asked, backend, regime))  # type: ignore[return-value]
    with torch.autocast(x.device.type, enabled=False):
        return tuple(evaluate(problem, asked, backend, regime))  # type: ignore[return-value]


similarity_loss = torch.library.custom_op(
    "pvp_fast::similarity_loss", _similarity_loss, mutates_args=()
)


@similarity_loss.register_fake
def _(x: Tensor, w: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    *_tensors, backend, _regime, needs, _factor = others
    asked = Needs(*needs)
    dtype = x.dtype if backend == "native" else torch.float32

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return x.new_empty(shape, dtype=dtype)

    return (
        new(),
        new(x.shape[0] if asked.x else 0, x.shape[1], dtype=dtype),
        new(w.shape[0] if asked.w else 0, w.shape[1], dtype=dtype),
        new(),
        new(),
        new(w.shape[0] if asked.weight else 0),
    )


def _similarity_loss_backward(
    g: Tensor,
    dx: Tensor,
    dw: Tensor,
    dscale: Tensor,
    dbias: Tensor,
    dweight: Tensor,
    x_dtype: torch.dtype,
    w_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Every gradient times g, those of x and w in their dtypes."""
    return (dx * g).to(x_dtype), (dw * g).to(w_dtype), dscale * g, dbias * g, dweight * g


similarity_loss_backward = torch.library.custom_op(
    "pvp_fast::similarity_loss_backward", _similarity_loss_backward, mutates_args=()
)


@similarity_loss_backward.register_fake
def _(g: Tensor, dx: Tensor, dw: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *few, x_dtype, w_dtype = others
    like = torch.empty_like
    return like(dx, dtype=x_dtype), like(dw, dtype=w_dtype), *map(like, few)


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.set_materialize_grads(False)  # of the gradients, which nobody differentiates
    *tensors, ctx.kind, ctx.settings, ctx.normalize, ctx.backend, ctx.regime, needs, factor = inputs
    ctx.factor = factor
    ctx.again = not any(needs)
    ctx.dtypes = inputs[0].dtype, inputs[1].dtype
    if ctx.again:
        ctx.save_for_backward(*tensors)
    else:
        ctx.save_for_backward(*output[1:])


def _backward(ctx, g: Tensor, *_unused: Tensor | None):  # type: ignore[no-untyped-def]
    needs = Needs(*(ctx.needs_input_grad[i] for i in (0, 1, 5, 6, 7)))
    gradients = ctx.saved_tensors
    if ctx.again:
        _, *gradients = _evaluated(
            *gradients,
            ctx.kind,
            ctx.settings,
            ctx.normalize,
            ctx.backend,
            ctx.regime,
            list(needs),
            ctx.factor,
        )
    if ctx.dtypes == tuple(t.dtype for t in gradients[:2]) and hands_out(g):
        found = gradients
    else:
        found = times(g, *gradients, *ctx.dtypes)
    dx, dw, dscale, dbias, dweight = (
        f if need else None for f, need in zip(found, needs, strict=True)
    )
    return dx, dw, None, None, None, dscale, dbias, dweight, *(None,) * 7


def _no_second(ctx, *grads: Tensor):  # type: ignore[no-untyped-def]
    raise BackendError(
        "the fused losses' gradient has no gradient of its own; give float64 x, which takes plain "
        "PyTorch, for second derivatives"
    )


_evaluated = with_gradient(similarity_loss, _similarity_loss, _backward, _setup)
times = with_gradient(similarity_loss_backward, _similarity_loss_backward, _no_second)


def fused_loss(
    loss: Loss,
    settings: Any,
    x: Tensor,
    w: Tensor,
    y: Labels,
    scale: float | Tensor,
    bias: float | Tensor | None,
    normalize: bool,
    weight: Tensor | None,
    reduction: str,
    backend: str,
    regime: str,
) -> Tensor:
    """A loss by the fused path, or by its definition for float64 x.

    Raises:
        InputError: arguments that do not fit each other. BackendError: an explicit backend that is
            not there.
    """
    check_inputs(x, w, y, weight)
    if not fuses(backend, x.dtype):
        return reference(loss, settings, x, w, y, scale, bias, normalize, weight, reduction)
    if w.dtype != x.dtype:
        x, w = x.float(), w.float()
    learns = weight is not None and weight.requires_grad and torch.is_grad_enabled()

    unknown = None if loss.name in _KINDS else f"it has no {loss.name} loss"

    def not_triton() -> str | None:
        return unknown or why_not_triton(x, w)

    def not_native() -> str | None:
        return unknown or native_steps.why_not(loss.name, settings, x.device, w.shape[0], y, learns)

    engine = choose(backend, x.device, {"triton": not_triton, "native": not_native})
    regime = regime_of(regime, loss.name, x.dtype, w.shape[0], engine == "triton")
    scale = scalar("scale", scale, x)
    bias = None if bias is None else scalar("bias", bias, x)
    weight = None if weight is None else weight.to(x.device, torch.float32).contiguous()
    grad = torch.is_grad_enabled() and regime != "recompute"
    needs = [grad and t is not None and t.requires_grad for t in (x, w, scale, bias, weight)]
    dense, offsets, indices = (
        (None, y.offsets, y.indices) if isinstance(y, CSRLabels) else (y, None, None)
    )
    if loss.by_row and reduction == "mean":
        reduction = "batchmean"
    total, *_ = _evaluated(
        x,
        w,
        dense,
        offsets,
        indices,
        scale,
        bias,
        weight,
        loss.name,
        [float(value) for value in settings],
        normalize,
        engine,
        regime,
        needs,
        reduction_factor(reduction, torch.Size((x.shape[0], w.shape[0]))),
    )
    return total
