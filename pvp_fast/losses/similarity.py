"""What the engines share of the scores: norms, products, reductions, running maxima and sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.errors import InputError

EPS = 1e-12  # of torch.nn.functional.normalize
HALF = (torch.float16, torch.bfloat16)


def similarity(
    x: Tensor, w: Tensor, *, scale: float | Tensor, bias: float | Tensor | None, normalize: bool
) -> Tensor:
    """Scores (B, C) = scale · ⟨x_b, w_c⟩ + bias; cosines when ``normalize``.

    Half precision inputs are multiplied as they are and evaluated in float32.

    Raises:
        InputError: x is not (B, D) or w is not (C, D).
    """
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
        raise InputError(
            f"x {tuple(x.shape)} and w {tuple(w.shape)} must be (B, D) and (C, D) of one width D"
        )
    x = as_float(x)
    w = w.to(x.dtype)
    if normalize:
        x, w = F.normalize(x, dim=-1), F.normalize(w, dim=-1)
    scores = scale * (x @ w.T)
    return scores if bias is None else scores + bias


def as_float(scores: Tensor) -> Tensor:
    """Half precision scores as float32, others as they are."""
    return scores.float() if scores.dtype in HALF else scores


def reduce(total: Tensor, shape: torch.Size, reduction: str) -> Tensor:
    """A summed loss as ``sum``, ``mean`` (over B·C) or ``batchmean`` (over B); empty gives 0."""
    return total * reduction_factor(reduction, shape)


def reduction_factor(reduction: str, shape: torch.Size) -> float:
    """What :func:`reduce` multiplies by."""
    if reduction == "sum":
        return 1.0
    if reduction == "mean":
        return 1 / max(1, shape.numel())
    if reduction == "batchmean":
        return 1 / max(1, shape[0])
    raise InputError(f"reduction={reduction!r}: use 'sum', 'mean' or 'batchmean'")


def inverse_norms(rows: Tensor, normalize: bool = True) -> Tensor:
    """1 / max(‖row‖, 1e-12) in float32, without a copy of the rows; ones if not asked for."""
    if not normalize:
        return torch.ones(rows.shape[:-1], dtype=torch.float32, device=rows.device)
    norms = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)
    return norms.clamp_min_(EPS).reciprocal_()


def through_norm(grad: Tensor, unit: Tensor) -> Tensor:
    """In place: the part of a unit row's gradient that is orthogonal to the row."""
    return grad.addcmul_(unit, torch.linalg.vecdot(grad, unit)[:, None], value=-1.0)


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this device multiplies matrices of this half precision natively."""
    if dtype not in HALF:
        return False
    if device.type != "cpu":
        return True
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return dtype == torch.bfloat16 and supported is not None and bool(supported())


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a @ b into out, float32 or of their dtype."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return out.copy_(torch.mm(a, b))


def add_product(a: Tensor, b: Tensor, out: Tensor, first: bool) -> None:
    """out += a @ b with float32 accumulation; ``first``: out = a @ b."""
    if first:
        product(a, b, out)
    elif a.dtype == torch.float32:
        out.addmm_(a, b)
    elif a.is_cuda:
        out.add_(torch.mm(a, b, out_dtype=torch.float32))
    else:
        out.add_(torch.mm(a, b))


def combine_online(parts: Tensor) -> Tensor:
    """One maximum and sum of exponentials (2, N) from those of K parts (2, K, N), in their order.

    Σ exp = sum · exp(maximum); a part of nothing has maximum −∞ and sum 0.
    """
    top = parts[0].amax(0)
    # −∞ − (−∞) would be NaN.
    base = top.masked_fill(top == float("-inf"), 0.0)
    return torch.stack((top, (parts[1] * (parts[0] - base).exp_()).sum(0)))
