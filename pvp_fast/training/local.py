"""The local branch: prompts compared with tokens instead of whole sentences (METHOD section 4).

TaI-DPT's double-grained prompts (arXiv 2211.12739): a second set of contexts gives the vectors
g'_c, which meet the tokens of a sentence in training and the regions of an image at test.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import InputError
from pvp_fast.losses.pooling import spatial_softmax_pool
from pvp_fast.metrics import mean_average_precision
from pvp_fast.modules.prompts import TextPrompts
from pvp_fast.modules.scoring import local_scores, mixture
from pvp_fast.modules.tiles import TILE, check_tile
from pvp_fast.training.features import TokenSentences, check_loss, loss_from_scores
from pvp_fast.training.loop import LoopConfig
from pvp_fast.training.text import prompt_vectors

# Shares of the local score that are tried on the held-out sentences.
GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class LocalPromptConfig:
    """Settings of the local branch.

    ``temperature`` is that of the spatial softmax, for tokens and regions alike. ``weight`` is the
    share of the local score in the final one; None picks it on the held-out sentences, which often
    cannot tell: both scores rank nearly all of them right. ``tile`` is what images show the branch:
    0 the features of their patches, else tiles of that share of the side, see
    :func:`pvp_fast.modules.tiles.image_regions`.
    """

    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=150, lr=5e-3, batch_size=256))
    loss: str = "ranking"
    scale: float = 4.0
    n_ctx: int = 4
    class_specific: bool = True
    init: str | None = "a photo of a"
    temperature: float = 50.0
    weight: float | None = 0.3
    tile: float = TILE

    def __post_init__(self) -> None:
        check_loss(self.loss)
        if not self.temperature > 0:
            raise InputError(f"LocalPromptConfig: temperature is above 0, not {self.temperature}")
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise InputError(f"LocalPromptConfig: weight is a share, 0 to 1, not {self.weight}")
        check_tile("LocalPromptConfig", self.tile)


class LocalPromptStage:
    """Learns the contexts of the local prompts from token features."""

    name = "local prompts"

    def __init__(
        self,
        backbone: Backbone,
        names: tuple[str, ...],
        train: TokenSentences,
        held_out: TokenSentences,
        config: LocalPromptConfig,
    ) -> None:
        self.backbone, self.train, self.held_out, self.config = backbone, train, held_out, config
        self.module = TextPrompts(
            backbone,
            names,
            n_ctx=config.n_ctx,
            class_specific=config.class_specific,
            init=config.init,
            seed=config.loop.seed,
        ).to(train.device)

    def __len__(self) -> int:
        return len(self.train)

    def losses(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        tokens, mask, y = self.train.batch(batch)
        scores = spatial_softmax_pool(
            tokens,
            prompt_vectors(self.backbone, self.module),
            mask,
            temperature=config.temperature,
            scale=config.scale,
        )
        return {config.loss: loss_from_scores(config.loss, scores, y)}

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """g' (C, D), unit rows."""
        return prompt_vectors(self.backbone, self.module)

    @torch.no_grad()
    def held_out_scores(self) -> Tensor:
        """Local cosines (N, C) of the held-out sentences."""
        vectors, heat = self.vectors(), self.config.temperature
        return torch.cat(
            [local_scores(z, vectors, heat, mask) for z, mask, _ in self.held_out.chunks()]
        )

    def evaluate(self) -> float:
        labels = self.held_out.labels.dense(self.held_out.categories).to(self.held_out.device)
        return 100 * mean_average_precision(self.held_out_scores(), labels)


def choose_weight(overall: Tensor, local: Tensor, labels: Tensor) -> float:
    """The share of the local score that ranks held-out sentences best; of equals the smallest.

    Args:
        overall, local: (N, C) cosines of the two branches. labels: (N, C) bool.
    """
    count = labels.shape[1]

    def score(share: float) -> float:
        weight = torch.full((count,), share, device=local.device)
        return mean_average_precision(mixture(overall, local, weight), labels)

    return max(GRID, key=lambda share: (score(share), -share))
