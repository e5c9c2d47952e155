"""Parquet: one row an image; a file that is replaced, or a folder that grows by whole files."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pvp_fast.errors import InputError, SinkError
from pvp_fast.files import atomic_write
from pvp_fast.sinks.base import Sink, lock, plain, writing

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult

_GROUP = 4096  # images in a row group, and in a file of a folder


class ParquetSink(Sink):
    """One file, replaced when the run has come to its end.

    Columns: ``image`` string, ``tags`` list<struct<name string, score float>>, ``error`` string
    or null, ``artifact`` string.

    Args:
        path: the file.
        artifact: version of the artifact that tags.
        metadata: further key-value pairs for the file's footer.

    Raises:
        InputError: pyarrow is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        artifact: str,
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.path, self.artifact = Path(path), artifact
        self._arrow = _pyarrow()
        self._schema = _schema(self._arrow, metadata)
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> ParquetSink:
        self._target = atomic_write(self.path)
        with writing(self.path):
            stream = self._target.__enter__()
        self._writer = self._arrow.parquet.ParquetWriter(stream, self._schema, compression="zstd")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            try:
                self._flush()
                with writing(self.path):
                    self._writer.close()
            except SinkError as failed:
                error, kind, trace = failed, type(failed), failed.__traceback__
                self._abandon(kind, error, trace)
                raise
            with writing(self.path):
                self._target.__exit__(None, None, None)
        else:
            self._abandon(kind, error, trace)

    def _abandon(
        self,
        kind: type[BaseException] | None,
        error: BaseException,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # the disk may be full for the footer as well
            self._writer.close()
        with contextlib.suppress(OSError, SinkError):
            self._target.__exit__(kind, error, trace)

    def write(self, result: TagResult) -> None:
        self._rows.append(_row(result, self.artifact))
        if len(self._rows) >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            with writing(self.path):
                self._writer.write_table(
                    self._arrow.Table.from_pylist(self._rows, schema=self._schema)
                )
            self._rows.clear()


class ParquetFolderSink(Sink):
    """A folder of Parquet files; every few thousand images make one more, whole or absent.

    A key is never written twice. One process at a time may append.

    Raises:
        InputError: ``path`` is a file, or pyarrow is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], artifact: str) -> None:
        self.path, self.artifact = Path(path), artifact
        _pyarrow()
        if self.path.is_file():
            raise InputError(
                f"output: {self.path} is one Parquet file, which cannot grow; give a folder"
            )
        self._waiting: list[TagResult] = []
        self._lock: int | None = None

    def __enter__(self) -> ParquetFolderSink:
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if os.name == "posix":
                self._lock = os.open(self.path, os.O_RDONLY)
        try:
            if self._lock is not None:
                lock(self._lock, self.path)
            self._keys = read_keys(self.path, self.artifact)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not isinstance(error, SinkError):
                self._flush()
        finally:
            self._close()

    def _close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def has(self, key: str) -> bool:
        return plain(key) in self._keys

    def write(self, result: TagResult) -> None:
        if self.has(result.image):
            return
        self._keys.add(plain(result.image))
        self._waiting.append(result)
        if len(self._waiting) >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        with ParquetSink(self.path / f"part-{uuid.uuid4().hex}.parquet", self.artifact) as part:
            for result in self._waiting:
                part.write(result)
        self._waiting.clear()


def read_keys(path: str | os.PathLike[str], artifact: str) -> set[str]:
    """Images that this artifact has tagged, in a Parquet file or in the files of a folder.

    Raises:
        SinkError: a file is damaged or holds something else.
    """
    arrow = _pyarrow()
    source = Path(path)
    keys: set[str] = set()
    for file in sorted(source.glob("*.parquet")) if source.is_dir() else [source]:
        try:
            with arrow.parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches(columns=["image", "artifact"]):
                    columns = (batch.column(n).to_pylist() for n in ("image", "artifact"))
                    keys.update(image for image, by in zip(*columns, strict=True) if by == artifact)
        except (OSError, KeyError, arrow.ArrowException) as error:
            raise SinkError(
                f"{file} is no Parquet file of tags ({error}); remove it or give another folder"
            ) from error
    return keys


def _row(result: TagResult, artifact: str) -> dict[str, Any]:
    return {
        "image": plain(result.image),
        "tags": [{"name": plain(t.name), "score": t.score} for t in result.tags],
        "error": None if result.error is None else plain(result.error),
        "artifact": artifact,
    }


def _schema(arrow: Any, metadata: dict[str, str] | None) -> Any:
    tag = arrow.struct([("name", arrow.string()), ("score", arrow.float32())])
    columns = [
        arrow.field("image", arrow.string(), nullable=False),
        arrow.field("tags", arrow.list_(tag), nullable=False),
        arrow.field("error", arrow.string()),
        arrow.field("artifact", arrow.string(), nullable=False),
    ]
    return arrow.schema(columns, metadata=metadata)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            'format: Parquet needs pyarrow; pip install "pvp_fast[parquet]"'
        ) from error
    return pyarrow
