"""Top-k over class vectors that are split between processes or devices.

Every shard keeps consecutive categories in a :class:`~pvp_fast.topk.TagIndex` and answers with its
own k best; the merge orders those at most k * shards candidates. A category among the k best of
all is among the k best of its shard, so the result is that of one index, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pvp_fast.errors import InputError, PvpFastError
from pvp_fast.topk.arrays import Array
from pvp_fast.topk.index import TagIndex
from pvp_fast.topk.ops import TopK

T = TypeVar("T")


def merge(parts: Sequence[TopK], offsets: Sequence[int], k: int) -> TopK:
    """The k best of the shards' answers.

    Args:
        parts: one answer a shard, on one device, (B, k') each, in ascending order of categories.
        offsets: the global index of each shard's first category.
        k: columns of the result; columns beyond the candidates are absent.

    Equal scores go to the lower global index: the shards ascend and each is ordered by that rule
    already, so two stable sorts suffice (by score, then the absent entries to the back).
    """
    scores = torch.cat([part.scores for part in parts], dim=1)
    shifted = [
        torch.where(part.indices >= 0, part.indices + offset, part.indices)
        for part, offset in zip(parts, offsets, strict=True)
    ]
    indices = torch.cat(shifted, dim=1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    indices = indices.gather(1, order)
    _, order = (indices < 0).to(torch.uint8).sort(dim=1, stable=True)
    scores, indices = scores.gather(1, order)[:, :k], indices.gather(1, order)[:, :k]
    missing = k - scores.shape[1]
    if missing > 0:
        scores = torch.nn.functional.pad(scores, (0, missing), value=-math.inf)
        indices = torch.nn.functional.pad(indices, (0, missing), value=-1)
    return TopK(scores.contiguous(), indices.contiguous(), (indices >= 0).sum(dim=1))


class SplitTagIndex:
    """Several indexes of one process, for example one a device, searched as one.

    Args:
        shards: consecutive categories, in order, of one width.
    """

    def __init__(self, shards: Sequence[TagIndex]) -> None:
        if not shards:
            raise InputError("shards is empty; give at least one TagIndex")
        widths = [shard.width for shard in shards]
        if len(set(widths)) > 1:
            raise InputError(f"the shards have widths {widths}; they must be equal")
        self.shards = tuple(shards)
        self.width = widths[0]
        self.offsets = tuple(accumulate((len(shard) for shard in shards), initial=0))
        self.categories = self.offsets[-1]

    def __len__(self) -> int:
        return self.categories

    def topk(
        self,
        x: Tensor,
        k: int,
        threshold: float | Tensor | None = None,
        bias: Tensor | None = None,
        scale: float = 1.0,
        *,
        per_category_threshold: Tensor | None = None,
        backend: str = "auto",
    ) -> TopK:
        """As :meth:`TagIndex.topk`; x (B, D), and every vector (C,) over all categories.

        The queries are copied to each shard's device; the answer is on the device of x.
        """
        for name, values in (
            ("threshold", threshold),
            ("per_category_threshold", per_category_threshold),
            ("bias", bias),
        ):
            if isinstance(values, Tensor) and tuple(values.shape) != (self.categories,):
                raise InputError(
                    f"{name} has shape {tuple(values.shape)}; give one number per category, "
                    f"shape ({self.categories},)"
                )
        parts = []
        for shard, start in zip(self.shards, self.offsets, strict=False):

            def mine(values: Any, shard: TagIndex = shard, start: int = start) -> Any:
                if not isinstance(values, Tensor):
                    return values
                return values[start : start + len(shard)].to(shard.device)

            part = shard.topk(
                x.to(shard.device),
                k,
                mine(threshold),
                mine(bias),
                scale,
                per_category_threshold=mine(per_category_threshold),
                backend=backend,
            )
            parts.append(TopK(*(value.to(x.device) for value in part)))
        return merge(parts, self.offsets[:-1], k)


class ShardedTagIndex:
    """One index over the processes of a torch.distributed group; rank r holds the r-th shard.

    Every rank must construct it and call :meth:`topk` together: both are collective.

    Args:
        w_shard: (C_r, D) class vectors of this rank, C_r >= 1 and free to differ between ranks;
            or a ready :class:`TagIndex`.
        group: the process group; None is the default one.
        options: keyword arguments of :class:`TagIndex`.

    Raises:
        InputError: no process group, or a shard cannot be used; on every rank alike.
    """

    def __init__(
        self, w_shard: Array | TagIndex, group: dist.ProcessGroup | None = None, **options: Any
    ) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise InputError(
                "there is no process group; call torch.distributed.init_process_group first, or "
                "use TagIndex in a single process"
            )
        self.group = group
        self._wire = torch.device("cpu")
        if "nccl" in str(dist.get_backend(group)):
            self._wire = torch.device("cuda", torch.cuda.current_device())
        self.index: TagIndex = self._together(
            lambda: w_shard if isinstance(w_shard, TagIndex) else TagIndex(w_shard, **options)
        )
        shapes = self._gather(
            torch.tensor([len(self.index), self.index.width], device="cpu")
        ).tolist()
        widths = [width for _, width in shapes]
        if len(set(widths)) > 1:
            raise InputError(f"the shards of the ranks have widths {widths}; they must be equal")
        self.width = self.index.width
        self.sizes = tuple(size for size, _ in shapes)
        self.offsets = tuple(accumulate(self.sizes[:-1], initial=0))
        self.categories = sum(self.sizes)
        self.offset = self.offsets[dist.get_rank(group)]

    def __len__(self) -> int:
        return self.categories

    def topk(
        self,
        x: Array,
        k: int,
        threshold: float | Array | None = None,
        bias: Array | None = None,
        scale: float = 1.0,
        *,
        per_category_threshold: Array | None = None,
        backend: str = "auto",
    ) -> TopK:
        """The k best of all ranks' categories, by global index, the same on every rank.

        Args:
            x: (B, D) float32, the same queries on every rank.
            threshold, bias, scale, per_category_threshold, backend: as :meth:`TagIndex.topk`;
                vectors are (C_r,), this rank's part.

        Raises:
            InputError: some rank's arguments or scores cannot be used (NaN), or B or k differ
                between ranks; on every rank alike, with the message of the lowest such rank.
        """
        # More than the largest shard's size adds nothing to any rank's answer.
        most = min(k, max(self.sizes)) if isinstance(k, int) and k > 0 else k
        part = self._together(
            lambda: self.index.topk(
                x,
                most,
                threshold,
                bias,
                scale,
                per_category_threshold=per_category_threshold,
                backend=backend,
            )
        )
        calls = self._gather(torch.tensor([part.scores.shape[0], int(k)], device="cpu")).tolist()
        if any(call != calls[0] for call in calls):
            raise InputError(f"the ranks called topk with different (B, k): {calls}")
        scores, indices = self._gather(part.scores), self._gather(part.indices)
        device = part.scores.device
        parts = [
            TopK(s.to(device), i.to(device), part.counts)
            for s, i in zip(scores, indices, strict=True)
        ]
        return merge(parts, self.offsets, k)

    def _gather(self, value: Tensor) -> Tensor:
        """(ranks, *shape): every rank's value; the shapes must agree."""
        value = value.to(self._wire).contiguous()
        parts = [torch.empty_like(value) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, value, group=self.group)
        return torch.stack(parts)

    def _together(self, work: Callable[[], T]) -> T:
        """Run work; if it fails on any rank, raise the lowest rank's error on every one.

        Whatever it fails with: a rank that left alone would keep the others waiting for it.
        """
        text, result = b"", None
        cause: Exception | None = None
        try:
            result = work()
        except PvpFastError as error:
            text, cause = str(error).encode(), error
        except Exception as error:
            text, cause = f"{type(error).__name__}: {error}".encode(), error
        lengths = self._gather(torch.tensor([len(text)], device="cpu")).flatten().tolist()
        if any(lengths):
            padded = torch.zeros(max(lengths), dtype=torch.uint8, device="cpu")
            padded[: len(text)] = torch.tensor(list(text), dtype=torch.uint8, device="cpu")
            texts = self._gather(padded).cpu()
            rank = next(i for i, length in enumerate(lengths) if length)
            message = bytes(texts[rank, : lengths[rank]].tolist()).decode()
            raise InputError(f"rank {rank}: {message}") from cause
        return result  # type: ignore[return-value]
