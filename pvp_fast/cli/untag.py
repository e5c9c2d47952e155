"""``pvp-fast untag``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pvp_fast.cli.common import progress_console
from pvp_fast.errors import InputError

SOME_UNREADABLE = 3


def untag(
    images: Annotated[list[str], typer.Argument(help="Image files, folders or quoted globs.")],
    from_inside: Annotated[
        bool, typer.Option("--inside", help="Also inside the images themselves, by exiftool.")
    ] = False,
    caption_ending: Annotated[str, typer.Option(help="Ending of caption files.")] = ".txt",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be changed, change nothing.")
    ] = False,
) -> None:
    """Take all keywords that ``tag`` has written beside images out again.

    Sidecars and captions are then as they would be without it; what others have written stays, and
    a file that held nothing else is taken away.

    Examples:

      pvp-fast untag photos/ --dry-run

      pvp-fast untag photos/
    """
    from pvp_fast.files import atomic_write
    from pvp_fast.loaders.sources import find_images
    from pvp_fast.sinks import captions, inside, xmp

    seen = changed = bad = 0
    done: set[Path] = set()  # one sidecar may be that of two images
    for image in find_images(images):
        seen += 1
        try:
            sidecars = xmp.untag(str(image))
            found = captions.untag(str(image), caption_ending)
            for path, _, new in (*sidecars, *found):
                if path in done:
                    continue
                done.add(path)
                changed += 1
                if dry_run:
                    print(f"{path} ({'taken away' if new is None else 'changed'})")
                    continue
                if new is None:
                    path.unlink()
                else:
                    with atomic_write(path) as stream:
                        stream.write(new)
                if path.suffix == caption_ending:
                    captions.forget(path)
            if from_inside:
                there, packet = inside.untag(str(image))
                changed += there
                if there and dry_run:
                    print(f"{image} (changed)")
                elif there:
                    inside.put(str(image), packet)
        except (OSError, InputError) as error:
            bad += 1
            print(f"pvp-fast: {image}: {error}", file=sys.stderr)
    if not seen:
        raise InputError(f"images: no image file in {', '.join(images)}")
    verb = "would be changed" if dry_run else "changed"
    progress_console().print(f"{changed} files beside {seen} images {verb}")
    if bad:
        raise typer.Exit(SOME_UNREADABLE)
