"""Files that are whole or absent, and paths that stay inside their root."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pvp_fast.errors import InputError
from pvp_fast.files import atomic_write, json_text, safe_join, sha256_file


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.txt"
    with atomic_write(path, "w") as stream:
        stream.write("old")

    def interrupted() -> None:
        with atomic_write(path, "w") as stream:
            stream.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("bad", ["../x", "/etc/passwd", "a/../../x", "link/x"])
def test_paths_do_not_leave_the_root(tmp_path: Path, bad: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="outside"):
        safe_join(root, bad)
    assert safe_join(root, "a/b") == root / "a" / "b"


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x").startswith("ba7816bf8f01cfea")


def test_json_has_null_where_a_number_is_not_finite() -> None:
    value = {"a": [1.5, math.nan], "b": {"c": (math.inf, -math.inf)}, "d": "NaN", "e": True}
    text = json_text(value, indent=1)

    def never(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(text, parse_constant=never)
    assert found == {"a": [1.5, None], "b": {"c": [None, None]}, "d": "NaN", "e": True}
    assert math.isnan(value["a"][1])  # the caller's own is as it was
