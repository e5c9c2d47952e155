"""Learned rows in a file: of the images or contexts of many categories a step needs only some.

A record is a row with Adam's two moments (arXiv 1412.6980), float32, and the file has two places
for each. The first write of a row behind a checkpoint goes to the place that the checkpoint does
not name, further ones overwrite it; so what a checkpoint names stays as it is, and a run that was
cut off goes on from there with the same bits. Nothing but the records of a step is in memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pvp_fast.errors import ArtifactError, InputError
from pvp_fast.training.distributed import Ranks
from pvp_fast.training.loop import LoopConfig, RowKeeper

_PARTS = 3  # value, mean of the gradients (or their momentum), mean of their squares
_PLACES = 2
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
ROW_COPIES = _PARTS * _PLACES  # what a row takes on disk, in rows


class RowTable:
    """C rows of one shape and their moments in a file, read and written some at a time.

    Args:
        path: the file; :meth:`fill` makes it.
        shape: of a row.

    Attributes:
        places: (C,) uint8, where the record of each row lies. steps: (C,) int32, how often each
            was moved.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, ...]) -> None:
        self.path, self.count, self.shape = path, count, shape
        self.places = torch.zeros(count, dtype=torch.uint8)
        self.steps = torch.zeros(count, dtype=torch.int32)
        self._behind = torch.zeros(count, dtype=torch.bool)  # written behind the last checkpoint
        self._bytes = 4 * _PARTS * math.prod(shape)

    def fill(self, rows: Iterable[Tensor]) -> None:
        """Make the file from the C first rows, unless an earlier run made it.

        Raises:
            InputError: it cannot be written.
        """
        size = self.count * _PLACES * self._bytes
        if self.path.exists() and self.path.stat().st_size == size:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.part")
        try:
            with open(part, "wb") as stream:
                for number, row in enumerate(rows):
                    stream.seek(number * _PLACES * self._bytes)
                    stream.write(row.detach().float().cpu().contiguous().numpy().data)
                stream.truncate(size)  # what is not written reads as zeros
            os.replace(part, self.path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise InputError(
                f"out: {self.path} cannot be written ({error.strerror or error}); it grows to "
                f"{size >> 20} MiB"
            ) from error

    def read(self, index: Tensor) -> Tensor:
        """Records (n, 3, *shape) float32 of some rows.

        Raises:
            ArtifactError: the file is missing or shorter than it was.
        """
        records = torch.empty(len(index), _PARTS, *self.shape)
        try:
            with open(self.path, "rb", buffering=0) as stream:
                for record, offset in self._placed(records, index):
                    stream.seek(offset)
                    if stream.readinto(record) != self._bytes:
                        raise ArtifactError(f"{self.path} is damaged; delete its folder")
        except OSError as error:
            raise ArtifactError(
                f"{self.path} cannot be read ({error.strerror or error}); delete its folder to "
                "start the stage again"
            ) from error
        return records

    def values(self, index: Tensor) -> Tensor:
        """(n, *shape): the rows alone."""
        return self.read(index)[:, 0]

    def write(self, index: Tensor, records: Tensor, *, here: bool = True) -> None:
        """Store records (n, 3, *shape) of different rows; ``here`` False only notes where."""
        turned = index[~self._behind[index]]
        self.places[turned] = 1 - self.places[turned]
        self._behind[index] = True
        self.steps[index] += 1
        if not here:
            return
        with open(self.path, "r+b", buffering=0) as stream:
            for record, offset in self._placed(records.detach().cpu().contiguous(), index):
                stream.seek(offset)
                stream.write(record)

    def flush(self) -> None:
        """Let all that was written reach the disk, before a checkpoint names it."""
        with open(self.path, "r+b") as stream:
            os.fsync(stream.fileno())

    def named(self) -> None:
        """A checkpoint names the present places: leave them alone from now on."""
        self._behind.zero_()

    def _placed(self, records: Tensor, index: Tensor) -> Iterator[tuple[Any, int]]:
        """Each record's memory, and where in the file it belongs."""
        places = index.long() * _PLACES + self.places[index].long()
        return zip(records.flatten(1).numpy(), (places * self._bytes).tolist(), strict=True)


class RowOptimizer(RowKeeper):
    """AdamW, or SGD with momentum, on the rows of a step; the others' moments stay as they are.

    Adam's bias correction counts each row's own steps. In a group of processes the first one writes
    the table and all read it.

    Raises:
        InputError: the loop is to keep the best step.
    """

    def __init__(self, table: RowTable, config: LoopConfig, device: torch.device) -> None:
        if config.keep_best:
            raise InputError(
                "LoopConfig: keep_best would copy what lies in a file; with some categories a step "
                "give keep_best=False"
            )
        self.table, self.config, self._ranks = table, config, Ranks()
        self.active = nn.Parameter(torch.zeros(0, *table.shape, device=device))
        self._index = torch.zeros(0, dtype=torch.int64)
        self._records = torch.zeros(0, _PARTS, *table.shape, device=device)
        super().__init__([self.active], {"lr": config.lr})

    def take(self, index: Tensor) -> Tensor:
        """The rows (n, *shape) of this step, to be differentiated; :meth:`step` moves them."""
        self._index = index
        with self._ranks.in_turn():  # the first has written what it was to write
            self._records = self.table.read(index).to(self.active.device)
        self.active.grad = None
        self.active.data = self._records[:, 0]
        return self.active

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move the rows taken, and store them."""
        gradient = self.active.grad
        if gradient is None:
            return
        rate, decay = self.param_groups[0]["lr"], self.config.weight_decay
        value, mean, square = self._records.unbind(1)
        if self.config.optimizer == "sgd":
            mean.mul_(self.config.momentum).add_(gradient).add_(value, alpha=decay)
            value.sub_(rate * mean)
        else:
            self._adam(value, mean, square, gradient, rate, decay)
        self.table.write(self._index, self._records, here=self._ranks.first)

    def _adam(
        self,
        value: Tensor,
        mean: Tensor,
        square: Tensor,
        gradient: Tensor,
        rate: float,
        decay: float,
    ) -> None:
        mean.lerp_(gradient, 1 - _BETAS[0])
        square.lerp_(gradient.square(), 1 - _BETAS[1])
        done = (self.table.steps[self._index].double() + 1).view(-1, *[1] * (value.ndim - 1))
        first, second = ((1 - beta**done).float().to(value.device) for beta in _BETAS)
        value.mul_(1 - rate * decay)
        value.sub_(rate * (mean / first) / (square / second).sqrt_().add_(_EPSILON))

    def flush(self) -> None:
        """Let the rows reach the disk."""
        self.table.flush()

    def named(self) -> None:
        """A checkpoint names the rows where they lie now."""
        self.table.named()

    def state_dict(self) -> dict[str, Any]:
        """Where the rows lie and how often they moved; they themselves stay in the table."""
        state = {"places": self.table.places, "steps": self.table.steps}
        return {"state": {0: state}, "param_groups": []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What :meth:`state_dict` gave."""
        state = state_dict["state"][0]
        self.table.places = state["places"].clone()
        self.table.steps = state["steps"].clone()
        self.table.named()
