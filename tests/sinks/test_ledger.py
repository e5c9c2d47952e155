"""Runs that go on: what is done again, what is not, and that each image is there once."""

from __future__ import annotations

import json
import os
import sqlite3
import tarfile
from pathlib import Path

import pytest

from pvp_fast.errors import InputError
from pvp_fast.sinks import open_sink
from pvp_fast.sinks.ledger import content_of, describe, is_lasting, place
from pvp_fast.tagging.tagger import Tag, TagResult

V1, V2 = "0123456789ab", "ba9876543210"
FIVE, THREE = describe(top_k=5, threshold="own"), describe(top_k=3, threshold="own")


@pytest.fixture(params=["jsonl", "csv", "parquet", "sqlite"])
def format(request: pytest.FixtureRequest) -> str:
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return str(request.param)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (folder / name).write_bytes(name.encode())
    return folder


def go(
    format: str, out: Path, images: list[str | Path], version: str = V1, tag: str = "dog", **options
) -> list[str]:
    """One run: the images it did. A file that starts with "!" fails with what follows."""
    done = []
    options = {"settings": FIVE, **options}
    with open_sink(format, out, version, append=True, **options) as sink:
        for path in map(str, images):
            if sink.has(path):
                continue
            done.append(Path(path).name)
            text = Path(path).read_text() if os.path.isfile(path) else "!no such file"
            error = text[1:] if text.startswith("!") else None
            sink.write(TagResult(path, () if error else (Tag(tag, 0.5, 0),), error))
        go.failed_before = sink.ledger.failed_before  # type: ignore[attr-defined, union-attr]
    return done


def rows(format: str, out: Path) -> dict[str, tuple[str | None, list[str]]]:
    """Name -> (error, tags); every image must be there once for each artifact."""
    found: list[tuple[str, str, str | None, list[str]]] = []
    if format == "jsonl":
        for row in map(json.loads, out.read_text().splitlines()):
            tags = [t["name"] for t in row["tags"]]
            found.append((row["image"], row["artifact"], row.get("error"), tags))
    elif format == "csv":
        import csv

        with out.open(newline="", encoding="utf-8") as stream:
            for line in csv.DictReader(stream):
                tags = [line["tag"]] if line["tag"] else []
                found.append((line["image"], line["artifact"], line["error"] or None, tags))
    elif format == "sqlite":
        database = sqlite3.connect(out)
        for image, by, error in database.execute("SELECT image, artifact, error FROM images"):
            query = "SELECT name FROM tags WHERE image = ? AND artifact = ?"
            tags = [name for (name,) in database.execute(query, (image, by))]
            found.append((image, by, error, tags))
        (orphans,) = database.execute(
            "SELECT count(*) FROM tags WHERE image NOT IN (SELECT image FROM images)"
        ).fetchone()
        assert orphans == 0
        database.close()
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        for file in out.glob("*.parquet"):
            for row in parquet.read_table(file).to_pylist():
                tags = [t["name"] for t in row["tags"]]
                found.append((row["image"], row["artifact"], row["error"], tags))
    names = [(place(image), by) for image, by, _, _ in found]
    assert len(names) == len(set(names)), names
    return {Path(image).name: (error, tags) for image, _, error, tags in found}


@pytest.mark.parametrize(
    "reason",
    [
        "cannot be read: Permission denied",
        "cannot be read: Transport endpoint is not connected",
        "no such file",
        "damaged: [Errno 5] Input/output error",
        "too large: 12000x9000 is over 89478485 pixels",
        "not an image of a known kind (JPEG)",
        "empty: zero bytes",
    ],
)
def test_a_failure_is_tried_again_and_its_row_replaced(
    format: str, photos: Path, tmp_path: Path, reason: str
) -> None:
    images: list[str | Path] = sorted(photos.iterdir())
    b = photos / "b.jpg"
    b.write_text(f"!{reason}")
    stamp = b.stat()
    out = tmp_path / "out"
    assert go(format, out, images) == ["a.jpg", "b.jpg", "c.jpg"]
    assert go(format, out, images) == ["b.jpg"]  # still so: one row
    assert rows(format, out)["b.jpg"] == (reason, [])
    b.write_text("x" * stamp.st_size)
    os.utime(b, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # size and time tell nothing
    assert go(format, out, images) == ["b.jpg"]
    assert rows(format, out) == dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), (None, ["dog"]))
    assert go(format, out, images) == []


