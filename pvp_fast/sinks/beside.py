"""Files beside images: which one is an image's, and whose else it may be."""

from __future__ import annotations

import abc
import contextlib
import errno
import functools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pvp_fast.errors import SinkError
from pvp_fast.files import atomic_write
from pvp_fast.sinks.base import Sink
from pvp_fast.sinks.ledger import Content, Ledger

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult

_TRIES = 3  # where another program writes the same file
_FULL = {errno.ENOSPC, errno.EDQUOT}  # what concerns all images that follow


class Beside(Sink):
    """Writes one file beside each image. What is wrong with one is that image's trouble alone.

    Args:
        artifact: version of the artifact that tags.
        ledger: its settings are recorded.
        skip: whether :meth:`has` looks at what is there, so that a run goes on.
        dry_run: find out, but write nothing.
        say: called in a dry run with a line for each file that would change.

    Attributes:
        notes: what the user should know though it worked; emptied by whoever shows it.
    """

    ledger: Ledger

    def __init__(
        self,
        artifact: str,
        ledger: Ledger,
        *,
        skip: bool = False,
        dry_run: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.artifact, self.ledger = artifact, ledger
        self.skip, self.dry_run = skip, dry_run
        self._say = say
        self.notes: list[str] = []

    def has(self, key: str) -> bool:
        content = self.ledger.see(key)
        return self.skip and content is not None and self._recorded(key) == self._fields(content)

    def take_notes(self) -> list[str]:
        found, self.notes = self.notes, []
        return found

    @abc.abstractmethod
    def _recorded(self, key: str) -> dict[str, str] | None:
        """What the file says of the run that wrote it."""

    def _fields(self, content: Content) -> dict[str, str]:
        return {
            "artifact": self.artifact,
            "settings": self.ledger.settings,
            "size": str(content.size),
            "mtime": str(content.mtime_ns),
        }

    def write(self, result: TagResult) -> str | None:
        if not result.tags:
            return None
        content = self.ledger.record(result.image, None).content
        if content is None or not os.path.isfile(result.image):
            return (
                f"no file {result.image} here to write beside; run this in the folder that the "
                "names start from"
            )
        names = [tag.name for tag in result.tags]
        for attempt in range(_TRIES):
            try:
                return self._write(result.image, names, self._fields(content))
            except BrokenPipeError:  # of a dry run: nobody reads any more
                raise
            except BlockingIOError as error:
                if attempt == _TRIES - 1:
                    return f"{os.path.basename(error.filename)} cannot be written: {error.strerror}"
            except OSError as error:
                if error.errno in _FULL:
                    why = f"cannot write beside {result.image}: {error.strerror}"
                    raise SinkError(why) from error
                name = os.path.basename(error.filename or result.image)
                return f"{name} cannot be written: {error.strerror or error}"
        raise AssertionError(attempt)

    @abc.abstractmethod
    def _write(self, image: str, names: list[str], fields: dict[str, str]) -> str | None:
        """Write the file; why not, if so."""

    def _put(self, path: Path, data: bytes | None, old: bytes | None, lines: list[str]) -> None:
        """Put new bytes in place (None: take the file away), or say what would be done."""
        if data != old:
            refuse_read_only(path)
        if self.dry_run:
            if self._say is not None and data != old:
                what = "new" if old is None else "taken away" if data is None else "changed"
                self._say(f"{path} ({what})")
                for line in lines:
                    self._say(f"  {line}")
        elif data != old:
            put(path, data, old)


def put(path: Path, data: bytes | None, old: bytes | None) -> None:
    """Put new bytes in the place of old ones (None: no file), if those are there still.

    Raises:
        BlockingIOError: another program has written the file since it was read.
        OSError: it cannot be written.
    """

    def check() -> None:
        if read_old(path) != old:
            raise BlockingIOError(
                errno.EAGAIN, "another program is writing it; run this again", os.fspath(path)
            )

    if data is None:
        check()
        path.unlink()
    else:
        with atomic_write(path, before=check) as stream:
            stream.write(data)


def read_old(path: Path) -> bytes | None:
    """A file's bytes, or None where there is none.

    Raises:
        OSError: it cannot be read, or is a link: what it leads to is not the image's.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link; replace it by a file", str(path))
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def refuse_read_only(path: str | os.PathLike[str]) -> None:
    """Raise PermissionError for a file that its owner has closed to writing, as renaming another
    over it would not ask, and where its folder takes none."""
    with contextlib.suppress(FileNotFoundError):
        if not os.stat(path).st_mode & 0o222:
            raise PermissionError(errno.EACCES, "it is read-only", os.fspath(path))
    if not os.access(os.path.dirname(path) or ".", os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "its folder cannot be written to here", os.fspath(path))


def find(image: str, ending: str, style: str | None) -> tuple[Path, str | None]:
    """The file of an image with this ending: ``a.jpg.xmp`` ("full") or ``a.xmp`` ("stem").

    Args:
        style: which to take where both are there, or none; None takes the one that is there, the
            full one of two or for a new one.

    Returns:
        The path, and what the user should know about it.
    """
    full = _there(Path(image + ending))
    stem = _there(Path(os.path.splitext(image)[0] + ending))
    if full is None and stem is not None and style is None and others(image):
        new = Path(image + ending)
        return (
            new,
            f"{stem.name} may be that of {', '.join(others(image))}; {new.name} is this one's",
        )
    if full is not None and stem is not None:
        chosen, other = (stem, full) if style == "stem" else (full, stem)
        return chosen, f"has two: {chosen.name} is taken, {other.name} left alone"
    there = full or stem
    if there is not None:
        return there, None
    return Path(os.path.splitext(image)[0] + ending if style == "stem" else image + ending), None


def _there(path: Path) -> Path | None:
    """The file of that name with its ending in any case."""
    for ending in dict.fromkeys((path.suffix, path.suffix.upper(), path.suffix.title())):
        other = path.with_name(path.name[: -len(path.suffix)] + ending)
        if os.path.lexists(other):
            return other
    return None


def others(image: str) -> list[str]:
    """Other images in the folder that share the name up to its ending."""
    from pvp_fast.pictures.kinds import SUFFIXES

    folder, name = os.path.split(image)
    stem, mine = os.path.splitext(name)
    known = _stems(folder or ".", os.stat(folder or ".").st_mtime_ns)[stem]
    if known <= (mine.lower() in SUFFIXES):
        return []
    return sorted(
        entry
        for entry in os.listdir(folder or ".")
        if os.path.splitext(entry)[0] == stem
        and os.path.splitext(entry)[1] != mine
        and os.path.splitext(entry)[1].lower() in SUFFIXES
    )


@functools.lru_cache(4)
def _stems(folder: str, changed: int) -> Counter[str]:
    from pvp_fast.pictures.kinds import SUFFIXES

    parts = map(os.path.splitext, os.listdir(folder))
    return Counter(stem for stem, ending in parts if ending.lower() in SUFFIXES)
