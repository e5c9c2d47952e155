"""Parquet: one row an image; a file that is replaced, or a folder that grows by whole files."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pvp_fast.errors import InputError, SinkError
from pvp_fast.files import atomic_write
from pvp_fast.sinks.base import Sink, lock, writing
from pvp_fast.sinks.ledger import Ledger, Record, name_of
from pvp_fast.sinks.names import plain
from pvp_fast.tagging.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult

SCHEMA = "pvp_fast.schema"  # in the footer
_GROUP = 4096  # images in a row group, and in a file of a folder


class ParquetSink(Sink):
    """One file, replaced when the run has come to its end.

    Columns: ``image`` string, ``tags`` list<struct<name string, score float>>, ``error`` string
    or null, ``artifact`` string; and what going on needs: ``settings`` string, ``path`` string
    (null where ``image`` says it), ``size`` and ``mtime_ns`` int64, null where it was no file.

    Args:
        path: the file.
        artifact: version of the artifact that tags.
        ledger: what notes the images' files; its settings are recorded.
        metadata: further key-value pairs for the file's footer.

    Raises:
        InputError: pyarrow is not installed.
    """

    ledger: Ledger

    def __init__(
        self,
        path: str | os.PathLike[str],
        artifact: str,
        ledger: Ledger,
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.path, self.artifact, self.ledger = Path(path), artifact, ledger
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
        self.write_row(
            row_of(result, self.artifact, self.ledger.record(result.image, result.error))
        )

    def write_row(self, row: dict[str, Any]) -> None:
        """Take a row as :func:`row_of` makes it."""
        self._rows.append(row)
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

    An image done anew has its row in the later file count; the earlier one is taken out at the end
    of the run. One process at a time may append.

    Raises:
        InputError: ``path`` is a file, or pyarrow is not installed.
    """

    ledger: Ledger

    def __init__(self, path: str | os.PathLike[str], artifact: str, ledger: Ledger) -> None:
        self.path, self.artifact, self.ledger = Path(path), artifact, ledger
        _pyarrow()
        if self.path.is_file():
            raise InputError(
                f"output: {self.path} is one Parquet file, which cannot grow; give a folder"
            )
        self._waiting: list[dict[str, Any]] = []
        self._lock: int | None = None

    def __enter__(self) -> ParquetFolderSink:
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if os.name == "posix":
                self._lock = os.open(self.path, os.O_RDONLY)
        try:
            if self._lock is not None:
                lock(self._lock, self.path)
            self._twice = read_into(self.ledger, self.path, self.artifact)
            numbers = (_number(file) for file in self.path.glob("*.parquet"))
            self._next = 1 + max(numbers, default=0)
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
            gone = {(name, self.artifact) for name in self.ledger.superseded}
            if error is None and (self._twice or gone):
                with contextlib.suppress(OSError):  # no room for it: the next run will
                    keep_last(self.path, gone)
        finally:
            self._close()

    def _close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def has(self, key: str) -> bool:
        return self.ledger.has(key)

    def write(self, result: TagResult) -> None:
        record = self.ledger.record(result.image, result.error)
        if self.ledger.is_done(result.image, record.content):
            return  # named twice
        self._twice |= self.ledger.add(result.image, record, self.path)
        self._waiting.append(row_of(result, self.artifact, record))
        if len(self._waiting) >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        file = self.path / f"part-{self._next:08d}-{uuid.uuid4().hex}.parquet"
        with ParquetSink(file, self.artifact, self.ledger) as part:
            for row in self._waiting:
                part.write_row(row)
        self._next += 1
        self._waiting.clear()


def read_into(ledger: Ledger, path: str | os.PathLike[str], artifact: str) -> bool:
    """Tell a ledger what a Parquet file, or the files of a folder, hold of this artifact.

    Returns:
        Whether an image is there twice.

    Raises:
        InputError: it was made with other settings.
        SinkError: a file is damaged or holds something else.
    """
    twice = False
    for file, rows in _read(Path(path)):
        for row in rows:
            if row["artifact"] == artifact:
                twice |= ledger.add(row["image"], _record(row), file)
    return twice


