"""Which files a folder, a glob and a list give, and what is passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvp_fast.errors import InputError
from pvp_fast.loaders.walk import find_images


def test_find_images_walks_in_order_and_does_not_follow_links(tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "b").mkdir(parents=True)
    outside = tmp_path / "out.png"
    for path in (root / "b" / "2.PNG", root / "1.jpg", root / "\u00fc.webp", outside):
        path.write_bytes(b"x")
    (root / "notes.txt").write_text("no image")
    (root / "link.png").symlink_to(outside)
    found = [p.relative_to(root).as_posix() for p in find_images([root])]
    assert found == ["1.jpg", "\u00fc.webp", "b/2.PNG"]
    assert [p.name for p in find_images([str(root / "*.jpg"), root / "notes.txt"])] == [
        "1.jpg",
        "notes.txt",
    ]
    with pytest.raises(InputError, match=r"none\.jpg"):
        list(find_images([root / "none.jpg"]))
