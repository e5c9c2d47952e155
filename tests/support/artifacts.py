"""Artifacts: the names of the trained one that tests share, and one made without a training."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pvp_fast.artifact import ADAPTER, Artifact
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.vocabulary.categories import Vocabulary

NAMES = ("dog", "cat", "car", "person", "Äpfel")


def make(seed: int = 0) -> Artifact:
    """Three categories, eight dimensions, random vectors."""
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1)

    e, g, v = rows(3, 8), rows(3, 8), rows(3, 2, 8)
    state = DualAdapter(e, g, v, residual=0.3, alpha=0.7).state_dict()
    banks = {"original": e, "text_only": rows(3, 8), "text": g, "visual": v}
    kept = {f"{ADAPTER}{k}": t for k, t in state.items() if k not in banks}
    rest = {"platt": torch.ones(3, 2), "thresholds": torch.full((3,), 0.5)}
    backbone = {"name": "tiny", "pretrained": None, "fingerprint": "ab" * 32, "embed_dim": 8}
    vocabulary = Vocabulary(["dog", "cat", "hot dog"])
    return Artifact(vocabulary, backbone, {**banks, **kept, **rest}, {"a": 1}, {"m": 2.0})
