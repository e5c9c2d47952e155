"""A bulk run from its source to its report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pvp_fast.bulk.cluster import connected, import_ray, our_errors, start_one
from pvp_fast.bulk.partitions import Partition, Source, content_in, cut
from pvp_fast.bulk.results import Done, claimed
from pvp_fast.bulk.worker import Actor, Job
from pvp_fast.errors import InputError
from pvp_fast.loaders.passed import PassedOver
from pvp_fast.loaders.sources import check_part, in_part
from pvp_fast.loaders.walk import Search
from pvp_fast.pictures.settings import PictureSettings, pictures_of
from pvp_fast.sinks.ledger import Ledger, describe

FORMATS = ("parquet", "jsonl")


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
    ray = import_ray()
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
    with claimed(folder, settings) as staging:
        done = Done(folder, settings, Ledger(said, retry_failed=retry_failed))
        partitions, skipped = left(source, done, partition_size, search, part, passed)
        report = BulkReport(
            skipped=skipped, failed_before=done.ledger.failed_before, passed_over=str(passed)
        )
        if not partitions:
            return replace(report, seconds=time.monotonic() - started)
        with connected(ray, address):
            start_one(ray)
            gpus = int(ray.cluster_resources().get("GPU", 0))
            cpus = ray.cluster_resources().get("CPU", 1)
            pool = min(actors or gpus or max(1, int(cpus // cpus_per_actor)), len(partitions))
            job = Job(
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
                Actor,
                fn_constructor_args=(asdict(job),),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=pool),
                num_cpus=cpus_per_actor,
                # A pool larger than the number of GPUs shares them.
                num_gpus=min(1.0, gpus / pool) if gpus else None,
            )
            with our_errors(staging):
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


def left(
    source: Source,
    done: Done,
    size: int,
    search: Search | None,
    part: tuple[int, int] | None,
    passed: PassedOver,
) -> tuple[list[Partition], int]:
    """Partitions still to do, and how many images earlier runs have done."""

    def plan(passed: PassedOver, wanted: Callable[[str], bool]) -> list[Partition]:
        def chosen(key: str, table: str | None) -> bool:
            if table is not None:
                done.ledger.note(key, content_in(table, key))
            return (part is None or in_part(key, *part)) and wanted(key)

        return list(cut(source, done.settings, size, chosen, search, passed))

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
