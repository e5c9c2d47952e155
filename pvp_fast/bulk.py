"""Tag millions of images with Ray Data, and go on where an interrupted run stopped.

The input is cut into partitions, each named by a hash of what it holds and how it is tagged. Ray
Data streams them through one actor a GPU (or a few on CPUs), each with its own Tagger, which
writes a partition's tags into a staging folder. Only this process, which holds a lock, moves them
to where they count::

    OUT/job.json                      artifact version and settings; another job is refused
    OUT/tags/part-HASH.parquet        its presence says that the partition is done
    OUT/failures/part-HASH.jsonl      images that could not be read, with the reason

A partition is therefore there whole or not at all, whatever is killed and whenever. An image that
is done again (its file has changed, or it could not be read before) is taken out of its old
partition when the new one is moved in.

An image may kill the process that reads it, by its memory or in a decoder. The process comes back,
and what it was at is then done image by image; one that kills it :data:`DEATHS` times when it is
alone is given up and counts as a failure. Processes that die before they are at an image, while
they load the model, end the run when there were several more of them than work at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvp_fast.errors import ImageError, InputError, PvpFastError, SinkError
from pvp_fast.files import atomic_write, sync_folder
from pvp_fast.loaders.passed import PassedOver
from pvp_fast.loaders.shards import is_shard, read_shard
from pvp_fast.loaders.sources import FileSource, check_part, in_part
from pvp_fast.loaders.walk import Search
from pvp_fast.pictures.settings import PictureSettings, pictures_of
from pvp_fast.sinks.base import lock, writing
from pvp_fast.sinks.ledger import (
    Content,
    Ledger,
    Record,
    content_of,
    describe,
    name_of,
    place,
)
from pvp_fast.sinks.names import plain

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult

_SHARD = -1  # in place of a row group
_GAVE_UP = "gave-up"  # in the staging folder: why the workers did
Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
FORMATS = ("parquet", "jsonl")
DEATHS = 2  # of a worker alone with an image, until the image is given up
LOADS = 3  # deaths of workers that load the model, beyond one of each, until the run is given up


@dataclass(frozen=True)
class BulkReport:
    """What a run did.

    Attributes:
        images, failures: tagged and unreadable now.
        skipped: done by earlier runs. failed_before: of them, damaged and unchanged since.
        partitions: written now.
        seconds: wall time.
        passed_over: files that were seen and left out, in words.
    """

    images: int = 0
    failures: int = 0
    skipped: int = 0
    failed_before: int = 0
    partitions: int = 0
    seconds: float = 0.0
    passed_over: str = ""

    @property
    def images_per_second(self) -> float:
        """Tagged and failed images of this run over its wall time, start-up included."""
        return (self.images + self.failures) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class _Partition:
    """Images in one go: files named ``paths``, rows of one row group of a Parquet file, or some of
    a tar shard's."""

    id: str
    keys: list[str]
    paths: list[str] | None = None
    file: str = ""
    group: int = 0
    shard: str = ""  # as the source names it


@dataclass(frozen=True)
class _Job:
    """All that an actor needs to know."""

    artifact: str
    version: str
    settings: str
    staging: str
    format: str
    top_k: int | None
    threshold: float | None
    batch_size: int
    device: str
    pictures: dict[str, Any]
    workers: int


