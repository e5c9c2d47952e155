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
from pvp_fast.sinks.base import Sink, writing
from pvp_fast.sinks.ledger import Ledger, Record, place
from pvp_fast.sinks.names import plain

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult

_PATIENCE = 60.0  # seconds that one writer waits for the others
_FLUSH_EVERY = 64  # images in one transaction
_COLUMNS = {
    "images": ["image", "artifact", "error", "settings", "path", "size", "mtime_ns"],
    "tags": ["image", "artifact", "rank", "name", "score"],
}
_TABLES = (
    """CREATE TABLE IF NOT EXISTS images (
    image TEXT NOT NULL, artifact TEXT NOT NULL, error TEXT,
    settings TEXT NOT NULL, path TEXT NOT NULL, size INTEGER, mtime_ns INTEGER,
    PRIMARY KEY (image, artifact)
) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS tags (
    image TEXT NOT NULL, artifact TEXT NOT NULL, rank INTEGER NOT NULL,
    name TEXT NOT NULL, score REAL NOT NULL,
    PRIMARY KEY (image, artifact, rank)
) WITHOUT ROWID""",
)
_SAID = ("settings", "path", "size", "mtime_ns")
_INDEXES = (
    "CREATE INDEX IF NOT EXISTS tags_by_name ON tags (name, score)",
    "CREATE INDEX IF NOT EXISTS images_by_path ON images (path, artifact)",
    "CREATE INDEX IF NOT EXISTS images_by_settings ON images (artifact, settings)",
)


class SqliteSink(Sink):
    """Tables ``images`` and ``tags``, keyed by image and artifact version; ``rank`` starts at 0.

    An image that is written again from the same artifact replaces its own rows, however its path
    was spelled; other artifacts' stay. ``path`` is the absolute path of a file. Images go in by
    transactions of a few dozen, in write-ahead mode where the file system allows it; a writer waits
    up to a minute for the others.

    Args:
        path: the database; created when needed. Its other tables are left alone.
        artifact: version of the artifact that tags.
        ledger: what decides whether a row stands.
        dry_run: look, but write nothing.

    Raises:
        SinkError: not a database, or its tables are not these.
    """

    ledger: Ledger

    def __init__(
        self, path: str | os.PathLike[str], artifact: str, ledger: Ledger, *, dry_run: bool = False
    ) -> None:
        self.path, self.artifact, self.dry_run = Path(path), artifact, dry_run
        self.ledger = ledger
        ledger.look = self._find
        self._waiting: list[tuple[TagResult, Record]] = []
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
                        self._check_settings()
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
                    for statement in _INDEXES:
                        database.execute(statement)
                    self._check_settings()
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
            if error is None and self._database is not None and not self.dry_run:
                self._drop(self.ledger.superseded)
        finally:
            self._close()

    def has(self, key: str) -> bool:
        return self._database is not None and self.ledger.has(key)

    def _find(self, key: str) -> Record | None:
        with self._errors():
            for column, name in (("path", plain(place(key))), ("image", plain(key))):
                found = self._connection.execute(
                    "SELECT error, settings, path, size, mtime_ns FROM images "
                    f"WHERE {column} = ? AND artifact = ?",
                    (name, self.artifact),
                ).fetchone()
                if found is not None:
                    said = dict(zip(_SAID, found[1:], strict=True))
                    return Record.from_dict(key, said, found[0])
        return None

    def write(self, result: TagResult) -> None:
        if self.dry_run:
            return
        self._waiting.append((result, self.ledger.record(result.image, result.error)))
        if len(self._waiting) >= _FLUSH_EVERY:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        with self._errors(), self._transaction() as database:
            for result, record in self._waiting:
                image = plain(result.image)
                error = None if result.error is None else plain(result.error)
                path, size, time = record.content or (image, None, None)
                path = plain(path)
                spellings = database.execute(
                    "SELECT image FROM images WHERE path IN (?, ?) AND artifact = ?",
                    (path, image, self.artifact),
                ).fetchall()
                for table in ("images", "tags"):
                    database.executemany(
                        f"DELETE FROM {table} WHERE image = ? AND artifact = ?",
                        [(old, self.artifact) for (old,) in [*spellings, (image,)]],
                    )
                database.execute(
                    "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (image, self.artifact, error, record.settings, path, size, time),
                )
                database.executemany(
                    "INSERT INTO tags VALUES (?, ?, ?, ?, ?)",
                    [
                        (image, self.artifact, rank, plain(t.name), t.score)
                        for rank, t in enumerate(result.tags)
                    ],
                )
        self._waiting.clear()

    def _drop(self, places: set[str]) -> None:
        """Take out the rows of folders and shards that fail no longer."""
        if not places:
            return
        with self._errors(), self._transaction() as database:
            rows = database.execute(
                "SELECT image, path FROM images WHERE artifact = ? AND error IS NOT NULL",
                (self.artifact,),
            ).fetchall()
            gone = [(i, self.artifact) for i, path in rows if {path, plain(place(i))} & places]
            database.executemany("DELETE FROM images WHERE image = ? AND artifact = ?", gone)

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

    def _check_settings(self) -> None:
        for sign in "<>":  # "<>" would have to look at every row
            other = self._connection.execute(
                f"SELECT settings FROM images WHERE artifact = ? AND settings {sign} ? LIMIT 1",
                (self.artifact, self.ledger.settings),
            ).fetchone()
            if other is not None:
                self.ledger.check(other[0], self.path)

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
