"""One view on the text towers of open_clip: from token embeddings to text features.

open_clip keeps a standard text transformer in two places: flat on a ``CLIP`` (``transformer``,
``token_embedding``, ...) and in ``CustomTextCLIP.text``. Both are driven here by hand, because
prompt learning has to enter after the embedding table, which ``encode_text`` does not allow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pvp_fast.errors import BackboneError

_PARTS = ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection")


class TextTower:
    """A standard open_clip text transformer. Not a module: the model owns the weights.

    Args:
        strips_end: the tokenizer overwrites the end marker with padding (CLIPA's): a text then
            ends at the first padding, where the marker stood.

    Raises:
        BackboneError: the tower is not such a transformer (Hugging Face towers, CoCa).
    """

    def __init__(self, model: nn.Module, *, strips_end: bool = False) -> None:
        owner: Any = getattr(model, "text", model)
        kind = type(owner).__name__
        hint = "encode_text works, but learning prompts needs a standard open_clip text transformer"
        missing = [part for part in _PARTS if not hasattr(owner, part)]
        if missing:
            raise BackboneError(f"text tower {kind} has no {', '.join(missing)}: {hint}")
        if getattr(owner, "cls_emb", None) is not None or getattr(owner, "use_pad_mask", False):
            raise BackboneError(f"text tower {kind} has a class token or a padding mask: {hint}")
        flat = hasattr(owner, "text_pool_type")  # a CLIP carries its text tower's attributes
        self.pool: str = owner.text_pool_type if flat else getattr(owner, "pool_type", "")
        if self.pool not in ("argmax", "eos", "last", "first"):
            raise BackboneError(f"text tower {kind} pools by {self.pool!r}: {hint}")
        eos = getattr(owner, "text_eos_id", None)
        self.eos_id: int = getattr(owner, "eos_id", 2) if eos is None else eos
        self.pad_id: int = getattr(owner, "pad_id", 0)
        self._strips_end = strips_end
        self._owner = owner

    @property
    def width(self) -> int:
        return int(self._owner.token_embedding.weight.shape[1])

    @property
    def vocab_size(self) -> int:
        return int(self._owner.token_embedding.weight.shape[0])

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """(N, L) token numbers -> (N, L, W), before positions."""
        embedded: torch.Tensor = self._owner.token_embedding(ids)
        return embedded

    def end(self, ids: torch.Tensor) -> torch.Tensor:
        """Position (N,) of the end-of-text token: the last real token of each row."""
        if self.pool == "argmax":  # CLIP's tokenizer: the highest number of the row
            return ids.argmax(dim=-1)
        if self.pool == "eos":
            return (ids == self.eos_id).int().argmax(dim=-1)
        # Other tokenizers fill the row with the padding number, or with the end marker itself
        # (SigLIP); in the second case the first of that run still belongs to the text.
        fill = ids[:, -1:]
        differs = (ids != fill).int()
        words = differs.any(dim=1) * (ids.shape[1] - differs.flip(1).argmax(dim=1))
        if self._strips_end:
            return words.clamp(max=ids.shape[1] - 1)
        return torch.where(fill[:, 0] == self.pad_id, (words - 1).clamp(min=0), words)

    def encode(self, embedded: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """(N, L, W) embeddings and their ends (N,) -> (N, D), not normalised."""
        if self.pool in ("argmax", "eos"):
            x = self._hidden(self._cut(embedded, end))
            pooled = x[torch.arange(x.shape[0], device=x.device), end]
        else:
            pooled = self._hidden(embedded)[:, -1 if self.pool == "last" else 0]
        return self._project(pooled)

    def encode_tokens(self, embedded: torch.Tensor) -> torch.Tensor:
        """(N, L, W) embeddings -> (N, L, D): every token through the final projection."""
        return self._project(self._hidden(embedded))

    def _cut(self, embedded: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        # Under a causal mask nothing behind the end can reach it: drop the padding, which is
        # most of a row (a caption has 15 tokens, a row 77).
        if self._owner.attn_mask is None or not end.numel():
            return embedded
        return embedded[:, : int(end.max()) + 1]

    def _hidden(self, embedded: torch.Tensor) -> torch.Tensor:
        owner = self._owner
        length = embedded.shape[1]
        dtype = owner.transformer.get_cast_dtype()
        x = embedded.to(dtype) + owner.positional_embedding[:length].to(dtype)
        mask = owner.attn_mask
        mask = None if mask is None else mask[:length, :length]
        hidden: torch.Tensor = owner.ln_final(owner.transformer(x, attn_mask=mask))
        return hidden

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        projection = self._owner.text_projection
        if projection is None:
            return x
        if isinstance(projection, nn.Linear):
            projected: torch.Tensor = projection(x)
            return projected
        return x @ projection
