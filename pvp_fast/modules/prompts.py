"""What is learned in stages 1 and 2: images that stand for categories, and words before names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pvp_fast.clip.backbone import Backbone
from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.errors import InputError
from pvp_fast.modules.images import image_space
from pvp_fast.modules.templates import CLIP_TEMPLATES

Index = torch.Tensor | Sequence[int] | None
_AT_ONCE = 1024  # names whose templates are encoded at once


class PseudoVisualPrompts(nn.Module):
    """P learnable images per category: P_c of METHOD section 3 (arXiv 2407.04994, 2405.06926).

    Starts as noise with the power of natural images over its frequencies, or half of it in coarse
    patches where pixels are learned. A category's noise depends on ``seed`` and its position only,
    so a larger vocabulary begins with the same images.

    Attributes:
        learned: parameter (C, P, 3, h, w) float32: coefficients of frequencies, or pixels.
        space: what makes it pixels, see :mod:`pvp_fast.modules.images`.
    """

    def __init__(
        self,
        n_categories: int,
        image_size: int | tuple[int, int],
        *,
        per_category: int = 1,
        seed: int = 0,
        std: float | None = None,
        frequencies: float = 0.5,
    ) -> None:
        """Make the starting images.

        Args:
            std: root mean square of their pixels, in normalised pixel space; None is 0.15 for
                frequencies and 0.5 for pixels.
            frequencies: the share of each axis' frequencies that is learned, up to 1; 0 learns
                pixels.
        """
        super().__init__()
        if n_categories < 1 or per_category < 1:
            raise InputError(
                f"n_categories={n_categories}, per_category={per_category}: both at least 1"
            )
        if std is not None and not std >= 0:
            raise InputError(f"std={std}: the spread of the starting noise is 0 or more")
        self.space = image_space(image_size, frequencies)
        first = torch.stack(list(self.space.starts(n_categories, per_category, seed)))
        self.learned = nn.Parameter(first if std is None else first * (std / self.space.spread))

    def _load_from_state_dict(
        self, state: dict[str, torch.Tensor], prefix: str, *rest: Any
    ) -> None:
        pixels = f"{prefix}pixels"  # in a run from before frequencies were learned
        if pixels in state:
            state[f"{prefix}learned"] = state.pop(pixels)
        super()._load_from_state_dict(state, prefix, *rest)

    @property
    def pixels(self) -> torch.Tensor:
        """(C, P, 3, H, W) float32, in the backbone's normalised pixel space, differentiable."""
        return self.space(self.learned)

    @property
    def n_categories(self) -> int:
        return self.learned.shape[0]

    @property
    def per_category(self) -> int:
        return self.learned.shape[1]

    def forward(
        self, backbone: Backbone, index: Index = None, *, batch_size: int = 128
    ) -> torch.Tensor:
        """Encode the images of the categories in ``index`` (all by default).

        Args:
            index: (n,) category numbers.
            batch_size: images the encoder sees at once.

        Returns:
            (n, P, D) unit rows v_c, differentiable in ``learned``.
        """
        chosen = self.learned if index is None else self.learned[_as_index(index, self.learned)]
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: must be at least 1")
        if not len(chosen):
            return chosen.new_zeros(0, self.per_category, backbone.embed_dim)
        chunks = chosen.flatten(0, 1).split(batch_size)
        features = torch.cat([backbone.encode_image(self.space(chunk)) for chunk in chunks])
        return features.view(len(chosen), self.per_category, -1)

    @torch.no_grad()
    def images(self, preprocess: Preprocess) -> torch.Tensor:
        """The prompts as pictures: (C, P, H, W, 3) uint8 on the CPU."""
        shown = preprocess.denormalize(self.pixels).mul(255).round()
        return shown.to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous().cpu()


