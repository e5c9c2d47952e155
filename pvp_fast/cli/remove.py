"""``pvp-fast remove-category``, ``rename-category`` and ``merge-category``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from pvp_fast.cli.vocabulary import listed_names
from pvp_fast.errors import InputError


def remove_category(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder to start from.")],
    names: Annotated[list[str], typer.Argument(help="Categories to remove, or files of names.")],
    out: Annotated[Path, typer.Option(help="Folder for the new artifact.")],
) -> None:
    """Take categories out of an artifact; the others keep every bit.

    Examples:

      pvp-fast remove-category runs/coco/artifact toaster 'hair drier' --out runs/coco78
    """
    from pvp_fast.artifact import Artifact

    found = Artifact.load(artifact)
    gone = {found.vocabulary.index(name) for name in listed_names(names)}
    kept = [row for row in range(len(found.vocabulary)) if row not in gone]
    if not kept:
        raise InputError("names: no category would be left")
    found.take(kept).save(out)
    typer.echo(str(out))


def merge_category(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder to start from.")],
    kept: Annotated[str, typer.Argument(help="Category that stays and gets the other's words.")],
    other: Annotated[str, typer.Argument(help="Category that becomes part of it.")],
    out: Annotated[Path, typer.Option(help="Folder for the new artifact.")],
) -> None:
    """Make two categories one, half way between them; the others keep every bit.

    Examples:

      pvp-fast merge-category runs/tags/artifact sofa couch --out runs/fewer
    """
    from pvp_fast.artifact import Artifact
    from pvp_fast.training.merge import merge_categories

    merge_categories(Artifact.load(artifact), kept, other).save(out)
    typer.echo(str(out))


def rename_category(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder to start from.")],
    old: Annotated[str, typer.Argument(help="Name of the category.")],
    new: Annotated[str, typer.Argument(help="What its tags are to say, in any language.")],
    out: Annotated[Path, typer.Option(help="Folder for the new artifact.")],
) -> None:
    """Call a category something else; what it learned stays, and the old name becomes a synonym.

    Examples:

      pvp-fast rename-category runs/coco/artifact 'dining table' Esstisch --out runs/deutsch
    """
    from pvp_fast.artifact import Artifact
    from pvp_fast.vocabulary.categories import Category, Vocabulary

    found = Artifact.load(artifact)
    row = found.vocabulary.index(old)
    before = found.vocabulary[row]
    words = tuple(word for word in (before.name, *before.synonyms) if word != new)
    items = list(found.vocabulary)
    items[row] = Category(new, words, before.ignore)
    dataclasses.replace(found, vocabulary=Vocabulary(items)).save(out)
    typer.echo(str(out))
