"""Stage 1: fit the pseudo visual prompts to sentences (METHOD section 3; arXiv 2407.04994)."""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class VisualPromptConfig:
    """Settings of stage 1.

    ``categories_per_step`` prompts are encoded with gradient each step (0 = all); the others
    enter the loss through their last vectors. ``scale`` multiplies the cosines: the ranking
    hinge's margin of 1 is in scaled units, so a small scale asks for a wide angular margin.
    ``both_ways`` ranks the sentences of a category too, not only the categories of a sentence.
    ``shift`` pixels of random translation keep the prompts from relying on exact positions.
    """

    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=400, lr=0.1, batch_size=512))
    loss: str = "ranking"
    scale: float = 4.0
    prompts_per_category: int = 1
    categories_per_step: int = 0
    shift: int = 4
    checkpoint_activations: bool = False
    both_ways: bool = True

    def __post_init__(self) -> None:
        check_loss(self.loss)
        if self.prompts_per_category > 1 and self.loss != "ranking":
            raise InputError(
                f"VisualPromptConfig: prompts_per_category={self.prompts_per_category} pools "
                "scores by log-sum-exp, which only loss='ranking' takes"
            )


class _Visual(nn.Module):
    bank: Tensor

    def __init__(self, prompts: PseudoVisualPrompts, bank: Tensor) -> None:
        super().__init__()
        self.prompts = prompts
        self.register_buffer("bank", bank)


class VisualPromptStage:
    """Learns P_c so that v_c = normalise(f_I(P_c)) classifies sentences."""

    name = "pseudo visual prompts"

    def __init__(
        self, backbone: Backbone, train: Sentences, held_out: Sentences, config: VisualPromptConfig
    ) -> None:
        self.backbone, self.train, self.held_out, self.config = backbone, train, held_out, config
        count = train.labels.shape[1]
        prompts = PseudoVisualPrompts(
            count,
            backbone.image_size,
            per_category=config.prompts_per_category,
            seed=config.loop.seed,
        ).to(train.device)
        with torch.no_grad():
            bank = Ranks().encode(lambda own: prompts(backbone, own), torch.arange(count))
        self.module = _Visual(prompts, bank)
        backbone.checkpoint_activations(config.checkpoint_activations)

    def __len__(self) -> int:
        return len(self.train)

    def losses(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        x, y = self.train.draw(batch, generator, self.config.loop.batch_size)
        prompts, bank = self.module.prompts, self.module.bank
        count, width = prompts.n_categories, self.config.categories_per_step
        if 0 < width < count:
            index = torch.randperm(count, generator=generator)[:width].sort().values
        else:
            index = torch.arange(count)
        fresh = self._encode(index, generator)
        with torch.no_grad():
            bank[index.to(bank.device)] = fresh.detach()
        vectors = bank.detach().clone().index_copy(0, index.to(bank.device), fresh)
        if vectors.shape[1] == 1:
            term = classification_loss(self.config.loss, x, vectors[:, 0], y, self.config.scale)
        else:
            scores = torch.einsum("bd,cpd->bcp", x, vectors) * self.config.scale
            term = ranking_loss_from_scores(scores.logsumexp(2), y)
        if not (self.config.both_ways and self.config.loss == "ranking"):
            return {self.config.loss: term}
        size, scale = self.config.loop.batch_size, self.config.scale
        columns = column_ranking(x, vectors, y, scale, size)
        return {"ranking": term / 2, "columns": columns / 2}

    def _encode(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Unit rows (n, P, D) of some prompts, all translated by the same few random pixels."""
        reach = self.config.shift
        dy, dx = 0, 0
        if reach:
            dy, dx = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
        return Ranks().encode(lambda own: self._translated(own, dy, dx), index)

    def _translated(self, index: Tensor, dy: int, dx: int) -> Tensor:
        reach = self.config.shift
        prompts = self.module.prompts
        if not reach:
            return prompts(self.backbone, index)
        pixels = prompts.pixels[index.to(prompts.pixels.device)].flatten(0, 1)
        height, width = pixels.shape[-2:]
        padded = F.pad(pixels, (reach,) * 4, mode="replicate")
        top, left = reach + dy, reach + dx
        moved = padded[..., top : top + height, left : left + width]
        return self.backbone.encode_image(moved).view(len(index), prompts.per_category, -1)

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """v (C, P, D), unit rows, of the prompts as they are."""
        prompts = self.module.prompts
        every = torch.arange(prompts.n_categories)
        return Ranks().encode(lambda own: prompts(self.backbone, own), every)

    @torch.no_grad()
    def evaluate(self) -> float:
        x, y = self.held_out.all()
        scores = torch.einsum("bd,cpd->bcp", x, self.vectors()) * self.config.scale
        return 100 * mean_average_precision(scores.logsumexp(2), y)
