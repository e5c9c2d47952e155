"""``pvp-fast tag``."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from pvp_fast.cli.common import image_progress, pick_device, progress_console
from pvp_fast.errors import InputError

if TYPE_CHECKING:
    from pvp_fast.tagger import TagResult

SOME_UNREADABLE = 3


class Format(str, Enum):
    """How tags are written."""

    jsonl = "jsonl"
    csv = "csv"
    table = "table"


def tag(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder, as train writes it.")],
    images: Annotated[
        list[str] | None, typer.Argument(help="Image files, folders or quoted globs.")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Tag what pvp-fast embed wrote here instead of images.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="At most this many tags an image.")] = 5,
    threshold: Annotated[
        float | None,
        typer.Option(help="Probability a tag needs (default: each category's calibrated one)."),
    ] = None,
    format: Annotated[Format, typer.Option(help="Output format.")] = Format.jsonl,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here instead of stdout.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 64,
) -> None:
    """Tag images: one JSON line an image, in the order given.

    A file that is no readable image does not stop the run: it is listed on stderr and in the
    output with its reason, and the exit code is 3.

    Examples:

      pvp-fast tag runs/coco/artifact photos/ --top-k 3

      pvp-fast tag runs/coco/artifact 'photos/**/*.jpg' --format csv -o tags.csv

      pvp-fast tag runs/coco/artifact --embeddings embeddings/
    """
    from pvp_fast.embeddings import EmbeddingStore
    from pvp_fast.loaders import FileSource
    from pvp_fast.tagger import Tagger

    if bool(images) == (embeddings is not None):
        raise typer.BadParameter("give images, or --embeddings DIR")
    tagger = Tagger.load(artifact, device=pick_device(device))
    names = images or []
    count: Callable[[], int | None]
    if embeddings is None:
        results = tagger.tag(
            _paths(names), top_k=top_k, threshold=threshold, batch_size=batch_size, prefetch=2
        )
        count = FileSource(names).count
    else:
        store = EmbeddingStore(embeddings)
        results = tagger.tag_embeddings(store, top_k=top_k, threshold=threshold)
        count = lambda: len(store) + len(store.failures)  # noqa: E731
    bad = seen = 0

    def counted() -> Iterator[TagResult]:
        nonlocal bad, seen
        for result in results:
            seen += 1
            advance_to(seen)
            if result.error is not None:
                bad += 1
                print(f"pvp-fast: {result.key}: {result.error}", file=sys.stderr)
            yield result

    with image_progress(count) as advance_to, _target(output) as stream:
        write_results(counted(), format.value, stream)
    if not seen:
        raise InputError(f"images: no image file in {', '.join(names) or embeddings}")
    if bad:
        progress_console().print(f"{bad} image{'s' * (bad > 1)} could not be read")
        raise typer.Exit(SOME_UNREADABLE)


def _paths(images: Iterable[str]) -> Iterator[Path]:
    """Files to tag; a name that matches nothing is kept, to be reported like any bad image."""
    from pvp_fast.images import find_images

    for name in images:
        try:
            yield from find_images([name])
        except InputError:
            yield Path(name)


def write_results(results: Iterable[TagResult], format: str, stream: IO[str]) -> None:
    """Write results as they come; ``format`` is "jsonl", "csv" or "table"."""
    if format == "jsonl":
        for result in results:
            line: dict[str, object] = {
                "image": str(result.key),
                "tags": [{"name": t.name, "score": round(t.score, 6)} for t in result.tags],
            }
            if result.error is not None:
                line["error"] = result.error
            stream.write(json.dumps(line, ensure_ascii=True) + "\n")
            stream.flush()
    elif format == "csv":
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", "tag", "score", "error"])
        for result in results:
            for t in result.tags:
                writer.writerow(
                    [_plain(result.key, stream), _plain(t.name, stream), f"{t.score:.6f}", ""]
                )
            if not result.tags:
                error = _plain(result.error or "", stream)
                writer.writerow([_plain(result.key, stream), "", "", error])
            stream.flush()
    else:
        _table(results, stream)


def _plain(key: object, stream: IO[str]) -> str:
    # File names that are not UTF-8 carry surrogates, which no stream can encode; an ASCII
    # terminal cannot encode any accent.
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return str(key).encode(encoding, "backslashreplace").decode(encoding)


def _table(results: Iterable[TagResult], stream: IO[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("image", "tags"):
        table.add_column(title, overflow="fold")  # a name cut short helps nobody
    for result in results:
        tags = "  ".join(f"{t.name} {t.score:.2f}" for t in result.tags)
        text, style = (f"cannot be read: {result.error}", "red") if result.error else (tags, "")
        table.add_row(Text(_plain(result.key, stream)), Text(_plain(text, stream), style))
    # A file or pipe has no width: keep each image on one line there.
    Console(file=stream, highlight=False, width=None if stream.isatty() else 4000).print(table)


@contextmanager
def _target(output: Path | None) -> Iterator[IO[str]]:
    if output is None:
        yield sys.stdout
        return
    from pvp_fast.files import atomic_write

    with atomic_write(output) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8", newline="")
        yield text
        text.flush()
        text.detach()
