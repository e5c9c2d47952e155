"""Stages 1 and 2 with some of the categories in a step, for vocabularies of any size.

A step's vocabulary S is what its sentences mention and others, drawn evenly, up to 2048 categories
(the sampled softmax of Jean et al., arXiv 1412.2007, drawn evenly and so without a correction).
``categories_per_step`` of those that are mentioned are encoded with gradient, the rest of S stands
in the loss with its last vectors. What is learned lies in a file (:mod:`pvp_fast.training.rows`);
in memory are the vectors (C, D) and what the step needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import InputError
from pvp_fast.losses import clip_loss
from pvp_fast.modules.images import image_space
from pvp_fast.modules.prompts import PseudoVisualPrompts, TextPrompts
from pvp_fast.threads.streams import ALONE
from pvp_fast.training.distributed import Ranks
from pvp_fast.training.features import (
    EVERY,
    SAMPLED,
    Sentences,
    classification_loss,
    column_ranking,
    mentioned,
    sample,
)
from pvp_fast.training.parts import activation_bytes, in_parts
from pvp_fast.training.rows import RowOptimizer, RowTable
from pvp_fast.training.text import TextPromptConfig, inner_map
from pvp_fast.training.visual import (
    STILL,
    Translation,
    VisualPromptConfig,
    drawn_patches,
    encoded,
    pooled_loss,
    pooled_map,
)

WIDTH = 128  # categories encoded with gradient each step, where there are more than EVERY


def step_width(categories: int, categories_per_step: int) -> int:
    """How many categories are encoded with gradient each step; C is all of them."""
    if categories_per_step:
        return min(categories, categories_per_step)
    return categories if categories <= EVERY else WIDTH


class _Bank(nn.Module):
    """The last vector of every category, (C, …, D)."""

    bank: Tensor

    def __init__(self, bank: Tensor) -> None:
        super().__init__()
        self.register_buffer("bank", bank)


class _Step:
    """What a step looks at: S, and which of it is encoded with gradient.

    Attributes:
        x: sentences (B, D). y: (B, S) bool. chosen: S, ascending. fresh: (n,), some of S, and
            ``places`` where in S they are.
    """

    def __init__(
        self,
        data: Sentences,
        known: Tensor,
        width: int,
        batch: Tensor,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        part = data.draw(batch, generator, batch_size)
        named = mentioned(data, part)
        self.chosen = sample(named, known, max(SAMPLED, width), generator)
        self.x, self.y = part.x, part.among(self.chosen)
        order = torch.randperm(len(named), generator=generator)
        fresh = named[order[:width]].sort().values
        self.fresh = sample(fresh, self.chosen, width, generator)
        self.places = torch.searchsorted(self.chosen, self.fresh)

    def vectors(self, bank: Tensor, fresh: Tensor) -> Tensor:
        """Vectors (S, …, D): ``fresh``, which the bank gets too, and the bank's others."""
        index = self.fresh.to(bank.device)
        with torch.no_grad():
            bank[index] = fresh.detach().to(bank.dtype)
        rows = bank[self.chosen.to(bank.device)]
        return rows.index_copy(0, self.places.to(bank.device), fresh.to(bank.dtype))


@torch.no_grad()
def _whole(encode: Callable[[Tensor], Tensor], count: int, device: torch.device) -> Tensor:
    """``encode`` of all categories, some at a time, each part reading its rows itself."""
    every = torch.arange(count, device=device)
    return Ranks().encode(lambda own: in_parts(encode, own), every)


