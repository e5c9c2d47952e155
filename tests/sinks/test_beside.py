"""Files beside images while other programs, full folders and stopped runs are in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pvp_fast import files
from pvp_fast.cli import run
from pvp_fast.sinks import beside, open_sink
from pvp_fast.sinks.captions import RECORD
from pvp_fast.sinks.xmp_packet import merge, read_keywords
from pvp_fast.tagging.tagger import Tag, TagResult

V1 = "0123456789ab"
FORMATS = {"xmp": ".jpg.xmp", "txt": ".txt"}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photos" / "trip.jpg"
    path.parent.mkdir()
    Image.new("RGB", (8, 8)).save(path)
    return path


def result(photo: Path, *names: str) -> TagResult:
    return TagResult(str(photo), tuple(Tag(name, 0.5, n) for n, name in enumerate(names)))


def put(photo: Path, format: str, *names: str, **options: Any) -> str | None:
    with open_sink(format, sys.stdout, V1, **options) as sink:
        return sink.write(result(photo, *names))


def words(file: Path) -> list[str]:
    data = file.read_bytes()
    if file.suffix == ".xmp":
        return list(read_keywords(data)["dc:subject"])
    return [part.strip() for part in data.decode().split(",")]


def user_adds(file: Path, word: str) -> None:
    """What a photo manager or an editor does that knows nothing of us."""
    old = file.read_bytes() if file.exists() else None
    if file.suffix == ".xmp":
        other = merge(old, [word], "x").packet
        assert other is not None
        file.write_bytes(other)
    else:
        file.write_text(", ".join(filter(None, [(old or b"").decode().strip(), word])) + "\n")


def at_the_last_moment(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[int], object], times: int
) -> None:
    """Do something when our file is written and has not yet taken the place of the old one."""
    done = 0
    sync = files.sync_file

    def synced(descriptor: int) -> None:
        nonlocal done
        sync(descriptor)
        done += 1
        if done <= times:
            act(done)

    monkeypatch.setattr(files, "sync_file", synced)


@pytest.mark.parametrize("there", [True, False], ids=["changed", "made"])
@pytest.mark.parametrize("format", FORMATS)
def test_what_another_program_writes_meanwhile_is_kept(
    photo: Path, monkeypatch: pytest.MonkeyPatch, format: str, there: bool
) -> None:
    file = photo.with_suffix(FORMATS[format])
    if there:
        user_adds(file, "rome")
    at_the_last_moment(monkeypatch, lambda n: user_adds(file, "sunset"), times=1)
    assert put(photo, format, "dog", "cat") is None
    assert set(words(file)) == {"dog", "cat", "sunset", *(["rome"] if there else [])}


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_is_written_all_the_time_is_that_images_failure(
    photo: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    file = photo.with_suffix(FORMATS[format])
    at_the_last_moment(monkeypatch, lambda n: user_adds(file, f"word {n}"), times=99)
    told = put(photo, format, "dog") or ""
    assert told == f"{file.name} cannot be written: another program is writing it; run this again"
    assert words(file) == ["word 1", "word 2", "word 3"]
    monkeypatch.undo()
    assert put(photo, format, "dog") is None
    assert set(words(file)) == {"word 1", "word 2", "word 3", "dog"}


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_that_takes_no_file_is_told_in_a_dry_run_too(photo: Path, format: str) -> None:
    file = photo.with_suffix(FORMATS[format])
    # Root may write everywhere: without the right to, as anybody else.
    drop = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    if os.getuid() == 0 and subprocess.run([*drop, "true"], check=False).returncode:
        pytest.skip("root without setpriv")
    code = (
        "import sys\n"
        "from pvp_fast.sinks import open_sink\n"
        "from pvp_fast.tagging.tagger import Tag, TagResult\n"
        "for dry in (True, False):\n"
        f"    with open_sink({format!r}, sys.stdout, 'v', dry_run=dry, say=print) as sink:\n"
        f"        print(sink.write(TagResult({str(photo)!r}, (Tag('dog', 0.5, 0),))))\n"
    )
    photo.parent.chmod(0o555)
    try:
        line = [*(drop if os.getuid() == 0 else []), sys.executable, "-c", code]
        said = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    finally:
        photo.parent.chmod(0o755)
    assert (
        said.splitlines()
        == [f"{file.name} cannot be written: its folder cannot be written to here"] * 2
    )
    assert list(photo.parent.iterdir()) == [photo]


@pytest.mark.parametrize("written", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("old", [None, b"rome, sunset,\n"])
def test_a_caption_whose_run_was_stopped_is_still_taken_back(
    photo: Path, monkeypatch: pytest.MonkeyPatch, written: bool, old: bytes | None
) -> None:
    caption = photo.with_suffix(".txt")
    if old is not None:
        caption.write_bytes(old)
    real = beside.put

    def stopped(*arguments: Any) -> None:
        if written:
            real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(beside, "put", stopped)
        with pytest.raises(KeyboardInterrupt):
            put(photo, "txt", "dog", "cat")
    assert (b"dog" in (caption.read_bytes() if caption.exists() else b"")) is written
    assert run(["untag", str(photo.parent)]) == 0
    assert (caption.read_bytes() if caption.exists() else None) == old
    assert not (photo.parent / RECORD).exists()
    with monkeypatch.context() as patched:
        patched.setattr(beside, "put", stopped)
        with pytest.raises(KeyboardInterrupt):
            put(photo, "txt", "dog", "cat")
    # It is not done: the run that goes on writes what is missing.
    with open_sink("txt", sys.stdout, V1, append=True) as sink:
        assert not sink.has(str(photo))
        assert sink.write(result(photo, "dog", "cat")) is None
    assert set(words(caption)) >= {"dog", "cat"}
    assert run(["untag", str(photo.parent)]) == 0
    assert (caption.read_bytes() if caption.exists() else None) == old
    assert not (photo.parent / RECORD).exists()


def test_a_word_that_replace_took_out_is_the_users_when_he_writes_it(photo: Path) -> None:
    caption = photo.with_suffix(".txt")
    assert put(photo, "txt", "dog") is None
    assert put(photo, "txt", "cat", replace=True) is None
    caption.write_text("dog, cat\n")
    assert run(["untag", str(photo)]) == 0
    assert caption.read_text() == "dog\n"


def test_a_record_that_was_cut_off_costs_that_line_alone(photo: Path) -> None:
    record = photo.parent / RECORD
    other = photo.with_name("other.jpg")
    other.write_bytes(photo.read_bytes())
    assert put(photo, "txt", "dog") is None
    with record.open("ab") as stream:
        stream.write(b'{"file": "x.txt", "add')  # and no line break
    assert put(other, "txt", "cat") is None
    assert run(["untag", str(photo.parent)]) == 0
    assert sorted(photo.parent.iterdir()) == [other, photo]


@pytest.mark.parametrize("format", FORMATS)
def test_a_reader_that_goes_away_ends_a_dry_run(photo: Path, format: str) -> None:
    """pvp-fast tag … --dry-run | head: no image's failure."""

    def gone(line: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        put(photo, format, "dog", dry_run=True, say=gone)


def test_what_lies_beside_images_that_were_moved_is_taken_back(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photo.parent
    users = folder / "users.xmp"
    for name in ("moved.jpg", "renamed.jpg", "kept.png"):
        (folder / name).write_bytes(photo.read_bytes())
    sidecar = folder / "moved.jpg.xmp"
    for format in FORMATS:
        assert put(photo, format, "dog") is None
        assert put(folder / "kept.png", format, "dog") is None
        assert put(folder / "moved.jpg", format, "dog") is None
        assert put(folder / "renamed.jpg", format, "dog", "cat") is None
    mine = sidecar.read_bytes()
    sidecar.write_bytes(mine.replace(b"<rdf:li>dog", b"<rdf:li>rome</rdf:li><rdf:li>dog", 1))
    users.write_bytes(b"<broken")  # of another program, and none of ours in it
    (folder / "notes.txt").write_text("dog, cat")
    (folder / "moved.jpg").rename(folder.parent / "moved.jpg")
    (folder / "renamed.jpg").rename(folder / "RENAMED.JPG")
    assert run(["untag", str(folder), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert f"{sidecar} (changed)" in said.out.splitlines()
    assert "3 images looked at, 4 files of theirs would be changed, 4 without an image" in said.err
    assert run(["untag", str(folder)]) == 0
    assert "4 files of theirs changed, 4 without an image changed" in capsys.readouterr().err
    left = ["RENAMED.JPG", "kept.png", "moved.jpg.xmp", "notes.txt", "trip.jpg", "users.xmp"]
    assert sorted(path.name for path in folder.iterdir()) == left
    assert words(sidecar) == ["rome"]
    assert (folder / "notes.txt").read_text() == "dog, cat"
