"""WebDataset tar shards on local disks: nothing is unpacked, and every image in them is a sample.

The headers of a shard are walked when its turn comes, so no index file is needed and only one
shard's listing is in memory. Its samples then are slices of the file, which gives them what plain
files have: any order, any split over processes, and a truncated shard costs only what it lost.
Compressed shards have no positions: they are read from front to back, each image as it comes.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import json
import lzma
import os
import random
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

from pvp_fast.errors import ImageError, InputError
from pvp_fast.loaders.passed import HIDDEN, SCATTERED, PassedOver
from pvp_fast.loaders.samples import Sample
from pvp_fast.pictures import kinds, looks_like_picture

_BLOCK = 512
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_PICTURES = kinds.SUFFIXES | kinds.heif.SUFFIXES | kinds.RAW  # those that cannot be read say so
_MAX_SHARDS = 1_000_000


_COMPRESSED = {b"\x1f\x8b": "gz", b"BZ": "bz2", b"\xfd7": "xz"}
_OPEN: dict[str, Callable[[str], Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
_NO_SHARDS = {
    b"\x28\xb5\x2f\xfd": "compressed by zstd, which is not read; unpack it to a .tar",
    b"PK\x03\x04": "a ZIP archive, which is not read; unpack it",
}
_SHARDS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_MAX_BETWEEN = 1 << 20  # zero bytes between two archives in one file
_MAX_HELD = 1 << 28  # bytes of one group of a compressed shard
_MAX_MEMBER = 1 << 30  # bytes of a member that is held in memory


def is_shard(name: str) -> bool:
    """Whether a path, glob or brace range names tar shards, by its ending."""
    return name.lower().endswith(_SHARDS)


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
    """Local WebDataset shards (``.tar``, ``.tar.gz`` and the like).

    Members that share a name up to its first dot make a sample; each image among them is one. Where
    that gives no image (``IMG.2024.01.jpg``), and for further images (``a.left.jpg``), the name up
    to its last dot counts. ``.json`` members are parsed into ``metadata["json"]``, ``.cls`` into an
    int, ``.txt`` and others of text into a string; one that cannot be parsed is left out, and
    ``metadata["__unreadable__"]`` says why. Other members are left alone.

    Keys are ``SHARD/NAME``, with the ending where several images share the name and with ``#2``
    where the shard holds it twice; ``metadata["__key__"]`` is NAME.

    A shard that ends early, has a damaged header or lacks its end mark adds one failure under the
    shard's own name, since what it lost cannot be counted. Shuffling permutes the shards and the
    samples inside each.

    Args:
        names: paths, globs and brace ranges (``shard-{000..012}.tar``); local files only.

    Attributes:
        passed: what the last listing saw and left out.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.paths: list[str] = []
        self.passed = PassedOver()
        for pattern in names:
            refuse_remote(pattern)
            for name in [pattern] if os.path.lexists(pattern) else expand_braces(pattern):
                matches = [] if os.path.lexists(name) else sorted(glob.glob(name, recursive=True))
                self.paths += matches or [name]
        if not any(map(os.path.lexists, self.paths)):
            raise InputError(f"source: no shard of {', '.join(names)} exists")

    def samples(self, shuffle: random.Random | None) -> Iterator[Sample]:
        self.passed = PassedOver()
        paths = list(self.paths)
        if shuffle is not None:
            shuffle.shuffle(paths)
        for path in paths:
            yield from read_shard(path, self.passed, shuffle)

    def count(self) -> int | None:
        if any(map(compression, self.paths)):
            return None
        return sum(1 for path in self.paths for _ in read_shard(path))


def refuse_remote(name: str) -> None:
    """Raise InputError for what is no local file."""
    if "://" in name or name.startswith("pipe:"):
        raise InputError(f"source: {name!r} is not local; copy it to a disk")


def compression(path: str) -> str:
    """ "gz", "bz2" or "xz" by a file's first bytes, else ""."""
    try:
        with open(path, "rb") as stream:
            return _COMPRESSED.get(stream.read(2), "")
    except (OSError, ValueError):
        return ""


_Place = Any  # (offset, size), bytes, a function that gives bytes, or an ImageError: why not


@dataclass(frozen=True)
class _Member:
    """A file in a shard and its bytes."""

    name: str
    place: _Place

    @property
    def parts(self) -> tuple[str, str, str]:
        """(name to its first dot, what follows, name to its last dot)."""
        folder, slash, last = self.name.rpartition("/")
        stem, _, ending = last.partition(".")
        return folder + slash + stem, ending.lower(), self.name.rpartition(".")[0] or self.name


@dataclass
class _Group:
    """Neighbouring members that share a name up to its first dot."""

    stem: str
    members: list[_Member] = field(default_factory=list)
    held: int = 0  # bytes in memory


