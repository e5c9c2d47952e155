"""Short trainings: a toy stage for the loop, and configurations of a few steps."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pvp_fast.training import LoopConfig, TrainConfig

if TYPE_CHECKING:
    from pvp_fast import Backbone

TEXT = {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}


def tiny_clip() -> Backbone:
    """A small random CLIP with region features, the same one every time."""
    import open_clip

    from pvp_fast.clip.backbone import Backbone, Preprocess

    state = torch.get_rng_state()
    torch.manual_seed(3)
    model = open_clip.CLIP(embed_dim=16, vision_cfg=VIT, text_cfg=TEXT)
    torch.set_rng_state(state)
    return Backbone(model, open_clip.SimpleTokenizer(context_length=40), Preprocess(32))


class Toy:
    """Fits a vector to noisy targets; may stop or break at a given step."""

    name = "toy"

    def __init__(self, stop: int = -1, broken: int = -1) -> None:
        self.module = nn.Linear(3, 1)
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.fill_(0.5)
        self.calls, self.stop, self.broken = 0, stop, broken

    def __len__(self) -> int:
        return 50

    def losses(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        x = torch.randn(len(batch), 3, generator=generator) + batch[:, None] / 50
        fit = (self.module(x) - x.sum(1, keepdim=True)).square().mean()
        decay = self.module.weight.square().sum()
        return {"fit": fit, "decay": decay * (math.nan if self.calls == self.broken else 0.01)}

    def evaluate(self) -> float:
        return float(self.module.weight.detach().sum())


def config(**changes: object) -> LoopConfig:
    base = LoopConfig(
        steps=12,
        batch_size=8,
        lr=0.05,
        warmup_steps=2,
        eval_every=3,
        log_every=1,
        checkpoint_every=4,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def rows(folder: Path) -> list[list[str]]:
    with open(folder / "log.csv", newline="") as stream:
        return list(csv.reader(stream))


def small() -> TrainConfig:
    demo = TrainConfig.demo()

    def cut(stage: object) -> object:
        loop = dataclasses.replace(
            stage.loop,
            steps=4,
            warmup_steps=1,
            batch_size=16,  # type: ignore[attr-defined]
            checkpoint_every=2,
        )
        return dataclasses.replace(stage, loop=loop)  # type: ignore[type-var]

    return dataclasses.replace(
        demo, **{n: cut(getattr(demo, n)) for n in ("visual", "text", "adapter")}
    )


def settings(**changes: Any) -> TrainConfig:
    config = small()
    loop = dataclasses.replace(
        config.local_prompts.loop, steps=4, warmup_steps=1, batch_size=16, checkpoint_every=2
    )
    prompts = dataclasses.replace(config.local_prompts, loop=loop, **changes)
    return dataclasses.replace(config, local_prompts=prompts, local=True)
