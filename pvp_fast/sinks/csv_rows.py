"""CSV: one row a tag; an image without tags has one row, with its error if there is one.

The column ``tags`` is the number of tags of the image: it tells whether all its rows are there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pvp_fast.errors import SinkError
from pvp_fast.sinks.base import plain

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult

COLUMNS = ("image", "tag", "score", "error", "tags", "artifact")


class CsvRows:
    """The format; see :class:`pvp_fast.sinks.lines.Lines`."""

    header = ",".join(COLUMNS) + "\n"

    def __init__(self, artifact: str, encoding: str = "utf-8") -> None:
        self.artifact, self.encoding = artifact, encoding

    def key(self, key: str) -> str:
        return plain(key, self.encoding)

    def block(self, result: TagResult) -> str:
        rows = [(t.name, f"{t.score:.6f}", "") for t in result.tags]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in rows or [("", "", result.error or "")]:
            cells = (result.image, *row, str(len(rows)), self.artifact)
            writer.writerow([plain(cell, self.encoding) for cell in cells])
        return text.getvalue()

    def scan(self, stream: IO[bytes], path: Path) -> tuple[set[str], int]:
        ends = _Ends(stream)
        reader = csv.reader(ends, strict=True)
        keys: set[str] = set()
        end = 0  # of the last image whose rows are all there
        group: tuple[str, ...] = ()
        rows = 0
        try:
            header = next(reader, None)
            if header is None or not ends.whole:
                return keys, 0  # nothing, or a header cut off
            if tuple(header) != COLUMNS:
                raise SinkError(
                    f"{path} has the columns {','.join(header)}; to append, it needs "
                    f"{','.join(COLUMNS)}: give another file"
                )
            end = ends.end
            for row in reader:
                if not ends.whole:
                    break
                if len(row) != len(COLUMNS) or not row[4].isdecimal():
                    raise SinkError(
                        f"{path}, line {reader.line_num} is no row of tags; repair or remove it, "
                        "or give another file"
                    )
                image = (row[0], row[4], row[5])
                rows = rows + 1 if image == group else 1
                group = image
                if rows == max(1, int(row[4])):
                    end, group = ends.end, ()
                    if row[5] == self.artifact:
                        keys.add(row[0])
        except (csv.Error, UnicodeDecodeError) as error:
            if str(error) == "unexpected end of data":  # cut off between two quotes
                return keys, end
            raise SinkError(f"{path} is no CSV file in UTF-8 ({error}); give another") from error
        return keys, end


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
