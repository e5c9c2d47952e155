"""Artifacts: the names of the trained one that tests share, and one made without a training."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pvp_fast.artifact import Artifact, TrainingState
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.modules.scoring import Head, LocalBranch
from pvp_fast.vocabulary.categories import Vocabulary

NAMES = ("dog", "cat", "car", "person", "Äpfel")


def make(seed: int = 0, *, local: bool = False) -> Artifact:
    """Three categories, eight dimensions, random vectors."""
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1)

    e, g, v = rows(3, 8), rows(3, 8), rows(3, 2, 8)
    adapter = DualAdapter(e, g, v, residual=0.3, alpha=0.7)
    with torch.no_grad():
        for half in (adapter.query_adapter, adapter.class_adapter):
            half.up.copy_(torch.randn(half.up.shape, generator=generator))
    branch = None
    if local:
        weight = torch.tensor([0.25, 0.0, 1.0])
        branch = LocalBranch(rows(3, 8), weight, torch.tensor([20.0]))
    state = TrainingState(
        text_only=rows(3, 8),
        pixels=torch.randn(3, 2, 3, 4, 4, generator=generator),
        ctx=torch.randn(2, 6, generator=generator),
        local_ctx=torch.randn(2, 6, generator=generator) if local else None,
    )
    backbone = {"name": "tiny", "pretrained": None, "fingerprint": "ab" * 32, "embed_dim": 8}
    vocabulary = Vocabulary(["dog", "cat", "hot dog"])
    platt = torch.tensor([[3.0, -0.5], [2.0, 0.25], [4.0, -1.0]])
    head = Head(adapter, platt, torch.tensor([0.3, 0.5, 0.6]), branch)
    return Artifact(vocabulary, backbone, head, state, {"a": 1}, {"m": 2.0})


def every_tensor(artifact: Artifact) -> dict[str, torch.Tensor]:
    """The head's tensors and the training state's."""
    head = artifact.head
    found = {f"adapter.{name}": value for name, value in head.adapter.state_dict().items()}
    found |= {"platt": head.platt, "thresholds": head.thresholds}
    parts = {"": vars(artifact.training), "local.": vars(head.local) if head.local else {}}
    for prefix, part in parts.items():
        found |= {
            f"{prefix}{name}": value
            for name, value in part.items()
            if isinstance(value, torch.Tensor)
        }
    return found
