"""One training run on several processes: what they share out and what they add up.

Every process of an initialised ``torch.distributed`` group runs the same loop with the same random
numbers on the same parameters. A step's two costs are shared out: the categories to encode, which
:meth:`Ranks.encode` collects again as class vectors, and the rows of the batch, whose loss each
process computes against all categories. Then the gradients are added up, so a step equals that of
one process on the whole batch, up to the order of sums.

The gradients are a handful of tensors reached through a stage, not through one module's
``forward``, and parts of unequal size are added rather than averaged; so one explicit all-reduce
takes the place of DistributedDataParallel. The gathered class vectors are far smaller than the
images and words they come from, and serve any loss, so the loss is split by rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pvp_fast.errors import InputError
from pvp_fast.losses.parallel import _Exchange

# One process may encode a whole corpus while the others wait; torchrun ends those whose peer dies.
PATIENCE = timedelta(hours=12)


class Ranks:
    """The processes that share a run: those of the default group, or this one alone."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1

    @property
    def first(self) -> bool:
        """Whether this process writes: logs, checkpoints, the artifact, progress."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of ``count`` things; the parts differ by one at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def encode(self, encode: Callable[[Tensor], Tensor], index: Tensor) -> Tensor:
        """``encode(index)`` (n, …) on every process, each having encoded its part of ``index``.

        Its gradient reaches what a process encoded itself, summed over all processes' losses.

        Raises:
            InputError: fewer categories than processes.
        """
        if self.size == 1:
            return encode(index)
        if len(index) < self.size:
            raise InputError(
                f"{self.size} processes for {len(index)} categories at a time: start at most "
                f"{len(index)}, or raise categories_per_step"
            )
        own = self.share(len(index))
        part = encode(index[own])
        before = part.new_zeros(own.start, *part.shape[1:])
        behind = part.new_zeros(len(index) - own.stop, *part.shape[1:])
        whole: Tensor = _Exchange.apply(torch.cat([before, part, behind]), None)
        return whole

    @torch.no_grad()
    def collect(self, part: Tensor, own: slice, size: int) -> Tensor:
        """All ``size`` rows on every process, of which this one has the rows ``own``."""
        if self.size == 1:
            return part
        whole = part.new_zeros(size, *part.shape[1:])
        whole[own] = part
        dist.all_reduce(whole)
        return whole

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum every gradient over the processes, in place."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:  # all must take part in the same sums
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = parameter.grad.contiguous()
            dist.all_reduce(parameter.grad)

    @torch.no_grad()
    def add(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over the processes."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    @torch.no_grad()
    def same(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                whole = tensor.contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run the block in the first process, and only when it is done in the others."""
        if self.size > 1 and not self.first:
            dist.barrier()
        yield
        if self.size > 1 and self.first:
            dist.barrier()


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Join the group that torchrun describes in the environment; gives this process's device.

    ``device`` "auto" or "cuda" becomes the GPU numbered ``LOCAL_RANK``, with NCCL; "cpu", or "auto"
    without a GPU, means gloo. Without torchrun, or in a group that exists, nothing is changed.

    Raises:
        InputError: more processes than GPUs, or one GPU named for all processes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ or dist.is_initialized():
        yield device
        return
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        local, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= found:
            raise InputError(
                f"device 'cuda': process {local} of this machine has no GPU of its own, there are "
                f"{found}; use torchrun --nproc-per-node {max(1, found)}, or device 'cpu'"
            )
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    elif device != "cpu":
        raise InputError(
            f"device {device!r} with {world} processes: give auto, cuda or cpu; each process takes "
            "the GPU of its number"
        )
    dist.init_process_group("gloo" if device == "cpu" else "nccl", timeout=PATIENCE)
    yield device
    dist.destroy_process_group()  # not after an error: the others may never come to it
