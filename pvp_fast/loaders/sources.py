"""Where images come from: one function for every command.

A source lists samples in an order of its own and reads nothing; what it sees and leaves out it
counts. Tar shards are in ``shards``, folders and globs in ``walk``.
"""

from __future__ import annotations

import codecs
import os
import random
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pvp_fast.errors import ImageError, InputError
from pvp_fast.files import safe_join
from pvp_fast.loaders.passed import PassedOver
from pvp_fast.loaders.samples import Sample, Source
from pvp_fast.loaders.shards import (
    compression,
    expand_braces,
    is_shard,
    read_shard,
    refuse_remote,
)
from pvp_fast.loaders.walk import Found, Search, finds, matches, walk
from pvp_fast.pictures.kinds import LOOKS_LIKE

_LISTS = (".txt", ".lst")
_MAX_LISTS = 50  # that stand in each other
_HEAD = 1 << 16  # bytes of a list that tell how it is written
STDIN = "-"


class FileSource:
    """Images by name: files, folders, globs, list files, ``-``, tar shards, in any mixture.

    A folder gives its pictures and shards in sorted order, files before folders; ``search`` says
    what is passed over. A ``.txt`` or ``.lst`` file gives the paths in it, as :class:`ListSource`;
    ``-`` gives those that come in on stdin, one a line or with zero bytes between, from anywhere.
    A name that leads nowhere, a folder that cannot be read and the like are listed all the same, as
    failures: they are reported and the rest goes on.

    Args:
        names: paths, globs and brace ranges; what exists as it stands is taken literally.
        search: what is taken of folders and globs.

    Attributes:
        passed: what the last listing saw and left out, by kind.

    Raises:
        InputError: no names, none that leads anywhere, or one that is not local. When listed:
            nothing was found at all.
    """

    def __init__(
        self, names: Iterable[str | os.PathLike[str]], search: Search | None = None
    ) -> None:
        self._names = tuple(os.fspath(name) for name in names)
        self._search = search or Search()
        self.passed = PassedOver()
        self._stdin: tuple[str, ...] | None = None
        if not self._names:
            raise InputError("source: an empty list; give paths, folders, globs or shards")
        for name in self._names:
            refuse_remote(name)
        if not any(map(_leads_somewhere, self._names)):
            raise InputError(f"images: {self._names[0]!r} is {_missing(self._names[0])}")

    def samples(self, shuffle: random.Random | None) -> Iterator[Sample]:
        self.passed = PassedOver()
        return self._samples(shuffle, self.passed)

    def count(self) -> int | None:
        total = 0
        passed = PassedOver()
        for path, trouble in self.found(passed):
            if trouble is None and is_shard(path):
                if compression(path):
                    return None
                total += sum(1 for _ in read_shard(path))
            else:
                total += 1
        return total

    def _samples(self, shuffle: random.Random | None, passed: PassedOver) -> Iterator[Sample]:
        found: Iterable[Found] = self.found(passed)
        if shuffle is not None:
            found = list(found)
            shuffle.shuffle(found)
        nothing = True
        for path, trouble in found:
            if trouble is None and is_shard(path):
                for sample in read_shard(path, passed, shuffle):
                    nothing = False
                    yield sample
            else:
                nothing = False
                yield Sample(path, trouble or path)
        if nothing:
            beside = f"; passed over: {passed}" if passed else ""
            raise InputError(f"images: no image in {', '.join(self._names)}{beside}")

    def found(self, passed: PassedOver) -> Iterator[Found]:
        """(path, None) of every image and shard, unopened; (path, why) of what cannot be read."""
        for name in self._names:
            if name == STDIN and not os.path.lexists(name):
                for line in self._lines_of_stdin():
                    yield from self._named(line, passed)
            elif os.path.lexists(name):
                yield from self._named(name, passed)
            else:
                yield from self._pattern(name, passed)

    def _named(
        self, path: str, passed: PassedOver, within: tuple[str, ...] = ()
    ) -> Iterator[Found]:
        """A name as it stands; ``within`` are the lists that lead to it."""
        if os.path.isdir(path):
            yield from walk(path, self._search, passed)
        elif path.lower().endswith(_LISTS) and os.path.isfile(path):
            yield from self._list(path, passed, within)
        else:
            yield path, None

    def _list(self, path: str, passed: PassedOver, within: tuple[str, ...]) -> Iterator[Found]:
        place = os.path.realpath(path)
        if place in within or len(within) >= _MAX_LISTS:
            yield (
                path,
                ImageError("a list that leads back to itself, or over 50 in each other", path),
            )
            return
        root = Path(path).parent
        lines = list(_lines(path, root))
        if len(self._names) > 1 and not any(_names_a_picture(root, line) for line in lines[:20]):
            # Beside images of the same name lie captions: a shell's * gives them too.
            yield path, ImageError("neither an image nor a list of images", path)
            return
        for line in lines:
            try:
                name = os.fspath(safe_join(root, line, links=True))
                yield from self._named(name, passed, (*within, place))
            except (InputError, ValueError) as error:
                yield line, ImageError(str(error), line)

    def _pattern(self, name: str, passed: PassedOver) -> Iterator[Found]:
        """A name that does not exist as it stands."""
        for option in expand_braces(name):
            if os.path.lexists(option):
                yield from self._named(option, passed)
                continue
            found = matches(option, self._search, passed)
            if found is None:
                yield option, ImageError(_missing(option), option)
            else:
                yield from found

    def _lines_of_stdin(self) -> tuple[str, ...]:
        if self._stdin is None:
            self._stdin = tuple(_names(sys.stdin.buffer.read()))
        return self._stdin