def keep_last(folder: Path, gone: Set[tuple[str, str]] = frozenset()) -> None:
    """Of each image and artifact leave the last row, in the order of the files' names.

    Args:
        gone: images and artifacts of which none is left.

    Raises:
        OSError: a file cannot be replaced; those before it are as they should be.
    """
    last: dict[tuple[str, str], tuple[Path, int]] = {}
    for file, rows in _read(folder):
        last |= {_name(row): (file, number) for number, row in enumerate(rows)}
    for file, rows in _read(folder):
        kept = [
            last[name] == (file, number) and name not in gone
            for number, name in enumerate(map(_name, rows))
        ]
        if not any(kept):
            file.unlink()
        elif not all(kept):
            _keep(file, kept)


def read_rows(file: Path, artifact: str) -> Iterator[tuple[str, Record]]:
    """Images and records of one file.

    Raises:
        SinkError: it is damaged or holds something else.
    """
    return ((row["image"], _record(row)) for row in _rows(file) if row["artifact"] == artifact)


def keep_rows(file: Path, wanted: Callable[[str, Record], bool]) -> None:
    """Rewrite a file without the images that are not wanted.

    Raises:
        OSError: it cannot be replaced, and is as it was.
    """
    _keep(file, [wanted(row["image"], _record(row)) for row in _rows(file)])


def _keep(file: Path, kept: list[bool]) -> None:
    arrow = _pyarrow()
    table = arrow.parquet.read_table(file).filter(arrow.array(kept, arrow.bool_()))
    with atomic_write(file) as stream:
        arrow.parquet.write_table(table, stream, compression="zstd")


def _read(path: Path) -> Iterator[tuple[Path, Iterator[dict[str, Any]]]]:
    """Files, oldest first, and what their rows say beside the tags."""
    files = sorted(path.glob("*.parquet"), key=_number) if path.is_dir() else [path]
    for file in files:
        yield file, _rows(file)


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    arrow = _pyarrow()
    columns = ["image", "artifact", "error", "settings", "path", "size", "mtime_ns"]
    try:
        with arrow.parquet.ParquetFile(file) as opened:
            lacking = [name for name in columns if name not in opened.schema_arrow.names]
            if lacking:
                raise KeyError(f"no column {', '.join(lacking)}")
            for batch in opened.iter_batches(columns=columns):
                yield from batch.to_pylist()
    except (OSError, KeyError, arrow.ArrowException) as error:
        raise SinkError(
            f"{file} is no Parquet file of tags ({error}); remove it or give another folder"
        ) from error


def _record(row: dict[str, Any]) -> Record:
    return Record.from_dict(row["image"], row, row["error"])


def _name(row: dict[str, Any]) -> tuple[str, str]:
    return name_of(row["image"], _record(row)), row["artifact"]


def _number(file: Path) -> int:
    found = re.fullmatch(r"part-(\d{8})-[0-9a-f]{32}", file.stem)
    return 0 if found is None else int(found.group(1))


def row_of(result: TagResult, artifact: str, record: Record) -> dict[str, Any]:
    """A result as a row."""
    said = record.to_dict(result.image)
    return {
        "image": plain(result.image),
        "tags": [{"name": plain(t.name), "score": t.score} for t in result.tags],
        "error": None if result.error is None else plain(result.error),
        "artifact": artifact,
        **said,
        "path": None if said["path"] is None else plain(said["path"]),
    }


def _schema(arrow: Any, metadata: dict[str, str] | None) -> Any:
    tag = arrow.struct([("name", arrow.string()), ("score", arrow.float32())])
    columns = [
        arrow.field("image", arrow.string(), nullable=False),
        arrow.field("tags", arrow.list_(tag), nullable=False),
        arrow.field("error", arrow.string()),
        arrow.field("artifact", arrow.string(), nullable=False),
        arrow.field("settings", arrow.string(), nullable=False),
        arrow.field("path", arrow.string()),
        arrow.field("size", arrow.int64()),
        arrow.field("mtime_ns", arrow.int64()),
    ]
    return arrow.schema(columns, metadata={SCHEMA: str(SCHEMA_VERSION), **(metadata or {})})


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            'format: Parquet needs pyarrow; pip install "pvp_fast[parquet]"'
        ) from error
    return pyarrow
