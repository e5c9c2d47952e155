"""A process of a bulk run: it tags partitions, and leaves word for the one after its death."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvp_fast.bulk.partitions import Partition, images_of, read_from
from pvp_fast.bulk.results import files_of
from pvp_fast.errors import InputError
from pvp_fast.files import atomic_write
from pvp_fast.pictures.settings import PictureSettings
from pvp_fast.sinks.ledger import Content

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult

GAVE_UP = "gave-up"  # in the staging folder: why the workers did
DEATHS = 2  # of a worker alone with an image, until the image is given up
LOADS = 3  # deaths of workers that load the model, beyond one of each, until the run is given up


@dataclass(frozen=True)
class Job:
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


class Actor:
    """A Tagger in its own process; each call tags one partition into the staging folder."""

    def __init__(self, job: dict[str, Any]) -> None:
        from ray.util.metrics import Counter

        from pvp_fast.tagging.tagger import Tagger

        self.job = Job(**job)
        with loading(self.job):
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
            part = Partition(**json.loads(str(text)))
            images, failures = self._tag(part)
            for counter, count in ((self._images, images), (self._failures, failures)):
                if count:
                    counter.inc(count)
            for name, value in (("id", part.id), ("images", images), ("failures", failures)):
                rows[name].append(value)
        return rows

    def _tag(self, part: Partition) -> tuple[int, int]:
        from pvp_fast.sinks import open_sink

        job = self.job
        tags, failures = files_of(Path(job.staging), part.id, job.format)
        failed: list[tuple[TagResult, Content | None]] = []
        images = 0
        journal = Journal(Path(job.staging) / f"{part.id}.at")
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
        self, part: Partition, journal: Journal
    ) -> Iterator[tuple[TagResult, Content | None]]:
        from pvp_fast.tagging.tagger import TagResult

        job = self.job
        for window, (keys, images) in enumerate(images_of(part, 4 * job.batch_size)):
            # Before it is read: what is copied meanwhile is another content afterwards.
            pairs = zip(keys, images, strict=True)
            contents = [read_from(part, key, image) for key, image in pairs]
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
def loading(job: Job) -> Iterator[None]:
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
        with atomic_write(folder / GAVE_UP, "w") as stream:
            stream.write(error)
        raise InputError(error)
    mine = folder / f"{uuid.uuid4().hex}.loading"
    mine.touch()
    try:
        yield
    finally:
        mine.unlink(missing_ok=True)


class Journal:
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
