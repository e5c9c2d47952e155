"""How class vectors lie in memory for the extension (csrc/topk/topk.h), in torch.

A category is one lane of a panel of 32: a column of 4-byte words. A word holds one float32, two
bfloat16 or four int8 of the class vector less the index's centre; int8 lanes end in five words
that bound what rounding left out (csrc/topk/int8.h). So every dtype is (panels, words, 32) int32,
and a category changes without the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pvp_fast import native
from pvp_fast.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
LANES = 32
INT8_STATS = 5
INT8_WIDTH = 65536

_MANY, _SAMPLE = 1000, 256  # categories; rows that faster_dtype() looks at
_BLOCK = 8192  # rows encoded at once, a multiple of LANES
_SMALLEST8, _LARGEST8 = 1e-15, 1e15  # magnitudes that int8 quantises; others are always rescored


def word_count(dtype: str, width: int) -> int:
    """Words of one lane."""
    if dtype == "float32":
        return width
    return -(-width // 2) if dtype == "bfloat16" else -(-width // 4) + INT8_STATS


def encode(rows: Tensor, dtype: str, centre: Tensor | None = None) -> Tensor:
    """(n, D) float32 CPU rows to (n, words) int32; int8 takes its (D,) centre."""
    if dtype == "float32":
        return rows.contiguous().view(torch.int32)
    if dtype == "bfloat16":
        even = torch.nn.functional.pad(rows, (0, rows.shape[1] % 2))
        return even.to(torch.bfloat16).contiguous().view(torch.int32)
    return _encode_int8(rows, rows.new_zeros(rows.shape[1]) if centre is None else centre)


def decode(words: Tensor, dtype: str, width: int) -> Tensor:
    """(n, words) int32 of float32 or bfloat16 lanes back to (n, D) float32."""
    # clone, for contiguous() leaves the strides of a single row or column as they are
    words = words.clone(memory_format=torch.contiguous_format)
    return words.view(DTYPES[dtype])[:, :width].float()


def _usable(rows: Tensor) -> Tensor:
    """(n,) bool: the rows whose magnitudes int8 can hold, zero rows among them."""
    largest = rows.abs().amax(dim=1)
    return (largest == 0) | ((largest >= _SMALLEST8) & (largest <= _LARGEST8))


def centre_of(rows: Tensor) -> Tensor:
    """(D,) float32: the mean of (C, D) rows of like lengths, zero where it would not shorten them.

    Embeddings of one encoder share a large mean with a few huge components. Without it a row is
    half as long and needs a fourth of the step: bounds three to six times tighter on CLIP's names.
    """
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device="cpu")
    squares, longest, count = 0.0, 0.0, 0
    for block in rows.split(_BLOCK):
        wide = block[_usable(block)].double()
        if len(wide):
            square = wide.square().sum(dim=1)
            total += wide.sum(dim=0)
            squares, longest = squares + float(square.sum()), max(longest, float(square.max()))
            count += len(wide)
    mean = total / max(count, 1)
    saved = count * float(mean.square().sum())
    if saved > 0.1 * squares and count * longest < 10 * squares:
        return mean.float()
    return torch.zeros_like(mean, dtype=torch.float32)


def faster_dtype(rows: Tensor) -> str:
    """Who finds the float32 answer for (C, D) CPU rows sooner: "int8" or "float32".

    Measured: at 1,000 categories the 8-bit search takes about float32's time for many queries and
    less than half of it for one; the more there are, the less (benchmarks/NOTES.md), where its
    bounds leave few categories open. Here 256 of the rows are looked for among themselves: at most
    a quarter may reach the tenth best.
    """
    categories, width = rows.shape
    if categories < _MANY or width > INT8_WIDTH:
        return "float32"
    sample = rows[:: categories // _SAMPLE][:_SAMPLE]
    if not bool(_usable(sample).all()):
        return "float32"
    centre = centre_of(sample)
    floats = _encode_int8(sample, centre)[:, -4:].contiguous().view(torch.float32).double()
    wide = (sample - centre).double()
    scores = (wide @ wide.T).fill_diagonal_(-torch.inf)
    errors = 2 * floats[:, 1] * floats[:, 2].mean()
    reach = scores.topk(10, dim=1).values[:, -1] - errors
    return "int8" if float((scores >= reach[:, None]).double().mean()) <= 0.25 else "float32"


def _encode_int8(rows: Tensor, centre: Tensor) -> Tensor:
    words = torch.empty(
        (rows.shape[0], word_count("int8", rows.shape[1])), dtype=torch.int32, device="cpu"
    )
    native.call("encode_int8", w=rows, centre=centre, words=words)
    return words


def pack_on_device(rows: Tensor) -> Tensor:
    """(C, D) float32 to float32 panels where they are: (panels, D, 32)."""
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -rows.shape[0] % LANES))
    return padded.reshape(-1, LANES, rows.shape[1]).permute(0, 2, 1).contiguous()


def bfloat16_rows(rows: Tensor) -> Tensor:
    """(n, D) float32 to contiguous bfloat16, D padded with zeros to a multiple of 8 (16 bytes)."""
    return torch.nn.functional.pad(rows.to(torch.bfloat16), (0, -rows.shape[1] % 8)).contiguous()


class Panels:
    """The packed class vectors of one index on the CPU, with room to grow.

    ``data`` is (panels, words, 32) in int32 seen as the index's dtype. For int8, ``vectors`` are
    the (C, D) float32 rows to rescore with and ``centre`` is (D,) float32; else both are None.
    ``arrays`` are these three as the extension reads them.
    """

    def __init__(
        self,
        words: Tensor,
        vectors: Tensor | None,
        dtype: str,
        categories: int,
        centre: Tensor | None = None,
    ) -> None:
        self.dtype, self.categories = dtype, categories
        self._words, self._vectors = words, vectors
        self.centre = centre
        self._show()

    @classmethod
    def of(cls, rows: Tensor, dtype: str) -> Panels:
        """Pack (C, D) float32 CPU rows."""
        categories, width = rows.shape
        if dtype == "int8" and width > INT8_WIDTH:
            raise InputError(f"w has width {width}; int8 sums fit 32 bits up to {INT8_WIDTH}")
        panels = -(-categories // LANES)
        words = torch.empty(
            (panels, word_count(dtype, width), LANES), dtype=torch.int32, device="cpu"
        )
        if dtype == "float32":
            native.call("pack", w=rows, panels=words.view(torch.float32))
            return cls(words, None, dtype, categories)
        centre = centre_of(rows) if dtype == "int8" else None
        for start in range(0, categories, _BLOCK):
            block = encode(rows[start : start + _BLOCK], dtype, centre)
            block = torch.nn.functional.pad(block, (0, 0, 0, -block.shape[0] % LANES))
            at = start // LANES
            words[at : at + block.shape[0] // LANES] = block.view(
                -1, LANES, words.shape[1]
            ).transpose(1, 2)
        vectors = None
        if dtype == "int8":
            vectors = torch.empty((categories, width), dtype=torch.float32, device="cpu")
            vectors.copy_(rows)
        return cls(words, vectors, dtype, categories, centre)

    def _show(self) -> None:
        used = self._words[: -(-self.categories // LANES)]
        self.data = used.view(DTYPES[self.dtype])
        self.vectors = None if self._vectors is None else self._vectors[: self.categories]
        self.arrays: tuple[Any, Any, Any] = (
            native.array(self.data),
            _array(self.vectors),
            _array(self.centre),
        )

    # Copies of the views would not follow what is written to a copy of the whole.
    def __getstate__(self) -> tuple[Any, ...]:
        return self._words, self._vectors, self.dtype, self.categories, self.centre

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        Panels.__init__(self, *state)

    @property
    def nbytes(self) -> int:
        """With the room to grow."""
        parts = (self._words, self._vectors, self.centre)
        return sum(part.nbytes for part in parts if part is not None)

    def rows(self, width: int) -> Tensor:
        """The class vectors as searched, (C, D) float32: a copy."""
        if self.vectors is not None:
            return self.vectors.clone()
        panels = self._words[: -(-self.categories // LANES)]
        words = panels.transpose(1, 2).reshape(-1, panels.shape[1])[: self.categories]
        return decode(words, self.dtype, width)

    def write(self, positions: Tensor, rows: Tensor) -> None:
        """Replace the categories at (n,) positions by (n, D) float32 rows."""
        self._words[positions // LANES, :, positions % LANES] = encode(
            rows, self.dtype, self.centre
        )
        if self._vectors is not None:
            self._vectors[positions] = rows

    def grow(self, rows: Tensor) -> None:
        """Append (n, D) float32 rows; memory grows by half at a time, nothing is packed again."""
        first, last = self.categories, self.categories + rows.shape[0]
        panels, words, vectors = -(-last // LANES), self._words, self._vectors
        if panels > words.shape[0]:
            words = _enlarged(words, panels)
        if vectors is not None and last > vectors.shape[0]:
            vectors = _enlarged(vectors, last)
        # Only now that there is memory for all: an index is never changed by half.
        self._words, self._vectors = words, vectors
        self.write(torch.arange(first, last, device="cpu"), rows)
        self.categories = last
        self._show()

    def move(self, source: Tensor, target: Tensor, categories: int) -> None:
        """Move lanes from source to target, then keep the first ``categories``."""
        words = self._words[source // LANES, :, source % LANES]
        self._words[target // LANES, :, target % LANES] = words
        if self._vectors is not None:
            self._vectors[target] = self._vectors[source]
        self.categories = categories
        if categories % LANES:
            self._words[categories // LANES, :, categories % LANES :] = 0
        self._show()


def _array(tensor: Tensor | None) -> Any:
    return None if tensor is None else native.array(tensor)


def _enlarged(tensor: Tensor, size: int) -> Tensor:
    larger = tensor.new_zeros((max(size, tensor.shape[0] * 3 // 2), *tensor.shape[1:]))
    larger[: tensor.shape[0]] = tensor
    return larger
