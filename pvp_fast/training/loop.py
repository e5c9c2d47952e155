"""The one training loop that all three stages share.

A stage says what is learned, what a batch costs and how well it does on held-out sentences; the
loop does the rest: optimiser, schedule, clipping, logs, checkpoints, exact resume, and stopping
at the first loss term that is not finite.
"""

from __future__ import annotations

import csv
import importlib.util
import math
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from pvp_fast.errors import InputError, TrainingDiverged
from pvp_fast.training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from pvp_fast.training.distributed import Ranks

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class LoopConfig:
    """How a stage is optimised.

    ``precision`` is the autocast of the forward pass; parameters stay float32. The learning rate
    warms up linearly over ``warmup_steps`` and then follows a cosine to zero at ``steps``.
    ``keep_best`` ends with what did best on the held-out sentences, the start among it.
    """

    steps: int = 500
    batch_size: int = 256
    lr: float = 1e-2
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    momentum: float = 0.9
    warmup_steps: int = 20
    grad_clip: float = 10.0
    precision: str = "float32"
    eval_every: int = 50
    log_every: int = 10
    checkpoint_every: int = 100
    seed: int = 0
    keep_best: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"LoopConfig.{name} is {getattr(self, name)}; give at least 1")
        if self.optimizer not in ("adamw", "sgd"):
            raise InputError(f"LoopConfig.optimizer={self.optimizer!r}: use 'adamw' or 'sgd'")
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(
                f"LoopConfig.precision={self.precision!r}: use 'float32' or 'bfloat16'"
            )
        if not self.lr > 0 or not self.grad_clip > 0:
            raise InputError("LoopConfig.lr and LoopConfig.grad_clip must be above 0")

    def rate(self, step: int) -> float:
        """The learning rate's factor at a 0-based step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        span = max(1, self.steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / span))


class RowKeeper(torch.optim.Optimizer, ABC):
    """An optimizer whose rows lie elsewhere, as :class:`pvp_fast.training.rows.RowOptimizer`'s."""

    @abstractmethod
    def flush(self) -> None:
        """Let all that was written reach the disk, before a checkpoint names it."""

    @abstractmethod
    def named(self) -> None:
        """A checkpoint names what is there: leave it alone from now on."""


