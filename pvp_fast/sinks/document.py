"""Files that other programs read as a whole: a JSON document, made anew from rows kept beside it.

Such a document has no room for what going on needs, and cannot grow at its end. So each image's
row goes to ``.NAME.pvp-fast`` in the same folder first, as JSON lines with the name that the
document has for the image, and at the end of a run the document is made from the rows of its
artifact.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from pvp_fast.errors import SinkError
from pvp_fast.files import atomic_write
from pvp_fast.sinks.base import Sink, writing
from pvp_fast.sinks.jsonl import JsonLines
from pvp_fast.sinks.ledger import Ledger, Record, place
from pvp_fast.sinks.lines import AppendSink, FileSink

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult

_HEAD = 4096  # bytes of a document that say whose it is

Rows = Callable[[], Iterator[dict[str, Any]]]


class Document(Protocol):
    """What another program wants to read.

    Attributes:
        mark: what the beginning of each such document holds, and hardly another file.
    """

    mark: str

    def name(self, path: str, folder: str) -> str:
        """What an image is called in a document of that folder; both are absolute.

        Raises:
            ValueError: it cannot be in there, and why.
        """

    def text(self, rows: Rows, artifact: str) -> Iterator[str]:
        """The document in pieces.

        Args:
            rows: gives the images' rows from the first: ``name``, ``tags``, ``artifact``,
                ``settings``. No two have one name, and none has failed.
            artifact: version of the artifact that tagged.
        """


class DocumentSink(Sink):
    """A document that is replaced when the run has come to its end; rows that are gone on with.

    Without ``append`` rows and document are those of this run. With it, an interrupted run keeps
    what it has done, and the document holds all images that this artifact has tagged so far.

    Args:
        kind: which document.
        artifact: version of the artifact that tags.
        ledger: what decides whether a row stands.
        path: the document.
        append: go on with the rows that are there.

    Raises:
        SinkError: ``path`` holds something else, or its rows are gone.
    """

    ledger: Ledger

    def __init__(
        self, kind: Document, artifact: str, ledger: Ledger, path: Path, *, append: bool = False
    ) -> None:
        self.kind, self.artifact, self.ledger = kind, artifact, ledger
        self.path, self.append = path, append
        self.rows = path.with_name(f".{path.name}.pvp-fast")
        self.lines = _NamedLines(artifact, self._name)
        self._inner: Sink = (AppendSink if append else FileSink)(self.lines, ledger, self.rows)
        check(kind, path, self.rows if append else None)

    def __enter__(self) -> DocumentSink:
        self._inner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inner.__exit__(kind, error, trace)
        if error is None or (self.append and not isinstance(error, SinkError)):
            with writing(self.path), atomic_write(self.path, "w") as stream:
                stream.writelines(self.kind.text(self._rows, self.artifact))

    def has(self, key: str) -> bool:
        return self._inner.has(key)

    def write(self, result: TagResult) -> str | None:
        if result.error is None:
            try:
                self._name(result.image)
            except ValueError as reason:
                return str(reason)
        return self._inner.write(result)

    def _name(self, image: str) -> str:
        name = self.kind.name(place(image), os.path.realpath(self.path.parent))
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError("its name is not UTF-8, as JSON needs it; rename it") from None
        return name

    def _rows(self) -> Iterator[dict[str, Any]]:
        last: dict[str, int] = {}
        for number, row in enumerate(self._read()):
            last[row["name"]] = number  # a folder that was moved: its images have two places
        for number, row in enumerate(self._read()):
            if last[row["name"]] == number:
                yield row

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.rows.exists():  # not one image
            return
        with self.rows.open("rb") as stream:
            for line in stream:
                row = json.loads(line)
                if row["artifact"] == self.artifact and "error" not in row:
                    yield row


class _NamedLines(JsonLines):
    """JSON lines with the name that the document has for an image."""

    def __init__(self, artifact: str, name: Callable[[str], str]) -> None:
        super().__init__(artifact)
        self._name = name

    def entry(self, result: TagResult, record: Record) -> dict[str, object]:
        entry = super().entry(result, record)
        return entry if result.error is not None else {"name": self._name(result.image), **entry}


def check(kind: Document, path: Path, rows: Path | None) -> None:
    """Raise SinkError unless ``path`` is free or such a document, with its rows if it has some."""
    if not path.is_file():
        return
    with writing(path), path.open("rb") as stream:
        head = stream.read(_HEAD)
    if len(head) > len("[]\n") and kind.mark.encode() not in head:
        raise SinkError(f"{path} holds something else; move it away, or give another file")
    if rows is not None and not rows.exists():
        raise SinkError(
            f"{path} cannot be gone on with: its rows, {rows.name}, are gone; without --append it "
            "is made anew"
        )


def below(path: str, folder: str) -> str:
    """A file's name from the folder that holds it, with slashes.

    Raises:
        ValueError: it is no file, or lies elsewhere.
    """
    if not os.path.isfile(path):
        raise ValueError("no file of its own, which this format names")
    name = relative(path, folder)
    if name.startswith("../") or os.path.isabs(name):
        raise ValueError(f"lies outside {folder}; write the output to a folder above all images")
    return name


def relative(path: str, folder: str) -> str:
    """A path from a folder, with slashes; the whole path where none leads from one to the other."""
    try:
        return os.path.relpath(path, folder).replace(os.sep, "/")
    except ValueError:  # another drive
        return path


def json_list(items: Iterator[Any]) -> Iterator[str]:
    """A JSON list, one item a line."""
    between = "["
    for item in items:
        yield f"{between}\n{json.dumps(item)}"
        between = ","
    yield "[]" if between == "[" else "\n]"
