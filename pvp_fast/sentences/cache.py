"""Text features computed once: float16 memory maps keyed by model and sentences.

The text encoder is frozen, so a sentence's features never change (METHOD section 2). A killed run
goes on after its last finished block; a finished file appears under its name all at once.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch

from pvp_fast.errors import BackboneError, InputError
from pvp_fast.files import atomic_write, sync_folder
from pvp_fast.sentences.corpus import Corpus
from pvp_fast.threads.budget import Streams
from pvp_fast.threads.streams import in_streams, team

try:
    import fcntl
except ImportError:  # not a POSIX system: two processes may then do the same work twice
    fcntl = None  # type: ignore[assignment]

_VERSION = 1
_BLOCK_BYTES = 8 << 20  # written, flushed and recorded together
_PROBED_ROWS = 64
Progress = Callable[[int, int], None]


class TextEncoder(Protocol):
    """What the cache needs of a backbone."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def embed_dim(self) -> int: ...
    def encode_text(self, texts: list[str]) -> torch.Tensor: ...


class TokenEncoder(TextEncoder, Protocol):
    """What the cache needs of a backbone for token features."""

    @property
    def context_length(self) -> int: ...
    def encode_text_tokens(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]: ...


@dataclass(frozen=True)
class _Array:
    """One file of the cache: a row for each sentence."""

    name: str
    row: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.row)) * self.dtype.itemsize

    def header(self, rows: int) -> bytes:
        import io

        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": (rows, *self.row),
            },
        )
        return buffer.getvalue()


