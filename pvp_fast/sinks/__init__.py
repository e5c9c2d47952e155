"""Where tags go: JSON lines, CSV, a table, Parquet, SQLite, XMP sidecars, captions, other tools."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from pvp_fast.errors import InputError
from pvp_fast.sinks.base import DrySink, Sink
from pvp_fast.sinks.ledger import Ledger

__all__ = ["FORMATS", "DrySink", "Sink", "format_for", "open_sink"]

BESIDE = ("xmp", "txt")  # written beside each image, not to one output
DOCUMENTS = ("imagefolder", "label-studio", "coco", "fiftyone")  # what one other tool reads
FORMATS = ("jsonl", "csv", "table", "parquet", "sqlite", *BESIDE, *DOCUMENTS)

_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".db": "sqlite",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
    ".xmp": "xmp",
}
_DOCUMENT_ENDINGS = dict.fromkeys(DOCUMENTS, ".json") | {"imagefolder": ".jsonl"}
# Names of what none of the formats is: tabs, spreadsheets, pages, archives.
_FOREIGN = re.compile(
    r"\.(tsv|xlsx?|ods|html?|xml|ya?ml|feather|arrow|orc|avro|pt|safetensors|npy|npz"
    r"|gz|bz2|xz|zst|zip|tar|tgz|7z)"
)


def format_for(output: str | os.PathLike[str] | None, format: str | None) -> str:
    """The format that an output's ending and the user's own choice come to.

    Args:
        output: a file or folder name, or None for stdout.
        format: one of `FORMATS`, or None: the ending decides, and without one it is "jsonl".

    Raises:
        InputError: the two contradict each other, or the ending is that of an image or of a kind
            of file that is not written here.
    """
    from pvp_fast.pictures.kinds import SUFFIXES

    name = "" if output is None else Path(output).name
    ending = Path(name).suffix.lower()
    if ending in SUFFIXES:
        raise InputError(f"output: {output} has the name of an image; give the tags another")
    if _FOREIGN.fullmatch(ending):
        raise InputError(
            f"output: {output} ends in {ending}, which none of {', '.join(FORMATS)} is; rename it"
        )
    named = _ENDINGS.get(ending)
    if format is None:
        return named or "jsonl"
    if format in DOCUMENTS and ending == _DOCUMENT_ENDINGS[format]:
        return format
    if named is not None and named != format:
        raise InputError(
            f"format: {output} is named as {named} and the format is {format}; leave out the "
            "format or rename the output"
        )
    return format


def open_sink(
    format: str,
    output: str | os.PathLike[str] | IO[str],
    artifact: str,
    *,
    append: bool = False,
    dry_run: bool = False,
    settings: str = "",
    redo: bool = False,
    retry_failed: bool = False,
    say: Callable[[str], None] | None = None,
    categories: Sequence[str] = (),
    **beside: Any,
) -> Sink:
    """A sink by the name of its format; use it in a ``with`` statement.

    Args:
        format: one of `FORMATS`.
        output: a file (for Parquet with ``append`` a folder; for "imagefolder" a folder or its
            ``metadata.jsonl``), or a text stream such as stdout for "jsonl", "csv" and "table".
            "xmp" and "txt" write beside the images and ignore it.
        artifact: version of the artifact that tags, see :attr:`pvp_fast.Artifact.version`.
        append: go on behind what is there, without the images that this artifact has done.
            SQLite, XMP and captions always keep what is there.
        dry_run: find out what is there already and write nothing.
        settings: how the images are tagged, as :func:`pvp_fast.sinks.ledger.describe` says it.
        redo: do again what this artifact has done with other settings, instead of refusing.
        retry_failed: do damaged images again though their files have not changed.
        say: called in a dry run of "xmp" and "txt" with what would be written where.
        categories: what tags may say, in the order of their ids in "coco".
        beside: of "xmp" (see :class:`pvp_fast.sinks.xmp.XmpSink`; ``inside=True`` writes into the
            images, see :class:`pvp_fast.sinks.inside.InsideSink`) and "txt" (see
            :class:`pvp_fast.sinks.captions.CaptionSink`).

    Raises:
        InputError: an unknown format, one that cannot be written there, or other settings.
        SinkError: the output exists and holds something else.
    """
    if format not in FORMATS:
        raise InputError(f"format={format!r}: use one of {', '.join(FORMATS)}")
    ledger = Ledger(settings, redo=redo, retry_failed=retry_failed)
    if format in BESIDE:
        return _beside(format, artifact, ledger, skip=append, dry_run=dry_run, say=say, **beside)
    if beside:
        raise InputError(f"{next(iter(beside))}: only {' and '.join(BESIDE)} have that")
    if not isinstance(output, str | os.PathLike):
        return _to_stream(format, output, artifact, ledger, append, dry_run)
    path = Path(output)
    if format == "sqlite":
        from pvp_fast.sinks.sqlite import SqliteSink

        return SqliteSink(path, artifact, ledger, dry_run=dry_run)
    if format == "parquet":
        return _to_parquet(path, artifact, ledger, append, dry_run)
    if format in DOCUMENTS:
        return _to_document(format, path, artifact, ledger, append, dry_run, categories)
    return _to_file(format, path, artifact, ledger, append, dry_run)


def _beside(format: str, artifact: str, ledger: Ledger, **options: Any) -> Sink:
    from pvp_fast.sinks.captions import CaptionSink
    from pvp_fast.sinks.xmp import XmpSink

    kind: Any = XmpSink if format == "xmp" else CaptionSink
    if format == "xmp" and options.pop("inside", False):
        from pvp_fast.sinks.inside import InsideSink

        kind = InsideSink
    try:
        sink: Sink = kind(artifact, ledger, **options)
    except TypeError as error:
        raise InputError(f"format {format!r}: {error}") from error
    return sink


def _to_stream(
    format: str, stream: IO[str], artifact: str, ledger: Ledger, append: bool, dry_run: bool
) -> Sink:
    if format in ("parquet", "sqlite", *DOCUMENTS) or append:
        what = f"format {format!r}" if not append else "append"
        raise InputError(f"output: {what} needs a file; name it (-o FILE)")
    if dry_run:
        return DrySink()
    if format == "table":
        from pvp_fast.sinks.table import TableSink

        return TableSink(stream)
    from pvp_fast.sinks.csv_rows import CsvRows
    from pvp_fast.sinks.jsonl import JsonLines
    from pvp_fast.sinks.lines import StreamSink

    encoding = getattr(stream, "encoding", None) or "utf-8"
    lines = JsonLines(artifact) if format == "jsonl" else CsvRows(artifact, encoding)
    return StreamSink(lines, ledger, stream)


def _to_parquet(path: Path, artifact: str, ledger: Ledger, append: bool, dry_run: bool) -> Sink:
    from pvp_fast.sinks.parquet import ParquetFolderSink, ParquetSink, read_into

    if not append:
        sink: Sink = ParquetSink(path, artifact, ledger)
        return DrySink() if dry_run else sink
    sink = ParquetFolderSink(path, artifact, ledger)
    if not dry_run:
        return sink
    if path.exists():
        read_into(ledger, path, artifact)
    return DrySink(ledger)


def _to_file(
    format: str, path: Path, artifact: str, ledger: Ledger, append: bool, dry_run: bool
) -> Sink:
    from pvp_fast.sinks.csv_rows import CsvRows
    from pvp_fast.sinks.jsonl import JsonLines
    from pvp_fast.sinks.lines import AppendSink, FileSink, read_into
    from pvp_fast.sinks.table import TableFile

    if format == "table":
        if append:
            raise InputError("append: a table is printed once, at the end; use csv or jsonl")
        return DrySink() if dry_run else TableFile(path)
    lines = JsonLines(artifact) if format == "jsonl" else CsvRows(artifact)
    if not dry_run:
        return AppendSink(lines, ledger, path) if append else FileSink(lines, ledger, path)
    if append and path.exists():
        read_into(ledger, lines, path)
    return DrySink(ledger if append else None)


def _to_document(
    format: str,
    path: Path,
    artifact: str,
    ledger: Ledger,
    append: bool,
    dry_run: bool,
    categories: Sequence[str],
) -> Sink:
    from pvp_fast.sinks.coco import Coco
    from pvp_fast.sinks.document import Document, DocumentSink
    from pvp_fast.sinks.fiftyone import FiftyOne
    from pvp_fast.sinks.imagefolder import NAME, ImageFolder
    from pvp_fast.sinks.label_studio import LabelStudio
    from pvp_fast.sinks.lines import read_into

    if format == "imagefolder" and path.suffix != ".jsonl":
        path /= NAME
    if format == "imagefolder" and path.name != NAME:
        raise InputError(f"output: ImageFolder reads {NAME} alone; give its folder")
    kinds: dict[str, Callable[[], Document]] = {
        "imagefolder": ImageFolder,
        "label-studio": LabelStudio,
        "coco": lambda: Coco(categories),
        "fiftyone": FiftyOne,
    }
    sink = DocumentSink(kinds[format](), artifact, ledger, path, append=append)
    if not dry_run:
        return sink
    if append and sink.rows.exists():
        read_into(ledger, sink.lines, sink.rows)
    return DrySink(ledger if append else None)