class Stage(Protocol):
    """What the loop asks of a stage. ``module`` holds all it learns and remembers.

    A stage of which a step needs only some rows has an ``optimizer`` of its own, a
    :class:`RowKeeper`.
    """

    name: str

    @property
    def module(self) -> nn.Module: ...

    def __len__(self) -> int:
        """How many sentences there are to draw from."""

    def losses(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalar loss terms (their sum is minimised) of the sentences ``batch`` (B,).

        Means over the batch, or free of it: those of parts of a batch, weighted by their sizes,
        add up to those of the whole.
        """

    def evaluate(self) -> float:
        """mAP in percent on the held-out sentences."""


def run_stage(stage: Stage, config: LoopConfig, folder: Path, *, progress: bool = True) -> float:
    """Train a stage to its end, resuming from ``folder``'s checkpoint; returns its last mAP.

    Two runs of the same settings, one interrupted and resumed, end with the same bits, on one
    machine with one budget of threads: a CPU encodes in as many parts as there are streams.

    In an initialised ``torch.distributed`` group this is a collective call: the processes share
    the work of a run, of which the first writes ``folder``; the others only read it.

    Raises:
        TrainingDiverged: a loss term is NaN or infinite; the last checkpoint is kept.
    """
    ranks = Ranks()
    folder.mkdir(parents=True, exist_ok=True)
    kept: RowKeeper | None = getattr(stage, "optimizer", None)
    learned = [p for p in stage.module.parameters() if p.requires_grad]
    optimizer = _optimizer(learned, config) if kept is None else kept
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    generator = torch.Generator().manual_seed(config.seed)
    step, score = 0, math.nan
    best: tuple[float, dict[str, Tensor]] | None = None
    saved = load_checkpoint(folder)
    if saved is not None:
        tensors, state = saved
        stage.module.load_state_dict(_under("module.", tensors))
        restore_optimizer(optimizer, tensors)
        generator.set_state(tensors["generator"])
        step, score = state["step"], state["map"]
        if "best" in state:
            best = state["best"], _under("best.", tensors)
    ranks.same(stage.module.state_dict().values())
    last = folder if saved is not None else None
    if step >= config.steps:
        return score
    if config.keep_best and best is None:
        best = stage.evaluate(), _copy(stage.module)

    device = parameters[0].device.type
    own = ranks.share(config.batch_size)
    part = (own.stop - own.start) / config.batch_size  # what this process's loss counts for
    with ExitStack() as stack:
        log = stack.enter_context(_Log(folder, step)) if ranks.first else None
        bar = stack.enter_context(_Bar(stage.name, config.steps, step, progress and ranks.first))
        while step < config.steps:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * config.rate(step)
            batch = torch.randint(len(stage), (config.batch_size,), generator=generator)
            with (
                torch.enable_grad(),
                torch.autocast(device, torch.bfloat16, enabled=config.precision == "bfloat16"),
            ):
                terms = stage.losses(batch[own], generator)
            found = torch.stack(list(terms.values()))
            values = ranks.add(found * part)
            for name, finite in zip(terms, values.isfinite().tolist(), strict=True):
                if not finite:
                    raise TrainingDiverged(step, name, last)
            optimizer.zero_grad(set_to_none=True)
            (found.sum() * part).backward()
            ranks.add_gradients(parameters)
            torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
            optimizer.step()
            step += 1
            finished = step == config.steps
            if step % config.eval_every == 0 or finished:
                score = stage.evaluate()
                if best is not None and score > best[0]:
                    best = score, _copy(stage.module)
            if finished and best is not None:
                score = best[0]
                stage.module.load_state_dict(best[1])
            if log and (step % config.log_every == 0 or finished):
                total, rate = values.sum().item(), config.lr * config.rate(step - 1)
                log.write(step, total, score, rate, dict(zip(terms, values.tolist(), strict=True)))
                bar.update(step, total, score)
            saves = step % config.checkpoint_every == 0 or finished
            if log and saves:
                if kept is not None:
                    kept.flush()
                tensors = {f"module.{k}": v for k, v in stage.module.state_dict().items()}
                tensors |= optimizer_tensors(optimizer)
                tensors["generator"] = generator.get_state()
                at = {"step": step, "map": score}
                if best is not None and not finished:
                    tensors |= {f"best.{k}": v for k, v in best[1].items()}
                    at["best"] = best[0]
                log.flush()
                save_checkpoint(folder, tensors, at)
            if saves:
                last = folder
                if kept is not None:
                    kept.named()
    return score


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _optimizer(parameters: list[nn.Parameter], config: LoopConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay, fused=True)


class _Log:
    """``log.csv``, and TensorBoard's events where it is installed (the extra ``tensorboard``).

    Rows after the resumed step are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path, self.folder, self.step = folder / "log.csv", folder, step

    def __enter__(self) -> _Log:
        kept: list[list[str]] = []
        if self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as stream:
                kept = [
                    row
                    for row in csv.reader(stream)
                    if row and (row[0] == "step" or (row[0].isdigit() and int(row[0]) <= self.step))
                ]
        self.stream = open(self.path, "w", newline="", encoding="utf-8")
        self.csv = csv.writer(self.stream)
        self.csv.writerows(kept)
        self.empty = not kept
        self.board = _board(self.folder, self.step)
        return self

    def write(
        self, step: int, loss: float, score: float, rate: float, terms: dict[str, float]
    ) -> None:
        if self.empty:
            self.csv.writerow(["step", "loss", "map", "lr", *terms])
            self.empty = False
        self.csv.writerow([step, loss, score, rate, *terms.values()])
        if self.board is None:
            return
        self.board.add_scalar("loss", loss, step)
        self.board.add_scalar("lr", rate, step)
        if math.isfinite(score):
            self.board.add_scalar("held-out mAP", score, step)
        for name, value in terms.items():
            self.board.add_scalar(f"terms/{name}", value, step)

    def flush(self) -> None:
        self.stream.flush()

    def __exit__(self, *_: Any) -> None:
        self.stream.close()
        if self.board is not None:
            self.board.close()


def _board(folder: Path, step: int) -> SummaryWriter | None:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder, purge_step=step or None)


class _Bar:
    """A progress bar on stderr with the loss and the held-out mAP."""

    def __init__(self, name: str, steps: int, step: int, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.progress = Progress(
            TextColumn("{task.description:>22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  mAP {task.fields[map]:.1f}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self.task = self.progress.add_task(
            name, total=steps, completed=step, loss=math.nan, map=math.nan
        )

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def update(self, step: int, loss: float, score: float) -> None:
        self.progress.update(self.task, completed=step, loss=loss, map=score)

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()
