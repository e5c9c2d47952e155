"""Where images come from: files, folders, lists, and anything that yields (key, image).

A source lists samples in an order of its own and reads nothing. Tar shards are in ``shards``.
"""

from __future__ import annotations

import glob
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pvp_fast.errors import ImageError, InputError
from pvp_fast.files import safe_join
from pvp_fast.loaders.samples import Sample, Source
from pvp_fast.loaders.shards import TarSource, is_shard
from pvp_fast.loaders.walk import find_images


class FileSource:
    """Image files by path, folder and glob.

    A folder gives the files of a known image ending in sorted order, links not followed. A named
    file that does not exist is listed all the same, so that it is reported and not passed over.

    Args:
        names: paths, folders, globs.
    """

    def __init__(self, names: Iterable[str | os.PathLike[str]]) -> None:
        self._names = tuple(os.fspath(name) for name in names)
        if not self._names:
            raise InputError("source: an empty list; give paths, folders or globs")

    def samples(self, shuffle: random.Random | None) -> Iterator[Sample]:
        if shuffle is None:
            return (Sample(path, path) for path in self._paths())
        paths = list(self._paths())
        shuffle.shuffle(paths)
        return (Sample(path, path) for path in paths)

    def count(self) -> int:
        return sum(1 for _ in self._paths())

    def _paths(self) -> Iterator[str]:
        for name in self._names:
            try:
                yield from map(os.fspath, find_images([name]))
            except InputError:
                yield name


class ListSource:
    """The paths in a text file, one a line; blank lines and lines that start with # are skipped.

    Args:
        path: the list, UTF-8.
        root: the folder that relative paths start from and that no line may leave; the list's own
            folder by default.

    Raises:
        InputError: the list cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], root: str | None = None) -> None:
        self.path = Path(path)
        self.root = self.path.parent if root is None else Path(root)
        if not self.path.is_file():
            raise InputError(f"source: the list {self.path} is no file")

    def samples(self, shuffle: random.Random | None) -> Iterator[Sample]:
        lines: Iterable[str] = self._lines()
        if shuffle is not None:
            lines = list(lines)
            shuffle.shuffle(lines)
        for line in lines:
            try:
                path = os.fspath(safe_join(self.root, line))
                yield Sample(path, path)
            except (InputError, ValueError) as error:
                yield Sample(line, ImageError(str(error)))

    def count(self) -> int:
        return sum(1 for _ in self._lines())

    def _lines(self) -> Iterator[str]:
        try:
            with open(self.path, encoding="utf-8", errors="surrogateescape") as stream:
                for line in stream:
                    if line.strip() and not line.startswith("#"):
                        yield line.strip()
        except OSError as error:
            raise InputError(
                f"source: the list {self.path} cannot be read: {error.strerror}"
            ) from error


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


def open_source(source: Any) -> Source:
    """What a user passes as ``source``, as a Source.

    Raises:
        InputError: nothing can be made of it, or a path or glob that matches nothing.
    """
    if hasattr(source, "samples") and hasattr(source, "count"):
        found: Source = source
        return found
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        if is_shard(name):
            return TarSource([name])
        if name.endswith((".txt", ".lst")):
            return ListSource(name)
        if not os.path.exists(name) and not glob.glob(name, recursive=True):
            raise InputError(f"source: {name!r} is no file, folder or glob match")
        return FileSource([name])
    if isinstance(source, list | tuple) and all(isinstance(s, str | os.PathLike) for s in source):
        names = [os.fspath(s) for s in source]
        return TarSource(names) if names and all(map(is_shard, names)) else FileSource(names)
    if isinstance(source, Iterable) and not isinstance(source, bytes | bytearray):
        return ItemSource(source)
    raise InputError(
        f"source is a {type(source).__name__}; give a folder, glob, list file, .tar shards or an "
        "iterable of (key, encoded bytes)"
    )
