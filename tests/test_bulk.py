"""Bulk runs on a local Ray: real photos, bad ones, changed inputs, and kills at any moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from PIL import Image

from pvp_fast.cli import run
from pvp_fast.errors import InputError, SinkError
from pvp_fast.tagging.tagger import Tagger

ray = pytest.importorskip("ray")
parquet = pytest.importorskip("pyarrow.parquet")

from pvp_fast.bulk import tag_dataset  # noqa: E402

KILLS = int(os.environ.get("PVP_FAST_KILLS", "2"))
PHOTOS = 40 * KILLS


@pytest.fixture(scope="module")
def photos(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to real photos, and two files that are none."""
    found = sorted((shared_data / "photos").glob("*.jpg"))[:PHOTOS]
    if len(found) < PHOTOS:
        pytest.skip(f"needs {PHOTOS} photos in {shared_data / 'photos'}")
    folder = tmp_path_factory.mktemp("photos")
    for path in found:
        os.link(path, folder / path.name) if _same_disk(path, folder) else shutil.copy(path, folder)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"no image")
    return folder


def _same_disk(path: Path, folder: Path) -> bool:
    return path.stat().st_dev == folder.stat().st_dev


@contextmanager
def joined(address: str, hook: Callable[[], None]) -> Iterator[None]:
    """A job of the cluster whose workers begin with ``hook``.

    A hook must be defined in a function, to travel by value: workers cannot import this file.
    """
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        # They import from the folder the driver stands in; the package must not lie there.
        os.chdir(folder)
        environment = {"worker_process_setup_hook": hook}
        ray.init(address, logging_level="ERROR", log_to_driver=False, runtime_env=environment)
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            yield
        finally:
            ray.shutdown()
            os.chdir(before)


@pytest.fixture
def cluster(ray_address: str) -> Iterator[None]:
    """Workers that die where they open a file named "killer", as by a decoder or the kernel."""

    def die_at_killers() -> None:
        import builtins
        import io

        opened = builtins.open

        def mortal(file: Any, *args: Any, **options: Any) -> Any:
            if "killer" in str(file):
                os.kill(os.getpid(), signal.SIGKILL)
            return opened(file, *args, **options)

        builtins.open = io.open = mortal  # type: ignore[assignment]

    with joined(ray_address, die_at_killers):
        yield


def tags(out: Path) -> list[dict[str, Any]]:
    files = sorted((out / "tags").glob("*.parquet"))
    return [row for file in files for row in parquet.read_table(file).to_pylist()]


