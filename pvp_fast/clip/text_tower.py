"""One view on the text towers of CLIP models: from token embeddings to text features.

``encode_text`` starts at token numbers; learned words have to enter behind the embedding table.
A tower here has ``embed`` (numbers to embeddings), ``end`` (where each text stops), ``encode``
(embeddings to features), ``encode_ids`` (both, what the model itself computes) and
``encode_tokens`` (every place in the joint space). :class:`TextTower` is open_clip's transformer,
which it keeps flat on a ``CLIP`` or in ``CustomTextCLIP.text``; Hugging Face encoders are in
``hf_tower``.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from pvp_fast.errors import BackboneError

_PARTS = ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection")
_HINT = "encode_text works, but learning prompts needs a text tower that takes token embeddings"


class Tower(Protocol):
    """What a text tower gives to :class:`~pvp_fast.clip.backbone.Backbone`.

    ``ids`` beside embeddings are the tokens they stand for, of which only the padding is read;
    without them, everything behind ``end`` is padding.
    """

    pool: str

    @property
    def width(self) -> int: ...

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """(N, L) token numbers -> (N, L, W), before positions."""
        ...

    def end(self, ids: torch.Tensor) -> torch.Tensor:
        """Position (N,) of the end-of-text token: the last real token of each row."""
        ...

    def encode(
        self, embedded: torch.Tensor, end: torch.Tensor, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(N, L, W) embeddings and their ends (N,) -> (N, D), not normalised."""
        ...

    def encode_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """(N, L) token numbers -> (N, D), not normalised: the model's own ``encode_text``."""
        ...

    def encode_tokens(self, embedded: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """(N, L, W) embeddings -> (N, L, D): every token through the final projection."""
        ...


class TextTower:
    """An open_clip text transformer. Not a module: the model owns the weights.

    Args:
        owner: the module that holds the transformer.
        strips_end: the tokenizer overwrites the end marker with padding (CLIPA's): a text then
            ends at the first padding, where the marker stood.

    Raises:
        BackboneError: it is no such transformer.
    """

    def __init__(self, owner: Any, *, strips_end: bool = False) -> None:
        kind = type(owner).__name__
        missing = [part for part in _PARTS if not hasattr(owner, part)]
        if missing:
            raise BackboneError(f"text tower {kind} has no {', '.join(missing)}: {_HINT}")
        flat = hasattr(owner, "text_pool_type")  # a CLIP carries its text tower's attributes
        self.pool: str = owner.text_pool_type if flat else getattr(owner, "pool_type", "")
        if self.pool not in ("argmax", "eos", "last", "first"):
            raise BackboneError(f"text tower {kind} pools by {self.pool!r}: {_HINT}")
        eos = getattr(owner, "text_eos_id", None)
        self.eos_id: int = getattr(owner, "eos_id", 2) if eos is None else eos
        self.pad_id: int = getattr(owner, "pad_id", 0)
        self._strips_end = strips_end
        self._owner = owner
        self._class_token: torch.Tensor | None = getattr(owner, "cls_emb", None)
        self._masks_padding = self._class_token is not None or getattr(owner, "use_pad_mask", False)

    @property
    def width(self) -> int:
        return int(self._owner.token_embedding.weight.shape[1])

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self._owner.token_embedding(ids)
        return embedded

    def end(self, ids: torch.Tensor) -> torch.Tensor:
        if self.pool == "argmax":  # CLIP's tokenizer: the highest number of the row
            return ids.argmax(dim=-1)
        if self.pool == "eos":
            return (ids == self.eos_id).int().argmax(dim=-1)
        if self._strips_end:
            return _before_run(ids).clamp(max=ids.shape[1] - 1)
        return end_of_run(ids, self.pad_id)

    def encode_ids(self, ids: torch.Tensor) -> torch.Tensor:
        return self.encode(self.embed(ids), self.end(ids), ids)

    def encode(
        self, embedded: torch.Tensor, end: torch.Tensor, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        real = self._real(embedded, end, ids)
        if self._class_token is not None:
            return self._project(self._hidden(embedded, real, self._needed(embedded, end))[:, -1])
        if self.pool in ("argmax", "eos"):
            x = self._hidden(embedded, real, self._needed(embedded, end))
            pooled = x[torch.arange(x.shape[0], device=x.device), end]
        else:
            pooled = self._hidden(embedded, real)[:, -1 if self.pool == "last" else 0]
        return self._project(pooled)

    def encode_tokens(self, embedded: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        hidden = self._hidden(embedded, self._real(embedded, self.end(ids), ids))
        return self._project(hidden[:, : embedded.shape[1]])

    def _real(
        self, embedded: torch.Tensor, end: torch.Tensor, ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Which places (N, L) are no padding, for a tower that masks it."""
        if not self._masks_padding:
            return None
        if ids is not None:  # CLIP's vocabulary has "!" where its padding is: not one run
            return ids != self.pad_id
        return real_until(end, embedded.shape[1])

    def _needed(self, embedded: torch.Tensor, end: torch.Tensor) -> int | None:
        """Under a causal mask nothing behind the end reaches it: padding, most of a row, can go.

        CoCa's class token attends to the first padding as well (see ``_key_mask``).
        """
        if self._owner.attn_mask is None or not end.numel():
            return None
        behind = 1 if self._class_token is None else 2
        return min(int(end.max()) + behind, embedded.shape[1])

    def _hidden(
        self, embedded: torch.Tensor, real: torch.Tensor | None, length: int | None = None
    ) -> torch.Tensor:
        """(N, L, W) -> (N, length, W), and a class token's place behind them where there is one."""
        owner = self._owner
        dtype = owner.transformer.get_cast_dtype()
        places = torch.arange(length or embedded.shape[1], device=embedded.device)
        x = embedded[:, : len(places)].to(dtype)
        if self._class_token is not None:
            x = torch.cat([x, self._class_token.to(dtype).expand(len(x), 1, -1)], dim=1)
            places = torch.cat([places, places.new_tensor([embedded.shape[1]])])
        x = x + owner.positional_embedding[places].to(dtype)
        mask = owner.attn_mask
        mask = None if mask is None else mask[places][:, places]
        if real is not None:
            padding = self._padding_mask(real, places, x.dtype)
            mask = padding if mask is None else mask + padding
            mask = mask.repeat_interleave(owner.transformer.resblocks[0].attn.num_heads, 0)
        hidden: torch.Tensor = owner.ln_final(owner.transformer(x, attn_mask=mask))
        return hidden

    def _padding_mask(
        self, real: torch.Tensor, places: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """(N, S, S), -inf on the keys ``places`` that are padding.

        open_clip's first CoCa put the class token's own entry in front of the row instead of
        behind it, and published weights are trained so: each key is read by its left neighbour's
        entry. ``correct_cls_mask`` is the other order.
        """
        if self._class_token is not None:
            own = real.new_ones(len(real), 1)
            real = torch.cat([real, own] if self._owner.correct_cls_mask else [own, real], dim=1)
        keys = real[:, places]
        mask = torch.zeros(keys.shape, dtype=dtype, device=keys.device)
        return mask.masked_fill(~keys, float("-inf"))[:, None, :].expand(-1, len(places), -1)

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        projection = self._owner.text_projection
        if projection is None:
            return x
        if isinstance(projection, nn.Linear):
            projected: torch.Tensor = projection(x)
            return projected
        return x @ projection


def end_of_run(ids: torch.Tensor, pad_id: int) -> torch.Tensor:
    """(N, L) token numbers -> (N,) where each text ends, by what fills its row.

    That is the padding number, or the end marker itself (SigLIP); in the second case the first of
    that run still belongs to the text.
    """
    words = _before_run(ids)
    return torch.where(ids[:, -1] == pad_id, (words - 1).clamp(min=0), words)


def _before_run(ids: torch.Tensor) -> torch.Tensor:
    """How many places stand before the run of one number that ends each row."""
    differs = (ids != ids[:, -1:]).int()
    return differs.any(dim=1) * (ids.shape[1] - differs.flip(1).argmax(dim=1))


def real_until(end: torch.Tensor, length: int) -> torch.Tensor:
    """(N,) ends -> (N, length) bool, True up to and with the end."""
    return torch.arange(length, device=end.device) <= end[:, None]
