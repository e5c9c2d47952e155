# mypy: disable-error-code="no-untyped-def"
"""Scores to gradients, in place: the losses that are a sum over the entries of (B, C).

For scores s (rows, C) and labels y, one pass reads s once, writes g = ∂loss/∂s over it, and per
block of a row the sum of the loss: 8 + label bytes an entry. Between two matrix products this is
the whole loss of a chunk of rows, and s never leaves the cache it was written to.

With σ = sigmoid(s), u = σ(1 − σ), q = min(1 − σ + clip, 1), p = 1 − q:

    asl     −y · log max(σ, ε) · (1 − σ)^γ₊ − (1 − y) · log max(q, ε) · p^γ₋
    bce     max(s, 0) − s·y + log(1 + exp(−|s|))
    focal   bce · (σ + y − 2σy)^γ · (α·y + (1 − α)(1 − y))
    siglip  log(1 + exp(−(2y − 1)·s))
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pvp_fast.errors import InputError

KINDS = {"asl": 0, "bce": 1, "focal": 2, "siglip": 3}
# How labels are stored: values in [0, 1]; −1/0/1 with 0 unknown; lists of positives.
DENSE, PARTIAL, LISTS = 0, 1, 2
SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)

_ASL = tl.constexpr(0)
_BCE = tl.constexpr(1)
_FOCAL = tl.constexpr(2)
_DENSE = tl.constexpr(0)
_PARTIAL = tl.constexpr(1)


@triton.jit
def power(base, exponent, WHOLE: tl.constexpr):
    """base^exponent for base ≥ 0, with 0^exponent = 0 for every exponent but 0.

    WHOLE is the exponent when it is 0, 1, 2, 3 or 4, else −1.
    """
    if WHOLE == 0:
        result = base * 0 + 1
    elif WHOLE == 1:
        result = base
    elif WHOLE == 2:
        result = base * base
    elif WHOLE == 3:
        result = base * base * base
    elif WHOLE == 4:
        square = base * base
        result = square * square
    else:
        positive = base > 0
        result = tl.where(positive, tl.exp2(exponent * tl.log2(tl.where(positive, base, 1.0))), 0.0)
    return result


@triton.jit
def softplus_tail(e):
    """log(1 + e) for 0 ≤ e ≤ 1, by its series where 1 + e would round e away."""
    return tl.where(e < 0.01, e * (1.0 - e * (0.5 - e * (1.0 / 3.0))), tl.log(1.0 + e))


@triton.jit
def entry_loss(
    s,
    y,
    gamma_pos,
    gamma_neg,
    clip,
    eps,
    KIND: tl.constexpr,
    WHOLE_POS: tl.constexpr,
    WHOLE_NEG: tl.constexpr,
    DETACH: tl.constexpr,
):
    """Loss and ∂loss/∂s of each entry; all float32. Focal's γ is gamma_pos, its α is clip."""
    e = tl.exp(-tl.abs(s))
    inverse = 1.0 / (1.0 + e)
    sigma = tl.where(s >= 0, 1.0, e) * inverse
    # 1 − σ, without the cancellation near σ = 1.
    rest = tl.where(s >= 0, e, 1.0) * inverse
    slope = sigma * rest
    if KIND == _ASL:
        log_pos = tl.log(tl.maximum(sigma, eps))
        focus_pos = power(rest, gamma_pos, WHOLE_POS)
        d_pos = tl.where(sigma >= eps, rest, 0.0) * focus_pos
        wide = rest + clip
        q = tl.minimum(wide, 1.0)
        p = tl.maximum(sigma - clip, 0.0)
        log_neg = tl.log(tl.maximum(q, eps))
        focus_neg = power(p, gamma_neg, WHOLE_NEG)
        dq = tl.where(wide <= 1.0, -slope, 0.0)
        d_neg = tl.where(q >= eps, dq / tl.maximum(q, eps), 0.0) * focus_neg
        if not DETACH:
            d_pos -= log_pos * gamma_pos * sigma * focus_pos
            d_neg -= tl.where(
                p > 0, log_neg * gamma_neg * dq * focus_neg / tl.where(p > 0, p, 1.0), 0.0
            )
        loss = -(y * log_pos * focus_pos + (1.0 - y) * log_neg * focus_neg)
        g = -(y * d_pos + (1.0 - y) * d_neg)
    elif KIND == _BCE:
        loss = tl.maximum(s, 0.0) - s * y + softplus_tail(e)
        g = sigma - y
    elif KIND == _FOCAL:
        entropy = tl.maximum(s, 0.0) - s * y + softplus_tail(e)
        wrong = sigma * (1.0 - y) + rest * y
        focus = power(wrong, gamma_pos, WHOLE_POS)
        d_focus = tl.where(
            wrong > 0, gamma_pos * focus / tl.where(wrong > 0, wrong, 1.0) * slope, 0.0
        ) * (1.0 - 2.0 * y)
        balance = tl.where(clip >= 0, clip * y + (1.0 - clip) * (1.0 - y), 1.0)
        loss = entropy * focus * balance
        g = ((sigma - y) * focus + entropy * d_focus) * balance
    else:
        z = 2.0 * y - 1.0
        t = z * s
        et = tl.exp(-tl.abs(t))
        loss = tl.maximum(-t, 0.0) + softplus_tail(et)
        g = -z * tl.where(t >= 0, et, 1.0) / (1.0 + et)
    return loss, g


