"""What every sink can do: take tagged images one by one and leave nothing half-written."""

from __future__ import annotations

import abc
import contextlib
import os
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pvp_fast.errors import SinkError

if TYPE_CHECKING:
    from pvp_fast.sinks.ledger import Content, Ledger
    from pvp_fast.tagging.tagger import TagResult

try:
    import fcntl
except ImportError:  # not a POSIX system: two writers of one file are then not noticed
    fcntl = None  # type: ignore[assignment]


class Sink(abc.ABC):
    """A place for tags, used as a context manager.

    Leaving it without an error makes everything that was written durable. A sink that replaces a
    file leaves the old one untouched when the run fails; one that appends keeps what it took.

    Attributes:
        ledger: what is there already, where the sink has one.
    """

    ledger: Ledger | None = None

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish, or give up after an error."""
        return None  # nothing to finish

    def has(self, key: str) -> bool:
        """Whether this image is there already: same artifact and settings, same content.

        One that could not be read is there only while it is the same damaged file. To be asked
        before the image is read.

        Raises:
            InputError: it is there with other settings, and those are not to be done again.
        """
        return False

    def note(self, key: str, content: Content | None) -> None:
        """Say what an image's tags are made from, where that is not the file as it is now."""
        if self.ledger is not None:
            self.ledger.note(key, content)

    def take_notes(self) -> list[str]:
        """What the user should know of the image written last, though it was written."""
        return []

    @abc.abstractmethod
    def write(self, result: TagResult) -> str | None:
        """Take one image's tags, or the reason why it has none.

        Returns:
            Why this one image cannot be written, when the others can; else None.

        Raises:
            SinkError: nothing can be written any more (full disk, no permission).
        """


class DrySink(Sink):
    """Takes everything and writes nothing.

    Args:
        ledger: what the real sink would find.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self.ledger = ledger

    def has(self, key: str) -> bool:
        return self.ledger is not None and self.ledger.has(key)

    def write(self, result: TagResult) -> str | None:
        return None


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the operating system's refusals into one sentence that names the file."""
    try:
        yield
    except OSError as error:
        raise SinkError(f"cannot write {os.fspath(path)}: {error.strerror or error}") from error


def lock(stream: Any, path: str | os.PathLike[str]) -> None:
    """Keep other processes from appending to an open file (or folder) until it is closed.

    On a file system without locks two writers of one file are not noticed.

    Raises:
        SinkError: another process does so now.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SinkError(
            f"another process is appending to {os.fspath(path)}; wait for it, give another file, "
            "or use SQLite, which takes several writers"
        ) from None
    except OSError:  # a share that has no locks
        return
