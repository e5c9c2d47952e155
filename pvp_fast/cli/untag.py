"""``pvp-fast untag``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pvp_fast.cli.common import progress_console, tell
from pvp_fast.cli.sources import (
    IMAGES,
    Exclude,
    Follow,
    Hidden,
    Shard,
    named_source,
    summary_line,
)
from pvp_fast.errors import ImageError, InputError

SOME_UNREADABLE = 3


def untag(
    images: Annotated[list[str], typer.Argument(help=IMAGES)],
    from_inside: Annotated[
        bool, typer.Option("--inside", help="Also inside the images themselves, by exiftool.")
    ] = False,
    caption_ending: Annotated[str, typer.Option(help="Ending of caption files.")] = ".txt",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be changed, change nothing.")
    ] = False,
    hidden: Hidden = False,
    exclude: Exclude = None,
    follow: Follow = False,
    shard: Shard = None,
) -> None:
    """Take all keywords that ``tag`` has written beside images out again.

    Sidecars and captions are then as they would be without it; what others have written stays, and
    a file that held nothing else is taken away.

    Examples:

      pvp-fast untag photos/ --dry-run

      pvp-fast untag photos/
    """
    from pvp_fast.loaders.sources import passed_over

    source = named_source(images, hidden, exclude, follow, shard)
    taking = _Taking(from_inside, caption_ending, dry_run)
    seen = bad = 0
    for sample in source.samples(None):
        if callable(sample.image) or isinstance(sample.image, bytes):
            continue  # in a shard: there is nothing beside it
        seen += 1
        try:
            if isinstance(sample.image, ImageError) and Path(sample.key).is_dir():
                raise InputError(sample.image.reason)
            taking.out_of(sample.key)
        except (OSError, InputError) as error:
            bad += 1
            tell(sample.key, str(error))
    verb = "would be changed" if dry_run else "changed"
    word = f"looked at, {taking.changed} files of theirs {verb}"
    line = summary_line(seen - bad, word, failed=bad, passed=passed_over(source))
    progress_console().print(line, soft_wrap=True, markup=False)
    if bad:
        raise typer.Exit(SOME_UNREADABLE)


class _Taking:
    """Takes what is ours out of the files of one image after the other."""

    def __init__(self, from_inside: bool, caption_ending: str, dry_run: bool) -> None:
        self.from_inside, self.caption_ending, self.dry_run = from_inside, caption_ending, dry_run
        self.changed = 0
        self._done: set[Path] = set()  # one sidecar may be that of two images

    def out_of(self, image: str) -> None:
        """Raises OSError or InputError where that cannot be."""
        from pvp_fast.files import atomic_write
        from pvp_fast.sinks import captions, inside, xmp
        from pvp_fast.sinks.beside import refuse_read_only

        found = (*xmp.untag(image), *captions.untag(image, self.caption_ending))
        for path, _, new in found:
            if path in self._done:
                continue
            self._done.add(path)
            refuse_read_only(path)
            self.changed += 1
            if self.dry_run:
                print(f"{path} ({'taken away' if new is None else 'changed'})")
                continue
            if new is None:
                path.unlink()
            else:
                with atomic_write(path) as stream:
                    stream.write(new)
            if path.suffix == self.caption_ending:
                captions.forget(path)
        if self.from_inside:
            there = inside.untag(image, dry_run=self.dry_run)
            self.changed += there
            if there and self.dry_run:
                print(f"{image} (changed)")
