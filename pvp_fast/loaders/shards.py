"""WebDataset tar shards on local disks, read by position: nothing is unpacked.

The headers of a shard are walked when its turn comes, so no index file is needed and only one
shard's listing is in memory. Its samples then are slices of the file, which gives them what plain
files have: any order, any split over processes, and a truncated shard costs only what it lost.
"""

from __future__ import annotations

import glob
import json
import os
import random
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pvp_fast.errors import ImageError, InputError
from pvp_fast.loaders.samples import Sample
from pvp_fast.pictures.kinds import SUFFIXES

_BLOCK = 512
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MAX_SHARDS = 1_000_000


def is_shard(name: str) -> bool:
    """Whether a path, glob or brace range names tar shards, by its ending."""
    return name.endswith(".tar")


def expand_braces(pattern: str) -> Iterator[str]:
    """``a-{000..012}.tar`` and ``{train,val}.tar`` as single names, in order.

    A range keeps the width of its first number where that starts with a zero.

    Raises:
        InputError: a range that runs backwards or makes over a million names.
    """
    found = _RANGE.search(pattern) or _CHOICE.search(pattern)
    if found is None:
        yield pattern
        return
    options: Iterable[str]
    if found.re is _RANGE:
        first, last = found.group(1), found.group(2)
        if not 0 <= int(last) - int(first) < _MAX_SHARDS:
            raise InputError(
                f"source: the range {found.group(0)} in {pattern!r} is backwards or "
                f"over {_MAX_SHARDS} long"
            )
        width = len(first) if first.startswith("0") else 0
        options = (f"{n:0{width}d}" for n in range(int(first), int(last) + 1))
    else:
        options = found.group(1).split(",")
    for option in options:
        yield from expand_braces(pattern[: found.start()] + option + pattern[found.end() :])


class TarSource:
    """Local WebDataset shards: members that share a name up to its first dot make a sample.

    The image is the first member with an image ending (.jpg, .png, .webp, …). ``.json`` members
    are parsed into ``metadata["json"]``, ``.cls`` into an int, ``.txt`` and others of text into a
    string; the rest is left alone. Keys are ``SHARD/NAME``; ``metadata["__key__"]`` is NAME.

    A shard that ends early, has a damaged header or lacks its end mark adds one failure under the
    shard's own name, since what it lost cannot be counted. Shuffling permutes the shards and the
    samples inside each.

    Args:
        names: paths, globs and brace ranges (``shard-{000..012}.tar``); local files only.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.paths: list[str] = []
        for pattern in names:
            if "://" in pattern or pattern.startswith("pipe:"):
                raise InputError(f"source: {pattern!r} is not local; copy the shards to a disk")
            for name in [pattern] if os.path.exists(pattern) else expand_braces(pattern):
                matches = [] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
                self.paths += matches or [name]
        if not any(map(os.path.exists, self.paths)):
            raise InputError(f"source: no shard of {', '.join(names)} exists")

    def samples(self, shuffle: random.Random | None) -> Iterator[Sample]:
        paths = list(self.paths)
        if shuffle is not None:
            shuffle.shuffle(paths)
        for path in paths:
            if shuffle is None:
                yield from read_shard(path)
            else:
                found = list(read_shard(path))
                shuffle.shuffle(found)
                yield from found

    def count(self) -> int:
        return sum(1 for path in self.paths for _ in read_shard(path))


@dataclass
class _Group:
    """The members of one sample: ending -> (offset, size)."""

    name: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


def read_shard(path: str) -> Iterator[Sample]:
    """The samples of one shard, from its headers alone; at its end one failure if it is damaged."""
    group: _Group | None = None
    for name, offset, size in _members(path):
        if name is None:
            if group is not None:
                yield _sample(path, group)
            yield Sample(path, ImageError(str(offset), path))
            return
        folder, slash, last = name.rpartition("/")
        stem, dot, ending = last.partition(".")
        if not dot or not stem or last.startswith("__"):
            continue
        stem = folder + slash + stem
        if group is None or group.name != stem:
            if group is not None:
                yield _sample(path, group)
            group = _Group(stem)
        group.members[ending.lower()] = (int(offset), size)
    if group is not None:
        yield _sample(path, group)


def _members(path: str) -> Iterator[tuple[str, int, int] | tuple[None, str, int]]:
    """(name, offset, size) of regular members; (None, reason, 0) where the shard breaks off."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.isreg() and not member.issparse():
                    yield member.name, member.offset_data, member.size
                # tarfile remembers every member it has seen
                tar.members.clear()  # type: ignore[attr-defined]
            # tarfile takes a damaged header, or the end of a file cut between two members, for
            # the end of the archive.
            with open(path, "rb") as stream:
                stream.seek(tar.offset)
                mark = stream.read(_BLOCK)
            if mark != bytes(_BLOCK):
                yield None, _broken(mark, tar.offset), 0
    except FileNotFoundError:
        yield None, "no such file", 0
    except tarfile.TarError as error:
        yield None, f"damaged shard: {error}", 0
    except OSError as error:
        yield None, f"cannot be read: {error.strerror or error}", 0


def _broken(mark: bytes, offset: int) -> str:
    if len(mark) < _BLOCK:
        return f"truncated shard: it ends at byte {offset + len(mark)} without an end mark"
    return f"damaged shard: no tar header at byte {offset}; what follows is lost"


def _sample(path: str, group: _Group) -> Sample:
    key = f"{path}/{group.name}"
    image = next((m for end, m in group.members.items() if f".{end}" in SUFFIXES), None)
    if image is None:
        found = ", ".join(f".{end}" for end in group.members)
        return Sample(key, ImageError(f"no image among its members ({found})", key))
    texts = {e: m for e, m in group.members.items() if e in _PARSERS}
    return Sample(key, partial(_slice, path, *image), partial(_metadata, path, group.name, texts))


def _slice(path: str, offset: int, size: int) -> bytes:
    try:
        with open(path, "rb") as stream:
            stream.seek(offset)
            # A damaged header may claim any size: the file's end bounds what is asked for.
            data = stream.read(min(size, max(0, os.fstat(stream.fileno()).st_size - offset)))
    except OSError as error:
        raise ImageError(f"shard cannot be read: {error.strerror or error}") from error
    if len(data) < size:
        raise ImageError(f"truncated shard: {len(data)} of {size} bytes are there")
    return data


_PARSERS: dict[str, Callable[[bytes], Any]] = {
    "json": json.loads,
    "cls": int,
    "txt": lambda data: data.decode("utf-8"),
    "text": lambda data: data.decode("utf-8"),
    "transcript": lambda data: data.decode("utf-8"),
}


def _metadata(path: str, name: str, texts: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    found: dict[str, Any] = {"__key__": name}
    for ending, place in texts.items():
        try:
            found[ending] = _PARSERS[ending](_slice(path, *place))
        except (ValueError, RecursionError) as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"its .{ending} member cannot be read: {error}") from error
    return found
