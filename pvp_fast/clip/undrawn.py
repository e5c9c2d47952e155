"""Making a model without drawing the weights that a checkpoint is about to replace.

Three quarters of the time of loading a ViT-B/32 went into random numbers. Each draw is left out and
leaves a NaN in its tensor's first place, so that a weight the checkpoint then did not bring shows.
Only the thread inside the block is concerned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_DRAWS = {
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    torch.Tensor.erfinv_,  # of a uniform draw: the second half of a truncated normal
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.trunc_normal_,
    nn.init.xavier_uniform_,
    nn.init.kaiming_uniform_,
}


class undrawn(TorchFunctionMode):  # noqa: N801  a context manager, read as one
    """Inside, this thread's new weights stay as memory was, their first place NaN."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _DRAWS:
            return func(*args, **kwargs)
        tensor: torch.Tensor = args[0] if args else kwargs["tensor"]
        if tensor.is_floating_point() and tensor.numel() and tensor.is_contiguous():
            with torch.no_grad():
                tensor.detach().view(-1)[0] = float("nan")
            return tensor
        return func(*args, **kwargs)


def never_loaded(model: nn.Module) -> list[str]:
    """Names of the weights that still are as :class:`undrawn` left them."""
    return [
        name
        for name, value in model.named_parameters()
        if value.numel() and bool(value.detach().reshape(-1)[0].isnan())
    ]