class FeatureCache:
    """A folder of text features.

    Args:
        root: the folder; created when needed, safe to delete at any time.

    Safe for several processes at once on POSIX systems: the second waits for the first and reads
    its result.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def features(
        self,
        backbone: TextEncoder,
        corpus: Corpus,
        *,
        batch_size: int = 256,
        progress: Progress | None = None,
    ) -> np.ndarray[Any, np.dtype[np.float16]]:
        """Sentence features, (N, D) float16 unit rows, as a read-only memory map.

        Args:
            backbone: the frozen text encoder.
            corpus: N sentences.
            batch_size: sentences encoded at once.
            progress: called with (sentences done, N) after each block.

        Raises:
            BackboneError: the encoder returned another shape, or a value that is not finite.
        """
        array = _Array("features", (backbone.embed_dim,), np.dtype(np.float16))

        def encode(texts: list[str]) -> list[np.ndarray]:
            return [_to_half(backbone.encode_text(texts), (len(texts), backbone.embed_dim))]

        return self._get(backbone, corpus, "text", [array], encode, batch_size, progress)[0]

    def token_features(
        self,
        backbone: TokenEncoder,
        corpus: Corpus,
        *,
        batch_size: int = 256,
        progress: Progress | None = None,
        max_tokens: int | None = None,
    ) -> tuple[np.ndarray[Any, np.dtype[np.float16]], np.ndarray[Any, np.dtype[np.bool_]]]:
        """Token features (N, L, D) float16 and mask (N, L) bool (True: a real token).

        Args:
            max_tokens: keep only the first L = ``max_tokens`` positions to save space; the
                default is the model's context length. Others as for `features`.
        """
        if max_tokens is not None and max_tokens < 1:
            raise InputError(f"max_tokens is {max_tokens}; give at least 1, or None for all")
        length = min(max_tokens or backbone.context_length, backbone.context_length)
        width = backbone.embed_dim
        arrays = [
            _Array("tokens", (length, width), np.dtype(np.float16)),
            _Array("mask", (length,), np.dtype(np.bool_)),
        ]

        def encode(texts: list[str]) -> list[np.ndarray]:
            features, mask = backbone.encode_text_tokens(texts)
            given = min(int(features.shape[1]), length)
            values = np.zeros((len(texts), length, width), np.float16)
            real = np.zeros((len(texts), length), np.bool_)
            values[:, :given] = _to_half(features[:, :given], (len(texts), given, width))
            real[:, :given] = mask[:, :given].cpu().numpy()
            return [values, real]

        features, mask = self._get(
            backbone, corpus, f"tokens{length}", arrays, encode, batch_size, progress
        )
        return features, mask

    def _get(
        self,
        backbone: TextEncoder,
        corpus: Corpus,
        kind: str,
        arrays: list[_Array],
        encode: Callable[[list[str]], list[np.ndarray]],
        batch_size: int,
        progress: Progress | None,
    ) -> list[np.ndarray]:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give at least 1")
        rows = len(corpus)
        if rows == 0:  # a memory map cannot be empty
            return [np.zeros((0, *a.row), a.dtype) for a in arrays]
        precision = getattr(backbone, "precision", "float32")
        if precision != "float32":
            kind = f"{kind}-{precision}"
        key = f"{kind}-{backbone.fingerprint[:16]}-{corpus.sentences_fingerprint[:16]}"
        self.root.mkdir(parents=True, exist_ok=True)
        identity = {
            "version": _VERSION,
            "backbone": backbone.fingerprint,
            "sentences": corpus.sentences_fingerprint,
            "kind": kind,
            "rows": rows,
            "shapes": [[rows, *a.row] for a in arrays],
        }
        with _locked(self.root / f"{key}.lock"):
            found = self._open(key, arrays, rows, identity)
            if found is None:
                several = team(getattr(backbone, "device", torch.device("cpu")))
                self._build(
                    key, arrays, corpus.sentences, identity, encode, batch_size, several, progress
                )
                found = self._open(key, arrays, rows, identity)
        if found is None:
            raise BackboneError(
                f"the features written to {self.root} are not unit vectors; encode_text of "
                f"{type(backbone).__name__} must return rows of length 1"
            )
        return found

    def _path(self, key: str, array: _Array, ending: str = "npy") -> Path:
        return self.root / f"{key}.{array.name}.{ending}"

    def _open(
        self, key: str, arrays: list[_Array], rows: int, identity: dict[str, Any]
    ) -> list[np.ndarray] | None:
        """The finished arrays, or None where one is missing, damaged or of something else."""
        if _read_json(self.root / f"{key}.json") != identity:
            return None
        opened: list[np.ndarray] = []
        for array in arrays:
            path = self._path(key, array)
            try:
                size = path.stat().st_size
                if size != len(array.header(rows)) + rows * array.row_bytes:
                    return None
                values = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError):
                return None
            if values.shape != (rows, *array.row) or values.dtype != array.dtype:
                return None
            opened.append(values)
        return opened if _plausible(opened) else None

    def _build(
        self,
        key: str,
        arrays: list[_Array],
        sentences: Sequence[str],
        identity: dict[str, Any],
        encode: Callable[[list[str]], list[np.ndarray]],
        batch_size: int,
        several: Streams,
        progress: Progress | None,
    ) -> None:
        rows = len(sentences)
        record = self.root / f"{key}.progress.json"
        done = self._resumable(key, arrays, record, identity)
        block = max(1, _BLOCK_BYTES // sum(a.row_bytes for a in arrays) // batch_size) * batch_size
        with contextlib.ExitStack() as stack:
            streams: list[IO[bytes]] = []
            for array in arrays:
                path = self._path(key, array, "partial")
                stream: IO[bytes] = stack.enter_context(path.open("r+b" if done else "w+b"))
                if not done:
                    stream.write(array.header(rows))
                    stream.truncate(len(array.header(rows)) + rows * array.row_bytes)
                streams.append(stream)
            if progress:
                progress(done, rows)
            for start in range(done, rows, block):
                stop = min(start + block, rows)
                # Sentences of like length share a batch, of which the longest counts.
                order = sorted(range(start, stop), key=lambda row: len(sentences[row]))
                whole = [np.empty((stop - start, *a.row), a.dtype) for a in arrays]
                chunks = [order[n : n + batch_size] for n in range(0, len(order), batch_size)]
                batches = in_streams(
                    lambda chosen: encode([sentences[row] for row in chosen]), chunks, several
                )
                for chosen, batch in zip(chunks, batches, strict=True):
                    for into, values in zip(whole, batch, strict=True):
                        into[np.asarray(chosen) - start] = values
                for array, stream, values in zip(arrays, streams, whole, strict=True):
                    stream.seek(len(array.header(rows)) + start * array.row_bytes)
                    stream.write(values.tobytes())
                for written in streams:  # on disk before the record says so
                    written.flush()
                    os.fsync(written.fileno())
                with atomic_write(record, "w") as out:
                    json.dump({**identity, "done": stop}, out)
                if progress:
                    progress(stop, rows)
        for array in arrays:
            os.replace(self._path(key, array, "partial"), self._path(key, array))
        sync_folder(self.root)
        with atomic_write(self.root / f"{key}.json", "w") as out:
            json.dump(identity, out)
        record.unlink(missing_ok=True)

    def _resumable(
        self, key: str, arrays: list[_Array], record: Path, identity: dict[str, Any]
    ) -> int:
        """Sentences already in the partial files; 0 where they do not fit this work."""
        found = _read_json(record)
        if not isinstance(found, dict):
            return 0
        done = found.pop("done", 0)
        rows = identity["rows"]
        if found != identity or not isinstance(done, int) or not 0 < done <= rows:
            return 0
        for array in arrays:
            header = array.header(rows)
            try:
                with self._path(key, array, "partial").open("rb") as stream:
                    whole = os.fstat(stream.fileno()).st_size
                    if stream.read(len(header)) != header:
                        return 0
            except OSError:
                return 0
            if whole != len(header) + rows * array.row_bytes:
                return 0
        return done


def _to_half(features: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    if tuple(features.shape) != shape:
        raise BackboneError(
            f"the text encoder returned shape {tuple(features.shape)} for {shape[0]} sentences; "
            f"{shape} was expected"
        )
    values = features.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise BackboneError(
            "the text encoder returned NaN or infinity; check the checkpoint and the precision"
        )
    return values.to(torch.float16).numpy()


def _plausible(arrays: list[np.ndarray]) -> bool:
    """Spot check: rows are unit vectors (a file system that lost a block gives zeros)."""
    features = arrays[0]
    rows = np.unique(np.linspace(0, len(features) - 1, _PROBED_ROWS).astype(np.int64))
    norms = np.linalg.norm(features[rows].astype(np.float32), axis=-1)
    if len(arrays) > 1:
        norms = norms[np.asarray(arrays[1][rows])]
    return bool(np.all(np.abs(norms - 1) < 0.05))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; the empty file stays, as removing it would be a race."""
    with path.open("a") as stream:
        if fcntl is not None:
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
