"""Stage 3: the dual adapter, trained on cached features only (METHOD section 5)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pvp_fast.metrics import mean_average_precision
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.training.features import (
    SAMPLED,
    Sentences,
    check_loss,
    classification_loss,
    mentioned,
    sample,
)
from pvp_fast.training.loop import LoopConfig

# Mixtures tried at the start; the best on the training sentences' held-out part wins.
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


# Logits of the sigmoid losses at the start: of categories not mentioned UNMENTIONED on average, of
# those mentioned SPREAD more. Best for linear heads on the pocket model's perturbed sentences.
SPREAD = 3.0
UNMENTIONED = -1.2


@dataclass(frozen=True)
class AdapterConfig:
    """Settings of stage 3. ``bottleneck`` 0 means a quarter of the width.

    ``scale`` None is 4 for a ranking; other losses get scale and bias from the starting scores.
    ``centre`` takes the mean of the names off the original bank. The best step on the held-out
    sentences is kept, the start among them. Of more than 2048 categories a step meets as many as
    that (:mod:`pvp_fast.training.sampled`).
    """

    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=150, lr=3e-3, batch_size=512, eval_every=25, keep_best=True
        )
    )
    loss: str = "asl"
    scale: float | None = None
    bottleneck: int = 0
    residual: float = 0.2
    centre: bool = True

    def __post_init__(self) -> None:
        check_loss(self.loss)

    @classmethod
    def plain(cls, seed: int = 0) -> AdapterConfig:
        """As it was before sentences were perturbed."""
        loop = LoopConfig(steps=150, lr=1e-3, batch_size=512, seed=seed)
        return cls(loop, loss="ranking", scale=4.0, centre=False)


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
        self.known = torch.unique(train.labels.indices)
        centre = original.mean(0) if config.centre and len(original) > 1 else None

        def build(alpha: float, beta: float) -> DualAdapter:
            return DualAdapter(
                original,
                text,
                visual,
                centre=centre,
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
        fixed = 4.0 if config.loss == "ranking" else None
        scale = fixed if config.scale is None else config.scale
        self.scale, self.bias = self._logits() if scale is None else (scale, 0.0)

    @torch.no_grad()
    def _logits(self) -> tuple[float, float]:
        """Scale and bias that put the starting scores where the loss learns from them."""
        data = self.held_out if len(self.held_out) else self.train
        x, y, columns = data.judging()
        scores = self._scores(self.module, x, columns).double()
        # Of a few sentences, all may mention every category, or none.
        low, high = (scores[part] if part.any() else scores.flatten() for part in (~y, y))
        spread = float(low.std()) if len(low) > 1 else 0.0
        # A start that hardly tells them apart must not become a huge scale.
        apart = max(float(high.mean()) - float(low.mean()), 3 * spread, 1e-3)
        scale = SPREAD / apart
        return scale, UNMENTIONED - scale * float(low.mean())

    def __len__(self) -> int:
        return len(self.train)

    def losses(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        part = self.train.draw(batch, generator, self.config.loop.batch_size)
        index = None
        if self.train.categories > SAMPLED:
            index = sample(mentioned(self.train, part), self.known, SAMPLED, generator)
        y = part.dense(self.train.categories) if index is None else part.among(index)
        # Two banks of width D are one of width 2D, whose scores need not be in memory.
        queries, banks = self.module.queries(part.x), self.module.class_vectors(index)
        name = self.config.loss
        term = classification_loss(
            name, queries, banks, y, self.scale, bias=self.bias, normalize=False
        )
        return {name: term}

    @torch.no_grad()
    def _score(self, adapter: DualAdapter) -> float:
        x, y, columns = self.held_out.judging()
        return 100 * mean_average_precision(self._scores(adapter, x, columns), y)

    def _scores(self, adapter: DualAdapter, x: Tensor, columns: Tensor) -> Tensor:
        index = columns if len(columns) < self.train.categories else None
        return adapter.queries(x) @ adapter.class_vectors(index).T

    def evaluate(self) -> float:
        return self._score(self.module)