def failures(out: Path) -> list[dict[str, Any]]:
    files = sorted((out / "failures").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def every_image_once(out: Path, folder: Path) -> bool:
    found = sorted(Path(row["image"]).name for row in (*tags(out), *failures(out)))
    return found == sorted(path.name for path in folder.glob("*.jpg"))


@pytest.mark.usefixtures("cluster")
def test_two_actors_tag_what_one_tagger_does_and_new_images_are_done_later(
    artifact: Path, photos: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "some", tmp_path / "out"
    folder.mkdir()
    for path in sorted(photos.glob("0*.jpg"))[::3]:
        shutil.copy(path, folder)
    (folder / "zero.jpg").write_bytes(b"")
    options: dict[str, Any] = {"partition_size": 10, "actors": 2, "threshold": 0.0}
    report = tag_dataset(folder, artifact, out, **options)
    assert every_image_once(out, folder)
    assert [Path(row["image"]).name for row in failures(out)] == ["zero.jpg"]
    assert (report.images, report.failures, report.skipped) == (len(tags(out)), 1, 0)
    expected = Tagger.load(artifact).tag([row["image"] for row in tags(out)], threshold=0.0)
    for row, result in zip(tags(out), expected, strict=True):
        assert [t["name"] for t in row["tags"]] == [t.name for t in result.tags]
        scores = [t.score for t in result.tags]
        assert [t["score"] for t in row["tags"]] == pytest.approx(scores, abs=1e-5)

    parts = [p for p in (out / "tags").glob("part-*") if parquet.read_metadata(p).num_rows]
    before = {path: path.stat().st_mtime_ns for path in parts}
    again = tag_dataset(folder, artifact, out, **options)
    # The empty file is tried again.
    assert (again.images, again.failures, again.skipped) == (0, 1, report.images)
    shutil.copy(next(photos.glob("0*.jpg")), folder / "0.jpg")  # shifts every later partition
    third = tag_dataset(folder, artifact, out, **options)
    assert (third.images, third.failures, third.skipped) == (1, 1, report.images)
    assert every_image_once(out, folder)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    with pytest.raises(InputError, match="another folder"):
        tag_dataset(folder, artifact, out, **{**options, "threshold": 0.5})

    # Encoded images in a Parquet file: the same tags under their names.
    table = {
        "image": [f"row {i}" for i in range(6)] + ["row 0"],
        "bytes": [path.read_bytes() for path in sorted(folder.glob("*.jpg"))[:5]] + [None, b"x"],
    }
    arrow = pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table(table), tmp_path / "in.parquet", row_group_size=3)
    embedded = tag_dataset(tmp_path / "in.parquet", artifact, tmp_path / "out2", **options)
    assert (embedded.images, embedded.failures, embedded.partitions) == (5, 1, 2)
    named = {row["image"]: row["tags"] for row in tags(tmp_path / "out2")}
    whole = {row["image"]: row["tags"] for row in tags(out)}
    for number, path in enumerate(sorted(folder.glob("*.jpg"))[:5]):
        assert [t["name"] for t in named[f"row {number}"]] == [t["name"] for t in whole[str(path)]]


@pytest.mark.parametrize("said", [None, "10.0.0.7:6379"])
def test_without_an_address_no_other_ray_of_the_machine_is_joined(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None
) -> None:
    asked: list[dict[str, object]] = []

    def init(**given: object) -> None:
        asked.append(given)
        raise ConnectionError("stops here")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if said:
        monkeypatch.setenv("RAY_ADDRESS", said)
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    with pytest.raises(ConnectionError, match="stops here"):
        tag_dataset([picture], artifact, tmp_path / "out")
    assert [given["address"] for given in asked] == [said or "local"]
    # Ray refuses settings of a cluster that it only joins.
    assert ("include_dashboard" in asked[0]) == (said is None)


def test_wrong_arguments_need_no_ray(artifact: Path, tmp_path: Path) -> None:
    for options in (
        {"format": "csv"},
        {"top_k": 0},
        {"threshold": 2.0},
        {"partition_size": 0},
        {"actors": 0},
        {"cpus_per_actor": 0},
    ):
        with pytest.raises(InputError, match=next(iter(options))):
            tag_dataset(tmp_path, artifact, tmp_path / "out", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no image"):
        tag_dataset(tmp_path, artifact, tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(SinkError, match="file"):
        tag_dataset(tmp_path, artifact, tmp_path / "file")
    assert run(["tag", str(artifact), str(tmp_path), "--engine", "ray"]) == 1


def test_kills_at_random_and_every_image_once(artifact: Path, photos: Path, tmp_path: Path) -> None:
    """Each run starts a Ray that dies with it. ``PVP_FAST_KILLS=10`` for the long version."""
    out = tmp_path / "out"
    program = [sys.executable, "-c", "import pvp_fast.cli as c; c.main()"]
    line = ["tag", str(artifact), str(photos), "--engine", "ray", "--format", "parquet"]
    line += ["-o", str(out), "--partition-size", "5", "--actors", "2", "--batch-size", "4"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    chance = random.Random(int(os.environ.get("PVP_FAST_KILL_SEED", "0")))
    done: list[int] = []
    for _ in range(KILLS):
        before = len(list(out.glob("tags/part-*")))
        process = subprocess.Popen(
            [*program, *line], env=env, cwd=tmp_path, stderr=subprocess.DEVNULL
        )
        wanted = before + chance.randint(0 if any(done) else 1, 5)
        while process.poll() is None and len(list(out.glob("tags/part-*"))) < wanted:
            time.sleep(0.005)
        time.sleep(chance.random() * (0.2 if wanted > before else 8))
        process.send_signal(signal.SIGKILL)
        process.wait()
        done.append(len(list(out.glob("tags/part-*"))))
    assert any(done)
    final = subprocess.run(
        [*program, *line], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert final.returncode in (0, 3), final.stderr  # 0 where an earlier run met the bad files
    print(f"partitions after each kill: {done}\n{final.stderr}")
    assert every_image_once(out, photos)
    assert {Path(row["image"]).name for row in failures(out)} == {"empty.jpg", "text.jpg"}
    assert not (out / ".staging").exists()


@pytest.mark.usefixtures("cluster")
def test_an_image_that_kills_its_worker_is_given_up_and_the_rest_is_done(
    artifact: Path, photos: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "some", tmp_path / "out"
    folder.mkdir()
    for path in sorted(photos.glob("0*.jpg"))[:6]:
        shutil.copy(path, folder)
    found = sorted(folder.glob("*.jpg"))
    shutil.copy(found[0], folder / "00killer.jpg")
    shutil.copy(found[0], folder / "zkiller.jpg")
    (folder / "zero.jpg").write_bytes(b"")
    options: dict[str, Any] = {"partition_size": 5, "actors": 1, "batch_size": 1}
    report = tag_dataset(folder, artifact, out, **options)
    assert (report.images, report.failures) == (6, 3)
    assert every_image_once(out, folder)
    reasons = {Path(row["image"]).name: row["error"] for row in failures(out)}
    assert "ended its worker 2 times" in reasons["00killer.jpg"]
    assert "ended its worker 2 times" in reasons["zkiller.jpg"]
    assert "empty" in reasons["zero.jpg"]


@pytest.mark.usefixtures("cluster")
def test_workers_that_die_while_they_load_the_model_end_the_run(
    artifact: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(artifact, tmp_path / "killer")
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"4 workers died while they loaded .*killer.*--actors"):
        tag_dataset(next(photos.glob("0*.jpg")), tmp_path / "killer", out, actors=1)
    assert not (out / ".staging").exists()
    report = tag_dataset(next(photos.glob("0*.jpg")), artifact, out, actors=1)  # goes on
    assert report.images == 1


def test_a_setup_hook_that_fails_ends_the_run(
    artifact: Path, photos: Path, tmp_path: Path, ray_address: str
) -> None:
    def broken() -> None:
        raise ValueError("no such setup")

    stuck = pytest.raises(InputError, match=r"cannot start here: .*no such setup")
    with joined(ray_address, broken), stuck:
        tag_dataset(photos, artifact, tmp_path / "out")


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_failures_are_tried_again_and_replaced_photos_are_done_again(
    artifact: Path, photos: Path, tmp_path: Path, format: str
) -> None:
    folder, out = tmp_path / "some", tmp_path / "out"
    folder.mkdir()
    for path in sorted(photos.glob("0*.jpg"))[:5]:
        shutil.copy(path, folder)
    one, two, three, *_ = sorted(folder.glob("*.jpg"))
    good = one.read_bytes()
    one.write_bytes(b"")  # still being copied
    two.write_bytes(good[: len(good) // 2])
    options: dict[str, Any] = {"partition_size": 2, "actors": 1, "format": format, "threshold": 0.0}

    def names() -> list[str]:
        if format == "parquet":
            found = tags(out)
        else:
            files = sorted((out / "tags").glob("*.jsonl"))
            found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return sorted(Path(row["image"]).name for row in (*found, *failures(out)))

    everything = sorted(path.name for path in folder.glob("*.jpg"))
    first = tag_dataset(folder, artifact, out, **options)
    assert (first.images, first.failures) == (3, 2)
    assert names() == everything
    again = tag_dataset(folder, artifact, out, **options)  # one is empty still, two damaged
    assert (again.images, again.failures, again.skipped, again.failed_before) == (0, 1, 4, 1)
    assert names() == everything
    forced = tag_dataset(folder, artifact, out, **options, retry_failed=True)
    assert (forced.failures, forced.failed_before) == (2, 0)
    one.write_bytes(good)
    two.write_bytes(good)
    os.utime(three, (9, 9))
    mended = tag_dataset(f"{folder}/../some", artifact, out, **options)
    assert (mended.images, mended.failures, mended.skipped) == (3, 0, 2)
    assert names() == everything
    assert not failures(out)
    last = tag_dataset(folder, artifact, out, **options)
    assert (last.images, last.failures, last.skipped, last.partitions) == (0, 0, 5, 0)
