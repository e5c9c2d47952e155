# mypy: disable-error-code="no-untyped-def"
"""Scores to gradients, in place, for the pairwise ranking hinge.

    loss_b = Σ_{p ∈ P_b} Σ_{n ∉ P_b} weight_n · max(0, margin − s_bp + s_bn)

A program owns a row, so nothing is added across programs. First, 8 or 16 positives at a time stay
in registers while the negatives stream past: the loss, and each positive's gradient. Then the
negatives stream past once more and take theirs. O(P·C) work, two reads and one write of the row;
(C, C) pairs are never in memory. A bias cancels in the difference and has no gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .entrywise import LISTS, check_scores, label_arguments

# Fewest categories at a time; 16 would spill on sm_80.
_LEAST_C = 32
# Positives in registers at a time; lists are searched too, and would spill on sm_90.
_BLOCK_P = {0: 16, 1: 16, LISTS: 8}

_DENSE = tl.constexpr(0)
_PARTIAL = tl.constexpr(1)
_LISTS = tl.constexpr(2)


def _block_c(n_cols: int) -> int:
    return max(_LEAST_C, min(128, triton.next_power_of_2(n_cols)))


@triton.jit
def _positives_kernel(
    y_ptr,  # (R, C) labels
    indices_ptr,  # (R, C) int32: row b's positives first
    counts_ptr,  # (R,) int64
    n_cols,
    y_row,
    y_col,
    BLOCK_C: tl.constexpr,
):
    """Lists from dense labels, in ascending order, without a host synchronisation."""
    row = tl.program_id(0).to(tl.int64)
    found = tl.zeros((), tl.int64)
    for start in range(0, n_cols, BLOCK_C):
        cols = start + tl.arange(0, BLOCK_C).to(tl.int64)
        valid = cols < n_cols
        label = tl.load(y_ptr + row * y_row + cols * y_col, mask=valid, other=0).to(tl.float32)
        positive = valid & (label > 0.5)
        one = positive.to(tl.int32)
        place = found + tl.cumsum(one, 0) - 1
        tl.store(indices_ptr + row * n_cols + place, cols.to(tl.int32), mask=positive)
        found += tl.sum(one, 0)
    tl.store(counts_ptr + row, found)


@triton.jit
def _share(
    y_ptr,
    indices_ptr,
    weight_ptr,
    row,
    cols,
    valid,
    first,
    last,
    y_row,
    y_col,
    LABELS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The weight of each column as a negative (0 for positive or unknown), and the positives."""
    if LABELS == _LISTS:
        hits = tl.zeros((BLOCK_C,), tl.int32)
        j = first
        while j < last:
            at = j + tl.arange(0, BLOCK_P)
            listed = tl.load(indices_ptr + at, mask=at < last, other=-1).to(tl.int64)
            hits += tl.sum((listed[:, None] == cols[None, :]).to(tl.int32), axis=0)
            j += BLOCK_P
        positive = valid & (hits > 0)
        negative = valid & (hits == 0)
    else:
        label = tl.load(y_ptr + row * y_row + cols * y_col, mask=valid, other=0).to(tl.float32)
        positive = valid & (label > 0.5)
        negative = valid & (label <= 0.5)
        if LABELS == _PARTIAL:
            negative = valid & (label < 0)
    share = tl.where(negative, 1.0, 0.0)
    if HAS_WEIGHT:
        share = share * tl.load(weight_ptr + cols, mask=valid, other=0.0)
    return share, positive


