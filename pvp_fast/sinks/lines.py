"""Text formats, one block of lines an image: to a stream, into a new file, or behind an old one."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Protocol

from pvp_fast.errors import InputError, SinkError
from pvp_fast.files import atomic_write, sync_file, sync_folder
from pvp_fast.sinks.base import Sink, lock, writing

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult

_FLUSH_EVERY = 64  # images; what a kill can cost


class Lines(Protocol):
    """How a text format looks, and how it is read back."""

    header: str

    def key(self, key: str) -> str:
        """The key as the file holds it."""

    def block(self, result: TagResult) -> str:
        """The lines of one image."""

    def scan(self, stream: IO[bytes], path: Path) -> tuple[set[str], int]:
        """Keys that need not be tagged again, and how many bytes of the file are whole.

        Raises:
            SinkError: the file holds something else.
        """


class StreamSink(Sink):
    """Writes to an open text stream and flushes after each image, as pipes want it."""

    def __init__(self, lines: Lines, stream: IO[str]) -> None:
        self.lines, self.stream = lines, stream

    def __enter__(self) -> StreamSink:
        self.stream.write(self.lines.header)
        return self

    def write(self, result: TagResult) -> None:
        self.stream.write(self.lines.block(result))
        self.stream.flush()


class FileSink(Sink):
    """Replaces a file when the run has come to its end, and not before."""

    def __init__(self, lines: Lines, path: str | os.PathLike[str]) -> None:
        self.lines, self.path = lines, Path(path)

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
        with writing(self.path):
            self._stream.write(self.lines.block(result).encode())


class AppendSink(Sink):
    """Goes on behind what a file holds already; a key is never written twice.

    A last block that a crash cut off is removed first. Blocks are written and synced together; a
    write that fails is taken back, so the file always ends with a whole block. One process at a
    time may append.
    """

    def __init__(self, lines: Lines, path: str | os.PathLike[str]) -> None:
        self.lines, self.path = lines, Path(path)
        self._waiting: list[bytes] = []

    def __enter__(self) -> AppendSink:
        if self.path.exists() and not self.path.is_file():
            raise InputError(
                f"append: {self.path} is no regular file, which alone can be gone on with"
            )
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that a full disk is noticed where the write can be taken back.
            self._file: io.FileIO = open(self.path, "a+b", buffering=0)
            try:
                lock(self._file, self.path)
                with open(self.path, "rb") as reader:
                    self._keys, self._end = self.lines.scan(reader, self.path)
                if self._end < os.fstat(self._file.fileno()).st_size:
                    self._file.truncate(self._end)
            except BaseException:
                self._file.close()
                raise
        return self

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
        finally:
            if not self._end:  # still locked: nobody else has anything in there
                with contextlib.suppress(OSError):
                    self.path.unlink()
            self._file.close()

    def has(self, key: str) -> bool:
        return self.lines.key(key) in self._keys

    def write(self, result: TagResult) -> None:
        if self.has(result.image):
            return
        self._keys.add(self.lines.key(result.image))
        self._waiting.append(self.lines.block(result).encode())
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
