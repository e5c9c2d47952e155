"""A loss of your own, of scores that are never in memory whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from pvp_fast.dispatch import fuses
from pvp_fast.errors import InputError
from pvp_fast.losses.fused import entrywise, evaluate, reference, times
from pvp_fast.losses.problem import (
    Labels,
    Loss,
    Needs,
    Problem,
    as_float,
    check_inputs,
    dense_labels,
    reduction_factor,
    scalar,
)


def chunked_loss(
    function: Callable[..., Tensor],
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    normalize: bool = True,
    weight: Tensor | None = None,
    reduction: str = "mean",
    by_row: bool = False,
) -> Tensor:
    """Any loss of the scores scale · ⟨x, w⟩ + bias, chunk by chunk, in plain PyTorch.

    ``function`` is called on chunks of scores that stay in a CPU's cache; autograd goes through
    it, back to the chunk, and closed forms from there to every input. Memory is that of x, w, their
    gradients and what ``function`` holds for one chunk (1 MiB of scores on a CPU)::

        def squared(scores, targets):
            return (scores.sigmoid() - targets) ** 2

        loss = chunked_loss(squared, x, w, y, scale=20.0)

    float64 x takes the definition, with (B, C) scores in memory, which alone has second
    derivatives and works in torch.func.grad. torch.compile leaves the call as it is.

    Args:
        function: of differentiable PyTorch operations, without random numbers; tensors of its own
            are constants. By default it takes float32 scores and targets (r, c), parts of rows and
            of columns, and returns the loss of every entry (r, c). With ``by_row`` it takes scores,
            targets and known entries (bool), (r, C), all categories of some rows, and returns the
            loss of every row (r,).
        x: (B, D) queries. w: (C, D) class vectors. y: labels as of
            :func:`pvp_fast.losses.asl_loss`: dense, soft, partial, CSRLabels. Unknown entries cost
            nothing; ``by_row`` leaves them to the function.
        scale, bias, normalize: as of :func:`pvp_fast.losses.asl_loss`.
        weight: (C,) factor of each category (differentiable); not with ``by_row``.
        reduction: "sum", "mean" over B·C, or over B ``by_row``, or "batchmean" over B.

    Returns:
        Scalar loss, float32 (float64 where x is).

    Raises:
        InputError: arguments that do not fit each other, or a function that returns another shape.
    """
    check_inputs(x, w, y, weight)
    if by_row and weight is not None:
        raise InputError("weight: a loss by_row has no categories to weigh; weigh in its function")
    loss = _by_row(function) if by_row else entrywise("custom", tuple, _checked(function))
    if by_row and reduction == "mean":
        reduction = "batchmean"
    if not fuses("torch", x.dtype):
        return reference(loss, (), x, w, y, scale, bias, normalize, weight, reduction)
    if w.dtype != x.dtype:
        x, w = x.float(), w.float()
    scale = scalar("scale", scale, x)
    bias = None if bias is None else scalar("bias", bias, x)
    weight = None if weight is None else weight.to(x.device, torch.float32).contiguous()
    factor = reduction_factor(reduction, torch.Size((len(x), len(w))))
    return _apply(x, w, scale, bias, weight, y, loss, normalize, factor)


def _checked(function: Callable[..., Tensor]) -> Callable[[Any, Tensor, Tensor], Tensor]:
    def entries(_settings: Any, scores: Tensor, targets: Tensor) -> Tensor:
        loss = function(scores, targets)
        if loss.shape != scores.shape:
            raise InputError(
                f"function returned {tuple(loss.shape)} for scores {tuple(scores.shape)}: return "
                "the loss of every entry, or of every row with by_row=True"
            )
        return loss

    return entries


def _by_row(function: Callable[..., Tensor]) -> Loss:
    def of_scores(
        _settings: Any, scores: Tensor, y: Labels, _weight: Tensor | None, reduction: str
    ) -> Tensor:
        scores = as_float(scores)
        targets, known = dense_labels(y, scores)
        known = torch.ones_like(targets, dtype=torch.bool) if known is None else known
        loss = function(scores, targets, known)
        if loss.shape != scores.shape[:1]:
            raise InputError(
                f"function returned {tuple(loss.shape)} for scores {tuple(scores.shape)}: with "
                "by_row=True, return the loss of every row"
            )
        return loss.sum() * reduction_factor(reduction, scores.shape)

    return Loss("custom", tuple, of_scores, by_row=True)


class _Chunked(torch.autograd.Function):
    """What the operator is to losses that have a name, for one that has none."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        weight: Tensor | None,
        y: Labels,
        loss: Loss,
        normalize: bool,
        factor: float,
        needs: Needs,
    ) -> tuple[Tensor, ...]:
        problem = Problem(loss, (), x, w, y, scale, bias, weight, normalize, factor)
        with torch.autocast(x.device.type, enabled=False):
            found = evaluate(problem, needs, "torch", "chunked")
        # Outputs, as the operator's, so that second derivatives raise instead of being left out.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*found[1:])
        ctx.dtypes = x.dtype, w.dtype
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        scaled = times(g, *ctx.saved_tensors, *ctx.dtypes)
        asked = ctx.needs_input_grad
        return *(t if need else None for t, need in zip(scaled, asked, strict=False)), *(None,) * 5


# torch.compiler.disable, which would load torch's compiler (a second) with every import of losses.
@_disable_dynamo
def _apply(
    x: Tensor,
    w: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    y: Labels,
    loss: Loss,
    normalize: bool,
    factor: float,
) -> Tensor:
    grad = torch.is_grad_enabled()
    leaves = (x, w, scale, bias, weight)
    needs = Needs(*(grad and t is not None and t.requires_grad for t in leaves))
    value, *_ = _Chunked.apply(*leaves, y, loss, normalize, factor, needs)
    return value
