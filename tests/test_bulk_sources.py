"""What a bulk run makes of a mixture of files, lists and shards, without a cluster."""

from __future__ import annotations

import json
import os
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.image_files import encoded, scene, write_shard
from support.killed_runs import tiny_artifact
from support.tiny import CLIP

from pvp_fast.artifact import Artifact
from pvp_fast.bulk import tag_dataset
from pvp_fast.bulk.partitions import Partition, cut, images_of
from pvp_fast.bulk.results import Done, claimed
from pvp_fast.bulk.run import left
from pvp_fast.bulk.worker import Actor, Job
from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import ImageError, InputError
from pvp_fast.loaders import FileSource, Search
from pvp_fast.loaders.passed import PassedOver
from pvp_fast.loaders.sources import open_source
from pvp_fast.pictures import open_image
from pvp_fast.pictures.settings import PictureSettings
from pvp_fast.sinks.ledger import Ledger, describe

PHOTO = encoded(scene(40, 30))
SETTINGS = {"artifact": "x", "top_k": 1, "format": "parquet"}


def planned(source: Any, size: int = 3, **search: Any) -> tuple[list[Partition], PassedOver]:
    passed = PassedOver()
    chosen = Search(**search)
    return list(cut(source, SETTINGS, size, lambda key, table: True, chosen, passed)), passed


@pytest.fixture
def mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "in"
    (root / "@eaDir").mkdir(parents=True)
    for name in ("a.jpg", "b.JPE", "c.svg", "d.mp4", ".e.jpg", "@eaDir/a.jpg"):
        (root / name).write_bytes(PHOTO)
    (root / "gone.jpg").symlink_to("nowhere")
    write_shard(root / "s.tar", {f"{n}.jpg": PHOTO for n in range(4)} | {"bad.jpg": b""})
    with tarfile.open(root / "z.TGZ", "w:gz") as tar:
        tar.add(root / "a.jpg", "x.y.jpg")
    monkeypatch.chdir(tmp_path)
    return root


def test_every_image_is_in_one_partition_and_the_rest_is_counted(mixture: Path) -> None:
    parts, passed = planned(["in", "in/a.jpg"])
    keys = [key for part in parts for key in part.keys]
    expected = [sample.key for sample in FileSource(["in"]).samples(None)]
    assert sorted(keys) == sorted(expected)
    assert all(len(part.keys) <= 3 for part in parts)
    assert str(passed) == "1 .svg, 1 hidden, 1 in thumbnail and recycle folders, 1 other files"
    assert len({part.id for part in parts}) == len(parts)
    read = failed = 0
    for part in parts:
        kept = Partition(**json.loads(json.dumps(asdict(part))))  # as a worker gets it
        for names, images in images_of(kept, 2):
            assert set(names) <= set(keys)
            for image in images:
                try:
                    open_image(image) if not isinstance(image, ImageError) else None
                    read, failed = read + 1, failed
                except ImageError:
                    failed += 1
    assert (read, failed) == (7, 2)  # the link that leads nowhere, the empty member
    assert read + failed == len(keys)
    again, _ = planned(["in"])
    assert [part.id for part in again] == [part.id for part in parts]


def test_a_search_counts_for_bulk_runs_too(mixture: Path) -> None:
    parts, passed = planned("in", exclude=("*.tar", "*.TGZ", "gone.*"))
    assert [part.keys for part in parts] == [["in/a.jpg", "in/b.JPE"]]
    assert passed.counts["excluded"] == 3


def test_parts_of_a_bulk_run_are_those_of_every_command(
    mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for number in (1, 2, 3):
        done = Done(tmp_path / f"out{number}", SETTINGS, Ledger(""))
        done.folder.joinpath("failures").mkdir(parents=True)
        parts, before = left("in", done, 3, None, (number, 3), PassedOver())
        assert before == 0
        found.append([key for part in parts for key in part.keys])
        alike = open_source("in", None, (number, 3)).samples(None)
        assert sorted(found[-1]) == sorted(sample.key for sample in alike)
    everything = [sample.key for sample in FileSource(["in"]).samples(None)]
    assert sorted(key for part in found for key in part) == sorted(everything)
    for wrong in ((0, 3), (4, 3)):
        with pytest.raises(InputError, match="shard"):
            tag_dataset("in", tmp_path, tmp_path / "out", part=wrong)


def test_images_in_shards_and_tables_that_were_mended_are_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their content is that of the file that they are in; the workers run in this process."""
    pytest.importorskip("ray")
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(Backbone, "load", lambda *_, **__: CLIP)
    artifact = tiny_artifact(tmp_path)
    version, pictures = Artifact.load(artifact).version, PictureSettings().to_dict()
    settings = {"artifact": version, "format": "parquet", "pictures": pictures}
    said = describe(top_k=5, **pictures)
    shard, table, out = tmp_path / "s.tar", tmp_path / "t.parquet", tmp_path / "out"
    good = [encoded(scene(40, 30, seed)) for seed in range(4)]

    def write(when: int, *data: bytes) -> None:
        write_shard(shard, {f"{n}.jpg": each for n, each in enumerate(data)})
        rows = {"image": [f"row {n}" for n in range(len(data))], "bytes": list(data)}
        parquet.write_table(pyarrow.table(rows), table)
        for file in (shard, table):
            os.utime(file, (when, when))

    def tag() -> list[int]:
        """Images, failures, what was done before, and of them failures."""
        with claimed(out, settings) as staging:
            done = Done(out, settings, Ledger(said))
            source = [str(shard), str(table)]
            parts, skipped = left(source, done, 2, None, None, PassedOver())
            job = Job(
                str(artifact), version, said, str(staging), "parquet", 5, 0.0, 1, "cpu", pictures, 1
            )
            counts = [0, 0]
            for part in parts:
                found = Actor(asdict(job))({"partition": [json.dumps(asdict(part))]})
                counts[0] += found["images"][0]
                counts[1] += found["failures"][0]
                done.replace(part, staging)
            return [*counts, skipped, done.ledger.failed_before]

    def tags() -> dict[str, Any]:
        files = (out / "tags").glob("*.parquet")
        rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
        found = {row["image"]: row["tags"] for row in rows}
        assert len(found) == len(rows)
        return found

    write(1, good[0], good[1][:500], good[2])
    assert tag() == [4, 2, 0, 0]
    before = tags()
    assert tag() == [0, 0, 6, 2]  # damaged, and as they were
    write(2, good[0], good[1], good[3])  # one mended and one replaced, of both
    assert tag() == [6, 0, 0, 0]
    assert not any((out / "failures").iterdir())
    after = tags()
    assert len(after) == 6
    for name, key in (("0", "row 0"), ("1", "row 1"), ("2", "row 2")):
        assert after[key] == after[f"{shard}/{name}"]
    assert after["row 0"] == before["row 0"]
    assert after["row 2"] != before["row 2"]
    assert tag() == [0, 0, 6, 0]
