"""Files that are whole or absent, and paths that stay inside their root."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pvp_fast.errors import InputError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file that replaces ``path`` only when the block ends without an error.

    Args:
        path: the file to write; its folder is created.
        mode: "wb" for bytes or "w" for UTF-8 text.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, _mode(target))
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_folder(target.parent)


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


def _mode(target: Path) -> int:
    """What a plain open() would leave: mkstemp is private to the user."""
    with contextlib.suppress(OSError):
        return stat.S_IMODE(target.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    with contextlib.suppress(OSError):  # some file systems refuse to open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def safe_join(root: str | os.PathLike[str], relative: str) -> Path:
    """Join a path that came out of a data file to its root.

    Raises:
        InputError: the result would lie outside ``root`` (absolute path, ``..``, or a link).
    """
    base = Path(root).resolve()
    joined = (base / relative).resolve()
    if not joined.is_relative_to(base):
        raise InputError(f"path {relative!r} leads outside {base}; keep it relative to that folder")
    return joined


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
