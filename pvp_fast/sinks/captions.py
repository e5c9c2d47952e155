"""Caption files, ``photo.txt`` beside ``photo.jpg``: what trainers of image generators read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pvp_fast.files import atomic_write
from pvp_fast.sinks.base import Sink, plain, writing

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult


class CaptionSink(Sink):
    """Adds the tags that the caption lacks, behind commas; what is there stays.

    With several lines, the first is the caption. Such a file cannot say which artifact wrote it:
    a run that starts again tags all images again, and adds nothing twice.

    Args:
        dry_run: merge, but write nothing.
    """

    def __init__(self, *, dry_run: bool = False) -> None:
        self.dry_run = dry_run

    def write(self, result: TagResult) -> str | None:
        image = Path(result.image)
        path = image.with_suffix(".txt")
        if not result.tags:
            return None
        if path == image:
            return f"{path.name} is the image itself; give it an image's ending"
        if path.is_symlink():
            return f"{path.name} is a symbolic link; replace it by a file"
        try:
            # Bytes, not text: line ends stay as they are.
            old = path.read_bytes().decode("utf-8")
        except FileNotFoundError:
            old = ""
        except OSError as error:
            return f"{path.name} cannot be read: {error.strerror or error}"
        except UnicodeDecodeError:
            return f"{path.name} is not UTF-8 text; save it as UTF-8"
        new = caption(old, [tag.name for tag in result.tags])
        if new != old and not self.dry_run:
            with writing(path), atomic_write(path) as stream:
                stream.write(new.encode("utf-8"))
        return None


def caption(old: str, names: list[str]) -> str:
    """``old`` with the names its first line lacks.

    Commas and line breaks in a name become spaces: they would make it two tags.
    """
    first, end, rest = old, "\n" if not old else "", ""
    for mark in ("\r\n", "\n"):
        if mark in old:
            first, end, rest = old.partition(mark)
            break
    present = {part.strip().casefold() for part in first.removeprefix("\ufeff").split(",")}
    added = []
    for name in names:
        text = " ".join(plain(name).replace(",", " ").split())
        if text and text.casefold() not in present:
            present.add(text.casefold())
            added.append(text)
    if not added:
        return old
    before = [first.rstrip().rstrip(",").rstrip()] if first.strip("\ufeff \t,") else []
    return ", ".join(before + added) + end + rest
