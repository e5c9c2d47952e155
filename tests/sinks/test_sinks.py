"""Sinks: what they write, what they skip, and what is left when a run is cut or a disk is full."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.waiting import PATIENCE

from pvp_fast.errors import InputError, SinkError
from pvp_fast.sinks import format_for, open_sink
from pvp_fast.sinks.captions import caption
from pvp_fast.tagging.tagger import Tag, TagResult

V1, V2 = "0123456789ab", "ba9876543210"


def image(key: str, *names: str, error: str | None = None) -> TagResult:
    return TagResult(key, tuple(Tag(n, 0.75, i) for i, n in enumerate(names)), error)


def images(count: int, start: int = 0) -> list[TagResult]:
    return [image(f"{i:05}.jpg", "dog", "cat") for i in range(start, start + count)]


def put(format: str, path: Path, results: list[TagResult], version: str = V1, **options) -> None:
    with open_sink(format, path, version, **options) as sink:
        for result in results:
            if not sink.has(result.image):
                assert sink.write(result) is None


def keys(format: str, path: Path) -> list[tuple[str, str]]:
    """(image, artifact) of everything in the output, once for each time it is there."""
    if format == "jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [(row["image"], row["artifact"]) for row in rows]
    if format == "csv":
        with path.open(newline="", encoding="utf-8") as stream:
            seen = [(row["image"], row["artifact"]) for row in csv.DictReader(stream)]
        return [pair for i, pair in enumerate(seen) if i == 0 or seen[i - 1] != pair]
    if format == "sqlite":
        database = sqlite3.connect(path)
        found = database.execute("SELECT image, artifact FROM images").fetchall()
        database.close()
        return found
    parquet = pytest.importorskip("pyarrow.parquet")
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    tables = [parquet.read_table(file).to_pylist() for file in files]
    return [(row["image"], row["artifact"]) for table in tables for row in table]


GROWING = ["jsonl", "csv", "parquet", "sqlite"]


@pytest.mark.parametrize("format", GROWING)
def test_what_is_there_is_skipped_and_nothing_is_there_twice(tmp_path: Path, format: str) -> None:
    path = tmp_path / "out"
    put(format, path, images(70), append=True)
    bad = image("bad\udcff.jpg", error="empty: zero bytes")
    put(format, path, [*images(80), bad, bad], append=True)
    found = keys(format, path)
    assert len(found) == len(set(found)) == 81
    put(format, path, images(3), V2, append=True)  # another artifact is another row
    assert len(keys(format, path)) == 84
    with open_sink(format, path, V1, append=True, dry_run=True) as sink:
        assert sink.has("00079.jpg")
        assert not sink.has(bad.image)  # it is tried again
        assert not sink.has("new.jpg")
        sink.write(image("new.jpg", "dog"))
    assert len(keys(format, path)) == 84


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_a_file_is_replaced_at_the_end_or_not_at_all(tmp_path: Path, format: str) -> None:
    path = tmp_path / "out"
    put(format, path, images(3))
    before = path.read_bytes()

    def interrupted() -> None:
        with open_sink(format, path, V1) as sink:
            for result in images(5000):
                sink.write(result)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    put(format, path, images(2, start=7))
    assert [key for key, _ in keys(format, path)] == ["00007.jpg", "00008.jpg"]


@pytest.mark.parametrize("format", GROWING)
def test_an_interrupted_run_that_appends_keeps_what_it_did(tmp_path: Path, format: str) -> None:
    def interrupted() -> None:
        with open_sink(format, tmp_path / "out", V1, append=True) as sink:
            for result in images(5):
                sink.write(result)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(keys(format, tmp_path / "out")) == 5


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_a_file_cut_anywhere_is_mended(tmp_path: Path, format: str) -> None:
    path = tmp_path / "out"
    results = [image("é,\n1.jpg", "dog", "cat"), image("2.jpg"), image("3.jpg", "a", "b", "c")]
    put(format, path, results, append=True)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        put(format, path, results, append=True)
        assert path.read_bytes() == whole, cut


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    for format, text in (("jsonl", '{"x": 1}\n'), ("csv", "a,b\n1,2\n"), ("sqlite", "no" * 999)):
        path = tmp_path / format
        path.write_text(text)
        with pytest.raises(SinkError, match=format):
            put(format, path, images(1), append=True)
        assert path.read_text() == text
    database = sqlite3.connect(tmp_path / "other.db")
    database.execute("CREATE TABLE tags (x)")
    database.commit()
    database.close()
    with pytest.raises(SinkError, match="another database"):
        put("sqlite", tmp_path / "other.db", images(1))
    with pytest.raises(InputError, match="folder"):
        put("parquet", tmp_path / "csv", images(1), append=True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(SinkError, match=r"x\.parquet"):
        put("parquet", tmp_path / "folder", images(1), append=True)


def test_a_format_that_cannot_go_there_is_refused() -> None:
    for format, append in (("parquet", False), ("sqlite", False), ("jsonl", True)):
        with pytest.raises(InputError, match="-o FILE"):
            open_sink(format, sys.stdout, V1, append=append)
    with pytest.raises(InputError, match="jsonl"):
        open_sink("table", "x", V1, append=True)
    with pytest.raises(InputError, match="jsonl"):
        open_sink("xml", sys.stdout, V1)


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_one_process_at_a_time_appends(tmp_path: Path, format: str) -> None:
    pytest.importorskip("fcntl")
    with open_sink(format, tmp_path / "out", V1, append=True) as sink:
        sink.write(image("1.jpg", "dog"))
        with pytest.raises(SinkError, match="another process"):
            put(format, tmp_path / "out", images(1), append=True)


WRITER = """
import sys
from pvp_fast.sinks import format_for, open_sink
from pvp_fast.tagging.tagger import Tag, TagResult
with open_sink("sqlite", sys.argv[1], "0123456789ab") as sink:
    for number in range(int(sys.argv[2]), int(sys.argv[3])):
        tags = (Tag("dog", 0.5, 0), Tag("cat", 0.25, 1))
        sink.write(TagResult(f"{number:05}.jpg", tags))
