"""XMP sidecars: the tags as keywords in ``photo.jpg.xmp``, where photo managers look for them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from pvp_fast.errors import InputError
from pvp_fast.sinks.beside import Beside, find, read_old
from pvp_fast.sinks.embedded import keywords_inside
from pvp_fast.sinks.ledger import Ledger
from pvp_fast.sinks.xmp_packet import XmpError, has_keywords, merge, read_record, take_back

STYLES = ("full", "stem")


class XmpSink(Beside):
    """Merges into the sidecar beside each image; the image itself is never opened for writing.

    The sidecar is the one that is there, ``photo.jpg.xmp`` or ``photo.xmp`` with an ending in any
    case, else a new one. An image without tags, or one that cannot be read, leaves its sidecar as
    it is. Keywords inside the image, which those of a sidecar hide, are repeated in it where it has
    none of others.

    Args:
        artifact, ledger, options: see :class:`~pvp_fast.sinks.beside.Beside`.
        replace: take out the keywords of earlier runs; they are added to otherwise.
        sidecar: "full" (``photo.jpg.xmp``) or "stem" (``photo.xmp``), for a new one and where both
            are there; None is "full", but ``photo.xmp`` alone is taken.
    """

    def __init__(
        self,
        artifact: str,
        ledger: Ledger,
        *,
        replace: bool = False,
        sidecar: str | None = None,
        skip: bool = False,
        dry_run: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if sidecar is not None and sidecar not in STYLES:
            raise InputError(f"sidecar={sidecar!r}: use one of {', '.join(STYLES)}")
        super().__init__(artifact, ledger, skip=skip, dry_run=dry_run, say=say)
        self.replace, self.sidecar = replace, sidecar

    def _recorded(self, key: str) -> dict[str, str] | None:
        with contextlib.suppress(OSError, XmpError):  # write() will say what is wrong
            old = read_old(find(key, ".xmp", self.sidecar)[0])
            record = read_record(old) if old is not None else {}
            names = ("artifact", "settings", "size", "mtime")
            return {name: record[name][0] for name in names if name in record}
        return None

    def _write(self, image: str, names: list[str], fields: dict[str, str]) -> str | None:
        path, note = find(image, ".xmp", self.sidecar)
        if note is not None:
            self.notes.append(note)
        old = read_old(path)
        try:
            inside = {} if has_keywords(old) else keywords_inside(image)
            change = merge(old, names, replace=self.replace, first=inside, **fields)
        except XmpError as error:
            return f"{path.name}: {error}"
        lines = [f"+ {n}: {', '.join(found)}" for n, found in change.added.items()]
        lines += [f"- {n}: {', '.join(found)}" for n, found in change.removed.items()]
        self._put(path, change.packet, old, lines)
        return None


def untag(image: str) -> list[tuple[Path, bytes, bytes | None]]:
    """Sidecars of an image that hold keywords of ours: path, bytes now, and bytes without them.

    The last is None where nothing else is in it.

    Raises:
        OSError, XmpError: one cannot be read.
    """
    paths = dict.fromkeys(find(image, ".xmp", style)[0] for style in STYLES)
    return [found for path in paths for found in untag_sidecar(path)]


def untag_sidecar(path: Path) -> list[tuple[Path, bytes, bytes | None]]:
    """The same of one sidecar, whose image may be gone.

    Raises:
        OSError, XmpError: it cannot be read.
    """
    old = read_old(path)
    new = None if old is None else take_back(old).packet
    return [] if old is None or new == old else [(path, old, new)]
