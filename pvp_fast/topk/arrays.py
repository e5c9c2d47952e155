"""The arrays users hand in: tensors, NumPy or DLPack, checked and seen as torch tensors."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pvp_fast.errors import InputError

Array: TypeAlias = Any  # a torch.Tensor, a numpy.ndarray, or anything with __dlpack__

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_UNIT_ROWS = 1 << 16  # in float64 at once


class _Writable:
    """Shows a read-only NumPy array as writable: torch warns otherwise, and we never write."""

    def __init__(self, array: np.ndarray) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self.owner = array


def float32(value: Array, name: str) -> Tensor:
    """A detached float32 tensor over the memory of value, never a copy."""
    if isinstance(value, np.ndarray):
        if value.dtype != np.float32:
            raise InputError(
                f"{name} is {value.dtype}, not float32; try {name}.astype(numpy.float32)"
            )
        if any(stride < 0 or stride % value.itemsize for stride in value.strides):
            raise InputError(
                f"{name} has strides {value.strides} that torch cannot hold; "
                f"try numpy.ascontiguousarray({name})"
            )
        if not value.flags.writeable:
            value = np.asarray(_Writable(value))
        return torch.from_numpy(value)
    if not isinstance(value, Tensor):
        if not hasattr(value, "__dlpack__"):
            raise InputError(
                f"{name} is a {type(value).__name__}; give a float32 torch tensor, NumPy array "
                "or DLPack object"
            )
        value = torch.from_dlpack(value)
    if value.dtype != torch.float32:
        raise InputError(f"{name} is {value.dtype}, not torch.float32; try {name}.float()")
    if value.layout != torch.strided:
        raise InputError(f"{name} has layout {value.layout}; try {name}.to_dense()")
    return value.detach() if value.requires_grad else value


def matrix(value: Array, name: str) -> Tensor:
    """As float32, of shape (B, D) or (C, D)."""
    tensor = float32(value, name)
    if tensor.ndim != 2 or tensor.shape[1] == 0:
        hint = f"; for a single vector try {name}[None]" if tensor.ndim == 1 else ""
        size = "(B, D)" if name == "x" else "(C, D)"
        raise InputError(f"{name} has shape {tuple(tensor.shape)}; give {size} with D >= 1{hint}")
    return tensor


def check_device(tensor: Tensor, name: str, device: torch.device) -> None:
    """Raises where a tensor is not beside the index."""
    if tensor.device != device:
        raise InputError(
            f"{name} is on {tensor.device} but the index is on {device}; try {name}.to('{device}')"
        )


def class_vectors(w: Tensor, normalize: bool) -> Tensor:
    """(C, D) finite rows, of unit length if asked (infinite ones may stay where they are not)."""
    bad = ~torch.isfinite(w) if normalize else torch.isnan(w)
    if bool(bad.any()):
        row = int(bad.any(dim=1).nonzero()[0])
        what = "a NaN or an infinity" if normalize else "a NaN"
        raise InputError(f"w has {what} in row {row}; every class vector must be finite")
    return _unit_rows(w) if normalize else w


def _unit_rows(w: Tensor) -> Tensor:
    """Rows over their length, the length in float64 so that huge and tiny rows survive."""
    unit = torch.empty(w.shape, dtype=torch.float32, device=w.device)
    for rows, to in zip(w.split(_UNIT_ROWS), unit.split(_UNIT_ROWS), strict=True):
        wide = rows.double()
        length = wide.norm(dim=1, keepdim=True)
        to.copy_(wide / torch.where(length > 0, length, torch.ones_like(length)))
    return unit


def positions(indices: Array, categories: int) -> Tensor:
    """(n,) int64 on the CPU: distinct places of an index of so many categories."""
    places = torch.as_tensor(indices, device="cpu")
    if places.ndim == 1 and places.numel() == 0:
        return places.to(torch.int64)
    if places.ndim != 1 or places.dtype not in _INTEGERS:
        raise InputError(
            f"indices have shape {tuple(places.shape)} and {places.dtype}; give a "
            "sequence of integers"
        )
    places = places.to(torch.int64)
    low, high = int(places.min()), int(places.max())
    if low < 0 or high >= categories:
        raise InputError(
            f"indices reach from {low} to {high}; the index has categories 0 to {categories - 1}"
        )
    if len(places.unique()) != len(places):
        raise InputError("indices name a category twice; name each one once")
    return places
