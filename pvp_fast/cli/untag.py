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

    beside = frozenset({".xmp", caption_ending.lower()})
    source = named_source(images, hidden, exclude, follow, shard, beside)
    taking = _Taking(from_inside, caption_ending, dry_run)
    seen = bad = 0
    for sample in source.samples(None):
        if callable(sample.image) or isinstance(sample.image, bytes):
            continue  # in a shard: there is nothing beside it
        is_image = Path(sample.key).suffix.lower() not in beside
        seen += is_image
        try:
            if isinstance(sample.image, ImageError) and Path(sample.key).is_dir():
                raise InputError(sample.image.reason)
            if is_image:
                taking.out_of(sample.key)
            else:
                taking.out_of_one_alone(Path(sample.key))
        except BrokenPipeError:
            raise
        except (OSError, InputError) as error:
            bad += 1
            tell(sample.key, str(error))
    verb = "would be changed" if dry_run else "changed"
    word = f"looked at, {taking.changed} files of theirs {verb}"
    if taking.alone:
        word += f", {taking.alone} without an image {verb}"
    line = summary_line(seen - bad, word, failed=bad, passed=passed_over(source))
    progress_console().print(line, soft_wrap=True, markup=False)
    if bad:
        raise typer.Exit(SOME_UNREADABLE)


class _Taking:
    """Takes what is ours out of the files of one image after the other."""

    def __init__(self, from_inside: bool, caption_ending: str, dry_run: bool) -> None:
        from pvp_fast.sinks.captions import Records

        self.from_inside, self.caption_ending, self.dry_run = from_inside, caption_ending, dry_run
        self.changed = self.alone = 0
        self._records = Records()
        self._done: set[Path] = set()  # one sidecar may be that of two images

    def out_of(self, image: str) -> None:
        """Raises OSError or InputError where that cannot be."""
        from pvp_fast.sinks import captions, inside, xmp

        found = (*xmp.untag(image), *captions.untag(image, self.caption_ending, self._records))
        self.changed += sum([self._put(*each) for each in found])
        if not self.dry_run:
            captions.forget_unwritten(image, self.caption_ending, self._records)
        if self.from_inside:
            there = inside.untag(image, dry_run=self.dry_run)
            self.changed += there
            if there and self.dry_run:
                print(f"{image} (changed)")

    def out_of_one_alone(self, path: Path) -> None:
        """A sidecar or caption whose image is gone; others are their images'."""
        from pvp_fast.sinks import captions, xmp

        if path in self._done or _has_image(path):
            return
        if path.suffix.lower() != ".xmp":
            found = captions.untag(str(path), self.caption_ending, self._records)
        elif b"pvp-fast" in path.read_bytes().replace(b"\0", b""):  # in UTF-16, too
            found = xmp.untag_sidecar(path)
        else:
            return
        self.alone += sum([self._put(*each) for each in found])

    def _put(self, path: Path, old: bytes, new: bytes | None) -> bool:
        from pvp_fast.sinks import captions
        from pvp_fast.sinks.beside import put, refuse_read_only

        if path in self._done:
            return False
        self._done.add(path)
        refuse_read_only(path)
        if self.dry_run:
            print(f"{path} ({'taken away' if new is None else 'changed'})")
            return True
        put(path, new, old)
        if path.suffix == self.caption_ending:
            captions.forget(path, self._records)
        return True


def _has_image(path: Path) -> bool:
    """Whether there is an image that a file beside images may be of."""
    from pvp_fast.pictures.kinds import SUFFIXES
    from pvp_fast.sinks.beside import others

    full = path.with_suffix("")
    return (full.suffix.lower() in SUFFIXES and full.exists()) or bool(others(str(path)))
