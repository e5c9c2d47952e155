"""Teach CLIP new image categories from text alone, and tag images with them at any scale."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pvp_fast.artifact import Artifact
    from pvp_fast.clip.backbone import Backbone
    from pvp_fast.losses.pooling import spatial_softmax_pool
    from pvp_fast.sentences import Corpus, build_corpus
    from pvp_fast.tagging.tagger import Tagger
    from pvp_fast.topk.index import TagIndex
    from pvp_fast.topk.sharded import ShardedTagIndex
    from pvp_fast.training import TrainConfig, train
    from pvp_fast.vocabulary.categories import Category, Vocabulary

__version__ = "0.1.0"

# Public name -> module. Loaded on first use, so that importing the package costs next to nothing.
_HOME = {
    "Artifact": "artifact",
    "Backbone": "clip",
    "Category": "vocabulary",
    "Corpus": "sentences",
    "ShardedTagIndex": "topk",
    "TagIndex": "topk",
    "Tagger": "tagging",
    "TrainConfig": "training",
    "Vocabulary": "vocabulary",
    "build_corpus": "sentences",
    "spatial_softmax_pool": "losses.pooling",
    "train": "training",
}

__all__ = [
    "Artifact",
    "Backbone",
    "Category",
    "Corpus",
    "ShardedTagIndex",
    "TagIndex",
    "Tagger",
    "TrainConfig",
    "Vocabulary",
    "build_corpus",
    "spatial_softmax_pool",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