class SampledVisualPrompts:
    """Stage 1; see :class:`pvp_fast.training.visual.VisualPromptStage`.

    Args:
        path: the file of what is learned of the images, (P, 3, h, w) a category.
    """

    name = "pseudo visual prompts"

    def __init__(
        self,
        backbone: Backbone,
        train: Sentences,
        held_out: Sentences,
        config: VisualPromptConfig,
        path: Path,
    ) -> None:
        self.backbone, self.train, self.held_out, self.config = backbone, train, held_out, config
        self.width = step_width(train.categories, config.categories_per_step)
        self.known = torch.unique(train.labels.indices)
        self.space = image_space(backbone.image_size, config.frequencies).to(train.device)
        each = config.prompts_per_category
        self.table = RowTable(path, train.categories, (each, *self.space.shape))
        with Ranks().in_turn():
            self.table.fill(self.space.starts(train.categories, each, config.loop.seed))
        self.optimizer = RowOptimizer(self.table, config.loop, train.device)
        pair = self.table.values(torch.tensor([0, min(1, train.categories - 1)]))
        some = drawn_patches(backbone, config.patches, torch.Generator())
        self._each = activation_bytes(
            lambda learned: self._images(learned, patches=some), pair.to(train.device)
        )
        self.module = _Bank(self.vectors())
        backbone.checkpoint_activations(config.checkpoint_activations)

    def __len__(self) -> int:
        return len(self.train)

    def _images(
        self, learned: Tensor, move: Translation = STILL, patches: Tensor | None = None
    ) -> Tensor:
        return encoded(self.backbone, move(self.space(learned)), patches)

    def losses(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        config, size = self.config, self.config.loop.batch_size
        step = _Step(self.train, self.known, self.width, batch, size, generator)
        move = Translation.drawn(config.shift, generator)
        some = drawn_patches(self.backbone, config.patches, generator)
        learned = self.optimizer.take(step.fresh)

        def encode(part: Tensor) -> Tensor:
            return self._images(part, move, some)

        fresh = Ranks().encode(
            lambda own: in_parts(encode, learned[own], each=self._each),
            torch.arange(len(step.fresh)),
        )
        vectors = step.vectors(self.module.bank, fresh)
        term = pooled_loss(config, step.x, vectors, step.y)
        if not (config.both_ways and config.loss == "ranking"):
            return {config.loss: term}
        places = step.places.to(step.y.device)
        columns = column_ranking(step.x, fresh, step.y[:, places], config.scale, size)
        # As much as all columns of S weigh, of which the others have no gradient.
        columns = columns * (len(step.chosen) / len(step.fresh))
        return {"ranking": term / 2, "columns": columns / 2}

    def vectors(self) -> Tensor:
        """v (C, P, D), unit rows, of the prompts as they are."""
        device = self.train.device
        return _whole(
            lambda index: self._images(self.table.values(index.cpu()).to(device)),
            self.table.count,
            device,
        )

    def prompts(self) -> PseudoVisualPrompts:
        """A copy of the learned images; of few categories."""
        prompts = PseudoVisualPrompts(
            1,
            self.backbone.image_size,
            per_category=self.config.prompts_per_category,
            frequencies=self.config.frequencies,
        )
        prompts.learned = nn.Parameter(self.table.values(torch.arange(self.table.count)))
        return prompts.to(self.train.device)

    @torch.no_grad()
    def evaluate(self) -> float:
        """By the last vectors of each category, which may be some steps old."""
        return pooled_map(self.config, self.held_out, self.module.bank)


class SampledTextPrompts:
    """Stage 2 with contexts of each category's own; see
    :class:`pvp_fast.training.text.TextPromptStage`.

    The contrast with the visual prompts is among the categories that are encoded.

    Args:
        path: the file of the contexts.
    """

    name = "text prompts"

    def __init__(
        self,
        backbone: Backbone,
        names: tuple[str, ...],
        train: Sentences,
        held_out: Sentences,
        config: TextPromptConfig,
        path: Path,
        *,
        visual: Tensor | None = None,
    ) -> None:
        self.backbone, self.train, self.held_out, self.config = backbone, train, held_out, config
        if config.transfer and visual is None:
            raise InputError("visual: transfer > 0 needs the vectors of stage 1")
        if config.co_learn or not config.class_specific:
            raise InputError(
                "categories_per_step: with some categories a step, text prompts are "
                "class_specific=True and co_learn=False"
            )
        if config.transfer:
            self.name = "text prompts + transfer"
        self.visual = None if visual is None else F.normalize(visual.mean(1), dim=-1)
        self.width = step_width(train.categories, config.categories_per_step)
        self.known = torch.unique(train.labels.indices)
        self.prompts = TextPrompts(
            backbone, names, n_ctx=config.n_ctx, init=config.init, seed=config.loop.seed
        ).to(train.device)
        start = self.prompts.ctx.detach().cpu()
        self.table = RowTable(path, len(names), tuple(start.shape))

        def first() -> Iterator[Tensor]:
            for _ in names:
                yield start

        with Ranks().in_turn():
            self.table.fill(first())
        self.optimizer = RowOptimizer(self.table, config.loop, train.device)
        two = torch.tensor([0, min(1, len(names) - 1)])
        self._each = activation_bytes(
            lambda ctx: self._words(ctx, two[: len(ctx)]), self.table.values(two).to(train.device)
        )
        self.module = _Bank(self.vectors())

    def __len__(self) -> int:
        return len(self.train)

    def _words(self, ctx: Tensor, index: Tensor) -> Tensor:
        found: Tensor = self.prompts(self.backbone, index, ctx)
        return found

    def losses(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        step = _Step(self.train, self.known, self.width, batch, config.loop.batch_size, generator)
        ctx = self.optimizer.take(step.fresh)
        fresh = Ranks().encode(
            lambda own: in_parts(
                self._words, ctx[own], step.fresh[own], each=self._each, several=ALONE
            ),
            torch.arange(len(step.fresh)),
        )
        vectors = step.vectors(self.module.bank, fresh)
        terms = {
            config.loss: classification_loss(config.loss, step.x, vectors, step.y, config.scale)
        }
        if config.transfer and self.visual is not None:
            visual = self.visual[step.fresh.to(self.visual.device)]
            contrast = clip_loss(fresh, visual, scale=1 / config.temperature)
            terms["transfer"] = config.transfer * contrast
        return terms

    def vectors(self) -> Tensor:
        """g (C, D), unit rows."""
        device = self.train.device
        return _whole(
            lambda index: self._words(self.table.values(index.cpu()).to(device), index),
            self.table.count,
            device,
        )

    def contexts(self) -> Tensor:
        """The learned contexts (C, M, W) float32."""
        return self.table.values(torch.arange(self.table.count))

    @torch.no_grad()
    def evaluate(self) -> float:
        """By the last vectors of each category, which may be some steps old."""
        return inner_map(self.held_out, self.module.bank)
