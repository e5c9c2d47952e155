"""SQLite: any number of processes write one database, and nothing in it is ever there twice."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pvp_fast.errors import SinkError
from pvp_fast.sinks.base import Sink, plain, writing

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult

_PATIENCE = 60.0  # seconds that one writer waits for the others
_FLUSH_EVERY = 64  # images in one transaction
_COLUMNS = {
    "images": ["image", "artifact", "error"],
    "tags": ["image", "artifact", "rank", "name", "score"],
}
_TABLES = (
    """CREATE TABLE IF NOT EXISTS images (
    image TEXT NOT NULL, artifact TEXT NOT NULL, error TEXT,
    PRIMARY KEY (image, artifact)
) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS tags (
    image TEXT NOT NULL, artifact TEXT NOT NULL, rank INTEGER NOT NULL,
    name TEXT NOT NULL, score REAL NOT NULL,
    PRIMARY KEY (image, artifact, rank)
) WITHOUT ROWID""",
)
_INDEX = "CREATE INDEX IF NOT EXISTS tags_by_name ON tags (name, score)"


class SqliteSink(Sink):
    """Tables ``images`` and ``tags``, keyed by image and artifact version; ``rank`` starts at 0.

    An image that is written again from the same artifact replaces its own rows; other artifacts'
    stay. Images go in by transactions of a few dozen, in write-ahead mode where the file system
    allows it; a writer waits up to a minute for the others.

    Args:
        path: the database; created when needed. Its other tables are left alone.
        artifact: version of the artifact that tags.
        dry_run: look, but write nothing.

    Raises:
        SinkError: not a database, or its tables are not these.
    """

    def __init__(
        self, path: str | os.PathLike[str], artifact: str, *, dry_run: bool = False
    ) -> None:
        self.path, self.artifact, self.dry_run = Path(path), artifact, dry_run
        self._waiting: list[TagResult] = []
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> SqliteSink:
        if self.dry_run:
            if self.path.exists():
                name = f"{self.path.resolve().as_uri()}?mode=ro"
                with self._errors():
                    self._database = sqlite3.connect(
                        name, uri=True, isolation_level=None, check_same_thread=False
                    )
                    if not self._connection.execute("PRAGMA table_info(images)").fetchone():
                        self._close()  # another program's database: it would get the tables
                    else:
                        self._check_tables()
            return self
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not self.path.exists()
        try:
            with self._errors():
                self._database = sqlite3.connect(
                    self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
                )
                self._write_ahead()
                with self._transaction() as database:
                    for statement in _TABLES:
                        database.execute(statement)
                    self._check_tables()
                    database.execute(_INDEX)
        except BaseException:
            self._close()
            if fresh:  # SQLite makes the file before it can fill it
                with contextlib.suppress(OSError):
                    if not self.path.stat().st_size:
                        self.path.unlink()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not isinstance(error, SinkError):
                self._flush()
        finally:
            self._close()

    def has(self, key: str) -> bool:
        if self._database is None:
            return False
        with self._errors():
            found = self._database.execute(
                "SELECT 1 FROM images WHERE image = ? AND artifact = ?",
                (plain(key), self.artifact),
            )
            return found.fetchone() is not None

    def write(self, result: TagResult) -> None:
        if self.dry_run:
            return
        self._waiting.append(result)
        if len(self._waiting) >= _FLUSH_EVERY:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        with self._errors(), self._transaction() as database:
            for result in self._waiting:
                image = plain(result.image)
                error = None if result.error is None else plain(result.error)
                database.execute(
                    "INSERT OR REPLACE INTO images VALUES (?, ?, ?)", (image, self.artifact, error)
                )
                database.execute(
                    "DELETE FROM tags WHERE image = ? AND artifact = ?", (image, self.artifact)
                )
                database.executemany(
                    "INSERT INTO tags VALUES (?, ?, ?, ?, ?)",
                    [
                        (image, self.artifact, rank, plain(t.name), t.score)
                        for rank, t in enumerate(result.tags)
                    ],
                )
        self._waiting.clear()

    def _write_ahead(self) -> None:
        # Changing the mode needs the whole file and does not wait for it as other statements do.
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _check_tables(self) -> None:
        for table, columns in _COLUMNS.items():
            found = [row[1] for row in self._connection.execute(f"PRAGMA table_info({table})")]
            if found != columns:
                raise SinkError(
                    f"{self.path} has a table {table!r} with the columns {', '.join(found)}, not "
                    f"{', '.join(columns)}; give another database"
                )

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._database is None:
            raise SinkError(f"{self.path} is not open; use the sink in a with statement")
        return self._database

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        database = self._connection
        database.execute("BEGIN IMMEDIATE")  # waits for its turn here, not in the middle
        try:
            yield database
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:  # SQLite has undone it by itself on a full disk
                database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise SinkError(
                f"cannot use the database {self.path}: {error}{_space(self.path.parent)}"
            ) from error

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _space(folder: Path) -> str:
    """What SQLite's own messages ("disk I/O error") do not say about a full disk."""
    with contextlib.suppress(OSError):
        if (free := shutil.disk_usage(folder).free) < 1 << 20:
            return f" (its disk is full: {free >> 10} KiB free)"
    return ""