class TextPrompts(nn.Module):
    """Learnable words before each category's name: g_c of METHOD section 4 (CoOp, 2109.01134).

    A prompt reads ``[ctx_1 .. ctx_M] name.``; the context takes the places that M words "X"
    would have, and everything else stays the frozen embedding of its token.

    Attributes:
        ctx: parameter (M, W), or (C, M, W) with ``class_specific``, float32.
        n_ctx: M, after clipping.
    """

    ids: torch.Tensor
    end: torch.Tensor

    def __init__(
        self,
        backbone: Backbone,
        names: Sequence[str],
        *,
        n_ctx: int = 16,
        class_specific: bool = False,
        init: str | None = None,
        seed: int = 0,
    ) -> None:
        """Tokenise the names and start the context.

        Args:
            names: C category names; underscores read as spaces.
            n_ctx: M, lowered to what the longest name leaves free in the context.
            init: words the context starts from, e.g. "a photo of a"; then M is their number of
                tokens (as in CoOp). None starts from noise of spread 0.02.

        Raises:
            InputError: no names, an empty name, or a name (or ``init``) too long to fit.
            BackboneError: the text tower cannot take embeddings.
        """
        super().__init__()
        _check_names(names)
        if n_ctx < 1:
            raise InputError(f"n_ctx={n_ctx}: at least one context token")
        texts = [f"{_readable(name)}." for name in names]
        ids = backbone.tokenize(texts)
        end = backbone.text_end(ids)
        longest = int(end.argmax())
        free = backbone.context_length - 1 - int(end[longest])
        if free < 1:
            raise InputError(
                f"name {names[longest]!r} leaves no room for a prompt in the "
                f"{backbone.context_length} tokens of {backbone.name}; shorten it"
            )
        start = _start_tokens(backbone)
        words = None if init is None else _word_ids(backbone, init, start)
        if words is not None and len(words) > free:
            raise InputError(
                f"init={init!r} is {len(words)} tokens; beside {names[longest]!r} "
                f"{free} fit in the context of {backbone.name}"
            )
        self.n_ctx = min(n_ctx, free) if words is None else len(words)
        filler = _word_ids(backbone, "X", start)[:1] if words is None else words
        gap = filler.expand(self.n_ctx).expand(len(names), -1)
        # The padding cut off behind is at least as long as the gap: n_ctx <= free.
        whole = torch.cat([ids[:, :start], gap, ids[:, start:]], dim=1)[:, : ids.shape[1]]
        self._start = start
        self.class_specific = class_specific
        # Rebuilt from the names, so kept out of checkpoints; embedded when they are needed: of many
        # names that is far more than their numbers.
        with torch.no_grad():
            embedded = backbone.embed_tokens(whole[:1]).detach()
        self.register_buffer("ids", whole.to(embedded.device), persistent=False)
        self.register_buffer("end", (end + self.n_ctx).to(embedded.device), persistent=False)
        shape = (self.n_ctx, embedded.shape[-1])
        if words is None:
            generator = torch.Generator().manual_seed(seed)
            first = torch.randn(shape, generator=generator) * 0.02
        else:
            first = embedded[0, start : start + self.n_ctx].float()
        if class_specific:
            first = first.expand(len(names), *shape)
        self.ctx = nn.Parameter(first.clone().to(embedded.device, embedded.dtype))

    def forward(
        self, backbone: Backbone, index: Index = None, ctx: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Encode the prompts of the categories in ``index`` (all by default).

        Args:
            ctx: (n, M, W), contexts in place of those learned here.

        Returns:
            (n, D) unit rows g_c, differentiable in the context.
        """
        end, ids = self.end, self.ids
        middle: torch.Tensor = self.ctx if ctx is None else ctx
        if index is not None:
            rows = _as_index(index, ids)
            end, ids = end[rows], ids[rows]
            middle = middle[rows] if self.class_specific and ctx is None else middle
        if not len(ids):
            return middle.new_zeros(0, backbone.embed_dim)
        with torch.no_grad():
            embedded = backbone.embed_tokens(ids).detach()
        middle = middle if middle.ndim == 3 else middle.expand(len(ids), -1, -1)
        before, after = embedded[:, : self._start], embedded[:, self._start + self.n_ctx :]
        prompt = torch.cat([before, middle.to(embedded.dtype), after], dim=1)
        return backbone.encode_embedded(prompt, end, ids)


@torch.no_grad()
def prompt_ensemble(
    backbone: Backbone, names: Sequence[str], templates: Sequence[str] = CLIP_TEMPLATES
) -> torch.Tensor:
    """The original CLIP's class vectors e_c: mean of a name's features over the templates.

    Args:
        names: C category names. templates: texts with one ``{}``.

    Returns:
        (C, D) float32 unit rows.
    """
    _check_names(names)
    if not templates or any(t.count("{}") != 1 for t in templates):
        raise InputError(f"templates={list(templates)!r}: each text needs exactly one '{{}}'")
    parts = []
    for start in range(0, len(names), _AT_ONCE):  # many times as many texts as names
        some = names[start : start + _AT_ONCE]
        texts = [t.replace("{}", _readable(name)) for name in some for t in templates]
        features = backbone.encode_text(texts).view(len(some), len(templates), -1)
        parts.append(F.normalize(features.mean(dim=1), dim=-1))
    return torch.cat(parts)


def _readable(name: str) -> str:
    return name.replace("_", " ").strip()


def _check_names(names: Sequence[str]) -> None:
    if isinstance(names, str) or not len(names):
        raise InputError(f"names={names!r}: give a list of at least one category name")
    empty = next((n for n in names if not isinstance(n, str) or not _readable(n)), None)
    if empty is not None:
        raise InputError(f"names holds {empty!r}: every category needs a name")


def _start_tokens(backbone: Backbone) -> int:
    """How many marker tokens the tokenizer puts before the first word (CLIP: 1, T5-style: 0).

    An empty text has nothing else before its end marker. Two texts would not tell: SentencePiece
    may begin every word with the same token, a lone space.
    """
    return int(backbone.text_end(backbone.tokenize([""]))[0])


def _word_ids(backbone: Backbone, text: str, start: int) -> torch.Tensor:
    ids = backbone.tokenize([text])
    words = ids[0, start : int(backbone.text_end(ids)[0])]
    if not len(words):
        raise InputError(f"init={text!r} has no words; give some, or None")
    return words


def _as_index(index: torch.Tensor | Sequence[int], rows: torch.Tensor) -> torch.Tensor:
    numbers = torch.as_tensor(index, device=rows.device)
    if numbers.ndim != 1 or numbers.is_floating_point() or numbers.dtype == torch.bool:
        if numbers.numel() == 0 and numbers.ndim == 1:
            return numbers.long()
        raise InputError(
            f"index has dtype {numbers.dtype} and shape {tuple(numbers.shape)}; "
            "give one row of category numbers"
        )
    count = rows.shape[0]
    if numbers.numel() and (int(numbers.min()) < 0 or int(numbers.max()) >= count):
        raise InputError(f"index={numbers.tolist()}: categories go from 0 to {count - 1}")
    return numbers.long()
