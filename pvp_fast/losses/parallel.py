"""Class-parallel losses: vocabularies that outgrow one device, their categories in shards.

Every rank holds the same queries x (B, D) and its own shard w (C_r, D) of the class vectors. What
the ranks exchange never grows with C: a scalar for the losses that are a sum over entries, the
scores of the positives for the ranking hinge, one log-sum-exp per row for InfoNCE, and in the
backward pass the gradient of x. The result on every rank is the single-process loss; w's gradient
stays where its shard is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pvp_fast.errors import InputError
from pvp_fast.losses.asl import asl_loss
from pvp_fast.losses.bce import bce_loss
from pvp_fast.losses.focal import focal_loss
from pvp_fast.losses.problem import CSRLabels, Labels, as_float, reduce
from pvp_fast.losses.ranking import ranking_loss_from_scores
from pvp_fast.losses.siglip import siglip_loss

# Scores of one chunk of rows, in elements: what stays in a cache between two matrix products.
CHUNK = 1 << 22

Group = dist.ProcessGroup | None


def _unique_pairs(y: CSRLabels) -> tuple[Tensor, Tensor]:
    """Row and category of every label, ascending, each pair once."""
    rows = torch.repeat_interleave(torch.arange(len(y), device=y.indices.device), y.offsets.diff())
    pairs = torch.stack([rows, y.indices.long()], 1).unique(dim=0)
    return pairs[:, 0], pairs[:, 1]


def _sum(value: Tensor, group: Group) -> Tensor:
    value = value.contiguous().clone()
    dist.all_reduce(value, group=group)
    return value


class _Shared(torch.autograd.Function):
    """A value every rank holds: the identity, whose gradient is the sum of the ranks' parts."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum(grad, ctx.group), None


class _Total(torch.autograd.Function):
    """The sum over ranks of a part of a result that every rank then holds."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Group) -> Tensor:
        return _sum(value, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Exchange(torch.autograd.Function):
    """The sum over ranks of values each rank goes on to use in its own way."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _sum(value, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum(grad, ctx.group), None


