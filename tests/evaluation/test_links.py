"""Labelled sets whose photos are links into a store, as git-annex, DVC and hub caches keep them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.image_files import encoded, scene

from pvp_fast.errors import InputError
from pvp_fast.evaluation import read_dataset
from pvp_fast.report.gallery import locate


def labelled(root: Path, *names: str) -> None:
    root.mkdir()
    photos = {name: {"labels": ["dog"]} for name in names}
    (root / "labels.json").write_text(json.dumps({"categories": ["dog"], "photos": photos}))


def test_a_link_is_a_file_and_a_written_path_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "blob").write_bytes(encoded(scene(20, 20)))
    labelled(tmp_path / "set", "a.jpg", "deep/../b.jpg")
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "set" / name).symlink_to("../store/blob")
    found = read_dataset("folder", tmp_path / "set").paths
    assert [path.name for path in found] == ["a.jpg", "b.jpg"]
    assert all(path.is_file() for path in found)
    for number, bad in enumerate(("../store/blob", "/etc/passwd", "x/../../store/blob")):
        labelled(tmp_path / f"bad{number}", bad)
        with pytest.raises(InputError, match="outside"):
            read_dataset("folder", tmp_path / f"bad{number}")
        with pytest.raises(InputError, match="outside"):
            locate(bad, tmp_path / "set")
