"""The Hugging Face encoders that open_clip takes as text towers: RoBERTa, XLM-R, mT5, NLLB, BERT.

Padding is masked, so only the longest text of a batch is computed. Positions count real tokens
from the left, with each family's own offset: the library derives them from embeddings as from
token numbers as long as all padding is on the right, where these tokenizers put it.
"""

from __future__ import annotations

from typing import Any

import torch

from pvp_fast.clip.text_tower import real_until


class HFTextTower:
    """The view of :class:`~pvp_fast.clip.text_tower.Tower` on open_clip's ``HFTextEncoder``."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self.pool: str = type(owner.pooler).__name__
        self.pad_id = int(owner.config.pad_token_id)

    @property
    def width(self) -> int:
        return int(self._table.weight.shape[1])

    @property
    def _table(self) -> Any:
        return self._owner.transformer.get_input_embeddings()

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self._table(ids)  # NLLB's table scales by the root of W itself
        return embedded

    def end(self, ids: torch.Tensor) -> torch.Tensor:
        real = (ids != self.pad_id).int()
        return real.any(dim=1) * (ids.shape[1] - 1 - real.flip(1).argmax(dim=1))

    def encode_ids(self, ids: torch.Tensor) -> torch.Tensor:
        real = ids != self.pad_id
        length = _longest(real)
        return self._pooled(real[:, :length], input_ids=ids[:, :length])

    def encode(
        self, embedded: torch.Tensor, end: torch.Tensor, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        real = real_until(end, embedded.shape[1]) if ids is None else ids != self.pad_id
        length = _longest(real)
        return self._pooled(real[:, :length], inputs_embeds=embedded[:, :length])

    def encode_tokens(self, embedded: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Each token takes the way of the pooled one: the encoder's own pooler, the projection."""
        real = (ids != self.pad_id).long()
        out = self._owner.transformer(inputs_embeds=embedded, attention_mask=real)
        hidden = out.last_hidden_state
        if self.pool == "ClsPooler" and getattr(out, "pooler_output", None) is not None:
            pooler = self._owner.transformer.pooler
            hidden = pooler.activation(pooler.dense(hidden))
        features: torch.Tensor = self._owner.proj(hidden)
        return features

    def _pooled(self, real: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        mask = real.long()
        out = self._owner.transformer(**inputs, attention_mask=mask)
        features: torch.Tensor = self._owner.proj(self._owner.pooler(out, mask))
        return features


def _longest(real: torch.Tensor) -> int:
    """Places up to the last real token of any row."""
    used = real.any(dim=0).nonzero()
    return int(used[-1]) + 1 if len(used) else 1