def _prepare(x: Tensor, w: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """x and w in at least float32, as unit rows if asked for."""
    x = as_float(x)
    w = w.to(x.dtype)
    return (F.normalize(x, dim=-1), F.normalize(w, dim=-1)) if normalize else (x, w)


def _again(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """function(*tensors), whose inner values are computed again when the gradient needs them."""
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)


class ClassShards:
    """How the categories lie on the ranks of a process group, and the losses over all of them.

    Categories are numbered through the ranks in their order: rank r owns
    ``first .. first + n_local``. Built once (it asks every rank for its number); every loss is a
    collective call, made by all ranks with the same x, scale, bias and settings.

    The losses take the arguments of their namesakes in :mod:`pvp_fast.losses`, except that w
    (n_local, D) and ``weight`` (n_local,) are this rank's shard, and that labels are either
    :class:`CSRLabels` with the numbers of the whole vocabulary, the same on every rank, or this
    rank's columns (B, n_local) of dense labels. They return the loss over all categories; its
    gradient reaches x, scale and bias in full on every rank, and w and weight shard by shard.

    Args:
        n_local: categories of this rank; 0 is allowed.
        group: the process group; None is the default one.

    Raises:
        InputError: torch.distributed is not initialised, or the shards hold no category.
    """

    def __init__(self, n_local: int, group: Group = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise InputError("ClassShards needs torch.distributed.init_process_group(...) first")
        self.group, self.n_local = group, n_local
        sizes: list[int] = [0] * dist.get_world_size(group)
        dist.all_gather_object(sizes, n_local, group=group)
        if min(sizes) < 0 or sum(sizes) == 0:
            raise InputError(f"n_local of the ranks is {sizes}: the shards must hold categories")
        self.first = sum(sizes[: dist.get_rank(group)])
        self.n_categories = sum(sizes)

    def asl_loss(self, x: Tensor, w: Tensor, y: Labels, **settings: Any) -> Tensor:
        """:func:`pvp_fast.losses.asl_loss` over the shards of all ranks."""
        return self._entries(asl_loss, x, w, y, "mean", settings)

    def bce_loss(self, x: Tensor, w: Tensor, y: Labels, **settings: Any) -> Tensor:
        """:func:`pvp_fast.losses.bce_loss` over the shards of all ranks."""
        return self._entries(bce_loss, x, w, y, "mean", settings)

    def focal_loss(self, x: Tensor, w: Tensor, y: Labels, **settings: Any) -> Tensor:
        """:func:`pvp_fast.losses.focal_loss` over the shards of all ranks."""
        return self._entries(focal_loss, x, w, y, "mean", settings)

    def siglip_loss(self, x: Tensor, w: Tensor, y: Labels, **settings: Any) -> Tensor:
        """:func:`pvp_fast.losses.siglip_loss` over the shards of all ranks."""
        return self._entries(siglip_loss, x, w, y, "batchmean", settings)

    def _entries(
        self,
        loss: Callable[..., Tensor],
        x: Tensor,
        w: Tensor,
        y: Labels,
        reduction: str,
        settings: dict[str, Any],
    ) -> Tensor:
        """Losses that are a sum over entries: each rank's sum, added up."""
        self._check(x, w, y)
        reduction = settings.pop("reduction", reduction)
        for name in ("scale", "bias"):
            if isinstance(settings.get(name), Tensor):
                settings[name] = self._shared(settings[name])
        part = loss(self._shared(x), w, self._local(y), reduction="sum", **settings)
        return reduce(self._total(part), torch.Size((len(x), self.n_categories)), reduction)

    def ranking_loss(
        self,
        x: Tensor,
        w: Tensor,
        y: CSRLabels,
        *,
        scale: float | Tensor = 1.0,
        normalize: bool = True,
        weight: Tensor | None = None,
        margin: float = 1.0,
        reduction: str = "mean",
    ) -> Tensor:
        """:func:`pvp_fast.losses.ranking_loss` over the shards of all ranks.

        The scores of the positives, nnz numbers, are computed where their categories live and
        summed over the ranks; each rank then holds every positive against its own negatives, a
        chunk of rows at a time whose scores are computed again in the backward pass.

        Raises:
            InputError: dense labels: a rank must know the positives of the other shards.
        """
        self._check(x, w, y)
        if not isinstance(y, CSRLabels):
            raise InputError("y: the class-parallel ranking loss needs CSRLabels of all categories")
        if reduction not in ("mean", "batchmean", "sum"):
            raise InputError(f"reduction={reduction!r}: use 'sum', 'mean' or 'batchmean'")
        rows, columns = _unique_pairs(y)
        x = self._shared(x)
        scale = self._shared(scale) if isinstance(scale, Tensor) else scale
        x, w = _prepare(x, w, normalize)
        mine = (columns >= self.first) & (columns < self.first + self.n_local)
        local = columns[mine] - self.first
        found = scale * (x[rows[mine]] * w[local]).sum(1)
        positives = self._exchange(found.new_zeros(len(rows)).masked_scatter(mine, found))

        # The j-th positive of each row is column j of a narrow table beside the shard's scores.
        counts = torch.bincount(rows, minlength=len(x))
        starts = counts.cumsum(0) - counts
        place = torch.arange(len(rows), device=rows.device) - starts[rows]
        most = int(counts.max()) if len(rows) else 0
        table = positives.new_zeros(len(x), most).index_put((rows, place), positives)
        exists = torch.arange(most, device=rows.device) < counts[:, None]
        share = None if weight is None else torch.cat([weight, weight.new_zeros(most)])

        def chunk(x: Tensor, w: Tensor, table: Tensor, exists: Tensor, labels: Tensor) -> Tensor:
            scores = torch.cat([scale * (x @ w.T), table], 1)
            labels = torch.cat([labels, exists.to(torch.int8)], 1)
            return ranking_loss_from_scores(
                scores, labels, margin=margin, weight=share, reduction="sum"
            )

        total = (x.sum() + w.sum()) * 0
        step = max(1, CHUNK // max(1, self.n_local + most))
        for start in range(0, len(x), step):
            stop = min(start + step, len(x))
            inside = mine & (rows >= start) & (rows < stop)
            # Partial labels: −1 a negative, 0 (a positive of this shard) counted in the table.
            labels = torch.full((stop - start, self.n_local), -1, dtype=torch.int8, device=x.device)
            labels[rows[inside] - start, columns[inside] - self.first] = 0
            total = total + _again(
                chunk, x[start:stop], w, table[start:stop], exists[start:stop], labels
            )
        total = self._total(total)
        return total if reduction == "sum" else total / max(1, len(x))

    def clip_loss(
        self, x: Tensor, w: Tensor, *, scale: float | Tensor = 1.0, normalize: bool = True
    ) -> Tensor:
        """:func:`pvp_fast.losses.clip_loss` of N pairs (x_i, w_i), w in shards.

        A column's log-sum-exp is this rank's own; a row's is put together from one number per rank.

        Raises:
            InputError: x holds another number of rows than the shards.
        """
        self._check(x, w, None)
        if len(x) != self.n_categories:
            raise InputError(f"x has {len(x)} rows and the shards {self.n_categories}: give pairs")
        x = self._shared(x)
        scale = self._shared(scale) if isinstance(scale, Tensor) else scale
        x, w = _prepare(x, w, normalize)
        own = scale * (x[self.first : self.first + self.n_local] * w).sum(1)
        part = -2 * own.sum() + (x.sum() + w.sum()) * 0

        def chunk(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
            scores = scale * (x @ w.T)
            return scores.logsumexp(1), scores.logsumexp(0)

        step = max(1, CHUNK // max(1, self.n_local))
        chunks = [_again(chunk, x[i : i + step], w) for i in range(0, len(x), step)]
        rows = torch.cat([row for row, _ in chunks])
        part = part + torch.stack([column for _, column in chunks]).logsumexp(0).sum()
        highest = rows.detach().clone()
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group)
        whole = (self._total((rows - highest).exp()).log() + highest).sum()
        return (self._total(part) + whole) / (2 * max(1, len(x)))

    def _local(self, y: Labels) -> Labels:
        """Labels of this rank's columns."""
        if not isinstance(y, CSRLabels):
            return y
        inside = (y.indices >= self.first) & (y.indices < self.first + self.n_local)
        before = F.pad(inside.cumsum(0), (1, 0))
        return CSRLabels(before[y.offsets], y.indices[inside] - self.first)

    def _check(self, x: Tensor, w: Tensor, y: Labels | None) -> None:
        if w.ndim != 2 or len(w) != self.n_local:
            raise InputError(f"w is {tuple(w.shape)}; this rank's shard is ({self.n_local}, D)")
        if x.ndim != 2 or x.shape[1] != w.shape[1]:
            raise InputError(f"x is {tuple(x.shape)}; with w {tuple(w.shape)} it must be (B, D)")
        if isinstance(y, CSRLabels) and y.indices.numel():
            low, high = int(y.indices.min()), int(y.indices.max())
            if low < 0 or high >= self.n_categories:
                raise InputError(
                    f"y.indices run from {low} to {high}; the shards hold {self.n_categories} "
                    "categories, numbered from 0"
                )

    def _shared(self, value: Tensor) -> Tensor:
        return _Shared.apply(value, self.group)

    def _total(self, value: Tensor) -> Tensor:
        return _Total.apply(value, self.group)

    def _exchange(self, value: Tensor) -> Tensor:
        return _Exchange.apply(value, self.group)
