"""Encode the images or prompts of a step in parts: images side by side, all in bounded memory.

Two threads of OpenMP meet at a barrier behind every operation, and a small tower's are over sooner
than the threads have met. So on a CPU each stream (:mod:`pvp_fast.threads`) encodes a part of its
own, forward and for the gradient, and the streams meet twice a step. What would be more than a
quarter of a GiB of activations goes in more parts, each computed again for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pvp_fast.threads.budget import Streams
from pvp_fast.threads.streams import ALONE, side_by_side, team

BUDGET = 1 << 28  # bytes of activations that a step keeps for its gradients
LEAST = 4  # items that are worth a stream
AT_ONCE = 32  # without a gradient

Encode = Callable[..., Tensor]


def activation_bytes(encode: Callable[[Tensor], Tensor], items: Tensor) -> int:
    """Bytes that autograd keeps for the gradient of one of two items, weights aside."""

    def kept(count: int) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            encode(items[:count].detach().requires_grad_()).sum()
        return sum(sizes.values())

    return kept(2) - kept(1)


def in_parts(
    encode: Encode, *items: Tensor, each: int = 0, several: Streams | None = None
) -> Tensor:
    """``encode(*items)``, whose rows do not depend on each other, by as many streams as there are.

    Args:
        encode: may run in several threads at once; gradients go to ``items`` and nowhere else.
        items: (n, …) each, split alike. each: :func:`activation_bytes` of one; of 0 all are kept.
        several: other streams than those of the device; with ``ALONE`` parts only bound memory.
    """
    count, device = len(items[0]), items[0].device.type
    several = team(items[0].device) if several is None else several
    learns = torch.is_grad_enabled() and any(item.requires_grad for item in items)
    if count < LEAST * several.number:
        several = ALONE
    most = BUDGET // each if each and learns else count
    keep = count <= most
    size = -(-count // several.number) if keep else max(1, most // several.number)
    if not learns:
        size = min(size, AT_ONCE)
    if size >= count:
        return encode(*items)
    modes = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def part(*leaves: Tensor) -> Tensor:  # each thread has modes of its own
        with torch.autocast(device, modes[1], enabled=modes[0]), torch.set_grad_enabled(learns):
            return encode(*leaves)

    found: Tensor = _Parts.apply(part, size, several, keep, *items)
    return found


class _Parts(torch.autograd.Function):
    """``encode`` of every part, and its gradient: of the graph, or, not to ``keep``, of another."""

    @staticmethod
    def forward(
        ctx: Any, encode: Encode, size: int, several: Streams, keep: bool, *items: Tensor
    ) -> Tensor:
        wanted = [item.requires_grad for item in items]

        def begin(part: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
            leaves = [x.detach().requires_grad_(w) for x, w in zip(part, wanted, strict=True)]
            return leaves, encode(*leaves)

        def forward(part: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
            leaves, out = begin(part)
            return leaves, out if keep else out.detach()

        def backward(
            work: tuple[tuple[list[Tensor], Tensor], Tensor],
        ) -> Sequence[Tensor]:
            (leaves, out), gradient = work
            if not keep:
                leaves, out = begin(leaves)
            return torch.autograd.grad(out, [x for x in leaves if x.requires_grad], gradient)

        done = side_by_side(forward, zip(*(x.split(size) for x in items), strict=True), several)
        ctx.done, ctx.size, ctx.backward, ctx.several = done, size, backward, several
        return torch.cat([out.detach() for _, out in done])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        done, ctx.done = ctx.done, None  # a graph serves once
        work = zip(done, gradient.split(ctx.size), strict=True)
        found = iter(zip(*side_by_side(ctx.backward, work, ctx.several), strict=True))
        wanted = ctx.needs_input_grad[4:]
        return (None,) * 4 + tuple(torch.cat(next(found)) if w else None for w in wanted)
