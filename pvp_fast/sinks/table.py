"""A table for people to read, printed at the end of the run."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from pvp_fast.files import atomic_write
from pvp_fast.sinks.base import Sink, writing
from pvp_fast.sinks.names import plain

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult


def shown(probability: float) -> str:
    """Two digits; what they would round to certainty is only above 0.99 or below 0.01."""
    if 0.005 <= probability < 0.995:
        return f"{probability:.2f}"
    return ">0.99" if probability > 0.5 else "<0.01"


class TableSink(Sink):
    """Collects the images and prints them to a text stream."""

    stream: Any

    def __init__(self, stream: IO[str]) -> None:
        from rich.table import Table

        self.stream = stream
        self._table = Table(box=None, header_style="bold", pad_edge=False)
        for title in ("image", "tags"):
            self._table.add_column(title, overflow="fold")  # a name cut short helps nobody

    def write(self, result: TagResult) -> None:
        from rich.text import Text

        tags = "  ".join(f"{t.name} {shown(t.score)}" for t in result.tags)
        text, style = (f"cannot be read: {result.error}", "red") if result.error else (tags, "")
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self._table.add_row(Text(plain(result.image, encoding)), Text(plain(text, encoding), style))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        from rich.console import Console

        if error is not None:
            return
        # A file or pipe has no width: keep each image on one line there.
        width = None if self.stream.isatty() else 4000
        Console(file=self.stream, highlight=False, width=width).print(self._table)


class TableFile(TableSink):
    """The table in a file, replaced when the run has come to its end."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        super().__init__(io.StringIO())

    def __enter__(self) -> TableFile:
        self._target = atomic_write(self.path, "w")
        with writing(self.path):  # at once: a folder that cannot be written is known at the start
            self._file: IO[str] = self._target.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        with writing(self.path):
            if error is None:
                self._file.write(self.stream.getvalue())
            self._target.__exit__(kind, error, trace)
