"""Image files named by paths, globs and folders."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pvp_fast.errors import InputError
from pvp_fast.pictures.kinds import SUFFIXES


def find_images(sources: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Files named by paths, globs and folders, in order; folders are walked in sorted order.

    Links inside a folder are not followed. A named file is given whatever its ending, so that a
    bad one is reported and not passed over.

    Raises:
        InputError: a path or glob that matches nothing.
    """
    for source in sources:
        path = Path(source)
        if path.is_dir():
            yield from _walk(path)
        elif path.exists():
            yield path
        else:
            matches = sorted(glob.glob(os.fspath(source), recursive=True))
            if not matches:
                raise InputError(f"images: {os.fspath(source)!r} is no file, folder or glob match")
            yield from (Path(m) for m in matches if os.path.isfile(m))


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(files):
            path = Path(root) / name
            if path.suffix.lower() in SUFFIXES and not path.is_symlink():
                yield path
