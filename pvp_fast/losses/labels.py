"""Labels in every form a loss takes: dense, soft, partial (−1/0/1), and CSR index lists."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pvp_fast.errors import InputError


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


def unique_pairs(y: CSRLabels) -> tuple[Tensor, Tensor]:
    """Row and category of every label, ascending, each pair once."""
    rows = torch.repeat_interleave(torch.arange(len(y), device=y.indices.device), y.offsets.diff())
    pairs = torch.stack([rows, y.indices.long()], 1).unique(dim=0)
    return pairs[:, 0], pairs[:, 1]


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