def _leads_somewhere(name: str) -> bool:
    return (
        name == STDIN
        or os.path.lexists(name)
        or any(os.path.lexists(option) or finds(option) for option in expand_braces(name))
    )


def _missing(name: str) -> str:
    """Why a name leads nowhere."""
    try:
        os.lstat(name)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        return f"a name that cannot be read: {getattr(error, 'strerror', None) or error}"
    return "no such file, folder or glob match"


def _names(data: bytes) -> Iterator[str]:
    """The names in a list: one a line, or with zero bytes between; UTF-16 where a mark says so."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes them
        data = data.decode("utf-16", "replace").encode()
    mark = b"\0" if b"\0" in data else b"\n"
    for line in data.removeprefix(codecs.BOM_UTF8).split(mark):
        name = os.fsdecode(line.removesuffix(b"\r"))
        if name.strip():
            yield name


def _lines(path: str | os.PathLike[str], root: Path) -> Iterator[str]:
    """The names in a list file, without its comments."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(_HEAD)
            stream.seek(0)
            whole = b"\0" in head or head.startswith(codecs.BOM_UTF16_LE)
            for data in [stream.read()] if whole else stream:
                for line in _names(data):
                    name = line
                    # Names may start with # and end in spaces, too.
                    odd = line[0] in "# \t" or line[-1] in " \t"
                    if odd and not os.path.lexists(os.path.join(root, line)):
                        name = line.strip()
                        if name.startswith("#"):
                            continue
                    yield name
    except OSError as error:
        raise InputError(f"source: the list {path} cannot be read: {error.strerror}") from error


def _names_a_picture(root: Path, line: str) -> bool:
    ending = os.path.splitext(line)[1].lower()
    return ending in LOOKS_LIKE or is_shard(line) or os.path.lexists(os.path.join(root, line))


class ListSource:
    """The paths in a text file, one a line or with zero bytes between.

    Blank lines are skipped, and those that start with # unless there is a file of that name.

    Args:
        path: the list, UTF-8.
        root: the folder that relative paths start from and that no line may leave; the list's own
            folder by default. Links in it are followed.

    Raises:
        InputError: the list cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], root: str | None = None) -> None:
        self.path = Path(path)
        self.root = self.path.parent if root is None else Path(root)
        if not self.path.is_file():
            raise InputError(f"source: the list {self.path} is no file")

    def samples(self, shuffle: random.Random | None) -> Iterator[Sample]:
        lines: Iterable[str] = _lines(self.path, self.root)
        if shuffle is not None:
            lines = list(lines)
            shuffle.shuffle(lines)
        for line in lines:
            try:
                path = os.fspath(safe_join(self.root, line, links=True))
                yield Sample(path, path)
            except (InputError, ValueError) as error:
                yield Sample(line, ImageError(str(error)))

    def count(self) -> int:
        return sum(1 for _ in _lines(self.path, self.root))


class ItemSource:
    """Tuples (key, image) or (key, image, metadata) from a sequence or an iterator.

    An iterator is read once, by the thread that iterates the stream and no further ahead than its
    prefetch; it cannot be shuffled, and to resume the same items must be given again from the
    start. A sequence has neither limit.

    Args:
        items: ``image`` is encoded bytes or whatever else
            :func:`pvp_fast.pictures.open_image` takes.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def samples(self, shuffle: random.Random | None) -> Iterator[Sample]:
        if shuffle is None:
            return (_item(number, item) for number, item in enumerate(self._items))
        if not isinstance(self._items, Sequence):
            raise InputError("shuffle: an iterator's items come in its own order; give a list")
        order = list(range(len(self._items)))
        shuffle.shuffle(order)
        items = self._items
        return (_item(number, items[number]) for number in order)

    def count(self) -> int | None:
        return len(self._items) if isinstance(self._items, Sequence) else None


