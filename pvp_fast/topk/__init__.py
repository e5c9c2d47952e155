"""Batched top-k over class vectors: one index, or one spread over files and machines."""

from pvp_fast.topk.index import TagIndex, topk, topk_ref
from pvp_fast.topk.ops import TopK
from pvp_fast.topk.sharded import ShardedTagIndex, SplitTagIndex

__all__ = ["ShardedTagIndex", "SplitTagIndex", "TagIndex", "TopK", "topk", "topk_ref"]
