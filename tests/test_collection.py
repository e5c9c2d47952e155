"""Runs over a mixed collection that are killed while it changes: what is there in the end.

The same at 10,000 files is ``benchmarks/collection.py``.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.collection import Collection
from support.killed_runs import tiny_artifact, trial

pytest.importorskip("simplejpeg", reason="finds damaged JPEG bodies")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and counts system calls")

HAS_DALI = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Collection]:
    folder = tmp_path_factory.mktemp("collection")
    return tiny_artifact(folder), Collection(folder / "photos", 150, seed=1)


@pytest.mark.parametrize(
    ("mode", "backend"),
    [
        ("jsonl", None),
        ("sqlite", None),
        ("embed", None),
        pytest.param("embed", "dali", marks=pytest.mark.skipif(not HAS_DALI, reason="DALI")),
    ],
)
def test_killed_and_gone_on_with_it_is_as_one_clean_run(
    made: tuple[Path, Collection], tmp_path: Path, mode: str, backend: str | None
) -> None:
    artifact, collection = made
    photos = collection.copy(tmp_path / "photos")
    found = trial(mode, artifact, tmp_path, photos, kills=3, backend=backend)
    assert found["faults"] == []
    assert found["equal_to_one_clean_run"]
    assert found["read"] + found["failed"] + found["passed_over"] == found["files_seen"]
    assert found["failed"] > 8
