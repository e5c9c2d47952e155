"""Files that are whole or absent, and paths that stay inside their root."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pvp_fast.errors import InputError

STDOUT = "-"
CACHE = "PVP_FAST_CACHE"
# What file systems without fsync, extended attributes or locks answer.
_NOT_OFFERED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_MAX_LINKS = 40  # as Linux


def cache_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder of what can be made again: ``given``, else PVP_FAST_CACHE, else XDG's."""
    if given is not None:
        return Path(given)
    named = os.environ.get(CACHE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pvp_fast"


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str], mode: str = "wb", before: Callable[[], object] | None = None
) -> Iterator[IO[Any]]:
    """Open a temporary file that replaces ``path`` only when the block ends without an error.

    It has no name until then where the system offers such files (Linux, on most local file
    systems), so that a process that is killed leaves nothing beside ``path``. A symbolic link stays
    one: the file it leads to is replaced. Owner, mode and extended attributes of a replaced file
    are kept where the file system allows it. What is no regular file (a device, a FIFO,
    ``/dev/stdout``) is written directly, as ``open`` would.

    Args:
        path: the file to write; its folder is created.
        mode: "wb" for bytes or "w" for UTF-8 text.
        before: called when all is written, just before the file is replaced; what it raises keeps
            the old one.
    """
    target, descriptor = _destination(path)
    if descriptor is not None or _is_special(target):
        with _open_special(target, descriptor, mode) as stream:
            yield stream
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # A short name: with the whole one, a long one would be too long.
    beside = target.with_name(f".{target.name[:32]}.{secrets.token_hex(4)}.tmp")
    handle, name = _unnamed(target.parent), None
    if handle is None:
        try:
            handle, name = os.open(beside, _NEW, 0o600), beside
        except OSError as error:  # of the file that was meant
            raise OSError(error.errno, error.strerror, os.fspath(target)) from error
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            sync_file(stream.fileno())
            if name is None:
                if before is not None:
                    before()
                # A new file needs no other name in between, which a kill could leave behind.
                if _give_name(stream.fileno(), target):
                    sync_folder(target.parent)
                    return
                if not _give_name(stream.fileno(), beside):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(beside))
                name = beside
        _make_like(name, target)
        if before is not None:
            before()
        _replace(name, target)
    except BaseException:
        if name is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        raise
    sync_folder(target.parent)


def _unnamed(folder: Path) -> int | None:
    """A file in this folder without a name; None where there is no such thing."""
    try:
        handle = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    except (AttributeError, OSError):
        return None
    if os.path.exists(_link(handle)):
        return handle
    os.close(handle)  # without /proc it could not get a name
    return None


def _give_name(handle: int, name: Path) -> bool:
    """Name a file without one; False where there is another of that name."""
    with contextlib.suppress(OSError):
        os.fchmod(handle, _plain_mode())
    try:
        # With a folder Python calls linkat(), which follows; link() would not.
        os.link(_link(handle), name, src_dir_fd=handle, follow_symlinks=True)
    except FileExistsError:
        return False
    return True


def _link(handle: int) -> str:
    return f"/proc/self/fd/{handle}"


def json_text(value: Any, **options: Any) -> str:
    """``value`` as JSON of the standard: NaN and ±infinity, which it does not have, are null.

    Args:
        value: what :func:`json.dumps` takes. options: its keywords.
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@contextlib.contextmanager
def open_output(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """:func:`atomic_write` for a path that a command line names, where ``-`` is stdout."""
    if os.fspath(path) != STDOUT:
        with atomic_write(path, mode) as stream:
            yield stream
        return
    stdout: Any = sys.stdout if "b" not in mode else sys.stdout.buffer
    yield stdout
    stdout.flush()


def is_stdout(path: str | os.PathLike[str] | None) -> bool:
    """Whether a path that a command line names is stdout: nothing else may be printed there."""
    return path is not None and os.fspath(path) in (STDOUT, "/dev/stdout")


def _destination(path: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """Where a path leads through symbolic links, and this process's descriptor if it is one.

    ``/dev/stdout`` and the shell's ``>(…)`` are links to descriptors: what they are open on must
    be written where the shell's redirection stands, not opened again or replaced.
    """
    place = Path(path)
    for _ in range(_MAX_LINKS):
        place = Path(os.path.realpath(place.parent)) / place.name
        if place.name == "..":
            place = Path(os.path.realpath(place))
        found = re.fullmatch(rf"(?:/dev|/proc/{os.getpid()})/fd/(\d+)", str(place))
        if found is not None:
            return place, int(found.group(1))
        try:
            place = place.parent / os.readlink(place)
        except OSError:  # no link
            return place, None
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))


def _is_special(target: Path) -> bool:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(target))
    return not stat.S_ISREG(mode)


def _open_special(target: Path, descriptor: int | None, mode: str) -> IO[Any]:
    encoding = None if "b" in mode else "utf-8"
    if descriptor is None:
        return open(target, mode, encoding=encoding)
    for stream in (sys.stdout, sys.stderr):  # what was printed before comes first
        stream.flush()
    return os.fdopen(os.dup(descriptor), mode, encoding=encoding)


def _make_like(name: Path, target: Path) -> None:
    """Give a new file what the one it replaces has; none of it is worth failing for."""
    try:
        old = target.stat()
    except OSError:
        old = None
    if old is not None:
        with contextlib.suppress(OSError, AttributeError):  # no chown on Windows
            os.chown(name, -1, old.st_gid)
        with contextlib.suppress(OSError, AttributeError):
            os.chown(name, old.st_uid, -1)
        with contextlib.suppress(OSError, AttributeError):  # no xattr but on Linux
            for key in os.listxattr(target):
                if key.startswith("user.") or key == "system.posix_acl_access":
                    os.setxattr(name, key, os.getxattr(target, key))
    with contextlib.suppress(OSError):
        os.chmod(name, _plain_mode() if old is None else stat.S_IMODE(old.st_mode))


def _plain_mode() -> int:
    """What a plain open() would leave: mkstemp is private to the user."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _replace(name: Path, target: Path) -> None:
    try:
        os.replace(name, target)
    except OSError as error:
        # A file that is a mount of its own, as containers have them, can only be filled anew.
        if error.errno != errno.EBUSY:
            raise
        with open(name, "rb") as new, open(target, "wb") as old:
            shutil.copyfileobj(new, old)
            old.flush()
            sync_file(old.fileno())
        os.unlink(name)


def sync_file(descriptor: int) -> None:
    """Flush an open file to its disk, on file systems that know how.

    Raises:
        OSError: it could not be written, as on a full disk.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    with contextlib.suppress(OSError):  # some file systems refuse to open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def safe_join(root: str | os.PathLike[str], relative: str, links: bool = False) -> Path:
    """Join a path that came out of a data file to its root.

    Args:
        links: links inside ``root`` may lead out of it: they are its owner's, who keeps the files
            themselves elsewhere (git-annex, DVC, a hub's cache). The path itself may not.

    Raises:
        InputError: the result would lie outside ``root`` (absolute path, ``..``, or a link).
    """
    base = Path(root).resolve()
    joined = Path(os.path.normpath(base / relative)) if links else (base / relative).resolve()
    if not joined.is_relative_to(base):
        raise InputError(f"path {relative!r} leads outside {base}; keep it relative to that folder")
    return joined
