"""Text formats, one block of lines an image: to a stream, into a new file, or behind an old one."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

from pvp_fast.errors import InputError, SinkError
from pvp_fast.files import atomic_write, sync_file, sync_folder
from pvp_fast.sinks.base import Sink, lock, writing
from pvp_fast.sinks.ledger import Ledger, Record, name_of
from pvp_fast.sinks.names import plain

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult

_FLUSH_EVERY = 64  # images; what a kill can cost


class Row(NamedTuple):
    """One image in a text file, or what stands before all of them (``key`` None).

    Attributes:
        key, artifact, record: of the image. end: bytes of the file up to and with it.
    """

    key: str | None
    artifact: str
    record: Record
    end: int


class Lines(Protocol):
    """How a text format looks, and how it is read back."""

    header: str
    artifact: str

    def block(self, result: TagResult, record: Record) -> str:
        """The lines of one image."""

    def scan(self, stream: IO[bytes], path: Path) -> Iterator[Row]:
        """The images of a file, as far as it is whole.

        Raises:
            SinkError: the file holds something else.
        """


def read_into(ledger: Ledger, lines: Lines, path: Path) -> tuple[int, bool]:
    """Tell a ledger what a file holds.

    Returns:
        How many bytes of it are whole, and whether an image is there twice.

    Raises:
        InputError: it was made with other settings.
        SinkError: it holds something else.
    """
    end, twice = 0, False
    with open(path, "rb") as stream:
        for row in lines.scan(stream, path):
            end = row.end
            if row.key is not None and row.artifact == lines.artifact:
                twice |= ledger.add(row.key, row.record, path)
    return end, twice


class StreamSink(Sink):
    """Writes to an open text stream and flushes after each image, as pipes want it."""

    ledger: Ledger

    def __init__(self, lines: Lines, ledger: Ledger, stream: IO[str]) -> None:
        self.lines, self.ledger, self.stream = lines, ledger, stream

    def __enter__(self) -> StreamSink:
        self.stream.write(self.lines.header)
        return self

    def write(self, result: TagResult) -> None:
        record = self.ledger.record(result.image, result.error)
        self.stream.write(self.lines.block(result, record))
        self.stream.flush()


class FileSink(Sink):
    """Replaces a file when the run has come to its end, and not before."""

    ledger: Ledger

    def __init__(self, lines: Lines, ledger: Ledger, path: str | os.PathLike[str]) -> None:
        self.lines, self.ledger, self.path = lines, ledger, Path(path)

    def __enter__(self) -> FileSink:
        self._target = atomic_write(self.path)
        with writing(self.path):
            self._stream: IO[bytes] = self._target.__enter__()
            self._stream.write(self.lines.header.encode())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with writing(self.path):
            self._target.__exit__(kind, error, trace)

    def write(self, result: TagResult) -> None:
        record = self.ledger.record(result.image, result.error)
        with writing(self.path):
            self._stream.write(self.lines.block(result, record).encode())


class AppendSink(Sink):
    """Goes on behind what a file holds already.

    A last block that a crash cut off is removed first. Blocks are written and synced together; a
    write that fails is taken back, so the file always ends with a whole block. An image done anew
    has its later block count; the earlier one is taken out at the end of the run. One process at a
    time may append.
    """

    ledger: Ledger

    def __init__(self, lines: Lines, ledger: Ledger, path: str | os.PathLike[str]) -> None:
        self.lines, self.ledger, self.path = lines, ledger, Path(path)
        self._waiting: list[bytes] = []

    def __enter__(self) -> AppendSink:
        if self.path.exists() and not self.path.is_file():
            raise InputError(
                f"append: {self.path} is no regular file, which alone can be gone on with"
            )
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._locked()
            try:
                self._end, self._twice = read_into(self.ledger, self.lines, self.path)
                if self._end < os.fstat(self._file.fileno()).st_size:
                    self._file.truncate(self._end)
            except BaseException:
                self._file.close()
                raise
        return self

    def _locked(self) -> io.FileIO:
        while True:
            # Unbuffered, so that a full disk is noticed where the write can be taken back.
            file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
            try:
                lock(file, self.path)
                # Another run may have put a new file there between the two.
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # An interrupted run keeps what it has done; a failed write is not tried again.
            if not isinstance(error, SinkError):
                self._flush()
            if error is None and (self._twice or self.ledger.superseded):
                self._compact()
        finally:
            if not self._end:  # still locked: nobody else has anything in there
                with contextlib.suppress(OSError):
                    self.path.unlink()
            self._file.close()

    def has(self, key: str) -> bool:
        return self.ledger.has(key)

    def write(self, result: TagResult) -> None:
        record = self.ledger.record(result.image, result.error)
        if self.ledger.is_done(result.image, record.content):
            return  # named twice
        self._twice |= self.ledger.add(result.image, record, self.path)
        self._waiting.append(self.lines.block(result, record).encode())
        if len(self._waiting) >= _FLUSH_EVERY:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        first = self._end == 0
        data = memoryview((self.lines.header.encode() if first else b"") + b"".join(self._waiting))
        try:
            with writing(self.path):
                done = 0
                while done < len(data):
                    done += self._file.write(data[done:]) or 0
                sync_file(self._file.fileno())
        except SinkError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise
        self._end += len(data)
        self._waiting.clear()
        if first:
            sync_folder(self.path.parent)

    def _compact(self) -> None:
        """Leave of each image the last block, and none of what is superseded."""
        gone = {(name, self.lines.artifact) for name in self.ledger.superseded}
        last: dict[tuple[str | None, str], int] = {}
        with open(self.path, "rb") as stream:
            for row in self.lines.scan(stream, self.path):
                last[_name(row)] = row.end
        # Where there is no room for it, the next run will.
        with (
            contextlib.suppress(OSError),
            open(self.path, "rb") as stream,
            open(self.path, "rb") as old,
            atomic_write(self.path) as new,
        ):
            start = 0
            for row in self.lines.scan(stream, self.path):
                block = old.read(row.end - start)
                start = row.end
                name, by = _name(row)
                if last[name, by] == row.end and (plain(name), by) not in gone:
                    new.write(block)


def _name(row: Row) -> tuple[str | None, str]:
    return None if row.key is None else name_of(row.key, row.record), row.artifact