@triton.jit
def load_labels(
    y_ptr,
    offsets_ptr,
    rows,
    cols,
    in_row,
    valid,
    y_row,
    y_col,
    LABELS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Targets of a tile, float32, and the factor that is 0 where the label is unknown.

    Lists: y_ptr holds the category numbers, offsets_ptr (rows + 1) where each row's list begins.
    """
    known = tl.full((BLOCK_R, BLOCK_C), 1.0, tl.float32)
    if LABELS == _DENSE:
        at = rows.to(tl.int64)[:, None] * y_row + cols.to(tl.int64)[None, :] * y_col
        target = tl.load(y_ptr + at, mask=valid, other=0).to(tl.float32)
    elif LABELS == _PARTIAL:
        at = rows.to(tl.int64)[:, None] * y_row + cols.to(tl.int64)[None, :] * y_col
        label = tl.load(y_ptr + at, mask=valid, other=0)
        target = tl.where(label == 1, 1.0, 0.0)
        known = tl.where(label != 0, 1.0, 0.0)
    else:
        first = tl.load(offsets_ptr + rows, mask=in_row, other=0).to(tl.int64)
        last = tl.load(offsets_ptr + rows + 1, mask=in_row, other=0).to(tl.int64)
        target = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        most = tl.max(last - first, axis=0)
        j = tl.zeros((), tl.int64)
        while j < most:
            owned = in_row & (first + j < last)
            category = tl.load(y_ptr + first + j, mask=owned, other=-1).to(tl.int64)
            target = tl.where(category[:, None] == cols.to(tl.int64)[None, :], 1.0, target)
            j += 1
    return target, known


@triton.heuristics({"HAS_WEIGHT": lambda launch: launch["weight_ptr"] is not None})
@triton.jit
def _elementwise_kernel(
    scores_ptr,  # (R, C) float32, row stride given, read and overwritten
    y_ptr,  # (R, C) labels, or (nnz,) category numbers
    offsets_ptr,  # (R + 1,) with lists
    weight_ptr,  # (C,) float32, or None
    sums_ptr,  # (R, n_blocks) float32: loss
    n_rows,
    n_cols,
    n_blocks,
    score_row,
    y_row,
    y_col,
    gamma_pos,
    gamma_neg,
    clip,
    eps,
    KIND: tl.constexpr,
    LABELS: tl.constexpr,
    WHOLE_POS: tl.constexpr,
    WHOLE_NEG: tl.constexpr,
    DETACH: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pid = tl.program_id(0)
    block = pid % n_blocks
    rows = (pid // n_blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    cols = block.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_row = rows < n_rows
    in_col = cols < n_cols
    valid = in_row[:, None] & in_col[None, :]
    at = scores_ptr + rows[:, None] * score_row + cols[None, :]
    s = tl.load(at, mask=valid, other=0.0)
    y, factor = load_labels(
        y_ptr, offsets_ptr, rows, cols, in_row, valid, y_row, y_col, LABELS, BLOCK_R, BLOCK_C
    )
    loss, g = entry_loss(s, y, gamma_pos, gamma_neg, clip, eps, KIND, WHOLE_POS, WHOLE_NEG, DETACH)
    if HAS_WEIGHT:
        factor = factor * tl.load(weight_ptr + cols, mask=in_col, other=0.0)[None, :]
    # A choice, not a product: an infinite score of an unknown entry must not give NaN.
    keep = valid & (factor != 0)
    loss = tl.where(keep, loss * factor, 0.0)
    g = tl.where(keep, g * factor, 0.0)
    tl.store(sums_ptr + rows * n_blocks + block, tl.sum(loss, axis=1), mask=in_row)
    tl.store(at, g, mask=valid)


@triton.jit
def _category_kernel(
    scores_ptr,  # (R, C), row stride given
    y_ptr,  # (R, C) labels, or (nnz,) category numbers
    offsets_ptr,  # (R + 1,) with lists
    out_ptr,  # (n_parts, C) float32
    n_rows,
    n_cols,
    n_blocks,
    part_rows,
    score_row,
    y_row,
    y_col,
    gamma_pos,
    gamma_neg,
    clip,
    eps,
    KIND: tl.constexpr,
    LABELS: tl.constexpr,
    WHOLE_POS: tl.constexpr,
    WHOLE_NEG: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Σ loss of each category over a part of the rows, in their order."""
    pid = tl.program_id(0)
    block = pid % n_blocks
    part = (pid // n_blocks).to(tl.int64)
    cols = block.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_col = cols < n_cols
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, part_rows, BLOCK_R):
        inside = start + tl.arange(0, BLOCK_R)
        rows = part * part_rows + inside
        in_row = (rows < n_rows) & (inside < part_rows)
        valid = in_row[:, None] & in_col[None, :]
        at = scores_ptr + rows[:, None] * score_row + cols[None, :]
        s = tl.load(at, mask=valid, other=0.0).to(tl.float32)
        y, factor = load_labels(
            y_ptr, offsets_ptr, rows, cols, in_row, valid, y_row, y_col, LABELS, BLOCK_R, BLOCK_C
        )
        loss, _g = entry_loss(s, y, gamma_pos, gamma_neg, clip, eps, KIND, WHOLE_POS, WHOLE_NEG, 1)
        total += tl.sum(tl.where(valid & (factor != 0), loss * factor, 0.0), axis=0)
    tl.store(out_ptr + part * n_cols + cols, total, mask=in_col)


def whole(exponent: float) -> int:
    """The exponent when repeated multiplication computes it, else −1."""
    return int(exponent) if exponent in (0, 1, 2, 3, 4) else -1


def label_arguments(
    labels: Tensor | tuple[Tensor, Tensor], rows: int, cols: int
) -> tuple[Tensor, Tensor, int, int, int]:
    """y, offsets, row stride, column stride and the label mode of what a kernel is launched with.

    Raises:
        InputError: labels of another shape, or offsets and indices that are not contiguous.
    """
    if isinstance(labels, Tensor):
        if labels.shape != (rows, cols):
            raise InputError(
                f"labels have shape {tuple(labels.shape)}; the scores are ({rows}, {cols})"
            )
        mode = PARTIAL if labels.dtype in SIGNED else DENSE
        y = labels.view(torch.uint8) if labels.dtype == torch.bool else labels
        return y, y, y.stride(0), y.stride(1), mode
    offsets, indices = labels
    if offsets.shape != (rows + 1,) or indices.ndim != 1:
        raise InputError(
            f"label lists need offsets ({rows + 1},) and indices (nnz,), not "
            f"{tuple(offsets.shape)} and {tuple(indices.shape)}"
        )
    if not (offsets.is_contiguous() and indices.is_contiguous()):
        raise InputError("offsets and indices must be contiguous, call .contiguous() on them")
    return indices, offsets, 0, 0, LISTS


def check_scores(scores: Tensor, weight: Tensor | None) -> tuple[int, int]:
    """Rows and columns of what a kernel overwrites.

    Raises:
        InputError: shapes, dtypes or strides that it does not take.
    """
    if scores.ndim != 2 or scores.dtype != torch.float32:
        raise InputError(
            f"scores must be (R, C) float32, not {scores.dtype} of shape {tuple(scores.shape)}"
        )
    rows, cols = scores.shape
    if cols > 1 and scores.stride(1) != 1:
        raise InputError("scores must have contiguous columns, call .contiguous() on them")
    if weight is not None and (
        weight.dtype != torch.float32 or weight.shape != (cols,) or not weight.is_contiguous()
    ):
        raise InputError(f"weight must be {cols} contiguous float32 values on the device")
    return rows, cols


def elementwise_loss_(
    scores: Tensor,
    labels: Tensor | tuple[Tensor, Tensor],
    kind: str,
    *,
    weight: Tensor | None = None,
    gamma_pos: float = 1.0,
    gamma_neg: float = 4.0,
    clip: float = 0.05,
    eps: float = 1e-8,
    detach_focal_weight: bool = True,
    alpha: float = 0.25,
    gamma: float = 2.0,
    block_cols: int = 1024,
) -> Tensor:
    """Loss of a tile of scores; the tile is overwritten by its gradient. No host synchronisation.

    Args:
        scores: (R, C) float32, columns contiguous. On return ∂Σloss/∂scores. R = 0 or C = 0 launch
            nothing.
        labels: (R, C) bool, uint8, float (soft) or signed integers (−1/0/1, 0 unknown), any
            strides; or (offsets (R + 1,), indices) lists of positives. Offsets need not start at 0,
            so that a slice of them describes a chunk of rows. Indices outside [0, C) match nothing.
        kind: "asl", "bce", "focal" or "siglip".
        weight: (C,) float32 factor of each category, contiguous.
        gamma_pos, gamma_neg, clip, eps, detach_focal_weight: of asl.
        alpha, gamma: of focal; alpha < 0 leaves the balance out.

    Returns:
        The summed loss of each row (R,), float32.

    Raises:
        InputError: shapes, dtypes or strides other than these.
    """
    if kind not in KINDS:
        raise InputError(f"kind={kind!r}: use one of {', '.join(KINDS)}")
    rows, cols = check_scores(scores, weight)
    y, offsets, y_row, y_col, mode = label_arguments(labels, rows, cols)
    block_c = max(16, min(block_cols, triton.next_power_of_2(max(1, cols))))
    block_r = max(1, 1024 // block_c)
    n_blocks = -(-cols // block_c)
    sums = torch.empty(rows, n_blocks, dtype=torch.float32, device=scores.device)
    if rows and cols:
        focal = kind == "focal"
        _elementwise_kernel[(-(-rows // block_r) * n_blocks,)](
            scores,
            y,
            offsets,
            weight,
            sums,
            rows,
            cols,
            n_blocks,
            scores.stride(0),
            y_row,
            y_col,
            gamma if focal else gamma_pos,
            gamma_neg,
            alpha if focal else clip,
            eps,
            KIND=KINDS[kind],
            LABELS=mode,
            WHOLE_POS=whole(gamma if focal else gamma_pos),
            WHOLE_NEG=whole(gamma_neg),
            DETACH=detach_focal_weight,
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            num_warps=4,
        )
    return sums.sum(-1)


def category_sums(
    scores: Tensor,
    labels: Tensor | tuple[Tensor, Tensor],
    kind: str,
    *,
    gamma_pos: float = 1.0,
    gamma_neg: float = 4.0,
    clip: float = 0.05,
    eps: float = 1e-8,
    detach_focal_weight: bool = True,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Σ_b loss of each category (C,), float32: the gradient of its weight. The scores stay.

    Arguments as of :func:`elementwise_loss_`; ``detach_focal_weight`` does not change a loss.
    """
    rows, cols = scores.shape
    y, offsets, y_row, y_col, mode = label_arguments(labels, rows, cols)
    block_c = max(16, min(128, triton.next_power_of_2(max(1, cols))))
    # Parts of the rows keep a GPU busy where there are few categories.
    part_rows = min(256, triton.next_power_of_2(max(1, rows)))
    parts, n_blocks = -(-rows // part_rows), -(-cols // block_c)
    out = torch.zeros(parts, cols, dtype=torch.float32, device=scores.device)
    if rows and cols:
        focal = kind == "focal"
        _category_kernel[(parts * n_blocks,)](
            scores,
            y,
            offsets,
            out,
            rows,
            cols,
            n_blocks,
            part_rows,
            scores.stride(0),
            y_row,
            y_col,
            gamma if focal else gamma_pos,
            gamma_neg,
            alpha if focal else clip,
            eps,
            KIND=KINDS[kind],
            LABELS=mode,
            WHOLE_POS=whole(gamma if focal else gamma_pos),
            WHOLE_NEG=whole(gamma_neg),
            BLOCK_R=8,
            BLOCK_C=block_c,
            num_warps=4,
        )
    return out.sum(0)