"""


def test_processes_append_to_one_database_at_once(tmp_path: Path) -> None:
    path = tmp_path / "tags.db"
    spans = [(0, 2000), (1000, 3000), (500, 2500)]  # what overlaps must be there once
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(a), str(b)], cwd=tmp_path)
        for a, b in spans
    ]
    assert [writer.wait(PATIENCE) for writer in writers] == [0, 0, 0]
    found = keys("sqlite", path)
    assert len(found) == len(set(found)) == 3000
    database = sqlite3.connect(path)
    counts = "SELECT count(*), min(rank), max(rank) FROM tags"
    assert database.execute(counts).fetchone() == (6000, 0, 1)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    assert [p.name for p in tmp_path.iterdir()] == ["tags.db"]  # no -wal or -shm stays


def test_a_second_write_replaces_the_tags_of_an_image(tmp_path: Path) -> None:
    path = tmp_path / "tags.db"
    with open_sink("sqlite", path, V1) as sink:
        sink.write(image("1.jpg", "dog", "cat", "car"))
        sink.write(image("1.jpg", "tree"))
    database = sqlite3.connect(path)
    assert database.execute("SELECT name, score FROM tags").fetchall() == [("tree", 0.75)]
    database.close()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))


@pytest.mark.parametrize("format", GROWING)
def test_a_full_disk_is_one_error_and_the_output_stays_whole(full_disk: Path, format: str) -> None:
    path = full_disk / "out"
    put(format, path, images(70), append=True)
    filler = full_disk / "filler"
    fill(filler)
    # Random names: Parquet would squeeze regular ones into what is left of a page.
    many = [image(os.urandom(30).hex(), "dog") for _ in range(5000)]
    with pytest.raises(SinkError, match=r"out.*(No space|full)"):
        put(format, path, many, append=True)
    assert not list(full_disk.rglob("*.tmp"))
    filler.unlink()  # SQLite needs a little room to read, too
    there = keys(format, path)
    assert {(r.image, V1) for r in images(70)} <= set(there)
    assert len(there) == len(set(there))
    put(format, path, many[:200], append=True)  # goes on as if nothing had been
    now = keys(format, path)
    assert {(r.image, V1) for r in many[:200]} <= set(now)
    assert len(now) == len(set(now))


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet", "xmp", "txt"])
def test_a_full_disk_leaves_no_new_file(full_disk: Path, format: str) -> None:
    name = "p" + "".join("." + "x" * 60 for _ in range(3))
    picture = full_disk / f"{name}.jpg"
    fill(picture)
    before = picture.stat()
    many = [image(str(picture), *(os.urandom(20).hex() for _ in range(40)))] * 200
    with pytest.raises(SinkError, match="No space"):
        put(format, full_disk / "out", many)
    assert [p.name for p in full_disk.iterdir()] == [picture.name]
    assert picture.stat().st_mtime_ns == before.st_mtime_ns


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "1.jpg").write_bytes(b"x")
    if os.name == "posix" and os.geteuid() == 0:  # root passes over modes, not over mounts
        bind = ["mount", "-t", "tmpfs", "tmpfs", str(folder)]
        if subprocess.run(bind, check=False).returncode:
            pytest.skip("root cannot mount here")
        (folder / "1.jpg").write_bytes(b"x")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
    else:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


@pytest.mark.parametrize("format", ["jsonl", "csv", "table", "parquet", "sqlite", "coco"])
@pytest.mark.parametrize("append", [False, True])
def test_a_read_only_folder_is_known_before_tagging(
    read_only: Path, format: str, append: bool
) -> None:
    if format == "table" and append:
        return
    with (
        pytest.raises(SinkError, match=r"locked.\.?out"),
        open_sink(format, read_only / "out", V1, append=append),
    ):
        pytest.fail("it opened")
    assert not (read_only / "out").exists()


@pytest.mark.parametrize("format", ["xmp", "txt"])
def test_a_read_only_folder_is_the_trouble_of_its_images(read_only: Path, format: str) -> None:
    with open_sink(format, sys.stdout, V1) as sink:
        reason = sink.write(image(str(read_only / "1.jpg"), "dog"))
    assert "cannot be written" in (reason or "")
    assert not (read_only / "1.jpg.xmp").exists()
    assert not list(read_only.glob("*.tmp"))


@pytest.mark.parametrize(
    ("old", "names", "new"),
    [
        ("", ["dog", "red, hat"], "dog, red hat\n"),
        ("A dog on a beach.\n", ["dog"], "A dog on a beach., dog\n"),
        ("Dog, tree,", ["dog", "cat"], "Dog, tree, cat"),
        ("\ufeffdog\r\nsecond\r\n", ["dog", "cat"], "\ufeffdog, cat\r\nsecond\r\n"),
    ],
)
def test_captions_keep_their_text_and_take_what_they_lack(
    old: str, names: list[str], new: str
) -> None:
    assert caption(old, names) == new
    assert caption(new, names) == new


def test_caption_files_and_those_that_cannot_be_read(tmp_path: Path) -> None:
    picture = tmp_path / "photo.jpg"
    for name in ("photo.jpg", "latin.jpg", "odd.txt", "new.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    with open_sink("txt", sys.stdout, V1) as sink:
        assert sink.write(image(str(picture), "dog", "cat")) is None
        assert "UTF-8" in (sink.write(image(str(tmp_path / "latin.jpg"), "dog")) or "")
        assert "image itself" in (sink.write(image(str(tmp_path / "odd.txt"), "dog")) or "")
    assert (tmp_path / "photo.txt").read_text() == "dog, cat\n"
    with open_sink("txt", sys.stdout, V1, dry_run=True) as sink:
        sink.write(image(str(picture), "tree"))
        sink.write(image(str(tmp_path / "new.jpg"), "tree"))
    assert (tmp_path / "photo.txt").read_text() == "dog, cat\n"
    assert not (tmp_path / "new.txt").exists()


def test_the_mode_of_a_file_that_is_replaced_stays(tmp_path: Path) -> None:
    path = tmp_path / "photo.txt"
    path.write_text("dog\n")
    (tmp_path / "photo.jpg").write_bytes(b"x")
    path.chmod(0o640)
    with open_sink("txt", sys.stdout, V1) as sink:
        sink.write(image(str(tmp_path / "photo.jpg"), "cat"))
    assert path.read_text() == "dog, cat\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_parquet_reads_back_with_its_types(tmp_path: Path) -> None:
    parquet: Callable[..., object] = pytest.importorskip("pyarrow.parquet").read_table
    put("parquet", tmp_path / "out", [image("1.jpg", "dog"), image("2.jpg", error="damaged")])
    table = parquet(tmp_path / "out")
    said = {"artifact": V1, "settings": "", "path": None, "size": None, "mtime_ns": None}
    assert table.to_pylist() == [  # type: ignore[attr-defined]
        {"image": "1.jpg", "tags": [{"name": "dog", "score": 0.75}], "error": None, **said},
        {"image": "2.jpg", "tags": [], "error": "damaged", **said},
    ]


@pytest.mark.parametrize(
    ("output", "format", "expected"),
    [
        (None, None, "jsonl"),
        ("tags", None, "jsonl"),
        ("tags.txt", None, "jsonl"),
        ("tags.csv", None, "csv"),
        ("Tags.CSV", None, "csv"),
        ("a.b/tags.ndjson", None, "jsonl"),
        ("tags.sqlite3", None, "sqlite"),
        ("folder.parquet/", None, "parquet"),
        ("tags.txt", "table", "table"),
        ("tags.csv", "csv", "csv"),
        ("tags", "parquet", "parquet"),
    ],
)
def test_the_ending_decides(output: str | None, format: str | None, expected: str) -> None:
    assert format_for(output, format) == expected


@pytest.mark.parametrize(
    ("output", "format", "what"),
    [
        ("tags.csv", "jsonl", "named as csv"),
        ("tags.db", "table", "named as sqlite"),
        ("tags.parquet", "csv", "named as parquet"),
        ("tags.JSONL", "parquet", "named as jsonl"),
        ("tags.tsv", None, r"\.tsv"),
        ("tags.csv.gz", "csv", r"\.gz"),
        ("tags.XLSX", None, r"\.xlsx"),
        ("photo.JPG", None, "name of an image"),
        ("photo.png", "jsonl", "name of an image"),
    ],
)
def test_an_ending_that_contradicts_is_refused(output: str, format: str | None, what: str) -> None:
    with pytest.raises(InputError, match=what):
        format_for(output, format)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("format", ["jsonl", "csv", "table", "parquet"])
def test_a_fifo_is_written_and_stays_one(tmp_path: Path, format: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with ThreadPoolExecutor(1) as reader:
        found = reader.submit(fifo.read_bytes)
        put(format, fifo, images(3))
        data = found.result(60)
    assert b"00002.jpg" in data
    assert fifo.is_fifo()
    if format != "table":
        (tmp_path / "copy").write_bytes(data)
        assert [key for key, _ in keys(format, tmp_path / "copy")] == [i.image for i in images(3)]
        with pytest.raises((InputError, SinkError), match="fifo"):
            put(format, fifo, images(3), append=True)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_a_share_without_locks_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, code: int
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    put(format, tmp_path / "out", images(3), append=True)
    assert len(keys(format, tmp_path / "out")) == 3


def test_a_table_shows_no_certainty(tmp_path: Path) -> None:
    tags = tuple(Tag(name, score, 0) for name, score in (("a", 1.0), ("b", 0.98), ("c", 0.0)))
    out = tmp_path / "table.txt"
    with open_sink("table", out, V1) as sink:
        sink.write(TagResult("x.jpg", tags))
    assert "a >0.99  b 0.98  c <0.01" in out.read_text("utf-8")
