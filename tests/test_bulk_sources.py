"""What a bulk run makes of a mixture of files, lists and shards, without a cluster."""

from __future__ import annotations

import json
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.image_files import encoded, scene, write_shard

from pvp_fast import bulk
from pvp_fast.errors import ImageError, InputError
from pvp_fast.loaders import FileSource, Search
from pvp_fast.loaders.passed import PassedOver
from pvp_fast.loaders.sources import open_source
from pvp_fast.pictures import open_image
from pvp_fast.sinks.ledger import Ledger

PHOTO = encoded(scene(40, 30))
SETTINGS = {"artifact": "x", "top_k": 1, "format": "parquet"}


def planned(source: Any, size: int = 3, **search: Any) -> tuple[list[bulk._Partition], PassedOver]:
    passed = PassedOver()
    chosen = Search(**search)
    return list(bulk._partitions(source, SETTINGS, size, lambda key: True, chosen, passed)), passed


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
        kept = bulk._Partition(**json.loads(json.dumps(asdict(part))))  # as a worker gets it
        for names, images in bulk._images(kept, 2):
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
        done = bulk._Done(tmp_path / f"out{number}", SETTINGS, Ledger(""))
        done.folder.joinpath("failures").mkdir(parents=True)
        parts, before = bulk._left("in", done, 3, None, (number, 3), PassedOver())
        assert before == 0
        found.append([key for part in parts for key in part.keys])
        alike = open_source("in", None, (number, 3)).samples(None)
        assert sorted(found[-1]) == sorted(sample.key for sample in alike)
    everything = [sample.key for sample in FileSource(["in"]).samples(None)]
    assert sorted(key for part in found for key in part) == sorted(everything)
    for wrong in ((0, 3), (4, 3)):
        with pytest.raises(InputError, match="shard"):
            bulk.tag_dataset("in", tmp_path, tmp_path / "out", part=wrong)