@triton.heuristics({"HAS_WEIGHT": lambda launch: launch["weight_ptr"] is not None})
@triton.jit
def _ranking_kernel(
    scores_ptr,  # (R, C) float32, row stride given, read and overwritten
    y_ptr,  # (R, C) labels where dense
    indices_ptr,  # lists of positives
    first_ptr,  # (R,) int64: where a row's list begins
    last_ptr,  # (R,) int64: and ends
    pos_grad_ptr,  # as long as indices, float32 scratch
    weight_ptr,  # (C,) float32, or None
    loss_ptr,  # (R,) float32
    n_cols,
    score_row,
    y_row,
    y_col,
    margin,
    LABELS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scores = scores_ptr + row * score_row
    first = tl.load(first_ptr + row).to(tl.int64)
    last = tl.load(last_ptr + row).to(tl.int64)
    loss = tl.zeros((BLOCK_P,), tl.float32)
    j = first
    while j < last:
        at = j + tl.arange(0, BLOCK_P)
        category = tl.load(indices_ptr + at, mask=at < last, other=n_cols).to(tl.int64)
        owned = category < n_cols
        s_pos = tl.load(scores + category, mask=owned, other=0.0)
        count = tl.zeros((BLOCK_P,), tl.float32)
        for start in range(0, n_cols, BLOCK_C):
            cols = start + tl.arange(0, BLOCK_C).to(tl.int64)
            valid = cols < n_cols
            s = tl.load(scores + cols, mask=valid, other=0.0)
            share, positive = _share(
                y_ptr, indices_ptr, weight_ptr, row, cols, valid, first, last, y_row, y_col,
                LABELS, HAS_WEIGHT, BLOCK_P, BLOCK_C,
            )  # fmt: skip
            hinge = margin + (s[None, :] - s_pos[:, None])
            active = owned[:, None] & (hinge > 0) & (share != 0)[None, :]
            # Choices, not products: a score of −∞, a category ruled out, must not give NaN.
            part = tl.where(active, share[None, :], 0.0)
            loss += tl.sum(part * tl.where(active, hinge, 0.0), axis=1)
            count += tl.sum(part, axis=1)
        tl.store(pos_grad_ptr + at, -count, mask=owned)
        j += BLOCK_P
    tl.store(loss_ptr + row, tl.sum(loss, 0))
    # A warp that is ahead must not overwrite scores that another has yet to read.
    tl.debug_barrier()
    for start in range(0, n_cols, BLOCK_C):
        cols = start + tl.arange(0, BLOCK_C).to(tl.int64)
        valid = cols < n_cols
        s = tl.load(scores + cols, mask=valid, other=0.0)
        share, positive = _share(
            y_ptr, indices_ptr, weight_ptr, row, cols, valid, first, last, y_row, y_col,
            LABELS, HAS_WEIGHT, BLOCK_P, BLOCK_C,
        )  # fmt: skip
        active = tl.zeros((BLOCK_C,), tl.float32)
        j = first
        while j < last:
            at = j + tl.arange(0, BLOCK_P)
            category = tl.load(indices_ptr + at, mask=at < last, other=n_cols).to(tl.int64)
            owned = category < n_cols
            s_pos = tl.load(scores + category, mask=owned, other=0.0)
            hinge = margin + (s[None, :] - s_pos[:, None])
            active += tl.sum((owned[:, None] & (hinge > 0)).to(tl.float32), axis=0)
            j += BLOCK_P
        # The positives keep their scores until every negative has seen them.
        tl.store(scores + cols, active * share, mask=valid & (positive == 0))
    tl.debug_barrier()
    j = first
    while j < last:
        at = j + tl.arange(0, BLOCK_P)
        category = tl.load(indices_ptr + at, mask=at < last, other=n_cols).to(tl.int64)
        owned = category < n_cols
        g = tl.load(pos_grad_ptr + at, mask=owned, other=0.0)
        tl.store(scores + category, g, mask=owned)
        j += BLOCK_P


@triton.jit
def _ranking_category_kernel(
    scores_ptr,  # (R, C), row stride given
    y_ptr,  # (R, C) labels where dense
    indices_ptr,  # lists of positives
    first_ptr,  # (R,) int64: where a row's list begins
    last_ptr,  # (R,) int64: and ends
    out_ptr,  # (n_parts, C) float32
    n_rows,
    n_cols,
    n_blocks,
    part_rows,
    score_row,
    y_row,
    y_col,
    margin,
    LABELS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Σ hinge of each category as a negative over a part of the rows, in their order."""
    pid = tl.program_id(0)
    block = pid % n_blocks
    part = (pid // n_blocks).to(tl.int64)
    cols = block.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = cols < n_cols
    total = tl.zeros((BLOCK_C,), tl.float32)
    row = part * part_rows
    stop = tl.minimum(row + part_rows, n_rows)
    while row < stop:
        scores = scores_ptr + row * score_row
        first = tl.load(first_ptr + row).to(tl.int64)
        last = tl.load(last_ptr + row).to(tl.int64)
        s = tl.load(scores + cols, mask=valid, other=0.0)
        share, _positive = _share(
            y_ptr, indices_ptr, out_ptr, row, cols, valid, first, last, y_row, y_col,
            LABELS, False, BLOCK_P, BLOCK_C,
        )  # fmt: skip
        found = tl.zeros((BLOCK_C,), tl.float32)
        j = first
        while j < last:
            at = j + tl.arange(0, BLOCK_P)
            category = tl.load(indices_ptr + at, mask=at < last, other=n_cols).to(tl.int64)
            owned = category < n_cols
            s_pos = tl.load(scores + category, mask=owned, other=0.0)
            hinge = margin + (s[None, :] - s_pos[:, None])
            found += tl.sum(tl.where(owned[:, None] & (hinge > 0), hinge, 0.0), axis=0)
            j += BLOCK_P
        total += tl.where(share > 0, found, 0.0)
        row += 1
    tl.store(out_ptr + part * n_cols + cols, total, mask=valid)


def _lists(
    labels: Tensor | tuple[Tensor, Tensor], rows: int, cols: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]:
    """y, the lists of positives, where each begins and ends, y's strides and its label mode."""
    y, offsets, y_row, y_col, mode = label_arguments(labels, rows, cols)
    if mode == LISTS:
        return y, y, offsets[:-1], offsets[1:], y_row, y_col, mode
    indices = torch.empty(rows, cols, dtype=torch.int32, device=y.device)
    counts = torch.empty(rows, dtype=torch.int64, device=y.device)
    block = min(1024, triton.next_power_of_2(cols))
    _positives_kernel[(rows,)](y, indices, counts, cols, y_row, y_col, BLOCK_C=block)
    first = torch.arange(rows, device=y.device) * cols
    return y, indices, first, first + counts, y_row, y_col, mode


def ranking_category_sums(
    scores: Tensor, labels: Tensor | tuple[Tensor, Tensor], *, margin: float = 1.0
) -> Tensor:
    """Σ hinge of each category as a negative (C,), float32: the gradient of its weight.

    Arguments as of :func:`ranking_loss_`; the scores stay.
    """
    rows, cols = scores.shape
    part_rows = 256
    parts = -(-rows // part_rows)
    out = torch.zeros(parts, cols, dtype=torch.float32, device=scores.device)
    if rows and cols:
        y, indices, first, last, y_row, y_col, mode = _lists(labels, rows, cols)
        block_c = _block_c(cols)
        n_blocks = -(-cols // block_c)
        _ranking_category_kernel[(parts * n_blocks,)](
            scores,
            y,
            indices,
            first,
            last,
            out,
            rows,
            cols,
            n_blocks,
            part_rows,
            scores.stride(0),
            y_row,
            y_col,
            margin,
            LABELS=mode,
            BLOCK_P=16,
            BLOCK_C=block_c,
            num_warps=4,
        )
    return out.sum(0)


def ranking_loss_(
    scores: Tensor,
    labels: Tensor | tuple[Tensor, Tensor],
    *,
    margin: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Ranking hinge of a tile of scores, overwritten by its gradient. No host synchronisation.

    Args:
        scores: (R, C) float32, columns contiguous. On return ∂Σloss/∂scores. R = 0 or C = 0 launch
            nothing.
        labels: as :func:`pvp_fast.kernels.entrywise.elementwise_loss_`; above 0.5 is a positive.
            Lists name each category at most once a row; numbers from C on are passed over.
        weight: (C,) float32 factor of each negative.

    Returns:
        The summed loss of each row (R,), float32.

    Raises:
        InputError: shapes, dtypes or strides other than these.
    """
    rows, cols = check_scores(scores, weight)
    loss = torch.zeros(rows, dtype=torch.float32, device=scores.device)
    if rows and cols:
        y, indices, first, last, y_row, y_col, mode = _lists(labels, rows, cols)
        _ranking_kernel[(rows,)](
            scores,
            y,
            indices,
            first,
            last,
            torch.empty(indices.numel(), dtype=torch.float32, device=scores.device),
            weight,
            loss,
            cols,
            scores.stride(0),
            y_row,
            y_col,
            margin,
            LABELS=mode,
            BLOCK_P=_BLOCK_P[mode],
            BLOCK_C=_block_c(cols),
            num_warps=4,
        )
    return loss