def test_a_damaged_file_is_remembered_until_it_changes(
    format: str, photos: Path, tmp_path: Path
) -> None:
    images: list[str | Path] = sorted(photos.iterdir())
    b = photos / "b.jpg"
    b.write_text("!damaged: image file is truncated")
    out = tmp_path / "out"
    go(format, out, images)
    assert go(format, out, images) == []
    assert go.failed_before == 1  # type: ignore[attr-defined]
    assert go(format, out, images, retry_failed=True) == ["b.jpg"]
    os.utime(b, (1, 1))
    assert go(format, out, images) == ["b.jpg"]
    b.write_text("mended")
    assert go(format, out, images) == ["b.jpg"]
    assert rows(format, out)["b.jpg"] == (None, ["dog"])
    assert go.failed_before == 0  # type: ignore[attr-defined]


def test_what_is_copied_while_it_is_read_is_done_once_more(
    format: str, photos: Path, tmp_path: Path
) -> None:
    path, out = photos / "a.jpg", tmp_path / "out"
    with open_sink(format, out, V1, append=True, settings=FIVE) as sink:
        assert not sink.has(str(path))
        path.write_bytes(b"the rest has arrived")  # between has() and write(): after decoding
        sink.write(TagResult(str(path), (), "damaged: image file is truncated"))
    assert go(format, out, [path]) == ["a.jpg"]
    assert rows(format, out) == {"a.jpg": (None, ["dog"])}


@pytest.mark.parametrize("how", ["size", "time", "older", "link"])
def test_a_replaced_photo_is_done_again(
    format: str, photos: Path, tmp_path: Path, how: str
) -> None:
    images: list[str | Path] = sorted(photos.iterdir())
    out, b = tmp_path / "out", photos / "b.jpg"
    go(format, out, images)
    old = b.stat()
    if how == "size":
        b.write_bytes(b"another")
        os.utime(b, ns=(old.st_atime_ns, old.st_mtime_ns))
    elif how == "link":  # a link that leads to another file now, as git-annex has them
        (tmp_path / "store").write_bytes(b"other")
        os.utime(tmp_path / "store", (3, 3))
        b.unlink()
        b.symlink_to(tmp_path / "store")
    else:
        os.utime(b, ns=(0, old.st_mtime_ns + (1 if how == "time" else -(10**9))))
    assert go(format, out, images, tag="cat") == ["b.jpg"]
    assert rows(format, out) == {
        "a.jpg": (None, ["dog"]),
        "b.jpg": (None, ["cat"]),
        "c.jpg": (None, ["dog"]),
    }


def test_one_image_however_it_is_spelled(
    format: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    assert go(format, out, ["photos/a.jpg"]) == ["a.jpg"]
    (tmp_path / "other").symlink_to("photos")
    spellings = ["./photos/a.jpg", "photos/../photos//a.jpg", photos / "a.jpg", "other/a.jpg"]
    assert go(format, out, spellings) == []
    monkeypatch.chdir(photos)
    assert go(format, out, ["a.jpg"]) == []
    (photos / "a.jpg").write_bytes(b"another")  # a row under another spelling is replaced
    assert go(format, out, ["a.jpg"]) == ["a.jpg"]
    assert go(format, out, [photos / "a.jpg"]) == []
    assert len(rows(format, out)) == 1
    (photos / "link.jpg").symlink_to("a.jpg")  # links to files are images of their own
    assert go(format, out, ["link.jpg", "a.jpg"]) == ["link.jpg"]
    assert len(rows(format, out)) == 2


def test_a_photo_that_is_gone_stays_done(format: str, photos: Path, tmp_path: Path) -> None:
    images: list[str | Path] = sorted(photos.iterdir())
    out = tmp_path / "out"
    go(format, out, images)
    (photos / "b.jpg").rename(tmp_path / "away")
    assert go(format, out, images) == []
    photos.rename(tmp_path / "unmounted")
    assert go(format, out, images) == []
    assert set(rows(format, out)) == {"a.jpg", "b.jpg", "c.jpg"}


def test_other_settings_are_refused_or_redone(format: str, photos: Path, tmp_path: Path) -> None:
    images: list[str | Path] = sorted(photos.iterdir())
    out = tmp_path / "out"
    go(format, out, images)
    before = rows(format, out)
    for other in (THREE, describe(top_k=5, threshold=0.5), ""):
        with pytest.raises(InputError, match="--redo"):
            go(format, out, images, settings=other)
        with (
            pytest.raises(InputError, match="--redo"),
            open_sink(format, out, V1, append=True, dry_run=True, settings=other),
        ):
            pass
    assert rows(format, out) == before
    assert go(format, out, images[:1], settings=THREE, redo=True, tag="cat") == ["a.jpg"]
    assert go(format, out, images, settings=THREE, redo=True, tag="cat") == ["b.jpg", "c.jpg"]
    assert rows(format, out) == dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), (None, ["cat"]))
    assert go(format, out, images, settings=THREE) == []
    # Another artifact's rows are its own.
    assert go(format, out, images, V2, settings=FIVE) == ["a.jpg", "b.jpg", "c.jpg"]
    assert go(format, out, images, settings=THREE) == []


