"""Outputs of earlier versions: gone on with where that can be, and never half-written."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from pvp_fast.errors import InputError, SinkError
from pvp_fast.report.gallery import read_tags
from pvp_fast.sinks import open_sink
from pvp_fast.tagging.tagger import Tag, TagResult

V1, V2 = "0123456789ab", "ba9876543210"


def tag(out: Path, format: str, *images: str, **options: object) -> list[str]:
    """One run that goes on; the images it did."""
    done = []
    with open_sink(format, out, V1, append=True, settings="top_k=5", **options) as sink:
        for image in images:
            if not sink.has(image):
                done.append(image)
                sink.write(TagResult(image, (Tag("dog", 0.5, 0),)))
    return done


@pytest.mark.parametrize("name", ["key", "image"])
def test_lines_without_settings_are_kept_until_they_are_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for photo in ("a.jpg", "b.jpg"):
        (tmp_path / photo).write_bytes(b"x")
    old = [
        {name: "a.jpg", "tags": [{"name": "cat", "score": 0.9}], "artifact": V1},
        {name: str(tmp_path / "b.jpg"), "tags": [], "artifact": V1, "error": "damaged: cut"},
        {name: "gone.jpg", "tags": [], "artifact": V1},
        {name: "a.jpg", "tags": [], "artifact": V2},
    ]
    out = tmp_path / "tags.jsonl"
    out.write_text("".join(json.dumps(line) + "\n" for line in old))
    before = out.read_bytes()
    with pytest.raises(InputError, match="--redo"):
        tag(out, "jsonl", "a.jpg")
    assert out.read_bytes() == before
    with pytest.raises(InputError, match="--redo"):
        tag(out, "jsonl", "a.jpg", dry_run=True)
    assert [entry.name for entry in read_tags(out)] == [line[name] for line in old]
    # In other spellings, too, each is there once afterwards; what is gone and another's stay.
    assert tag(out, "jsonl", str(tmp_path / "a.jpg"), "./b.jpg", redo=True) == [
        str(tmp_path / "a.jpg"),
        "./b.jpg",
    ]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[:2] == old[2:]
    assert [row["image"] for row in rows[2:]] == [str(tmp_path / "a.jpg"), "./b.jpg"]
    assert [row["tags"][0]["name"] for row in rows[2:]] == ["dog", "dog"]
    assert tag(out, "jsonl", "a.jpg", "b.jpg", redo=True) == []
    assert len(out.read_text().splitlines()) == 4


def test_tables_of_other_columns_are_refused_and_stay(tmp_path: Path) -> None:
    out = tmp_path / "tags.csv"
    for first in ("image", "key"):
        out.write_text(f"{first},tag,score,error,tags,artifact\na.jpg,cat,0.9,,1,{V1}\n")
        before = out.read_bytes()
        for options in ({}, {"redo": True}, {"dry_run": True}):
            with pytest.raises(SinkError, match="another file"):
                tag(out, "csv", "a.jpg", **options)
            assert out.read_bytes() == before

    database = tmp_path / "tags.db"
    with sqlite3.connect(database) as made:
        made.execute("CREATE TABLE images (image TEXT, artifact TEXT, error TEXT)")
        made.execute("CREATE TABLE tags (image TEXT, artifact TEXT, rank INT, name TEXT, score)")
        made.execute("INSERT INTO images VALUES ('a.jpg', ?, NULL)", (V1,))
    made.close()
    for options in ({}, {"redo": True}, {"dry_run": True}):
        with pytest.raises(SinkError, match="another database"):
            tag(database, "sqlite", "a.jpg", **options)
        with sqlite3.connect(database) as read:
            assert read.execute("SELECT * FROM images").fetchall() == [("a.jpg", V1, None)]
            names = "SELECT name FROM sqlite_master WHERE type = 'index'"
            assert not read.execute(names).fetchall()
        read.close()


def test_parquet_of_other_columns_is_refused_and_stays(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "tags"
    folder.mkdir()
    file = folder / "part-00000001-0.parquet"
    parquet.write_table(arrow.table({"key": ["a.jpg"], "artifact": [V1]}), file)
    before = file.read_bytes()
    with pytest.raises(SinkError, match="another folder"):
        tag(folder, "parquet", "a.jpg", redo=True)
    assert [path.name for path in folder.iterdir()] == [file.name]
    assert file.read_bytes() == before
