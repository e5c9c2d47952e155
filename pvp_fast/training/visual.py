"""Stage 1: fit the pseudo visual prompts to sentences (METHOD section 3; arXiv 2407.04994)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import InputError
from pvp_fast.losses import ranking_loss_from_scores
from pvp_fast.metrics import mean_average_precision
from pvp_fast.modules.prompts import PseudoVisualPrompts
from pvp_fast.training.distributed import Ranks
from pvp_fast.training.features import Sentences, check_loss, classification_loss, column_ranking
from pvp_fast.training.loop import LoopConfig
from pvp_fast.training.parts import in_parts


@dataclass(frozen=True)
class VisualPromptConfig:
    """Settings of stage 1.

    ``categories_per_step`` prompts are encoded with gradient each step; the others enter the loss
    through their last vectors (:mod:`pvp_fast.training.sampled`). 0 is all of up to 512
    categories, 128 of more. ``scale`` multiplies the cosines: the ranking
    hinge's margin of 1 is in scaled units, so a small scale asks for a wide angular margin.
    ``both_ways`` ranks the sentences of a category too, not only the categories of a sentence.
    ``shift`` pixels of random translation keep the prompts from relying on exact positions.
    ``patches`` is the share of its patches that a vision transformer looks at in a step, others
    each time; a tower without patches always sees the whole. ``frequencies`` is the share of each
    axis' frequencies that is learned of an image; 0 learns its pixels
    (:mod:`pvp_fast.modules.images`).
    """

    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=200, lr=0.1, batch_size=512))
    loss: str = "ranking"
    scale: float = 4.0
    prompts_per_category: int = 1
    categories_per_step: int = 0
    shift: int = 4
    checkpoint_activations: bool = False
    both_ways: bool = True
    patches: float = 1.0
    frequencies: float = 0.5

    def __post_init__(self) -> None:
        check_loss(self.loss)
        if not 0 < self.patches <= 1:
            raise InputError(f"VisualPromptConfig: patches={self.patches}: give a share, above 0")
        if not 0 <= self.frequencies <= 1:
            raise InputError(
                f"VisualPromptConfig: frequencies={self.frequencies}: give a share, or 0 for pixels"
            )
        if self.prompts_per_category > 1 and self.loss != "ranking":
            raise InputError(
                f"VisualPromptConfig: prompts_per_category={self.prompts_per_category} pools "
                "scores by log-sum-exp, which only loss='ranking' takes"
            )


class _Visual(nn.Module):
    def __init__(self, prompts: PseudoVisualPrompts) -> None:
        super().__init__()
        self.prompts = prompts

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        state.pop(f"{prefix}bank", None)  # in a run from before steps of some categories
        super()._load_from_state_dict(state, prefix, *rest)


class VisualPromptStage:
    """Learns P_c so that v_c = normalise(f_I(P_c)) classifies sentences."""

    name = "pseudo visual prompts"

    def __init__(
        self, backbone: Backbone, train: Sentences, held_out: Sentences, config: VisualPromptConfig
    ) -> None:
        self.backbone, self.train, self.held_out, self.config = backbone, train, held_out, config
        prompts = PseudoVisualPrompts(
            train.categories,
            backbone.image_size,
            per_category=config.prompts_per_category,
            seed=config.loop.seed,
            frequencies=config.frequencies,
        ).to(train.device)
        self.module = _Visual(prompts)
        backbone.checkpoint_activations(config.checkpoint_activations)

    def __len__(self) -> int:
        return len(self.train)

    def losses(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        part = self.train.draw(batch, generator, self.config.loop.batch_size)
        x, y = part.x, part.dense(self.train.categories)
        move = Translation.drawn(self.config.shift, generator)
        some = drawn_patches(self.backbone, self.config.patches, generator)
        vectors = image_vectors(self.backbone, self.module.prompts, move, some)
        term = pooled_loss(self.config, x, vectors, y)
        if not (self.config.both_ways and self.config.loss == "ranking"):
            return {self.config.loss: term}
        size, scale = self.config.loop.batch_size, self.config.scale
        columns = column_ranking(x, vectors, y, scale, size)
        return {"ranking": term / 2, "columns": columns / 2}

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """v (C, P, D), unit rows, of the prompts as they are."""
        return image_vectors(self.backbone, self.module.prompts)

    def prompts(self) -> PseudoVisualPrompts:
        """The learned images; what moves them moves this stage's vectors."""
        return self.module.prompts

    @torch.no_grad()
    def evaluate(self) -> float:
        return pooled_map(self.config, self.held_out, self.vectors())


class Translation(NamedTuple):
    """A shift by some pixels, with the edges repeated."""

    reach: int
    dy: int
    dx: int

    @classmethod
    def drawn(cls, reach: int, generator: torch.Generator) -> Translation:
        """One of up to ``reach`` pixels each way."""
        dy, dx = 0, 0
        if reach:
            dy, dx = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
        return cls(reach, dy, dx)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Images (n, P, 3, H, W), shifted."""
        reach = self.reach
        if not reach:
            return pixels
        height, width = pixels.shape[-2:]
        padded = F.pad(pixels.flatten(0, 1), (reach,) * 4, mode="replicate")
        top, left = reach + self.dy, reach + self.dx
        moved = padded[..., top : top + height, left : left + width]
        return moved.reshape(pixels.shape)


STILL = Translation(0, 0, 0)


def image_vectors(
    backbone: Backbone,
    prompts: PseudoVisualPrompts,
    move: Translation = STILL,
    patches: Tensor | None = None,
) -> Tensor:
    """(C, P, D), unit rows, of all prompts, differentiable in what is learned of them."""
    learned = prompts.learned

    def encode(some: Tensor) -> Tensor:
        return encoded(backbone, move(prompts.space(some)), patches)

    every = torch.arange(prompts.n_categories, device=learned.device)
    return Ranks().encode(lambda own: in_parts(encode, learned[own]), every)


def drawn_patches(backbone: Backbone, share: float, generator: torch.Generator) -> Tensor | None:
    """The patches (k,) of a step, the same of every image; None for all of them."""
    count = backbone.patches if share < 1 else 0
    if not count:
        return None
    return torch.randperm(count, generator=generator)[: max(1, round(share * count))].sort().values


def encoded(backbone: Backbone, pixels: Tensor, patches: Tensor | None = None) -> Tensor:
    """Unit rows (n, P, D) of images (n, P, 3, H, W)."""
    features = backbone.encode_image(pixels.flatten(0, 1), patches=patches)
    return features.view(*pixels.shape[:2], -1)


def pooled_loss(config: VisualPromptConfig, x: Tensor, vectors: Tensor, y: Tensor) -> Tensor:
    """The classification loss of sentences (B, D) and images' vectors (C, P, D)."""
    if vectors.shape[1] == 1:
        return classification_loss(config.loss, x, vectors[:, 0], y, config.scale)
    scores = torch.einsum("bd,cpd->bcp", x, vectors) * config.scale
    return ranking_loss_from_scores(scores.logsumexp(2), y)


def pooled_map(config: VisualPromptConfig, data: Sentences, vectors: Tensor) -> float:
    """mAP in percent of images' vectors (C, P, D) on sentences."""
    x, y, columns = data.judging()
    scores = torch.einsum("bd,cpd->bcp", x, vectors[columns.to(vectors.device)]) * config.scale
    return 100 * mean_average_precision(scores.logsumexp(2), y)
