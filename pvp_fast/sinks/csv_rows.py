"""CSV: one row a tag; an image without tags has one row, with its error if there is one.

The column ``tags`` is the number of tags of the image: it tells whether all its rows are there.
``settings``, ``path``, ``size`` and ``mtime_ns`` are what going on needs; ``path`` is empty where
``image`` is the file's absolute path.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pvp_fast.errors import SinkError
from pvp_fast.sinks.ledger import Record
from pvp_fast.sinks.lines import Row
from pvp_fast.sinks.names import plain

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult

RECORD = ("settings", "path", "size", "mtime_ns")
COLUMNS = ("image", "tag", "score", "error", "tags", "artifact", *RECORD)


class CsvRows:
    """The format; see :class:`pvp_fast.sinks.lines.Lines`."""

    header = ",".join(COLUMNS) + "\n"

    def __init__(self, artifact: str, encoding: str = "utf-8") -> None:
        self.artifact, self.encoding = artifact, encoding

    def block(self, result: TagResult, record: Record) -> str:
        said = ["" if v is None else v for v in record.to_dict(result.image).values()]
        rows = [(t.name, f"{t.score:.6f}", "") for t in result.tags]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in rows or [("", "", result.error or "")]:
            cells = (result.image, *row, len(rows), self.artifact, *said)
            writer.writerow([plain(cell, self.encoding) for cell in cells])
        return text.getvalue()

    def scan(self, stream: IO[bytes], path: Path) -> Iterator[Row]:
        ends = _Ends(stream)
        reader = csv.reader(ends, strict=True)
        group: tuple[str, ...] = ()
        rows = 0
        try:
            header = next(reader, None)
            if header is None or not ends.whole:
                return  # nothing, or a header cut off
            if tuple(header) != COLUMNS:
                raise SinkError(
                    f"{path} has the columns {','.join(header)}; to append, it needs "
                    f"{','.join(COLUMNS)}: give another file"
                )
            yield Row(None, "", Record(""), ends.end)
            for row in reader:
                if not ends.whole:
                    break
                try:
                    cells = dict(zip(COLUMNS, row, strict=True))
                    count = int(row[4])
                    found = {name: cells[name] or None for name in RECORD}
                    found["settings"] = cells["settings"]
                    record = Record.from_dict(row[0], found, row[3] or None)
                except (ValueError, TypeError):
                    raise SinkError(
                        f"{path}, line {reader.line_num} is no row of tags; repair or remove it, "
                        "or give another file"
                    ) from None
                image = (row[0], row[4], row[5])
                rows = rows + 1 if image == group else 1
                group = image
                if rows == max(1, count):
                    group = ()
                    yield Row(row[0], row[5], record, ends.end)
        except (csv.Error, UnicodeDecodeError) as error:
            if str(error) == "unexpected end of data":  # cut off between two quotes
                return
            raise SinkError(f"{path} is no CSV file in UTF-8 ({error}); give another") from error


class _Ends:
    """The lines of a file, remembering where the last one ended and whether it was whole."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.end, self.whole = stream, 0, True

    def __iter__(self) -> Iterator[str]:
        for line in self.stream:
            self.end += len(line)
            self.whole = line.endswith(b"\n")
            # A cut may fall inside a character.
            yield line.decode("utf-8", "strict" if self.whole else "replace")
