"""The k best categories of every image vector: similarity, threshold and top-k in one pass.

For queries x (B, D) and class vectors w (C, D)

    score[b, c] = scale * <x[b], w[c]> + bias[c]

and row b keeps its k largest scores that reach the thresholds, equal scores ordered by the lower
category. On the CPU the (B, C) scores are never written: the extension reads x and the packed w
once and keeps a running top k. Its accumulation order is fixed (csrc/topk/topk.h: one chain of
fused multiply-adds in float32), so the bits do not depend on the instruction set or the threads.

Three dtypes of the packed class vectors trade memory traffic for nothing or little:

- float32: the scores of float32.
- bfloat16: x and w are rounded to bfloat16, products are exact and summed in float32 in a fixed
  order; denormals count as zero.
- int8: the answer of float32, bit for bit (recall 1.0 by construction). An 8-bit search bounds
  every score from both sides; only categories that the bounds leave open are scored in float32.
  It is fast where they are few, as with unit vectors of learned embeddings, and slow but right
  elsewhere. It keeps the float32 rows too: 5 bytes a number instead of 4.

``dtype="auto"`` takes int8 where it is the faster way to the float32 answer: from 1,000 categories
on, if the bounds are narrower than the scores differ; else float32.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from torch import Tensor

from pvp_fast import native
from pvp_fast.dispatch import is_plain
from pvp_fast.errors import BackendError, InputError
from pvp_fast.topk.arrays import Array, check_device, class_vectors, float32, matrix, positions
from pvp_fast.topk.file import load_panels, save_panels
from pvp_fast.topk.ops import Query, TopK, engine, search, search_plainly
from pvp_fast.topk.panels import DTYPES, Panels, bfloat16_rows, faster_dtype, pack_on_device

_FLOAT32_INFINITY = 2.0**128 - 2.0**103  # the least number that rounds to it


class TagIndex:
    """Class vectors, packed once for the device they live on.

    Any number of threads may search one index at once; none may while it is being changed.

    Args:
        w: (C, D) float32 torch tensor, NumPy array or DLPack object; any strides. It is copied.
        dtype: "float32", "bfloat16" or "int8" (CPU only): how they are packed, see above. "auto":
            the float32 answer by "int8" where that is faster, else by "float32"; the attribute
            ``dtype`` says which.
        normalize: scale the rows of w to unit length first (a zero row stays zero). Queries are
            used as they are: give unit rows to get cosines.

    Raises:
        InputError: shape, dtype, a NaN in w, or an infinity in w that is to be normalised.
        BackendError: int8 is asked for on a device, or the extension is missing.
    """

    def __init__(self, w: Array, dtype: str = "float32", *, normalize: bool = True) -> None:
        if dtype not in (*DTYPES, "auto"):
            raise InputError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}, auto")
        rows = matrix(w, "w")
        if rows.shape[0] == 0:
            raise InputError("w has no rows; give at least one class vector, shape (C, D)")
        if dtype == "int8" and rows.device.type != "cpu":
            raise BackendError(f"dtype 'int8' needs w on the CPU, it is on {rows.device}")
        rows = class_vectors(rows, normalize)
        if dtype == "auto":
            dtype = faster_dtype(rows) if rows.device.type == "cpu" else "float32"
        self.dtype, self.normalize = dtype, normalize
        self.categories, self.width = int(rows.shape[0]), int(rows.shape[1])
        self.device = rows.device
        # On the CPU only the panels are kept (csrc/topk/topk.h), elsewhere the rows; the other form
        # is made when a backend asks for it.
        self._packed: Panels | None = None
        self._rows: Tensor | None = None
        self._device_panels: Tensor | None = None
        if rows.device.type == "cpu":
            self._packed = Panels.of(rows, dtype)
        else:
            self._rows = rows.to(DTYPES[dtype]).float().contiguous().clone()

    def __len__(self) -> int:
        return self.categories

    def __repr__(self) -> str:
        return (
            f"TagIndex(categories={self.categories}, width={self.width}, dtype='{self.dtype}', "
            f"device='{self.device}')"
        )

    @property
    def isa(self) -> str:
        """What answers by default: the instruction set of this CPU ("avx512"), or the device."""
        return native.isa(self.dtype) if self._packed is not None else str(self.device)

    @property
    def nbytes(self) -> int:
        """Memory that the class vectors take, in bytes, with room to grow and every packed form."""
        packed = 0 if self._packed is None else self._packed.nbytes
        return packed + sum(t.nbytes for t in (self._rows, self._device_panels) if t is not None)

    @property
    def w(self) -> Tensor:
        """The class vectors as searched, (C, D) float32: a copy on the CPU."""
        if self._packed is not None:
            return self._packed.rows(self.width)
        if self._rows is None:
            raise BackendError("the index holds no class vectors")
        return self._rows

    def add(self, w: Array) -> None:
        """Append class vectors, (n, D) as in the constructor: they become categories C, C + 1, …"""
        rows = self._new_rows(w)
        if self._packed is not None:
            self._packed.grow(rows)
        else:
            self._rows = torch.cat([self.w, rows.to(DTYPES[self.dtype]).float()])
        self.categories += int(rows.shape[0])
        self._device_panels = None

    def update(self, indices: Array, w: Array) -> None:
        """Replace the categories at (n,) ``indices`` (distinct integers) by rows of w (n, D)."""
        places, rows = positions(indices, self.categories), self._new_rows(w)
        if rows.shape[0] != len(places):
            raise InputError(f"w has {rows.shape[0]} rows for {len(places)} indices")
        if self._packed is not None:
            self._packed.write(places, rows)
        else:
            self.w[places.to(self.device)] = rows.to(DTYPES[self.dtype]).float()
        self._device_panels = None

    def remove(self, indices: Array) -> Tensor:
        """Remove the categories at (n,) ``indices``; the last ones move into the freed places.

        Returns:
            (C - n,) int64 on the CPU: the former index of every category that is left. Names and
            per-category arrays follow with ``names = [names[i] for i in order]``.

        Raises:
            InputError: an index is out of range or named twice, or nothing would be left.
        """
        places = positions(indices, self.categories)
        left = self.categories - len(places)
        if left == 0:
            raise InputError(f"indices name all {self.categories} categories; an index keeps one")
        gone = torch.zeros(self.categories, dtype=torch.bool, device="cpu")
        gone[places] = True
        holes = gone[:left].nonzero()[:, 0]
        movers = left + (~gone[left:]).nonzero()[:, 0]
        order = torch.arange(left, device="cpu")
        order[holes] = movers
        if self._packed is not None:
            self._packed.move(movers, holes, left)
        else:
            self._rows = self.w[order.to(self.device)]
        self.categories = left
        self._device_panels = None
        return order

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the packed index to a safetensors file, whole or not at all.

        Raises:
            BackendError: the index is not on the CPU.
        """
        if self._packed is None:
            raise BackendError(f"only an index on the CPU is saved, this one is on {self.device}")
        save_panels(path, self._packed, self.width, self.normalize)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = True) -> TagIndex:
        """Map a saved index into memory: nothing is copied, and processes share one copy.

        Changing a loaded index copies what it touches; the file stays as it is. Replace the file
        by :meth:`save`, never write into it while it is mapped.

        Args:
            path: what :meth:`save` wrote.
            verify: read the whole file once to check its SHA-256.

        Raises:
            ArtifactError: the file is missing, damaged, or not a TagIndex.
        """
        index = cls.__new__(cls)
        index._packed, index.width, index.normalize = load_panels(path, verify=verify)
        index.dtype, index.categories = index._packed.dtype, index._packed.categories
        index.device = torch.device("cpu")
        index._rows = index._device_panels = None
        return index

    def _new_rows(self, w: Array) -> Tensor:
        rows = matrix(w, "w")
        if rows.shape[1] != self.width:
            raise InputError(f"w has {rows.shape[1]} columns but the index has width {self.width}")
        check_device(rows, "w", self.device)
        return class_vectors(rows, self.normalize)

    def topk(
        self,
        x: Array,
        k: int,
        threshold: float | Array | None = None,
        bias: Array | None = None,
        scale: float = 1.0,
        *,
        per_category_threshold: Array | None = None,
        backend: str = "auto",
    ) -> TopK:
        """The k best categories of every row of x.

        Args:
            x: (B, D) float32 queries on the index's device; any strides, used without a copy.
            k: how many to keep, >= 1; may exceed C, ``counts`` says how many there are.
            threshold: keep scores >= this number, or >= these (C,) float32 numbers. None: all.
            bias: (C,) float32, added to the scaled similarities.
            scale: finite factor on the similarities.
            per_category_threshold: (C,) float32, beside a threshold that is one number.
            backend: "auto" takes "native" on the CPU and "torch" elsewhere. "torch" writes the
                scores in blocks of rows and sums in whatever order matmul does, so its scores
                may differ in the last bits; the tie rule is the same. "cuda" is a fused kernel
                for k <= 256 (beyond, "torch" is the way: scores of some rows, then their best):
                float32 with the bits of "native", bfloat16 on tensor cores, which sum in their own
                order. It is not the default because it has not been measured yet. It waits for
                the device to raise about NaN; captured in a CUDA graph (call it once before) it
                does not, and a row with a NaN score has the count -1. An explicit backend runs
                or raises.

        Returns:
            :class:`TopK`. No gradient flows through it.

        Raises:
            InputError: an argument cannot be used, or a row of x has a NaN score.
            BackendError: the backend cannot run on this device or in this build.
        """
        queries = matrix(x, "x")
        if queries.shape[1] != self.width:
            raise InputError(
                f"x has {queries.shape[1]} columns but the index has width {self.width}; "
                "encode the queries with the backbone that made the class vectors"
            )
        check_device(queries, "x", self.device)
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise InputError(f"k is {k!r}; give an integer >= 1")
        if not abs(scale) < _FLOAT32_INFINITY:
            raise InputError(f"scale is {scale!r}: NaN, or infinite in float32; give a smaller one")
        minimum, minima = -math.inf, None
        if threshold is None:
            pass
        elif isinstance(threshold, (int, float, np.floating, np.integer)):
            minimum = float(threshold)
            if math.isnan(minimum):
                raise InputError("threshold is NaN; give a number, or None to keep every score")
        else:
            minima = self._per_category(threshold, "threshold")
        if per_category_threshold is not None:
            if minima is not None:
                raise InputError("threshold is an array too; give one number beside the other")
            minima = self._per_category(per_category_threshold, "per_category_threshold")
        added = None if bias is None else self._per_category(bias, "bias")
        chosen = engine(backend, self.device, int(k))
        rest = (self.categories, minimum, minima, added, float(scale))
        if chosen == "native" and self._packed is not None and is_plain(queries):
            w, vectors, centre = self._packed.arrays
            return search_plainly(queries, Query(w, vectors, centre, *rest), int(k))
        w, vectors, centre = self._read_by(chosen)
        if chosen == "torch" and self.dtype == "bfloat16":
            queries = queries.to(torch.bfloat16).float()
        return search(queries, Query(w, vectors, centre, *rest), int(k))

    def _read_by(self, backend: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The class vectors as a backend reads them, and int8's float32 rows and centre."""
        if backend == "native" and self._packed is not None:
            return self._packed.data, self._packed.vectors, self._packed.centre
        if backend == "cuda":
            if self._device_panels is None:
                pack = bfloat16_rows if self.dtype == "bfloat16" else pack_on_device
                self._device_panels = pack(self.w)
            return self._device_panels, None, None
        return self.w, None, None

    def _per_category(self, values: Array, name: str) -> Tensor:
        tensor = float32(values, name)
        if tuple(tensor.shape) != (self.categories,):
            raise InputError(
                f"{name} has shape {tuple(tensor.shape)}; give one number per category, "
                f"shape ({self.categories},)"
            )
        check_device(tensor, name, self.device)
        return tensor


def topk(
    x: Array,
    w: Array,
    k: int,
    threshold: float | Array | None = None,
    bias: Array | None = None,
    scale: float = 1.0,
    *,
    normalize: bool = True,
    backend: str = "auto",
) -> TopK:
    """``TagIndex(w, normalize=normalize).topk(x, k, ...)`` for a single use of w.

    Shapes, dtypes and errors are those of :class:`TagIndex`, which is the faster one when the
    same class vectors serve more than one call.
    """
    index = TagIndex(w, normalize=normalize)
    return index.topk(x, k, threshold, bias, scale, backend=backend)


def topk_ref(
    x: Tensor,
    w: Tensor,
    k: int,
    threshold: float | Tensor | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
    *,
    normalize: bool = True,
) -> TopK:
    """What :func:`topk` computes, in plain PyTorch, in the dtype of x and w. No argument checks."""
    if normalize:
        w = torch.nn.functional.normalize(w, dim=1)
    scores = scale * (x @ w.T)
    if bias is not None:
        scores = scores + bias
    kept = torch.ones_like(scores, dtype=torch.bool) if threshold is None else scores >= threshold
    # Stable sorts: equal scores keep ascending categories; then the kept ones move to the front.
    values, order = scores.sort(dim=1, descending=True, stable=True)
    absent, front = (~kept.gather(1, order)).sort(dim=1, stable=True)
    values = values.gather(1, front).masked_fill(absent, -math.inf)[:, :k]
    order = order.gather(1, front).masked_fill(absent, -1)[:, :k]
    missing = k - values.shape[1]
    if missing > 0:
        values = torch.nn.functional.pad(values, (0, missing), value=-math.inf)
        order = torch.nn.functional.pad(order, (0, missing), value=-1)
    return TopK(values, order, (order >= 0).sum(dim=1))
