"""``pvp-fast add-category``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pvp_fast.cli.common import pick_device


def add_category(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder to start from.")],
    name: Annotated[str, typer.Argument(help="Name of the new category.")],
    out: Annotated[Path, typer.Option(help="Folder for the new artifact.")],
    synonym: Annotated[
        list[str] | None, typer.Option(help="Another word for it. Repeatable.")
    ] = None,
    sentences: Annotated[
        Path | None, typer.Option(help="Captions file about it (any format train reads).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
) -> None:
    """Teach an artifact one more category; what it already knows keeps every bit.

    Example:  pvp-fast add-category runs/coco/artifact drone --synonym quadcopter --out runs/coco81
    """
    from pvp_fast.sentences import read_captions
    from pvp_fast.tagger import Tagger

    texts = tuple(read_captions(sentences)) if sentences else ()
    tagger = Tagger.load(artifact, device=pick_device(device))
    wider = tagger.add_category(name, tuple(synonym or ()), texts) or tagger
    wider.save(out)
    typer.echo(str(out))
