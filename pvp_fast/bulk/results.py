"""A bulk run's folder: what is done, what replaces it, and that nobody else writes there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pvp_fast.bulk.partitions import Partition
from pvp_fast.errors import InputError, SinkError
from pvp_fast.files import atomic_write, sync_folder
from pvp_fast.sinks.base import lock, writing
from pvp_fast.sinks.ledger import Ledger, Record, name_of, place
from pvp_fast.sinks.names import plain


class Done:
    """What the folder holds already."""

    def __init__(self, folder: Path, settings: dict[str, Any], ledger: Ledger) -> None:
        self.folder, self.settings, self.ledger = folder, settings, ledger
        self._where: dict[str, Path] = {}  # image -> the file with its row, where rows were read

    @property
    def partitions(self) -> set[str]:
        """Names of those that are there."""
        files = (self.folder / "tags").glob(f"*.{self.settings['format']}")
        return {path.stem.removeprefix("part-") for path in files}

    def read(self, *, failures_only: bool) -> None:
        """Take the rows of the files into the ledger."""
        folders = ("failures",) if failures_only else ("tags", "failures")
        for path in sorted(p for name in folders for p in (self.folder / name).glob("part-*")):
            for key, record in _rows(path, self.settings["artifact"]):
                self.ledger.add(key, record, path)
                self._where[_place(key, record)] = path

    def replace(self, part: Partition, staging: Path) -> None:
        """Move a partition from the staging folder to where it counts, its old rows out first."""
        old: dict[Path, set[str]] = {}
        for key in part.keys:
            for name in (plain(place(key)), plain(key)):
                if name in self._where:
                    old.setdefault(self._where.pop(name), set()).add(name)
        for path, names in old.items():
            _drop(path, names)
        _commit(self.folder, staging, part.id, self.settings["format"])

    def drop_superseded(self) -> None:
        """Take out the rows of folders and shards that fail no longer."""
        for name in self.ledger.superseded:
            _drop(self._where.pop(name), {name})


def _place(key: str, record: Record) -> str:
    return plain(name_of(key, record))


def _rows(path: Path, artifact: str) -> Iterator[tuple[str, Record]]:
    """Images of a partition's file."""
    from pvp_fast.sinks.jsonl import JsonLines
    from pvp_fast.sinks.parquet import read_rows

    if path.suffix == ".parquet":
        yield from read_rows(path, artifact)
        return
    with path.open("rb") as stream:
        for row in JsonLines(artifact).scan(stream, path):
            if row.key is not None and row.artifact == artifact:
                yield row.key, row.record


def _drop(path: Path, names: set[str]) -> None:
    """Take images out of a partition's file. It stays, even empty: its name says what is done."""
    if not path.exists():
        return
    if path.suffix == ".parquet":
        from pvp_fast.sinks.parquet import keep_rows

        with writing(path):
            keep_rows(path, lambda key, record: _place(key, record) not in names)
        return
    lines = path.read_bytes().splitlines(keepends=True)
    if not lines:
        return
    kept = [
        line
        for line, (key, record) in zip(
            lines, _rows(path, json.loads(lines[0])["artifact"]), strict=True
        )
        if _place(key, record) not in names
    ]
    with writing(path):
        if not kept and path.parent.name == "failures":
            path.unlink()
            return
        with atomic_write(path) as stream:
            stream.writelines(kept)


def files_of(folder: Path, id: str, format: str) -> tuple[Path, Path]:
    return folder / "tags" / f"part-{id}.{format}", folder / "failures" / f"part-{id}.jsonl"


def _commit(folder: Path, staging: Path, id: str, format: str) -> None:
    """Move a partition from the staging folder to where it counts; its tags last."""
    tags, failures = files_of(folder, id, format)
    new_tags, new_failures = files_of(staging, id, format)
    with writing(tags):
        if new_failures.exists():
            os.replace(new_failures, failures)
            sync_folder(failures.parent)
        os.replace(new_tags, tags)
        sync_folder(tags.parent)


@contextlib.contextmanager
def claimed(folder: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """The folder, locked and free of what killed runs left; gives a staging folder in it."""
    with writing(folder):
        for name in ("tags", "failures"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        held = (folder / ".lock").open("a")
    with held:
        lock(held, folder)
        _check_job(folder / "job.json", settings)
        waiting = folder / ".staging"
        shutil.rmtree(waiting, ignore_errors=True)
        for failures in (folder / "failures").glob("*.jsonl"):
            # Killed between the two moves of a commit: the partition will be done again.
            if not (folder / "tags" / f"{failures.stem}.{settings['format']}").exists():
                failures.unlink()
        staging = waiting / uuid.uuid4().hex
        try:
            yield staging
        finally:
            shutil.rmtree(waiting, ignore_errors=True)


def _check_job(path: Path, settings: dict[str, Any]) -> None:
    if not path.exists():
        with writing(path), atomic_write(path, "w") as stream:
            json.dump(settings, stream)
        return
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SinkError(f"{path} cannot be read ({error}); give another folder") from error
    if found != settings:
        raise InputError(
            f"out: {path.parent} holds a job with {found}, not {settings}; give another folder, "
            "or the same artifact and settings to go on"
        )
