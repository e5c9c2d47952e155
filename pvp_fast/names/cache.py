"""Where artifacts made from names lie, and a store of what each name came to.

A name's vector depends on the model and the name alone, so a list with ten names changed costs ten
names. The store is one SQLite file a model; it and the whole folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pvp_fast.errors import InputError
from pvp_fast.files import CACHE

_AT_ONCE = 500  # keys of one query: SQLite's oldest limit is 999 variables
_WAIT = 60.0  # seconds for another process's block

Encode = Callable[[Sequence[str]], Tensor]
Progress = Callable[[int, int], None]


class NameVectors:
    """Unit rows of texts by their keys, in one file that several processes may share.

    Args:
        path: the SQLite file; created when needed. One that is no such file is replaced.
        width: D.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width = path, width

    def get(
        self,
        texts: Sequence[str],
        encode: Encode,
        *,
        recipe: str = "",
        block: int = 1024,
        progress: Progress | None = None,
    ) -> Tensor:
        """Rows (N, D) float32 of ``texts``: from the file, else encoded and kept there.

        Args:
            encode: n texts -> (n, D); called with what is missing, ``block`` texts at a time, each
                of which is kept at once.
            recipe: what else the rows depend on.
            progress: called with (rows at hand, N) after each block.

        Raises:
            InputError: the file cannot be written.
        """
        keys = _keys(texts, recipe)
        found = torch.empty(len(texts), self.width)
        with self._open() as store:
            missing = self._read(store, keys, found)
            done = len(texts) - len(missing)
            for start in range(0, len(missing), block):
                part = missing[start : start + block]
                rows = encode([texts[i] for i in part]).detach().float().cpu()
                found[part] = rows
                values = zip((keys[i] for i in part), _blobs(rows), strict=True)
                with store:
                    store.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", values)
                if progress:
                    progress(done + start + len(part), len(texts))
        return found

    def missing(self, texts: Sequence[str], recipe: str = "") -> int:
        """How many of ``texts`` would have to be encoded."""
        if not self.path.exists():
            return len(texts)
        keys = _keys(texts, recipe)
        with self._open() as store:
            return len(self._read(store, keys, None))

    def _read(
        self, store: sqlite3.Connection, keys: Sequence[bytes], into: Tensor | None
    ) -> list[int]:
        """Fill ``into`` with the rows there are; the positions of the others."""
        missing: list[int] = []
        for start in range(0, len(keys), _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            marks = ",".join("?" * len(part))
            what = "key, vector" if into is not None else "key, length(vector)"
            rows = dict(
                store.execute(f"SELECT {what} FROM vectors WHERE key IN ({marks})", part).fetchall()
            )
            for position, key in enumerate(part, start):
                value = rows.get(key)
                if value is None:
                    missing.append(position)
                elif into is not None:
                    row = torch.frombuffer(bytearray(value), dtype=torch.float32)
                    if len(row) != self.width:
                        missing.append(position)
                    else:
                        into[position] = row
        return missing

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                store = self._connect()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self.path.unlink()  # damaged; all in it can be made again
                store = self._connect()
        except (OSError, sqlite3.OperationalError) as error:
            raise InputError(
                f"cache: {self.path} cannot be opened ({error}); give another folder with --cache "
                f"or {CACHE}"
            ) from error
        try:
            yield store
        finally:
            store.close()

    def _connect(self) -> sqlite3.Connection:
        store = sqlite3.connect(self.path, timeout=_WAIT)
        try:
            with store:
                store.execute(
                    "CREATE TABLE IF NOT EXISTS vectors "
                    "(key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"
                )
        except BaseException:
            store.close()
            raise
        return store


def _keys(texts: Sequence[str], recipe: str) -> list[bytes]:
    return [hashlib.sha256(f"{recipe}\n{text}".encode()).digest()[:16] for text in texts]


def _blobs(rows: Tensor) -> Iterator[bytes]:
    for row in rows.contiguous().numpy():
        yield row.tobytes()
