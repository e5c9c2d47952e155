"""A loss of similarities, before an engine is chosen: its labels, its scores, and the problem.

Labels come in every form: dense, soft, partial (−1/0/1) and lists; scores are products of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pvp_fast.errors import InputError

EPS = 1e-12  # of torch.nn.functional.normalize
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class CSRLabels:
    """The positive categories of B samples as index lists.

    Args:
        offsets: (B + 1,) integer, ascending from 0; sample b owns ``indices[offsets[b] :
            offsets[b + 1]]``.
        indices: (nnz,) integer category numbers.

    Raises:
        InputError: shapes, dtypes or offsets that do not describe lists. What the offsets and
            indices hold is checked on a CPU only: on a GPU that would wait for the device.
    """

    offsets: Tensor
    indices: Tensor

    def __post_init__(self) -> None:
        for name, value in (("offsets", self.offsets), ("indices", self.indices)):
            if value.ndim != 1 or value.is_floating_point() or value.dtype == torch.bool:
                raise InputError(
                    f"CSRLabels.{name} must be a 1-D integer tensor, "
                    f"not {value.dtype} of shape {tuple(value.shape)}"
                )
        if len(self.offsets) < 1:
            raise InputError("CSRLabels.offsets must start with 0 and have B + 1 entries")
        if self.offsets.device.type != "cpu":
            return  # reading them would wait for the device
        if int(self.offsets[0]) != 0:
            raise InputError("CSRLabels.offsets must start with 0 and have B + 1 entries")
        if bool((self.offsets.diff() < 0).any()) or int(self.offsets[-1]) != len(self.indices):
            raise InputError(
                f"CSRLabels.offsets must ascend to len(indices) = {len(self.indices)}, "
                f"they end at {int(self.offsets[-1])}"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def check(self, n_categories: int) -> None:
        """Raise InputError for an index outside [0, n_categories); on a CPU only, see above."""
        if self.indices.device.type == "cpu" and self.indices.numel():
            low, high = int(self.indices.min()), int(self.indices.max())
            if low < 0 or high >= n_categories:
                raise InputError(
                    f"CSRLabels.indices run from {low} to {high}; there are {n_categories} "
                    "categories, numbered from 0"
                )

    def dense(self, n_categories: int) -> Tensor:
        """(B, n_categories) bool.

        Raises:
            InputError: an index outside [0, n_categories).
        """
        self.check(n_categories)
        return label_block(self, slice(0, len(self)), slice(0, n_categories))


def lists_as_checked(offsets: Tensor, indices: Tensor) -> CSRLabels:
    """What a CSRLabels held, not checked again: that takes longer than a small loss."""
    labels = object.__new__(CSRLabels)
    object.__setattr__(labels, "offsets", offsets)
    object.__setattr__(labels, "indices", indices)
    return labels


Labels = Tensor | CSRLabels


def check_labels(y: Labels, rows: int, n_categories: int) -> None:
    """Raise InputError for labels of another shape or of a dtype that no loss takes."""
    if isinstance(y, CSRLabels):
        if len(y) != rows:
            raise InputError(f"y lists the categories of {len(y)} samples; x has {rows} rows")
        return
    if y.shape != (rows, n_categories):
        raise InputError(
            f"y has shape {tuple(y.shape)}; the scores are (B, C) = ({rows}, {n_categories})"
        )
    if y.dtype in (torch.int16, torch.int32, torch.int64):
        raise InputError(
            f"y is {y.dtype}: give y.bool() for labels 0/1, or y.to(torch.int8) for partial labels "
            "-1/0/1, whose zeros are unknown"
        )


def check_values(y: Labels, n_categories: int) -> None:
    """Raise InputError for what no label means; on a CPU only: a GPU would have to wait.

    int8 holds partial labels: +1 present, −1 absent, 0 unknown (no loss). bool and uint8 hold 0/1,
    floats 0/1 or soft targets in [0, 1].
    """
    if isinstance(y, CSRLabels):
        y.check(n_categories)
    elif y.dtype == torch.int8 and y.device.type == "cpu" and y.numel():
        low, high = (int(value) for value in y.aminmax())
        if low < -1 or high > 1:
            raise InputError("y: int8 labels are partial and hold only -1, 0 and 1")


def label_block(y: Labels, rows: slice, cols: slice) -> Tensor:
    """Labels (rows, cols) as they are; lists as bool."""
    if isinstance(y, Tensor):
        return y[rows, cols]
    offsets = y.offsets[rows.start : rows.stop + 1]
    col = y.indices[int(offsets[0]) : int(offsets[-1])].long() - cols.start
    row = torch.repeat_interleave(
        torch.arange(len(offsets) - 1, device=col.device), offsets.diff(), output_size=len(col)
    )
    inside = (col >= 0) & (col < cols.stop - cols.start)
    size = rows.stop - rows.start, cols.stop - cols.start
    block = torch.zeros(size, dtype=torch.bool, device=col.device)
    block[row[inside], col[inside]] = True
    return block


def dense_labels(y: Labels, scores: Tensor) -> tuple[Tensor, Tensor | None]:
    """Targets (B, C) in the dtype of ``scores``, and the mask of known entries (None = all).

    Wider integers than int8 are refused: they are most often 0/1, whose zeros would cost nothing.

    Raises:
        InputError: a shape other than that of the scores, or values that :func:`check_values`
            refuses.
    """
    check_labels(y, scores.shape[0], scores.shape[1])
    check_values(y, scores.shape[1])
    y = label_block(y, slice(0, scores.shape[0]), slice(0, scores.shape[1]))
    if y.dtype == torch.int8:
        return (y == 1).to(scores.dtype), y != 0
    return y.to(scores.dtype), None


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


def blocks(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


class Needs(NamedTuple):
    """Which gradients are asked for."""

    x: bool
    w: bool
    scale: bool
    bias: bool
    weight: bool


class Gradients(NamedTuple):
    """The loss and its gradients, float32; what is not needed is empty."""

    loss: Tensor
    dx: Tensor
    dw: Tensor
    dscale: Tensor
    dbias: Tensor
    dweight: Tensor


@dataclass(frozen=True)
class Loss:
    """What the engines know of a loss.

    Attributes:
        name: by which the engines "native" and "triton" know it, if they do.
        settings: its NamedTuple of numbers; every field has a default.
        of_scores: its definition: settings, scores (B, C), labels, weight (C,) and reduction to a
            scalar. Differentiable.
        by_row: whether its rows are no sum over categories, so that blocks hold all categories.
        closed_form: None where autograd of ``of_scores`` is as fast. Settings, scores (R, C) to
            overwrite by ∂Σ weight · loss/∂scores, labels of that block, weight, and whether that
            gradient is wanted, to Σ over rows of the loss before its weight, (C,); or None, before
            anything is overwritten, where it does not apply.
    """

    name: str
    settings: type
    of_scores: Callable[[Any, Tensor, Labels, Tensor | None, str], Tensor]
    by_row: bool = False
    closed_form: Callable[[Any, Tensor, Tensor, Tensor | None, bool], Tensor | None] | None = None


@dataclass(frozen=True)
class Problem:
    """factor · Σ loss of the scores scale · ⟨x̂, ŵ⟩ + bias.

    x and w have one dtype; scalars are 0-d float32.
    """

    loss: Loss
    settings: Any  # a loss.settings
    x: Tensor
    w: Tensor
    y: Labels
    scale: Tensor
    bias: Tensor | None
    weight: Tensor | None
    normalize: bool
    factor: float = 1.0

    @property
    def kind(self) -> str:
        return self.loss.name


def scalar(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise InputError(f"{name} must be one value, not {tuple(value.shape)}")
        return value.to(x.device, torch.float32).reshape(())
    return torch.full((), value, dtype=torch.float32, device=x.device)


def check_inputs(x: Tensor, w: Tensor, y: Labels, weight: Tensor | None) -> None:
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
        raise InputError(
            f"x {tuple(x.shape)} and w {tuple(w.shape)} must be (B, D) and (C, D) of one width D"
        )
    if not (x.is_floating_point() and w.is_floating_point()):
        raise InputError(f"x and w must be floating point, not {x.dtype} and {w.dtype}")
    rows, n_categories = x.shape[0], w.shape[0]
    check_labels(y, rows, n_categories)
    found = y.indices.device if isinstance(y, CSRLabels) else y.device
    for name, device in (("w", w.device), ("y", found)):
        if device != x.device:
            raise InputError(f"{name} is on {device}, x on {x.device}; move them to one device")
    if weight is not None and weight.shape != (n_categories,):
        raise InputError(f"weight must be ({n_categories},), not {tuple(weight.shape)}")
