"""The operator under the fused losses, the choice of a regime, and its gradient.

``pvp_fast::similarity_loss`` is a torch.library operator with shapes for torch.compile and a
gradient for autograd. One pass makes the loss and, where asked for, every gradient; backward only
multiplies by the incoming one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pvp_fast.dispatch import use_triton
from pvp_fast.errors import BackendError, InputError
from pvp_fast.losses import native_steps
from pvp_fast.losses.labels import CSRLabels, Labels, check_labels
from pvp_fast.losses.similarity import reduction_factor
from pvp_fast.losses.tiles import Gradients, Needs, Problem, Step, run
from pvp_fast.losses.torch_steps import EntrywiseStep, RankingStep

REGIMES = ("auto", "small", "chunked", "recompute")
_FUSED = (torch.float32, torch.float16, torch.bfloat16)
# Scores of one tile: 1 MiB of float32 on a CPU, 24 MiB in a GPU's L2 (not yet measured).
_TILE = {"cpu": 1 << 18}
_TILE_ELSEWHERE = 6 << 20
# Rows of a tile, which share one pass over w and dw.
_ROWS = {"cpu": 256}
_ROWS_ELSEWHERE = 1024
# The widest vocabulary of the kernel that does all at once (MAX_C of kernels.entrywise_small).
_SMALL = {torch.float32: 64, torch.float16: 128, torch.bfloat16: 128}


def choose(regime: str, kind: str, dtype: torch.dtype, n_categories: int, triton: bool) -> str:
    """The regime that "auto" stands for: the one rule of it.

    ``small`` where one Triton kernel holds all categories (C ≤ 64 in float32, 128 in half
    precision; its threshold is that of the kernel, not yet measured), else ``chunked``.
    ``recompute`` is taken only when asked for: it makes the scores twice.
    """
    if regime not in REGIMES:
        raise InputError(f"regime={regime!r}: use 'auto', 'small', 'chunked' or 'recompute'")
    fits = kind != "ranking" and n_categories <= _SMALL[dtype]
    if regime == "small" and triton and not fits:
        raise InputError(
            f"regime='small': the Triton kernel takes C <= {_SMALL[dtype]} in {dtype} and every "
            f"loss but ranking, not {kind} with C = {n_categories}; use 'chunked'"
        )
    if regime != "auto":
        return regime
    return "small" if triton and fits else "chunked"


def tile_of(regime: str, device: torch.device, rows: int, n_categories: int) -> tuple[int, int]:
    """Rows and categories of a tile."""
    if regime == "small":
        return max(1, rows), max(1, n_categories)
    budget = _TILE.get(device.type, _TILE_ELSEWHERE)
    height = _ROWS.get(device.type, _ROWS_ELSEWHERE)
    if regime == "recompute":
        budget, height = budget // 4, height // 2
    tall = max(height, budget // max(1, n_categories))
    return tall, max(1, budget // max(1, min(tall, rows)))


def _evaluate(problem: Problem, needs: Needs, backend: str, regime: str) -> Gradients:
    x, triton = problem.x, backend == "triton"
    rows, cols = tile_of(regime, x.device, len(x), len(problem.w))
    if backend == "native":
        if problem.kind == "ranking":
            rows, cols = native_steps.rows_of_ranking(rows * cols, len(problem.w)), len(problem.w)
        return native_steps.run(problem, needs, (rows, cols))
    if triton:
        from pvp_fast.losses import triton_steps

        if regime == "small":
            return triton_steps.small(problem, needs)
        step: Step = triton_steps.KernelStep(problem)
    else:
        step = RankingStep(problem) if problem.kind == "ranking" else EntrywiseStep(problem)
    if triton and problem.kind == "ranking" and cols < len(problem.w):
        # A program of its kernel owns a row: fewer rows, all categories.
        rows, cols = max(1, rows * cols // len(problem.w)), len(problem.w)
    return run(problem, needs, step, (rows, cols), keep=regime != "recompute")


@torch.library.custom_op("pvp_fast::similarity_loss", mutates_args=())
def similarity_loss(
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
        labels = CSRLabels(offsets, indices)
    else:
        raise InputError("y, or offsets and indices, must be given")
    if kind == "ranking":
        bias = None  # it cancels
    problem = Problem(kind, settings, x, w, labels, scale, bias, weight, normalize, factor)
    with torch.autocast(x.device.type, enabled=False):
        return tuple(_evaluate(problem, Needs(*needs), backend, regime))  # type: ignore[return-value]


@similarity_loss.register_fake
def _(
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


@torch.library.custom_op("pvp_fast::similarity_loss_backward", mutates_args=())
def similarity_loss_backward(
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


@similarity_loss_backward.register_fake
def _(
    g: Tensor,
    dx: Tensor,
    dw: Tensor,
    dscale: Tensor,
    dbias: Tensor,
    dweight: Tensor,
    x_dtype: torch.dtype,
    w_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(dx, dtype=x_dtype),
        torch.empty_like(dw, dtype=w_dtype),
        torch.empty_like(dscale),
        torch.empty_like(dbias),
        torch.empty_like(dweight),
    )


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.kind, ctx.settings, ctx.normalize, ctx.backend, ctx.regime, needs, factor = inputs
    ctx.factor = factor
    ctx.again = not any(needs)
    ctx.dtypes = inputs[0].dtype, inputs[1].dtype
    if ctx.again:
        ctx.save_for_backward(*tensors)
    else:
        ctx.save_for_backward(*output[1:])


def _is_one(g: Tensor) -> bool:
    """Whether the gradients are already right, which only a CPU tells without waiting."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():  # a graph that others will run
        return False
    return type(g) is Tensor and g.device.type == "cpu" and g.item() == 1.0


