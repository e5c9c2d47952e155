"""``pvp-fast discover``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from pvp_fast.cli.common import load_tagger, progress_console, read_vocabulary
from pvp_fast.errors import InputError
from pvp_fast.files import json_text

if TYPE_CHECKING:
    from pvp_fast.tagging.discover import Discovery


def discover(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder, as train writes it.")],
    embeddings: Annotated[Path, typer.Argument(help="What pvp-fast embed wrote.")],
    names: Annotated[
        str, typer.Option(help="Text file, a name a line; YAML/JSON vocabulary; or a built-in one.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Proposals shown at most.")] = 20,
    least_images: Annotated[
        int | None,
        typer.Option(min=1, help="Images a proposal needs (default: more than accident gives)."),
    ] = None,
    precision: Annotated[
        float, typer.Option(help="Expected precision of the tags that count as evidence.")
    ] = 0.9,
    similarity: Annotated[
        float, typer.Option(help="Correlation from which on two names are one.")
    ] = 0.9,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Also write all that was found here.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write a page of example images (needs --root).")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the images, for --report.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
) -> None:
    """Propose categories that occur in images and are missing from the vocabulary.

    add-category then teaches those you want.

    Examples:

      pvp-fast discover runs/coco/artifact embeddings/ --names nouns.txt

      pvp-fast discover runs/coco/artifact embeddings/ --names nouns.txt
      --json found.json --report found.html --root photos/
    """
    from pvp_fast.files import is_stdout, open_output
    from pvp_fast.tagging.discover import discover as find
    from pvp_fast.tagging.embeddings import EmbeddingStore

    if report is not None and (root is None or not root.is_dir()):
        raise InputError("--report shows images: give their folder by --root")
    words = _read_names(names)
    store = EmbeddingStore(embeddings)
    console = progress_console()
    with console.status(f"{len(words)} names"):
        found = find(
            load_tagger(artifact, device),
            store,
            words,
            precision=precision,
            similarity=similarity,
            least_images=least_images,
        )
    console.print(
        f"{found.images} images, {found.names} new names; {len(found.known)} repeat a category; "
        f"{found.accidents:.1f} images a name by accident, {found.least} needed"
    )
    _print(found, top, sys.stderr if is_stdout(json_out) or is_stdout(report) else sys.stdout)
    if json_out is not None:
        with open_output(json_out, "w") as stream:
            stream.write(json_text(found.to_dict(), ensure_ascii=False, indent=1))
    if report is not None and root is not None:
        from pvp_fast.report.gallery import build_discovery

        with console.status("making thumbnails"):
            page = build_discovery(found, root, limit=top, pictures=store.pictures)
        with open_output(report, "w") as stream:
            stream.write(page)


def _read_names(value: str) -> list[str]:
    """A text file may repeat names, as long lists do; vocabularies are read as such."""
    path = Path(value)
    if not path.exists() or path.suffix.lower() in (".yaml", ".yml", ".json"):
        return list(read_vocabulary(value).names)
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--names {value}: cannot be read as UTF-8 text: {error}") from error
    # Synonyms may follow after commas, as in a vocabulary.
    words = [line.split("#", 1)[0].split(",")[0].strip() for line in lines]
    return [word for word in words if word]


def _print(found: Discovery, top: int, stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("name", overflow="fold")
    table.add_column("images", justify="right")
    for title in ("nearest category", "also", "an example"):
        table.add_column(title, overflow="fold")
    for proposal in found.proposals[:top]:
        example = proposal.examples[0][0] if proposal.examples else ""
        near = f"{proposal.nearest} {proposal.similarity:.2f}"
        cells = (proposal.name, str(proposal.images), near, ", ".join(proposal.also), example)
        table.add_row(*(Text(cell) for cell in cells))
    width = None if stream.isatty() else 4000
    Console(file=stream, highlight=False, width=width).print(table)
