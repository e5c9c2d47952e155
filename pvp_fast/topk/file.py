"""A TagIndex as one safetensors file whose panels are searched where they lie in the file.

The header is padded so that the data begins at a multiple of 64 bytes; the panels come first. A
loaded file is mapped privately: processes share its pages until one of them writes to a page.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pvp_fast.errors import ArtifactError
from pvp_fast.files import atomic_write
from pvp_fast.topk.panels import DTYPES, INT8_WIDTH, LANES, Panels, word_count

_FORMAT = "pvp_fast.TagIndex/2"
_NAMES = {"float32": "F32", "bfloat16": "BF16", "int8": "I8"}
_SIZES = {"float32": 4, "bfloat16": 2, "int8": 1}
_ALIGNMENT = 64
_LONGEST_HEADER = 1 << 16


def _entries(dtype: str, categories: int, width: int) -> dict[str, dict[str, Any]]:
    """The tensors of the file as its header describes them."""
    words, panels = word_count(dtype, width), -(-categories // LANES)
    size = 4 * panels * words * LANES
    shape = [panels, words, LANES * 4 // _SIZES[dtype]]
    entries = {"panels": {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [0, size]}}
    if dtype == "int8":
        end = size + 4 * categories * width
        entries["vectors"] = {
            "dtype": "F32", "shape": [categories, width], "data_offsets": [size, end],
        }  # fmt: skip
        entries["centre"] = {
            "dtype": "F32", "shape": [width], "data_offsets": [end, end + 4 * width],
        }  # fmt: skip
    return entries


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.contiguous().view(torch.uint8).reshape(-1).numpy()
    return memoryview(flat)  # type: ignore[arg-type]  # NumPy's arrays are buffers


def _digest(metadata: dict[str, str], parts: Iterable[memoryview]) -> str:
    """SHA-256 of what the header says and of the data."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def save_panels(path: str | os.PathLike[str], panels: Panels, width: int, normalize: bool) -> None:
    """Write the file whole or not at all."""
    parts = [_bytes(panels.data)]
    if panels.vectors is not None and panels.centre is not None:
        parts += [_bytes(panels.vectors), _bytes(panels.centre)]
    header: dict[str, Any] = _entries(panels.dtype, panels.categories, width)
    metadata = {
        "format": _FORMAT,
        "dtype": panels.dtype,
        "categories": str(panels.categories),
        "width": str(width),
        "normalize": str(normalize),
    }
    header["__metadata__"] = {**metadata, "sha256": _digest(metadata, parts)}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with atomic_write(path) as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for part in parts:
            stream.write(part)


def load_panels(path: str | os.PathLike[str], *, verify: bool) -> tuple[Panels, int, bool]:
    """The panels over the mapped file, their width, and whether rows are normalised.

    Raises:
        ArtifactError: the file is missing, damaged, or not a TagIndex.
    """
    name = Path(path)
    try:
        with open(name, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise ArtifactError(f"{name} is not a TagIndex file: its header is damaged")
            header = json.loads(stream.read(length))
            dtype, categories, width, normalize, digest = _read_header(header)
            entries = _entries(dtype, categories, width)
            start = 8 + length
            stop = max(entry["data_offsets"][1] for entry in entries.values())
            if header != {**entries, "__metadata__": header["__metadata__"]}:
                raise ArtifactError(f"{name} is damaged: its header contradicts itself")
            if start % _ALIGNMENT or size != start + stop:
                raise ArtifactError(
                    f"{name} is damaged: {size} bytes where {start + stop} were expected"
                )
            mapped = np.memmap(stream, dtype=np.uint8, mode="c")
    except OSError as error:
        raise ArtifactError(f"{name} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{name} is not a TagIndex file: {error}") from error
    metadata = {k: v for k, v in header["__metadata__"].items() if k != "sha256"}
    if verify and _digest(metadata, [memoryview(mapped[start:])]) != digest:  # type: ignore[arg-type]
        raise ArtifactError(f"{name} is damaged: its SHA-256 does not match; write it again")
    # A private mapping is writable; as a plain array it keeps the mapping alive.
    data = torch.from_numpy(np.asarray(mapped)[start:])

    def part(entry: dict[str, Any], kind: torch.dtype) -> Tensor:
        begin, end = entry["data_offsets"]
        return data[begin:end].view(kind)

    words = part(entries["panels"], torch.int32).view(-1, word_count(dtype, width), LANES)
    vectors = centre = None
    if dtype == "int8":
        vectors = part(entries["vectors"], torch.float32).view(categories, width)
        centre = part(entries["centre"], torch.float32)
    return Panels(words, vectors, dtype, categories, centre), width, normalize


def _read_header(header: Any) -> tuple[str, int, int, bool, str]:
    """What the metadata says, each of it in range; ValueError, KeyError or TypeError if not."""
    meta = header["__metadata__"]
    if meta["format"] != _FORMAT:
        raise ValueError(f"format {meta['format']!r} is not {_FORMAT!r}")
    dtype = meta["dtype"]
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown")
    categories, width = int(meta["categories"]), int(meta["width"])
    if not (0 < categories < 1 << 40 and 0 < width < 1 << 31):
        raise ValueError(f"{categories} categories of width {width} are out of range")
    if dtype == "int8" and width > INT8_WIDTH:
        raise ValueError(f"width {width} is too large for int8")
    if meta["normalize"] not in ("True", "False"):
        raise ValueError("normalize is neither True nor False")
    return dtype, categories, width, meta["normalize"] == "True", str(meta["sha256"])