def read_shard(
    path: str, passed: PassedOver | None = None, shuffle: random.Random | None = None
) -> Iterator[Sample]:
    """The samples of one shard, from its headers alone; at its end what is wrong with it.

    Args:
        passed: counts what was left out. shuffle: gives the samples in its order.

    Raises:
        InputError: a compressed shard is to be shuffled.
    """
    found = _Reader(path, passed if passed is not None else PassedOver()).samples()
    if shuffle is None:
        yield from found
        return
    if compression(path):
        raise InputError(f"shuffle: {path} is compressed and has one order; unpack it to a .tar")
    listed = list(found)
    shuffle.shuffle(listed)
    yield from listed


class _Reader:
    """One pass over a shard."""

    def __init__(self, path: str, passed: PassedOver) -> None:
        self._path, self._passed = path, passed
        self._used: Counter[str] = Counter()  # names of samples
        self._kind = compression(path)
        self._images: dict[str, _Place] = {}  # for links to them; no bytes are kept
        self._stems: set[str] = set()
        self._bare: dict[str, str] = {}  # stems of groups without an image -> their endings

    def samples(self) -> Iterator[Sample]:
        broken = None
        group: _Group | None = None
        for member in self._members():
            if isinstance(member, ImageError):
                broken = member
                break
            if self._is_beside_the_point(member):
                continue
            stem = member.parts[0]
            held = 0 if group is None else group.held
            if group is None or group.stem != stem or held > _MAX_HELD:
                if group is not None:
                    yield from self._group(group)
                group = _Group(stem)
            group.members.append(member)
            group.held += len(member.place) if isinstance(member.place, bytes) else 0
        if group is not None:
            yield from self._group(group)
        scattered = [stem for stem in self._bare if stem in self._stems]
        self._passed.add(SCATTERED, bool(scattered))
        for stem, endings in self._bare.items():
            if stem not in self._stems:
                key = f"{self._path}/{stem}"
                yield Sample(key, ImageError(f"no image among its members ({endings})", key))
        if broken is not None:
            yield Sample(self._path, broken)

    def _is_beside_the_point(self, member: _Member) -> bool:
        folders = member.name.split("/")
        if folders[-1].startswith(".") or "__MACOSX" in folders:
            self._passed.add(HIDDEN)
            return True
        return folders[-1].startswith("__") and not self._is_image(member)  # webdataset's own notes

    def _group(self, group: _Group) -> Iterator[Sample]:
        images = [member for member in group.members if self._is_image(member)]
        if not images:
            endings = ", ".join(f".{member.parts[1]}" for member in group.members)
            self._bare.setdefault(group.stem, endings)
            return
        self._stems.add(group.stem)
        shared: dict[str, _Place] = {}  # texts of every image of the group
        own: dict[str, dict[str, _Place]] = {}  # texts of one image, by its name to the last dot
        for member in group.members:
            ending = member.parts[1].rpartition(".")[2]
            if ending in _PARSERS:
                texts = shared if ending == member.parts[1] else own.setdefault(member.parts[2], {})
                texts[ending] = member.place
        # Of IMG.2024.01.jpg the first dot tells nothing, nor of a second image a.left.jpg.
        names = [m.parts[2] if "." in m.parts[1] else m.parts[0] for m in images]
        often = Counter(names)
        for member, name in zip(images, names, strict=True):
            self._stems.add(name)
            texts = shared | own.get(member.parts[2], {})
            yield self._sample(member, member.name if often[name] > 1 else name, texts)

    def _sample(self, member: _Member, name: str, texts: Mapping[str, _Place]) -> Sample:
        self._used[name] += 1
        if self._used[name] > 1:
            name = f"{name}#{self._used[name]}"
        image = member.place
        if isinstance(image, tuple):
            image = partial(_slice, self._path, *image)
        key = f"{self._path}/{name}"
        return Sample(key, image, partial(_metadata, self._path, name, texts))

    @staticmethod
    def _is_image(member: _Member) -> bool:
        ending = os.path.splitext(member.name)[1].lower()
        return ending in _PICTURES or not ending  # without one, its first bytes were looked at

    def _members(self) -> Iterator[_Member | ImageError]:
        """Every file in order; where the shard breaks off, the reason."""
        path = self._path
        try:
            with _opened(path) as stream:
                reason = _NO_SHARDS.get(stream.read(4))
                at = None if reason else 0
                while at is not None:
                    end = yield from self._archive(stream, at)
                    stream.seek(end)
                    mark = stream.read(_BLOCK)
                    # tarfile takes a damaged header, or the end of a file cut between two members,
                    # for the end of the archive.
                    reason = _broken(mark, end) if mark != bytes(_BLOCK) else None
                    at = None if reason else _another(stream)
            if reason:
                yield ImageError(reason, path)
        except FileNotFoundError:
            yield ImageError("no such file", path)
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
            yield ImageError(f"damaged shard: {error}", path)
        except OSError as error:
            # Compressed files that are damaged have no number of the system.
            what = "cannot be read" if error.errno else "damaged shard"
            yield ImageError(f"{what}: {error.strerror or error}", path)

    def _archive(self, stream: IO[bytes], at: int) -> Generator[_Member, None, int]:
        """The files of the archive that starts at a byte; where it ends."""
        stream.seek(at)
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (entry := tar.next()) is not None:
                if entry.isreg() or entry.islnk() or entry.issym():
                    found = self._member(tar, entry)
                    if found is not None:
                        if not isinstance(found.place, ImageError):
                            self._remember(found)
                        yield found
                # tarfile remembers every member it has seen
                tar.members.clear()  # type: ignore[attr-defined]
            return tar.offset

    def _member(self, tar: tarfile.TarFile, entry: tarfile.TarInfo) -> _Member | None:
        name = entry.name.removeprefix("./")
        if entry.islnk() or entry.issym():
            return self._link(entry, name)
        if entry.issparse():
            return _Member(name, ImageError("stored as a sparse file, which is not read"))
        ending = os.path.splitext(name)[1].lower()
        place: _Place = (entry.offset_data, entry.size)
        if self._kind and (ending in _PICTURES or ending[1:] in _PARSERS or not ending):
            if entry.size > _MAX_MEMBER:
                return _Member(name, ImageError(f"too large: {entry.size} bytes in a shard"))
            stream = tar.extractfile(entry)
            place = b"" if stream is None else stream.read()
        if not ending:  # only its first bytes can say that it is a picture
            head = place if self._kind else _slice(self._path, place[0], min(64, entry.size))
            return _Member(name, place) if looks_like_picture(head[:64]) else None
        return _Member(name, place)

    def _link(self, entry: tarfile.TarInfo, name: str) -> _Member | None:
        """The image that a link inside the shard leads to; it is an image of its own."""
        if os.path.splitext(name)[1].lower() not in _PICTURES:
            return None
        target = entry.linkname.removeprefix("./")
        if entry.issym():
            target = os.path.normpath(os.path.join(os.path.dirname(name), target))
        if target not in self._images:
            why = f"a link to {entry.linkname}, which does not come before it in the shard"
            return _Member(name, ImageError(why))
        place = self._images[name] = self._images[target]
        return _Member(name, partial(_again, self._path, place) if self._kind else place)

    def _remember(self, member: _Member) -> None:
        """For links to it: its position, or in a compressed shard the name of its bytes."""
        self._images.setdefault(member.name, member.name if self._kind else member.place)


