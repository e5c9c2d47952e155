"""What a bulk run is cut into: files named, rows of a table, members of a tar shard."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from pvp_fast.errors import ImageError, InputError
from pvp_fast.loaders.passed import PassedOver
from pvp_fast.loaders.shards import is_shard, read_shard
from pvp_fast.loaders.sources import FileSource
from pvp_fast.loaders.walk import Search
from pvp_fast.sinks.ledger import Content, content_of, place
from pvp_fast.sinks.names import plain

_SHARD = -1  # in place of a row group
Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Partition:
    """Images in one go: files named ``paths``, rows of one row group of a Parquet file, or some of
    a tar shard's."""

    id: str
    keys: list[str]
    paths: list[str] | None = None
    file: str = ""
    group: int = 0
    shard: str = ""  # as the source names it


def cut(
    source: Source,
    settings: dict[str, Any],
    size: int,
    wanted: Callable[[str, str | None], bool],
    search: Search | None,
    passed: PassedOver,
) -> Iterator[Partition]:
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    tables = [each for each in map(Path, sources) if each.suffix == ".parquet"]
    seen: set[str] = set()

    def fresh(key: str, table: str | None = None) -> bool:
        name = plain(place(key))
        new = name not in seen
        seen.add(name)
        return new and wanted(key, table)

    named: list[str] = []
    for table in tables:
        for group, keys, embedded in _row_groups(table):
            file = str(table.absolute())
            chosen = [key for key in keys if fresh(key, file if embedded else None)]
            if not embedded:
                named += chosen
            elif chosen:
                content = (content_of(file) or (file, 0, 0))[1:]
                name = _name(chosen, settings, content)
                yield Partition(name, chosen, None, file, group)
    others = [each for each in sources if Path(each).suffix != ".parquet"]
    shards = []
    for path, trouble in FileSource(others, search).found(passed) if others else ():
        if trouble is None and is_shard(path):
            shards.append(path)
        elif fresh(path):
            named.append(path)
    for shard in shards:
        members = filter(fresh, (sample.key for sample in read_shard(shard, passed)))
        while chosen := list(islice(members, size)):
            content = (content_of(shard) or (shard, 0, 0))[1:]
            name = _name(chosen, settings, content)
            yield Partition(name, chosen, None, os.path.abspath(shard), _SHARD, shard)
    waiting = iter(named)
    while chosen := list(islice(waiting, size)):
        paths = [os.path.abspath(key) for key in chosen]
        contents = [(content_of(path) or (path, 0, 0))[1:] for path in paths]
        yield Partition(_name(chosen, settings, contents), chosen, paths)


def _row_groups(path: Path) -> Iterator[tuple[int, list[str], bool]]:
    """Number and keys of each row group, and whether the images are in the file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            'source: Parquet needs pyarrow; pip install "pvp_fast[parquet]"'
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "image" not in names:
                raise InputError(
                    f"source: {path} has the columns {', '.join(names)}; it needs 'image', the "
                    "path or name, and 'bytes' if the images are in the file"
                )
            for group in range(file.num_row_groups):
                keys = file.read_row_group(group, columns=["image"]).column("image").to_pylist()
                yield group, [str(key) for key in keys], "bytes" in names
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"source: {path} cannot be read as Parquet: {error}") from error


def _name(keys: list[str], settings: dict[str, Any], contents: Sequence[Any] = ()) -> str:
    content = json.dumps([keys, settings, contents], sort_keys=True)
    return sha256(content.encode()).hexdigest()[:32]


def images_of(part: Partition, size: int) -> Iterator[tuple[list[str], list[Any]]]:
    """Keys and images of a partition, some at a time."""
    if part.paths is not None:
        for first in range(0, len(part.keys), size):
            chosen = slice(first, first + size)
            yield part.keys[chosen], list(part.paths[chosen])
        return
    wanted = set(part.keys)
    if part.group == _SHARD:
        found = ((part.shard + s.key[len(part.file) :], s.image) for s in read_shard(part.file))
        chosen_pairs = (pair for pair in found if _take(wanted, pair[0]))
        while pairs := list(islice(chosen_pairs, size)):
            yield [key for key, _ in pairs], [_encoded(image) for _, image in pairs]
        return
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(part.file) as file:
        for rows in file.iter_batches(size, [part.group], columns=["image", "bytes"]):
            names = rows.column("image").to_pylist()
            data = rows.column("bytes").to_pylist()
            # discard(): of two rows of one name the first counts.
            pairs = [(n, d or b"") for n, d in zip(names, data, strict=True) if _take(wanted, n)]
            if pairs:
                yield [n for n, _ in pairs], [d for _, d in pairs]


def read_from(part: Partition, key: str, image: Any) -> Content | None:
    """What an image is read from: its own file, or the shard or table that it is in."""
    if isinstance(image, str):
        return content_of(image)
    if part.group == _SHARD:
        return content_of(part.file + key[len(part.shard) :])
    return content_in(part.file, key)


def content_in(table: str, key: str) -> Content | None:
    found = content_of(table)
    return None if found is None else found._replace(path=key)


def _encoded(image: Any) -> Any:
    """An image in a shard, read; or why it cannot be."""
    try:
        return image() if callable(image) else image
    except ImageError as error:
        return error


def _take(wanted: set[str], key: str) -> bool:
    there = key in wanted
    wanted.discard(key)
    return there
