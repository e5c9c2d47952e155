"""Tables of captions: CSV, TSV and their relatives, one row an image or a sentence.

The header says which columns hold sentences. Without one, two columns of which one is a file name
or an address are understood; everything else is refused rather than read as prose, as a file name
in a sentence ("cat.0012.jpg") would earn it a label.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pvp_fast.errors import CorpusError

DELIMITERS = ("\t", "|", ";", ",")
ENDINGS = (".csv", ".tsv", ".tab", ".psv")
_CAPTION = re.compile(
    r"(?:raw|image|photo|alt)?[ _-]*"
    r"(?:captions?|texts?|sentences?|comments?|descriptions?|title|prompt)[ _-]*\d*",
    re.IGNORECASE,
)
_HEADER_CELL = re.compile(r"[^\W\d][\w .#:/-]{0,30}")
# A file name or an address; a table of captions is known by a column of these.
_FILE = re.compile(
    r"(?:\S+://\S+|[^\t|]*\.(?:jpe?g|jfif|png|gif|bmp|webp|tiff?|heic|avif|jp2|npy|npz))(?:#\d+)?",
    re.IGNORECASE,
)
_WORKS = (
    "give it a header with a column called caption, text or sentence, or one sentence a line "
    "without file names in a .txt file"
)
# "cat.0012.jpg An empty road": a file name and a space.
_NAMED_LINE = re.compile(
    r"(\S+\.(?:jpe?g|jfif|png|gif|bmp|webp|tiff?|heic|avif|jp2)(?:#\d+)?)[ \t]+(\S.*)",
    re.IGNORECASE,
)
_SNIFFED_LINES = 20


def is_table(file: Path, head: str) -> bool:
    """Whether the file, by its ending or its first lines ``head``, is a table."""
    return file.suffix.lower() in ENDINGS or _delimiter(head) is not None or _is_named(head)


def read_table(file: Path) -> Iterator[str]:
    """Sentences of a table, row by row; a row's captions in the order of the columns.

    Raises:
        CorpusError: no column holds sentences, a row is too short, the text is not UTF-8, or there
            is no sentence at all.
    """
    with file.open("rb") as stream:
        head = stream.read(1 << 16).decode("utf-8-sig", "replace")
    if _delimiter(head) is None and _is_named(head):
        yield from _named_lines(file)
        return
    delimiter = _delimiter(head) or _usual(file)
    first = _cells(head.split("\n", 1)[0], delimiter)
    columns, has_header = _columns(file, head, first, delimiter)
    empty = True
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter == "|")
        number = 0
        try:
            for number, row in enumerate(rows, start=1):
                if (number == 1 and has_header) or not any(map(str.strip, row)):
                    continue
                for cell in _picked(row, columns, len(first), delimiter, f"{file}, row {number}"):
                    empty = False
                    yield cell
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"captions file {file}, after row {number}, is not UTF-8; convert it to UTF-8"
            ) from error
        except csv.Error as error:
            raise CorpusError(
                f"captions file {file}, after row {number}: {error}; repair the row"
            ) from error
    if empty:
        raise CorpusError(f"captions file {file} has no sentence below its header; {_WORKS}")


def _named_lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                match = _NAMED_LINE.fullmatch(line.strip())
                if match is None and line.strip():
                    raise CorpusError(
                        f"captions file {file}, line {number} has no file name in front as the "
                        f"others do, but {line[:40]!r}; {_WORKS}"
                    )
                if match:
                    yield match[2]
    except UnicodeDecodeError as error:
        raise CorpusError(f"captions file {file} is not UTF-8; convert it to UTF-8") from error


def _is_named(head: str) -> bool:
    lines = [line.strip() for line in head.split("\n")[:_SNIFFED_LINES] if line.strip()]
    named = sum(bool(_NAMED_LINE.fullmatch(line)) for line in lines)
    return bool(lines) and named >= 0.8 * len(lines)


def _picked(
    row: Sequence[str], columns: Sequence[int], width: int, delimiter: str, where: str
) -> Iterator[str]:
    for column in columns:
        if column >= len(row):
            raise CorpusError(
                f"captions file {where} has {len(row)} columns and no caption; its header has "
                f"{width}; repair or remove the row"
            )
        # Commas that nobody quoted: the last column takes what is left.
        last = column == width - 1 and len(row) > width
        cell = delimiter.join(row[column:]) if last else row[column]
        if cell.strip():
            yield cell.strip()


def _columns(file: Path, head: str, first: Sequence[str], delimiter: str) -> tuple[list[int], bool]:
    """Which columns hold sentences, and whether the first row is a header."""
    named = [i for i, cell in enumerate(first) if _CAPTION.fullmatch(cell)]
    if named and _is_header(first):
        # "comment_number" is no sentence, and the most telling word wins over "title".
        best = [i for i in named if re.search("caption|sentence|comment", first[i], re.IGNORECASE)]
        return best or named, True
    files = _file_columns(head, delimiter)
    if len(first) == 2 and len(files) == 1 and _FILE.fullmatch(first[files[0]]):
        return [1 - files[0]], False
    if len(first) == 1 and not files and _CAPTION.fullmatch(first[0]):
        return [0], True
    if len(first) == 1 and not files:
        return [0], False  # one sentence a line under a table's name
    what = ", ".join(repr(cell[:20]) for cell in first[:6])
    raise CorpusError(
        f"captions file {file} is a table and no column is known to hold sentences (first row: "
        f"{what}); {_WORKS}"
    )


def _delimiter(head: str) -> str | None:
    """What separates the columns, or None where the text is no table."""
    first = head.split("\n", 1)[0]
    for delimiter in DELIMITERS:
        cells = _cells(first, delimiter)
        if len(cells) > 1 and _is_header(cells) and any(map(_CAPTION.fullmatch, cells)):
            return delimiter
    for delimiter in DELIMITERS:
        if _file_columns(head, delimiter):
            return delimiter
    return None


def _is_header(cells: Sequence[str]) -> bool:
    return all(_HEADER_CELL.fullmatch(cell) or not cell for cell in cells)


def _file_columns(head: str, delimiter: str) -> list[int]:
    """Columns that hold a file name or an address in nearly every row below the first."""
    lines = [line for line in head.split("\n")[: _SNIFFED_LINES + 1] if line.strip()]
    rows = [_cells(line, delimiter) for line in lines[1:] or lines]
    if len(rows) > 1 and len(head) >= 1 << 15:
        del rows[-1]  # may be cut off
    rows = [row for row in rows if len(row) > 1]
    if not rows or 2 * len(rows) < len(lines) - 1:
        return []
    width = min(map(len, rows))
    return [
        i
        for i in range(width)
        if sum(bool(_FILE.fullmatch(row[i])) for row in rows) >= 0.8 * len(rows)
    ]


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        row = next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []
    return [cell.strip() for cell in row]


def _usual(file: Path) -> str:
    return {".tsv": "\t", ".tab": "\t", ".psv": "|"}.get(file.suffix.lower(), ",")