def _opened(path: str) -> IO[bytes]:
    """A shard's bytes, unpacked, also where several packed ones stand one after the other."""
    opened: IO[bytes] = _OPEN.get(compression(path), partial(open, mode="rb"))(path)
    return opened


def _another(stream: IO[bytes]) -> int | None:
    """Where behind an end mark another archive starts, as cat puts it there; None if none does."""
    at = stream.tell()
    try:
        ahead = stream.read(_MAX_BETWEEN)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):  # what follows is no part of it
        return None
    start = (len(ahead) - len(ahead.lstrip(b"\0"))) // _BLOCK * _BLOCK
    try:
        tarfile.TarInfo.frombuf(ahead[start : start + _BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return at + start


def _broken(mark: bytes, offset: int) -> str:
    if len(mark) < _BLOCK:
        return f"truncated shard: it ends at byte {offset + len(mark)} without an end mark"
    return f"damaged shard: no tar header at byte {offset}; what follows is lost"


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


def _again(path: str, name: str) -> bytes:
    """A member of a compressed shard, read once more from the front: what a link leads to."""
    try:
        with _opened(path) as packed, tarfile.open(fileobj=packed, mode="r:") as tar:
            for entry in tar:
                if entry.isreg() and entry.name.removeprefix("./") == name:
                    stream = tar.extractfile(entry)
                    return b"" if stream is None else stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ImageError(f"shard cannot be read: {error}") from error
    raise ImageError(f"{name} is no longer in the shard")


_PARSERS: dict[str, Callable[[bytes], Any]] = {
    "json": json.loads,
    "cls": int,
    "txt": lambda data: data.decode("utf-8"),
    "text": lambda data: data.decode("utf-8"),
    "transcript": lambda data: data.decode("utf-8"),
}


def _metadata(path: str, name: str, texts: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"__key__": name}
    problems: dict[str, str] = {}
    for ending, place in texts.items():
        try:
            data = _slice(path, *place) if isinstance(place, tuple) else place
            found[ending] = _PARSERS[ending](data)
        except (ValueError, RecursionError, TypeError) as error:  # never costs the image
            problems[ending] = str(error)
    if problems:
        found["__unreadable__"] = problems
    return found
