"""Stage 2: text prompts that classify sentences and agree with the visual prompts (section 4)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import InputError
from pvp_fast.losses import clip_loss
from pvp_fast.metrics import mean_average_precision
from pvp_fast.modules.prompts import PseudoVisualPrompts, TextPrompts
from pvp_fast.training.distributed import Ranks
from pvp_fast.training.features import Sentences, check_loss, classification_loss
from pvp_fast.training.loop import LoopConfig
from pvp_fast.training.visual import image_vectors


@dataclass(frozen=True)
class TextPromptConfig:
    """Settings of stage 2.

    ``transfer`` is λ, the weight of the symmetric InfoNCE between g and v at ``temperature``
    (τ); 0 trains plain text prompts. ``co_learn`` moves the pseudo visual prompts too, through
    their own classification term and the shared contrastive one (TAI++, arXiv 2405.06926).
    ``categories_per_step`` as in stage 1.
    """

    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=150, lr=5e-3, batch_size=256))
    loss: str = "ranking"
    scale: float = 4.0
    n_ctx: int = 4
    class_specific: bool = True
    init: str | None = "a photo of a"
    transfer: float = 1.0
    temperature: float = 0.1
    co_learn: bool = False
    categories_per_step: int = 0

    def __post_init__(self) -> None:
        check_loss(self.loss)
        if self.transfer < 0 or not self.temperature > 0:
            raise InputError(
                "TextPromptConfig: transfer is 0 or more and temperature above 0, not "
                f"{self.transfer} and {self.temperature}"
            )


class _Text(nn.Module):
    def __init__(self, prompts: TextPrompts, images: PseudoVisualPrompts | None) -> None:
        super().__init__()
        self.prompts = prompts
        self.images = images


class TextPromptStage:
    """Learns the context before the names; ``visual`` is v (C, P, D) of stage 1."""

    name = "text prompts"

    def __init__(
        self,
        backbone: Backbone,
        names: tuple[str, ...],
        train: Sentences,
        held_out: Sentences,
        config: TextPromptConfig,
        *,
        visual: Tensor | None = None,
        images: PseudoVisualPrompts | None = None,
    ) -> None:
        self.backbone, self.train, self.held_out, self.config = backbone, train, held_out, config
        if config.transfer and visual is None:
            raise InputError("visual: transfer > 0 needs the vectors of stage 1")
        if config.co_learn and images is None:
            raise InputError("images: co_learn needs the pseudo visual prompts of stage 1")
        if config.transfer:
            self.name = "text prompts + transfer"
        self.visual = None if visual is None else nn.functional.normalize(visual.mean(1), dim=-1)
        prompts = TextPrompts(
            backbone,
            names,
            n_ctx=config.n_ctx,
            class_specific=config.class_specific,
            init=config.init,
            seed=config.loop.seed,
        ).to(train.device)
        self.module = _Text(prompts, images if config.co_learn else None)

    def __len__(self) -> int:
        return len(self.train)

    def losses(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        part = self.train.draw(batch, generator, config.loop.batch_size)
        x, y = part.x, part.dense(self.train.categories)
        text = prompt_vectors(self.backbone, self.module.prompts)
        terms = {config.loss: classification_loss(config.loss, x, text, y, config.scale)}
        visual = self.visual
        if self.module.images is not None:
            moving = image_vectors(self.backbone, self.module.images)
            visual = nn.functional.normalize(moving.mean(1), dim=-1)
            terms["visual"] = classification_loss(config.loss, x, visual, y, config.scale)
        if config.transfer and visual is not None:
            contrast = clip_loss(text, visual, scale=1 / config.temperature)
            terms["transfer"] = config.transfer * contrast
        return terms

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """g (C, D), unit rows."""
        return prompt_vectors(self.backbone, self.module.prompts)

    def contexts(self) -> Tensor:
        """The learned contexts (C, M, W), or the shared one (M, W), on the CPU."""
        return self.module.prompts.ctx.detach().cpu()

    @torch.no_grad()
    def evaluate(self) -> float:
        return inner_map(self.held_out, self.vectors())


def prompt_vectors(backbone: Backbone, prompts: TextPrompts) -> Tensor:
    """(C, D), unit rows, of all prompts, differentiable in their contexts.

    Not in streams: a prompt's operations are short, and all threads at each are as fast.
    """
    every = torch.arange(len(prompts.ids), device=prompts.ctx.device)
    return Ranks().encode(lambda own: prompts(backbone, own), every)


def inner_map(data: Sentences, vectors: Tensor) -> float:
    """mAP in percent of class vectors (C, D) on sentences."""
    x, y, columns = data.judging()
    return 100 * mean_average_precision(x @ vectors[columns.to(vectors.device)].T, y)
