"""Which view fits a model's text tower."""

from __future__ import annotations

from typing import Any

from torch import nn

from pvp_fast.clip.hf_tower import HFTextTower
from pvp_fast.clip.text_tower import TextTower, Tower


def text_view(model: nn.Module, tokenizer: Any) -> Tower:
    """The view on ``model``'s text tower, as :class:`~pvp_fast.clip.text_tower.Tower`.

    Raises:
        BackboneError: the tower shows no place where embeddings can enter; it says why.
    """
    own: Any = getattr(model, "text_view", None)  # a transformers model brings its view
    if own is not None:
        brought: Tower = own()
        return brought
    owner: Any = getattr(model, "text", model)
    if hasattr(owner, "pooler") and hasattr(owner, "config"):
        return HFTextTower(owner)
    return TextTower(owner, strips_end=bool(getattr(tokenizer, "strip_sep_token", False)))
