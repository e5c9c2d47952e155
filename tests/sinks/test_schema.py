"""One result everywhere: ``TagResult``, JSON lines, Parquet, CSV, SQLite and the service agree."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pvp_fast.sinks import open_sink
from pvp_fast.tagging import SCHEMA_VERSION
from pvp_fast.tagging.schema import RESULT, TAG
from pvp_fast.tagging.tagger import Tag, TagResult

V1 = "0123456789ab"
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "other-tools.md"
RESULTS = [
    TagResult("a.jpg", (Tag("dog", 0.75, 0), Tag("Äpfel", 0.25, 4))),
    TagResult("none.jpg", ()),
    TagResult("bad.jpg", (), "damaged: cut"),
]
TYPES: dict[str, type | tuple[type, ...]] = {"string": str, "number": float, "null": type(None)}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value has the types of a schema; enough of JSON Schema for ours."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if kinds == ["array"]:
        return isinstance(value, list) and all(fits(item, schema["items"]) for item in value)
    if kinds == ["object"]:
        return set(value) == set(schema["properties"]) and all(
            fits(value[name], part) for name, part in schema["properties"].items()
        )
    return any(isinstance(value, TYPES[kind]) for kind in kinds)


def written(format: str, path: Path) -> Path:
    with open_sink(format, path, V1, settings="top_k=5") as sink:
        for result in RESULTS:
            assert sink.write(result) is None
    return path


def test_every_output_holds_the_same_result(tmp_path: Path) -> None:
    right = [result.to_dict() for result in RESULTS]
    assert all(fits(row, RESULT) for row in right)
    lines = written("jsonl", tmp_path / "a.jsonl").read_text().splitlines()
    rows = [{"error": None, **json.loads(line)} for line in lines]
    assert [{name: row[name] for name in RESULT["properties"]} for row in rows] == right
    assert {name for row in rows for name in row} == {*RESULT["required"], "artifact", "settings"}

    with sqlite3.connect(written("sqlite", tmp_path / "a.db")) as database:
        by_image = {row["image"]: row for row in right}
        for image, error in database.execute("SELECT image, error FROM images"):
            tags = database.execute(
                "SELECT name, score FROM tags WHERE image = ? ORDER BY rank", (image,)
            )
            found = [dict(zip(TAG["properties"], tag, strict=True)) for tag in tags]
            assert {"image": image, "tags": found, "error": error} == by_image.pop(image)
        assert not by_image
    database.close()

    with written("csv", tmp_path / "a.csv").open(encoding="utf-8", newline="") as stream:
        cells = [(r["image"], r["tag"], r["score"], r["error"]) for r in csv.DictReader(stream)]
    assert cells == [
        ("a.jpg", "dog", "0.750000", ""),
        ("a.jpg", "Äpfel", "0.250000", ""),
        ("none.jpg", "", "", ""),
        ("bad.jpg", "", "", "damaged: cut"),
    ]


def test_parquet_holds_it_and_says_its_version(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    with parquet.ParquetFile(written("parquet", tmp_path / "a.parquet")) as file:
        rows = file.read(columns=list(RESULT["properties"])).to_pylist()
        assert file.schema_arrow.metadata[b"pvp_fast.schema"] == str(SCHEMA_VERSION).encode()
    assert rows == [result.to_dict() for result in RESULTS]


def test_the_page_says_the_version_and_every_field() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"Version {SCHEMA_VERSION} of the result" in text
    for name in (*RESULT["properties"], "artifact", "settings", "path", "size", "mtime_ns"):
        assert f"`{name}`" in text