def _item(number: int, item: Any) -> Sample:
    if not isinstance(item, tuple) or len(item) not in (2, 3) or not isinstance(item[0], str):
        raise InputError(
            f"source: item {number} is {type(item).__name__}; give tuples (key, encoded bytes) or "
            "(key, encoded bytes, metadata), the key a string"
        )
    if len(item) == 3 and not isinstance(item[2], Mapping):
        raise InputError(f"source: the metadata of item {number} is no mapping (a dict)")
    key, image, *metadata = item
    if not isinstance(image, str | os.PathLike | bytes):
        image = _own(image)
    return Sample(key, image, *metadata)


def _own(image: Any) -> Any:
    """A copy: its owner may change it, and two threads must not load one PIL image."""
    try:
        if isinstance(image, bytearray | memoryview):
            return bytes(image)
        if isinstance(image, Image.Image | np.ndarray):
            return image.copy()
        return image.detach().clone() if isinstance(image, torch.Tensor) else image
    except Exception as error:  # a PIL image of a damaged file that nobody had loaded
        return ImageError(f"damaged: {error}")


class PartSource:
    """One part of another source, the same images however many the source has: a job of an array.

    An image's name decides where it belongs, so images that are added later move no other.

    Args:
        source: the whole. part, parts: which of how many, from 1.

    Raises:
        InputError: there is no such part.
    """

    def __init__(self, source: Source, part: int, parts: int) -> None:
        check_part(part, parts)
        self._source, self._part, self._parts = source, part, parts

    @property
    def passed(self) -> PassedOver:
        """What the whole source left out."""
        return passed_over(self._source)

    def samples(self, shuffle: random.Random | None) -> Iterator[Sample]:
        return (s for s in self._source.samples(shuffle) if self._has(s))

    def count(self) -> int:
        return sum(1 for sample in self._source.samples(None) if self._has(sample))

    def _has(self, sample: Sample) -> bool:
        return in_part(sample.key, self._part, self._parts)


def check_part(part: int, parts: int) -> None:
    """Raise InputError unless there is such a part."""
    if not 1 <= part <= parts:
        raise InputError(f"shard: {part}/{parts} is none; give 1/{parts} to {parts}/{parts}")


def in_part(key: str, part: int, parts: int) -> bool:
    """Whether an image of this name is in the part."""
    return zlib.crc32(key.encode("utf-8", "surrogateescape")) % parts == part - 1


def passed_over(source: Any) -> PassedOver:
    """What the last listing of a source left out."""
    found = getattr(source, "passed", None)
    return found if isinstance(found, PassedOver) else PassedOver()


def find_images(names: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """The image files that a :class:`FileSource` of these names lists, readable or not."""
    return (Path(sample.key) for sample in FileSource(names).samples(None))


def open_source(
    source: Any, search: Search | None = None, part: tuple[int, int] | None = None
) -> Source:
    """What a user passes as ``source``, as a Source: the same in every command.

    Args:
        source: a name or a list of names as for :class:`FileSource`, an iterable of (key, encoded
            bytes) as for :class:`ItemSource`, or a source.
        search: what is taken of folders and globs.
        part: (i, n): the i-th of n parts, from 1.

    Raises:
        InputError: nothing can be made of it, or a path or glob that matches nothing.
    """
    found: Source
    if hasattr(source, "samples") and hasattr(source, "count"):
        found = source
    elif isinstance(source, str | os.PathLike):
        found = FileSource([source], search)
    elif isinstance(source, list | tuple) and all(isinstance(s, str | os.PathLike) for s in source):
        found = FileSource(source, search)
    elif isinstance(source, Iterable) and not isinstance(source, bytes | bytearray):
        found = ItemSource(source)
    else:
        raise InputError(
            f"source is a {type(source).__name__}; give a folder, glob, list file, .tar shards or "
            "an iterable of (key, encoded bytes)"
        )
    return found if part is None else PartSource(found, *part)
