"""Stage 3: the dual adapter, trained on cached features only (METHOD section 5)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pvp_fast.metrics import mean_average_precision
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.training.features import Sentences, check_loss, classification_loss
from pvp_fast.training.loop import LoopConfig

# Mixtures tried at the start; the best on the training sentences' held-out part wins.
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class AdapterConfig:
    """Settings of stage 3. ``bottleneck`` 0 means a quarter of the width."""

    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=150, lr=1e-3, batch_size=512))
    loss: str = "ranking"
    scale: float = 4.0
    bottleneck: int = 0
    residual: float = 0.2

    def __post_init__(self) -> None:
        check_loss(self.loss)


class AdapterStage:
    """Learns the two residual adapters and the mixture of the original and the new banks."""

    name = "dual adapter"

    def __init__(
        self,
        original: Tensor,
        text: Tensor,
        visual: Tensor,
        train: Sentences,
        held_out: Sentences,
        config: AdapterConfig,
    ) -> None:
        self.train, self.held_out, self.config = train, held_out, config

        def build(alpha: float, beta: float) -> DualAdapter:
            return DualAdapter(
                original,
                text,
                visual,
                bottleneck=config.bottleneck or None,
                residual=config.residual,
                alpha=alpha,
                beta=beta,
                seed=config.loop.seed,
            ).to(train.device)

        # Start at the mixture that ranks held-out sentences best; it holds every single branch.
        tried = [(self._score(build(a, b)), a, b) for a in GRID for b in (GRID if a else (0.5,))]
        _, self.alpha, self.beta = max(tried, key=lambda t: (t[0], -abs(t[1] - 0.5)))
        self.module = build(self.alpha, self.beta)

    def __len__(self) -> int:
        return len(self.train)

    def losses(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        x, y = self.train.draw(batch, generator, self.config.loop.batch_size)
        # Two banks of width D are one of width 2D, whose scores need not be in memory.
        queries, banks = self.module.queries(x), self.module.class_vectors()
        name, scale = self.config.loss, self.config.scale
        return {name: classification_loss(name, queries, banks, y, scale, normalize=False)}

    @torch.no_grad()
    def _score(self, adapter: DualAdapter) -> float:
        x, y = self.held_out.all()
        return 100 * mean_average_precision(adapter(x), y)

    def evaluate(self) -> float:
        return self._score(self.module)