def _backward(ctx, g: Tensor, *_unused: Tensor | None):  # type: ignore[no-untyped-def]
    needs = Needs(*(ctx.needs_input_grad[i] for i in (0, 1, 5, 6, 7)))
    gradients = ctx.saved_tensors
    if ctx.again:
        _, *gradients = similarity_loss(
            *gradients,
            ctx.kind,
            ctx.settings,
            ctx.normalize,
            ctx.backend,
            ctx.regime,
            list(needs),
            ctx.factor,
        )
    if ctx.dtypes == tuple(t.dtype for t in gradients[:2]) and _is_one(g):
        found = gradients
    else:
        found = similarity_loss_backward(g, *gradients, *ctx.dtypes)
    dx, dw, dscale, dbias, dweight = (
        f if need else None for f, need in zip(found, needs, strict=True)
    )
    return dx, dw, None, None, None, dscale, dbias, dweight, *(None,) * 7


def _no_second(ctx, *grads: Tensor):  # type: ignore[no-untyped-def]
    raise BackendError(
        "the fused losses' gradient has no gradient of its own; give float64 x, which takes plain "
        "PyTorch, for second derivatives"
    )


similarity_loss.register_autograd(_backward, setup_context=_setup)
similarity_loss_backward.register_autograd(_no_second)


def _scalar(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise InputError(f"{name} must be one value, not {tuple(value.shape)}")
        return value.to(x.device, torch.float32).reshape(())
    return torch.full((), value, dtype=torch.float32, device=x.device)


def fused_loss(
    kind: str,
    settings: Sequence[float],
    reference: Callable[[], Tensor],
    x: Tensor,
    w: Tensor,
    y: Labels,
    *,
    scale: float | Tensor,
    bias: float | Tensor | None,
    normalize: bool,
    weight: Tensor | None,
    reduction: str,
    backend: str,
    regime: str,
) -> Tensor:
    """A loss by the fused path, or by ``reference`` for float64 x.

    Raises:
        InputError: arguments that do not fit each other. BackendError: an explicit backend that is
            not there.
    """
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
        raise InputError(
            f"x {tuple(x.shape)} and w {tuple(w.shape)} must be (B, D) and (C, D) of one width D"
        )
    if not (x.is_floating_point() and w.is_floating_point()):
        raise InputError(f"x and w must be floating point, not {x.dtype} and {w.dtype}")
    rows, n_categories = len(x), len(w)
    check_labels(y, rows, n_categories)
    found = y.indices.device if isinstance(y, CSRLabels) else y.device
    for name, device in (("w", w.device), ("y", found)):
        if device != x.device:
            raise InputError(f"{name} is on {device}, x on {x.device}; move them to one device")
    if weight is not None and weight.shape != (n_categories,):
        raise InputError(f"weight must be ({n_categories},), not {tuple(weight.shape)}")
    triton = use_triton(backend, x, w, also=("native",))
    if x.dtype not in _FUSED:
        if backend in ("triton", "native"):
            raise InputError(f"backend={backend!r} takes float32, float16, bfloat16, not {x.dtype}")
        return reference()
    if w.dtype != x.dtype:
        x, w = x.float(), w.float()
    regime = choose(regime, kind, x.dtype, n_categories, triton)
    factor = _scalar("scale", scale, x)
    shift = None if bias is None else _scalar("bias", bias, x)
    share = None if weight is None else weight.to(x.device, torch.float32).contiguous()
    grad = torch.is_grad_enabled() and regime != "recompute"
    by = "triton" if triton else backend
    if backend in ("auto", "native") and not triton:
        learns = share is not None and share.requires_grad and torch.is_grad_enabled()
        reason = native_steps.why_not(kind, settings, x.device, n_categories, y, learns)
        if reason is not None and backend == "native":
            raise BackendError(f"backend='native': {reason}; use 'auto' or 'torch'")
        by = "torch" if reason is not None else "native"
    needs = [grad and t is not None and t.requires_grad for t in (x, w, factor, shift, share)]
    dense, offsets, indices = (
        (None, y.offsets, y.indices) if isinstance(y, CSRLabels) else (y, None, None)
    )
    total, *_ = similarity_loss(
        x,
        w,
        dense,
        offsets,
        indices,
        factor,
        shift,
        share,
        kind,
        [float(value) for value in settings],
        normalize,
        by,
        regime,
        needs,
        reduction_factor(reduction, torch.Size((rows, n_categories))),
    )
    return total
