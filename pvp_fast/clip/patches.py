"""Some of a vision transformer's patches: what a step of stage 1 need not look at costs nothing.

Masking at random, as FLIP trains CLIP (Li et al., arXiv 2212.00794): the tokens left out are
dropped behind their position embeddings, and every block has that many fewer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pvp_fast.errors import BackboneError


def patch_count(visual: Any) -> int:
    """L, how many patches an image tower cuts its image into; 0 where it cannot leave any out."""
    place = _place(visual)
    if place is None:
        return 0
    owner, _, _ = place
    rows, columns = owner.grid_size if owner is visual else owner.patch_embed.grid_size
    return int(rows * columns)


@contextlib.contextmanager
def only(visual: Any, patches: Tensor) -> Iterator[None]:
    """Within it the tower looks at these patches alone, (k,) int64 in 0 .. L - 1.

    Raises:
        BackboneError: this tower cannot leave patches out.
    """
    place = _place(visual)
    if place is None:
        raise BackboneError(
            f"image tower {type(getattr(visual, 'trunk', visual)).__name__} cannot leave patches "
            "out (a ViT of open_clip or timm can); give patches=1"
        )
    owner, name, first = place
    before = getattr(owner, name)
    setattr(owner, name, _Keep(patches, first))
    try:
        yield
    finally:
        setattr(owner, name, before)


class _Keep(nn.Module):
    """Tokens (N, first + L, W) -> (N, first + k, W); the first are no patches."""

    index: Tensor

    def __init__(self, patches: Tensor, first: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.cat([torch.arange(first), patches.cpu() + first]))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index.to(x.device))


def _place(visual: Any) -> tuple[Any, str, int] | None:
    """Whose patch dropout it is, its name, and how many tokens stand before the patches."""
    if type(visual).__name__ == "VisionTransformer":
        return visual, "patch_dropout", 1
    trunk: Any = getattr(visual, "trunk", None)
    if type(trunk).__name__ == "VisionTransformer" and trunk.patch_embed.grid_size is not None:
        return trunk, "patch_drop", int(trunk.num_prefix_tokens)
    return None
