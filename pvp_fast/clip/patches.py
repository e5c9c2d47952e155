"""Some of a vision transformer's patches: what a step of stage 1 need not look at costs nothing.

Masking at random, as FLIP trains CLIP (Li et al., arXiv 2212.00794): the tokens left out are
dropped behind their position embeddings, and every block has that many fewer.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pvp_fast.errors import BackboneError

_kept = threading.local()  # its index (first + k,); the first tokens are no patches
_one_at_a_time = threading.Lock()


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
    """Within it the tower, called by this thread, looks at these patches alone.

    Args:
        patches: (k,) int64 in 0 .. L - 1.

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
    dropout: nn.Module = getattr(owner, name)
    with _one_at_a_time:
        if _keep not in dropout._forward_hooks.values():
            dropout.register_forward_hook(_keep)
    _kept.index = torch.cat([torch.arange(first), patches.cpu() + first])
    try:
        yield
    finally:
        del _kept.index


def _keep(dropout: nn.Module, inputs: object, x: Tensor) -> Tensor | None:
    """Tokens (N, first + L, W) -> (N, first + k, W) where this thread said so."""
    index = getattr(_kept, "index", None)
    return None if index is None else x.index_select(1, index.to(x.device))


def _place(visual: Any) -> tuple[Any, str, int] | None:
    """Whose patch dropout it is, its name, and how many tokens stand before the patches."""
    if type(visual).__name__ == "VisionTransformer":
        return visual, "patch_dropout", 1
    trunk: Any = getattr(visual, "trunk", None)
    if type(trunk).__name__ == "VisionTransformer" and trunk.patch_embed.grid_size is not None:
        return trunk, "patch_drop", int(trunk.num_prefix_tokens)
    return None