def test_a_run_killed_between_the_new_row_and_the_end_leaves_one_row(
    format: str, photos: Path, tmp_path: Path
) -> None:
    images: list[str | Path] = sorted(photos.iterdir())
    out = tmp_path / "out"
    (photos / "a.jpg").write_text("!no such file")
    go(format, out, images)
    (photos / "a.jpg").write_text("mended")

    def killed() -> None:
        with open_sink(format, out, V1, append=True, settings=FIVE) as sink:
            assert not sink.has(str(images[0]))
            sink.write(TagResult(str(images[0]), (Tag("dog", 0.5, 0),)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert go(format, out, images) == []
    assert rows(format, out) == dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), (None, ["dog"]))


def test_members_of_a_shard_are_done_again_when_the_shard_is_another(
    format: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, out = tmp_path / "s.tar", tmp_path / "out"
    with tarfile.open(shard, "w") as tar:
        tar.add(photos / "a.jpg", "sub/a.jpg")
    key = f"{shard}/sub/a"

    def once(name: str) -> bool:
        with open_sink(format, out, V1, append=True, settings=FIVE) as sink:
            if sink.has(name):
                return False
            sink.write(TagResult(name, (Tag("dog", 0.5, 0),)))
            return True

    assert once(key)
    assert not once(key)
    monkeypatch.chdir(tmp_path)
    assert not once("s.tar/sub/a")
    with tarfile.open(shard, "w") as tar:
        tar.add(photos / "b.jpg", "sub/a.jpg")
    os.utime(shard, (5, 5))
    assert once(key)
    assert len(rows(format, out)) == 1


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("container", ["shard", "folder"])
def test_what_had_failed_as_a_whole_is_forgotten_when_its_images_are_there(
    format: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    container: str,
    relative: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = Path("s.tar" if container == "shard" else "photos")
    if not relative:
        whole = tmp_path / whole
    inner = "photos/a" if container == "shard" else "a.jpg"
    if container == "shard":
        whole.write_bytes(b"cut")
    out = tmp_path / "out"

    def once(*keys: str, trouble: str | None = None) -> None:
        with open_sink(format, out, V1, append=True, settings=FIVE) as sink:
            for key in keys:
                if not sink.has(key):
                    error = trouble if key == str(whole) else None
                    sink.write(TagResult(key, () if error else (Tag("dog", 0.5, 0),), error))

    first = [f"{whole}/{inner}"] * (container == "shard")
    once(*first, str(whole), "b.jpg", trouble="truncated shard")
    assert rows(format, out)[whole.name][0] == "truncated shard"
    if container == "shard":
        once(f"{whole}/{inner}")  # a part of the same images, as with --shard: it is cut still
        assert rows(format, out)[whole.name][0] == "truncated shard"
        whole.write_bytes(b"cut elsewhere")
        once(f"{whole}/{inner}", str(whole), trouble="truncated shard")
        assert rows(format, out)[whole.name][0] == "truncated shard"
        whole.write_bytes(b"whole at last")
    once(f"{whole}/{inner}", "b.jpg")
    assert set(rows(format, out)) == {Path(inner).name, "b.jpg"}


def test_images_without_a_file_are_done_once(format: str, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def run(error: str | None) -> int:
        with open_sink(format, out, V1, append=True, settings=FIVE) as sink:
            wanted = [name for name in ("0", "row 1") if not sink.has(name)]
            for name in wanted:
                sink.write(TagResult(name, (), error))
            return len(wanted)

    assert [run("damaged: truncated"), run(None), run(None)] == [2, 2, 0]
    assert rows(format, out) == {"0": (None, []), "row 1": (None, [])}


def test_contents_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(b"12345")
    found = content_of("x")
    assert found is not None
    assert (found.path, found.size) == (f"{tmp_path.resolve()}/x", 5)
    assert found.mtime_ns == (tmp_path / "x").stat().st_mtime_ns
    assert content_of("x/inner/most") == (f"{tmp_path.resolve()}/x/inner/most", *found[1:])
    for none in ("", ".", "absent", "absent/x", "nul\0", "y" * 300):
        assert content_of(none) is None


def test_what_only_other_content_can_mend() -> None:
    assert is_lasting("damaged: broken data stream when reading image file")
    for passing in ("damaged: [Errno 116] Stale file handle", "cannot be read: x", "no such file"):
        assert not is_lasting(passing)
