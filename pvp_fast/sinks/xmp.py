"""XMP sidecars: the tags as keywords in ``photo.jpg.xmp``, where photo managers look for them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from pvp_fast.files import atomic_write
from pvp_fast.sinks.base import Sink, writing
from pvp_fast.sinks.xmp_packet import XmpError, merge, read_artifact

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult


class XmpSink(Sink):
    """Merges into the sidecar beside each image; the image itself is never opened for writing.

    An image without tags, or one that cannot be read, leaves its sidecar as it is.

    Args:
        artifact: version of the artifact that tags, recorded in the sidecar.
        skip: whether :meth:`has` looks into the sidecars, so that a run resumes.
        dry_run: merge, but write nothing.

    Raises:
        InputError: lxml is not installed.
    """

    def __init__(self, artifact: str, *, skip: bool = False, dry_run: bool = False) -> None:
        merge(None, (), artifact)  # finds out whether lxml is there
        self.artifact, self.skip, self.dry_run = artifact, skip, dry_run

    def has(self, key: str) -> bool:
        if self.skip:
            with contextlib.suppress(OSError, XmpError):  # write() will say what is wrong
                return read_artifact(Path(f"{key}.xmp").read_bytes()) == self.artifact
        return False

    def write(self, result: TagResult) -> str | None:
        path = Path(f"{result.image}.xmp")
        if not result.tags:
            return None
        if path.is_symlink():
            return f"{path.name} is a symbolic link; replace it by a file"
        try:
            old = path.read_bytes()
        except FileNotFoundError:
            old = None
        except OSError as error:
            return f"{path.name} cannot be read: {error.strerror or error}"
        try:
            new = merge(old, [tag.name for tag in result.tags], self.artifact)
        except XmpError as error:
            return f"{path.name}: {error}"
        if new != old and not self.dry_run:
            with writing(path), atomic_write(path) as stream:
                stream.write(new)
        return None
