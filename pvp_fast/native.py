"""The one door to the compiled extension ``pvp_fast._C``: arrays instead of addresses, by keyword.

The extension knows no torch. A CPU tensor enters as a NumPy view of its memory (bfloat16 as
uint16), a CUDA tensor as an address; C++ checks dtype, shape and strides (csrc/buffers.h).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pvp_fast.errors import BackendError, InputError

if TYPE_CHECKING:
    from types import ModuleType

_TENSORS = (Tensor, torch.nn.Parameter)
_NO_TENSORS = (type(None), bool, int, float, str, np.ndarray)


@functools.cache
def extension() -> ModuleType:
    """The compiled module.

    Raises:
        BackendError: it is not there; the message says why.
    """
    try:
        from pvp_fast import _C
    except ImportError as error:
        raise BackendError(
            f"the compiled extension pvp_fast._C cannot be loaded ({error}); install the package "
            "with `pip install .`, or ask for backend='torch'"
        ) from error
    return _C


def isa(dtype: str = "") -> str:
    """The instruction set that answers on this CPU, for example "avx512".

    Args:
        dtype: "float32", "bfloat16" or "int8" of a top-k index; by default the best of all that
            may be used. The environment variable PVP_FAST_ISA sets a bound.

    Raises:
        BackendError: PVP_FAST_ISA names what cannot run here, or there is no extension.
    """
    return call("isa", dtype=dtype)


def array(tensor: Tensor) -> np.ndarray:
    """A view of a CPU tensor's memory, bfloat16 as uint16; a copy only if lazily negated."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def call(name: str, **arguments: Any) -> Any:
    """A function of the extension, tensors on the CPU given as arrays.

    Raises:
        InputError: an argument is not what C++ takes; BackendError: it cannot run here.
    """
    for key, value in arguments.items():
        kind = type(value)  # a fifth of isinstance's time, for a dozen arguments
        if kind in _TENSORS:
            arguments[key] = array(value)
        elif kind not in _NO_TENSORS and isinstance(value, Tensor):  # of a class that others made
            arguments[key] = array(value.as_subclass(Tensor))
    return call_with_arrays(name, **arguments)


def call_with_arrays(name: str, *arguments: Any, **named: Any) -> Any:
    """As :func:`call`, where no argument is a tensor: what a small search can do without."""
    try:
        return getattr(extension(), name)(*arguments, **named)
    except ValueError as error:
        raise InputError(str(error)) from error
    except RuntimeError as error:
        raise BackendError(str(error)) from error
