"""What a run that can go on has done: which image, from which content, with which settings.

An image is the place where it lies: its folder with all links followed, and its name in there. So
``photos/a.jpg`` and ``/home/me/photos/a.jpg`` are one image, and two links to one file are two. A
member of an archive lies in its archive. Each row of an output carries a :class:`Record`; what a
run finds there is kept in a :class:`Ledger`, which says whether an image is to be done.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pvp_fast.errors import InputError
from pvp_fast.sinks.names import plain


class Content(NamedTuple):
    """A file as it was when it was read.

    Attributes:
        path: its place. size: bytes. mtime_ns: when it was changed last, nanoseconds since 1970.
    """

    path: str
    size: int
    mtime_ns: int


def content_of(key: str) -> Content | None:
    """The file that a key names, or the archive that holds it; None where there is none.

    Of a member of an archive the place is its own, size and time are the archive's.
    """
    name, inside = key, ""
    while name:
        try:
            found = os.stat(name)
        except NotADirectoryError:  # shard.tar/member: look at the shard
            name, _, last = name.rpartition("/")
            inside = f"/{last}{inside}"
        except (OSError, ValueError):
            return None
        else:
            if stat.S_ISDIR(found.st_mode):
                return None
            return Content(place(name) + inside, found.st_size, found.st_mtime_ns)
    return None


def place(path: str) -> str:
    """The folder of a path with its links followed, and the name in it."""
    folder, name = os.path.split(path)
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    return os.path.join(_folder(folder, os.getcwd()), name)


@functools.lru_cache(1024)
def _folder(folder: str, here: str) -> str:
    return os.path.realpath(os.path.join(here, folder))


def describe(**settings: object) -> str:
    """Settings as one line that people can read and runs compare: ``threshold=own top_k=5``."""
    return " ".join(f"{name}={value}" for name, value in sorted(settings.items()))


@dataclass(frozen=True)
class Record:
    """What a row says beside its tags.

    Attributes:
        settings: what :func:`describe` made of them.
        content: what was read, or None where it was no file.
        error: why it could not be read, if so.
    """

    settings: str
    content: Content | None = None
    error: str | None = None

    def to_dict(self, key: str) -> dict[str, Any]:
        """``settings``, ``path`` (None where the key says it), ``size`` and ``mtime_ns``."""
        place, size, time = self.content or (None, None, None)
        if place == key:
            place = None
        return {"settings": self.settings, "path": place, "size": size, "mtime_ns": time}

    @classmethod
    def from_dict(cls, key: str, found: Mapping[str, Any], error: str | None) -> Record:
        """The reverse.

        Raises:
            KeyError, TypeError, ValueError: something is missing or of another type.
        """
        if not isinstance(found["settings"], str):
            raise TypeError("settings are no text")
        content = None
        if found.get("size") is not None:
            path = found.get("path")
            content = Content(
                key if path is None else str(path), int(found["size"]), int(found["mtime_ns"])
            )
        return cls(found["settings"], content, error)


def name_of(key: str, record: Record) -> str:
    """What tells an image of an output from others: its place, or its key where it has none.

    Rows of earlier versions do not say what they were read from; the file may be there still.
    """
    if record.content is not None:
        return record.content.path
    try:
        return place(key) if os.path.lexists(key) else key
    except ValueError:
        return key


def is_lasting(error: str) -> bool:
    """Whether only other content can mend a failure: the body of the file itself is damaged.

    A share that broke off in the middle of a file looks alike, but for the system's error number.
    """
    return error.startswith("damaged") and "[Errno" not in error


class Ledger:
    """The images an output holds, and which of them are to be done.

    Args:
        settings: of this run.
        redo: do again what other settings have done, instead of refusing to mix them.
        retry_failed: try damaged images again, too, though nothing about them has changed.

    Attributes:
        failed_before: images passed over that an earlier run could not read.
        look: finds the record of an image; :meth:`find` unless the rows are not in memory.
    """

    def __init__(self, settings: str, *, redo: bool = False, retry_failed: bool = False) -> None:
        self.settings, self.redo, self.retry_failed = settings, redo, retry_failed
        self.failed_before = 0
        self.look: Callable[[str], Record | None] = self.find
        self._known: dict[str, Record] = {}
        self._reading: dict[str, Content | None] = {}
        self._above: set[str] = set()  # folders and shards that were looked up
        self._opened: set[str] = set()  # of them those that had failed
        self._failed: set[str] = set()  # listed as failures of an earlier run

    def __len__(self) -> int:
        return len(self._known)

    def add(self, key: str, record: Record, where: object) -> bool:
        """Take a row of the output; a later one of the same image replaces it.

        Args:
            where: names the output in the error.

        Returns:
            Whether there was an earlier one.

        Raises:
            InputError: it was done with other settings, and ``redo`` is false.
        """
        self.check(record.settings, where)
        name = plain(name_of(key, record))
        there = name in self._known
        self._known[name] = record
        return there

    def check(self, settings: str, where: object) -> None:
        """Raise InputError unless these are the settings of this run, or are to be done again."""
        if settings != self.settings and not self.redo:
            raise InputError(
                f"output: {where} holds what was made with {settings or 'other settings'}, this "
                f"run has {self.settings or 'others'}; give the same settings, another output, or "
                "--redo to make the old ones again"
            )

    def find(self, key: str) -> Record | None:
        """What is known of an image under its place, or under the key itself."""
        return self._known.get(plain(place(key))) or self._known.get(plain(key))

    def has(self, key: str) -> bool:
        """Whether an image needs not be done.

        If it is to be done, its size and time are noted now, before it is read: what is copied
        meanwhile has others afterwards and is done once more.
        """
        content = self._reading.pop(key) if key in self._reading else content_of(key)
        record = self.look(key)
        self._look_above(key)
        if record is not None and record.error is not None:
            self._failed.add(plain(place(key)))
        if record is not None and not self._is_stale(record, content):
            self.failed_before += record.error is not None
            return True
        self._reading[key] = content
        return False

    @property
    def superseded(self) -> set[str]:
        """Places of folders and shards that had failed and are no longer listed as that, though
        what is in them is: their rows go at the end of the run."""
        return self._opened - self._failed

    def _look_above(self, key: str) -> None:
        above = key.rpartition("/")[0]
        while above and above not in self._above:
            self._above.add(above)
            record = self.look(above)
            # In a run over a part of the images a shard that is as it was may be another part's.
            if (
                record is not None
                and record.error is not None
                and (record.content is None or record.content != content_of(above))
            ):
                self._opened.add(plain(place(above)))
            above = above.rpartition("/")[0]

    def is_done(self, key: str, content: Content | None) -> bool:
        """Whether an image of this content needs not be done."""
        record = self.find(key)
        return record is not None and not self._is_stale(record, content)

    def _is_stale(self, record: Record, content: Content | None) -> bool:
        if record.settings != self.settings:
            return True
        known = record.content
        if content is not None and known is not None and content[1:] != known[1:]:
            return True
        if record.error is None:
            return False
        unknown = content is None or known is None
        return self.retry_failed or unknown or not is_lasting(record.error)

    def see(self, key: str) -> Content | None:
        """Note size and time of an image's file, before it is read."""
        if key not in self._reading:
            self._reading[key] = content_of(key)
        return self._reading[key]

    def note(self, key: str, content: Content | None) -> None:
        """Say what an image is read from, where that is not the file as it is now."""
        self._reading[key] = content

    def record(self, key: str, error: str | None) -> Record:
        """The record of an image that is done now."""
        content = self._reading.pop(key) if key in self._reading else content_of(key)
        return Record(self.settings, content, error)