def tag_dataset(
    source: Source,
    artifact: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str = "parquet",
    top_k: int | None = 5,
    threshold: float | None = None,
    batch_size: int = 64,
    partition_size: int = 1024,
    retry_failed: bool = False,
    actors: int | None = None,
    cpus_per_actor: float = 1,
    address: str | None = None,
    progress: Callable[[BulkReport], None] | None = None,
    search: Search | None = None,
    part: tuple[int, int] | None = None,
    pictures: PictureSettings | None = None,
) -> BulkReport:
    """Tag every image of ``source`` exactly once into the folder ``out``.

    Called again with the same arguments it does what is left: images that were added to the source
    meanwhile, those whose size or time has changed, and those that could not be read, unless they
    are damaged and unchanged.

    Args:
        source: what :class:`pvp_fast.loaders.FileSource` takes (files, folders, globs, lists,
            shards), and ``.parquet`` files with a column ``image`` (a path) and optionally
            ``bytes`` (the encoded image; ``image`` is then only its name). On a cluster, paths that
            every node can read.
        artifact: artifact folder, readable on every node.
        out: folder for the results, on storage that every node can write.
        format: "parquet" or "jsonl" for the tags; failures are JSON lines.
        top_k, threshold, batch_size: see :meth:`pvp_fast.Tagger.tag`.
        partition_size: images written at once; what a kill can cost for each actor. A Parquet
            file of encoded images is partitioned by its own row groups.
        retry_failed: try damaged images again though their files have not changed.
        actors: taggers at work; by default one a GPU, or one for each ``cpus_per_actor`` CPUs.
        cpus_per_actor: CPUs that Ray reserves for each.
        address: of a Ray cluster ("auto" for this machine's); None is ``RAY_ADDRESS``, else one is
            started here and stopped afterwards, whatever other Ray runs on this machine. A Ray that
            is already connected is used as it is.
        progress: called with what is done after each partition.
        search: what is taken of folders and globs.
        part: (i, n): only the i-th of n parts, from 1, each into a folder of its own; an image's
            name decides where it belongs.
        pictures: how images are opened; the artifact's own settings by default.

    Returns:
        What this call did.

    Raises:
        InputError: no images, ``out`` holds another job, an unusable argument, or no Ray.
        SinkError: ``out`` cannot be written, or another process is writing it.
        ArtifactError: the artifact cannot be used.
    """
    from pvp_fast.artifact import Artifact

    _check(format, top_k, threshold, batch_size, partition_size, actors, cpus_per_actor)
    if part is not None:
        check_part(*part)
    ray = _import_ray()
    started = time.monotonic()
    folder = Path(out).absolute()
    loaded = Artifact.load(artifact)
    version = loaded.version
    opened = (pictures or pictures_of(loaded.config)).to_dict()
    settings = {
        "artifact": version,
        "format": format,
        "top_k": top_k,
        "threshold": threshold,
        "pictures": opened,
    }
    said = describe(top_k=top_k, threshold="own" if threshold is None else threshold, **opened)
    passed = PassedOver()
    with _claimed(folder, settings) as staging:
        done = _Done(folder, settings, Ledger(said, retry_failed=retry_failed))
        partitions, skipped = _left(source, done, partition_size, search, part, passed)
        report = BulkReport(
            skipped=skipped, failed_before=done.ledger.failed_before, passed_over=str(passed)
        )
        if not partitions:
            return replace(report, seconds=time.monotonic() - started)
        with _connected(ray, address):
            _start_one(ray)
            gpus = int(ray.cluster_resources().get("GPU", 0))
            cpus = ray.cluster_resources().get("CPU", 1)
            pool = min(actors or gpus or max(1, int(cpus // cpus_per_actor)), len(partitions))
            job = _Job(
                artifact=str(Path(artifact).absolute()),
                version=version,
                settings=said,
                staging=str(staging),
                format=format,
                top_k=top_k,
                threshold=threshold,
                batch_size=batch_size,
                device="cuda" if gpus else "cpu",
                pictures=opened,
                workers=pool,
            )
            keys_of = {part.id: part for part in partitions}
            items = [{"partition": json.dumps(asdict(part))} for part in partitions]
            tagged = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                _Actor,
                fn_constructor_args=(asdict(job),),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=pool),
                num_cpus=cpus_per_actor,
                # A pool larger than the number of GPUs shares them.
                num_gpus=min(1.0, gpus / pool) if gpus else None,
            )
            with _our_errors(staging):
                for row in tagged.iter_rows():
                    finished = keys_of[str(row["id"])]
                    done.replace(finished, staging)
                    report = replace(
                        report,
                        images=report.images + int(row["images"]),
                        failures=report.failures + int(row["failures"]),
                        partitions=report.partitions + 1,
                        seconds=time.monotonic() - started,
                    )
                    if progress is not None:
                        progress(report)
    return report


class _Actor:
    """A Tagger in its own process; each call tags one partition into the staging folder."""

    def __init__(self, job: dict[str, Any]) -> None:
        from ray.util.metrics import Counter

        from pvp_fast.tagging.tagger import Tagger

        self.job = _Job(**job)
        with _loading(self.job):
            self.tagger = Tagger.load(self.job.artifact, device=self.job.device)
        self.tagger.pictures = PictureSettings.from_dict(self.job.pictures)
        if self.tagger.artifact.version != self.job.version:
            raise InputError(
                f"artifact: {self.job.artifact} is version {self.tagger.artifact.version} here "
                f"and {self.job.version} where the run was started; give all nodes the same"
            )
        self._images = Counter("pvp_fast_images", "Images tagged.")
        self._failures = Counter("pvp_fast_failures", "Images that could not be read.")

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {"id": [], "images": [], "failures": []}
        for text in batch["partition"]:
            part = _Partition(**json.loads(str(text)))
            images, failures = self._tag(part)
            for counter, count in ((self._images, images), (self._failures, failures)):
                if count:
                    counter.inc(count)
            for name, value in (("id", part.id), ("images", images), ("failures", failures)):
                rows[name].append(value)
        return rows

    def _tag(self, part: _Partition) -> tuple[int, int]:
        from pvp_fast.sinks import open_sink

        job = self.job
        tags, failures = _names(Path(job.staging), part.id, job.format)
        failed: list[tuple[TagResult, Content | None]] = []
        images = 0
        journal = _Journal(Path(job.staging) / f"{part.id}.at")
        with open_sink(job.format, tags, job.version, settings=job.settings) as sink:
            for result, content in self._results(part, journal):
                if result.error is None:
                    images += 1
                    sink.note(result.image, content)
                    sink.write(result)
                else:
                    failed.append((result, content))
        if failed:
            with open_sink("jsonl", failures, job.version, settings=job.settings) as sink:
                for result, content in failed:
                    sink.note(result.image, content)
                    sink.write(result)
        return images, len(failed)

    def _results(
        self, part: _Partition, journal: _Journal
    ) -> Iterator[tuple[TagResult, Content | None]]:
        from pvp_fast.tagging.tagger import TagResult

        job = self.job
        for window, (keys, images) in enumerate(_images(part, 4 * job.batch_size)):
            # Before it is read: what is copied meanwhile is another content afterwards.
            pairs = zip(keys, images, strict=True)
            contents = [_content(part, key, image) for key, image in pairs]
            alone = window in journal.suspects
            size = 1 if alone else len(images)
            for first in range(0, len(images), size):
                chosen = slice(first, first + size)
                deaths = journal.begin(window, first if alone else None)
                if deaths >= DEATHS:
                    error = f"ended its worker {deaths} times, by its memory or in a decoder"
                    found = [TagResult("", (), error)]
                else:
                    found = self.tagger.tag(
                        images[chosen],
                        top_k=job.top_k,
                        threshold=job.threshold,
                        batch_size=job.batch_size,
                    )
                for key, content, result in zip(keys[chosen], contents[chosen], found, strict=True):
                    yield replace(result, image=key), content


@contextlib.contextmanager
def _loading(job: _Job) -> Iterator[None]:
    """Leave a file that says so while a worker loads the model: those of the dead stay.

    Raises:
        InputError: too many have died; the process that started the run finds it said in a file.
    """
    folder = Path(job.staging)
    folder.mkdir(parents=True, exist_ok=True)
    dead = len(list(folder.glob("*.loading")))
    if dead >= job.workers + LOADS:
        error = (
            f"artifact: {dead} workers died while they loaded {job.artifact}, as for want of "
            f"memory: {job.workers} load it at once on {job.device}; give fewer --actors, or look "
            "into Ray's logs"
        )
        with atomic_write(folder / _GAVE_UP, "w") as stream:
            stream.write(error)
        raise InputError(error)
    mine = folder / f"{uuid.uuid4().hex}.loading"
    mine.touch()
    try:
        yield
    finally:
        mine.unlink(missing_ok=True)


class _Journal:
    """Where in its partition a worker is, for the one that comes when it has died.

    Args:
        path: the file; on storage that all workers share.

    Attributes:
        suspects: windows of images in which a worker died.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.suspects: set[int] = set()
        self._deaths: dict[str, int] = {}  # of a worker alone with "WINDOW/IMAGE"
        with contextlib.suppress(FileNotFoundError):
            found = json.loads(path.read_text("utf-8"))
            self.suspects = {*found["suspects"], found["window"]}
            self._deaths = dict(found["deaths"])
            if found["image"] is not None:
                name = f"{found['window']}/{found['image']}"
                self._deaths[name] = self._deaths.get(name, 0) + 1

    def begin(self, window: int, image: int | None) -> int:
        """Note what comes now; gives how many workers died of that image alone."""
        state = {
            "window": window,
            "image": image,
            "suspects": sorted(self.suspects),
            "deaths": self._deaths,
        }
        with atomic_write(self.path, "w") as stream:
            json.dump(state, stream)
        return self._deaths.get(f"{window}/{image}", 0)


def _images(part: _Partition, size: int) -> Iterator[tuple[list[str], list[Any]]]:
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


def _content(part: _Partition, key: str, image: Any) -> Content | None:
    """What an image is read from: its own file, or the shard or table that it is in."""
    if isinstance(image, str):
        return content_of(image)
    if part.group == _SHARD:
        return content_of(part.file + key[len(part.shard) :])
    return _content_in(part.file, key)


def _content_in(table: str, key: str) -> Content | None:
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


class _Done:
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

    def replace(self, part: _Partition, staging: Path) -> None:
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


def _left(
    source: Source,
    done: _Done,
    size: int,
    search: Search | None,
    part: tuple[int, int] | None,
    passed: PassedOver,
) -> tuple[list[_Partition], int]:
    """Partitions still to do, and how many images earlier runs have done."""

    def plan(passed: PassedOver, wanted: Callable[[str], bool]) -> list[_Partition]:
        def chosen(key: str, table: str | None) -> bool:
            if table is not None:
                done.ledger.note(key, _content_in(table, key))
            return (part is None or in_part(key, *part)) and wanted(key)

        return list(_partitions(source, done.settings, size, chosen, search, passed))

    planned = plan(passed, lambda key: True)
    if not planned and part is None:  # one of many parts may be empty
        beside = f"; passed over: {passed}" if passed else ""
        raise InputError(f"source: no image in {source!r}{beside}")
    there = done.partitions
    if there <= {part.id for part in planned} and not any((done.folder / "failures").iterdir()):
        left = [part for part in planned if part.id not in there]
    else:  # the source is no longer what it was: leave out what is done image by image
        done.read(failures_only=False)
        left = plan(PassedOver(), lambda key: not done.ledger.has(key))
        done.drop_superseded()
    return left, sum(len(p.keys) for p in planned) - sum(len(p.keys) for p in left)


def _partitions(
    source: Source,
    settings: dict[str, Any],
    size: int,
    wanted: Callable[[str, str | None], bool],
    search: Search | None,
    passed: PassedOver,
) -> Iterator[_Partition]:
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
                yield _Partition(name, chosen, None, file, group)
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
            yield _Partition(name, chosen, None, os.path.abspath(shard), _SHARD, shard)
    waiting = iter(named)
    while chosen := list(islice(waiting, size)):
        paths = [os.path.abspath(key) for key in chosen]
        contents = [(content_of(path) or (path, 0, 0))[1:] for path in paths]
        yield _Partition(_name(chosen, settings, contents), chosen, paths)


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


def _names(folder: Path, id: str, format: str) -> tuple[Path, Path]:
    return folder / "tags" / f"part-{id}.{format}", folder / "failures" / f"part-{id}.jsonl"


def _commit(folder: Path, staging: Path, id: str, format: str) -> None:
    """Move a partition from the staging folder to where it counts; its tags last."""
    tags, failures = _names(folder, id, format)
    new_tags, new_failures = _names(staging, id, format)
    with writing(tags):
        if new_failures.exists():
            os.replace(new_failures, failures)
            sync_folder(failures.parent)
        os.replace(new_tags, tags)
        sync_folder(tags.parent)


@contextlib.contextmanager
def _claimed(folder: Path, settings: dict[str, Any]) -> Iterator[Path]:
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


def _check(
    format: str,
    top_k: int | None,
    threshold: float | None,
    batch_size: int,
    partition_size: int,
    actors: int | None,
    cpus_per_actor: float,
) -> None:
    if format not in FORMATS:
        raise InputError(f"format={format!r}: bulk runs write {' or '.join(FORMATS)}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}; it is a probability, 0 to 1")
    for name, value in (
        ("top_k", top_k),
        ("batch_size", batch_size),
        ("partition_size", partition_size),
        ("actors", actors),
    ):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; give at least 1")
    if not cpus_per_actor > 0:
        raise InputError(f"cpus_per_actor is {cpus_per_actor}; give more than 0")


@contextlib.contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    # Ray reports its use to its makers unless told not to; whoever wants that starts Ray.
    before = os.environ.get("RAY_USAGE_STATS_ENABLED")
    os.environ["RAY_USAGE_STATS_ENABLED"] = before or "0"
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        # Without an address Ray would join the last one that was started on this machine.
        place = address or os.environ.get("RAY_ADDRESS") or "local"
        alone = {"include_dashboard": False} if place == "local" else {}
        ray.init(address=place, logging_level="ERROR", **alone)
        yield
    finally:
        ray.shutdown()
        context.enable_progress_bars = bars
        if before is None:
            del os.environ["RAY_USAGE_STATS_ENABLED"]


class _Ready:
    """A worker that does nothing."""

    def ready(self) -> bool:
        """Whether it has started."""
        return True


def _start_one(ray: Any) -> None:
    """Start one worker, and do not try again as bulk work does for ever.

    Raises:
        InputError: it dies before it has begun, as where a setup hook fails.
    """
    worker = ray.remote(max_restarts=0, num_cpus=0)(_Ready).remote()
    try:
        ray.get(worker.ready.remote())
    except ray.exceptions.RayError as error:
        raise InputError(f"engine: Ray's workers cannot start here: {_why(error)}") from error
    finally:
        ray.kill(worker)


def _why(error: Exception) -> str:
    """What Ray says of a worker's death, in one line: its own words, and the exception's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line.partition("exit detail: ")[2] for line in lines if "exit detail: " in line]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return " ".join([*told[:1], *raised[-1:]]) or lines[0]


@contextlib.contextmanager
def _our_errors(staging: Path) -> Iterator[None]:
    """Raise what an actor raised on purpose, not the wrapping that Ray puts around it."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError):
            raise InputError((staging / _GAVE_UP).read_text("utf-8")) from None
        for inner in _causes(error):
            if isinstance(inner, PvpFastError):
                raise inner from None
        raise


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or error.__cause__


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError('engine: Ray is not installed; pip install "pvp_fast[ray]"') from error
    return ray
